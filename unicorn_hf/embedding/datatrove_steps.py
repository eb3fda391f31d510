"""The embed step as datatrove steps: each rank embeds every n-th shard, a last step finishes the folder."""

from datatrove.pipeline.base import PipelineStep

from unicorn_hf.data.staging import lock


class EmbedShards(PipelineStep):
    """Embed a rank's shards of an `EmbeddingJob`."""

    name = "Embed shards"
    type = "Embedding"

    def __init__(self, job):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        self.job.run_rank(rank, world_size)


class FinishEmbedding(PipelineStep):
    """Turn the shards of an `EmbeddingJob` into its output folder."""

    name = "Finish the dataset"
    type = "Embedding"

    def __init__(self, job):
        super().__init__()
        self.job = job

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with lock(self.job.output):
            self.job.finish()
