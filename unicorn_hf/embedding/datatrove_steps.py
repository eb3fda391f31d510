"""The embed step as datatrove sees it: each rank takes every n-th shard; one more step makes the folder whole."""

from datatrove.pipeline.base import PipelineStep

from unicorn_hf.data.staging import lock
from unicorn_hf.embedding.job import EmbeddingJob


class EmbedShards(PipelineStep):
    name = "Embed shards"
    type = "Embedding"

    def __init__(self, job: EmbeddingJob):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        self.job.run_rank(rank, world_size)


class FinishEmbedding(PipelineStep):
    name = "Finish the dataset"
    type = "Embedding"

    def __init__(self, job: EmbeddingJob):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with lock(self.job.output):
            self.job.finish()
