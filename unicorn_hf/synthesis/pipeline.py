"""The synthesis as datatrove steps: every rank answers its own shard, and a last step writes the dataset."""

import asyncio

from datatrove.pipeline.base import PipelineStep

from unicorn_hf.data.staging import lock
from unicorn_hf.synthesis.answer_loop import answer_rank
from unicorn_hf.synthesis.dataset_writer import write_answers
from unicorn_hf.synthesis.work_folder import WorkFolder


class AnswerRequests(PipelineStep):
    """Answers the requests of a rank's shard of a `WorkFolder`, and keeps them in the rank's journal.

    Args:
        budget: money for all ranks together; a rank may spend its shard's share.
    """

    name = "Answer requests"
    type = "Synthesis"

    def __init__(self, stage, writer, work: WorkFolder, budget: float | None = None):
        super().__init__()
        self.stage, self.writer, self.work, self.budget = stage, writer, work, budget

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        shards = self.work.plan()["shards"]
        share = None if self.budget is None else self.budget * shards[rank] / sum(shards)
        asyncio.run(answer_rank(self.stage, self.writer, self.work, rank, share))


class WriteDataset(PipelineStep):
    """Writes one dataset from the journals of all ranks (options: see `write_answers`). Slurm runs it as a job."""

    name = "Write dataset"
    type = "Synthesis"

    def __init__(self, stage, work: WorkFolder, **options):
        super().__init__()
        self.stage, self.work, self.options = stage, work, options

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with lock(self.work.output):
            write_answers(self.stage, self.work, **self.options)
