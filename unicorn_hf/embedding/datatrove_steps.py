"""The embed step as datatrove sees it: each rank takes every n-th shard; one more step makes the folder whole."""

from datatrove.pipeline.base import PipelineStep

from unicorn_hf.data.staging import lock


class EmbedShards(PipelineStep):
    """Embeds a rank's shards of an `EmbeddingJob`."""

    name = "Embed shards"
    type = "Embedding"

    def __init__(self, job):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        self.job.run_rank(rank, world_size)


class FinishEmbedding(PipelineStep):
    """Makes the shards of an `EmbeddingJob` its output folder."""

    name = "Finish the dataset"
    type = "Embedding"

    def __init__(self, job):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with lock(self.job.output):
            self.job.finish()
