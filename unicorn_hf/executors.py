"""Runs a datatrove step over ranks: in this process, in processes of this machine, under Slurm, or on Ray."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Literal, get_args

from unicorn_hf.errors import InputError, require

ExecutorName = Literal["local", "slurm", "ray"]
EXECUTORS = get_args(ExecutorName)


def run_ranks(
    step,
    logging_dir,
    *,
    extra: str,
    executor: str = "local",
    tasks: int = 1,
    workers: int = -1,
    options: dict | None = None,
    then=None,
) -> bool:
    """Run `step` once for every rank of `tasks`, then the step `then` once.

    A rank that ended well leaves a marker in `logging_dir`, and a second call runs only the ranks that have none.

    Args:
        step, then: datatrove `PipelineStep`s; they are pickled, and get their `rank` and `world_size`.
        logging_dir: where datatrove keeps its logs and markers; for a cluster, a file system that all machines share.
        extra: the extra of this package that brings datatrove for the calling command.
        executor: "local" (with one task in this very process), "slurm" or "ray".
        tasks: the number of ranks.
        workers: how many ranks run at a time; -1 for all.
        options: further arguments of the datatrove executor: for Slurm at least `partition` and `time`, and as
            `sbatch.NAME` what `sbatch` itself takes (`sbatch.account`).

    Returns:
        whether everything has run; False says that it is a job now, in Slurm's queue.

    Raises:
        InputError: unknown executor, options that it does not take, or ranks that did not end well.
    """
    global _local_ranks_run
    check_executor(executor, tasks, extra)
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    options = dict(options or {})
    if executor == "slurm":  # the job calls datatrove's scripts, which lie beside this Python
        options.setdefault("env_command", f"export PATH={Path(sys.executable).parent}:$PATH")
        for_sbatch = {key: options.pop(key) for key in list(options) if key.startswith("sbatch.")}
        for_sbatch = {key.removeprefix("sbatch."): value for key, value in for_sbatch.items()}
        options["sbatch_args"] = (options.get("sbatch_args") or {}) | for_sbatch
    kind = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[executor]
    logging_dir = Path(logging_dir).absolute()  # a rank may run elsewhere
    if executor == "local":
        step = _Quiet(step)
    try:
        first = kind([step], tasks=tasks, workers=workers, logging_dir=str(logging_dir / "ranks"), **options)
        # "afterany": the last step counts what is there, and says itself what is missing.
        after = {"depends": first, "run_on_dependency_fail": True} if executor == "slurm" else {}
        last = then and kind([then], tasks=1, logging_dir=str(logging_dir / "last"), **after, **options)
    except TypeError as error:
        raise InputError(
            f"executor {executor}: {error}; name its options as datatrove's {kind.__name__} does"
        ) from None
    if executor == "slurm":
        (last or first).run()
        return False
    if executor == "ray":
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
    for stage in filter(None, (first, last)):
        _local_ranks_run = executor == "local"
        try:
            stage.run()
        finally:
            _local_ranks_run = False
        # Ray's executor only logs the failure of a rank.
        if missing := stage.get_incomplete_ranks(skip_completed=True):
            raise InputError(
                f"{len(missing)} of {stage.world_size} ranks failed ({', '.join(map(str, missing[:5]))} …); "
                f"{logging_dir}: see the logs there, then run the same command again: it goes on where they stopped"
            )
    return True


def check_executor(executor: str, tasks: int, extra: str) -> None:
    """Raise unless `executor` is known, installed, and `tasks` is positive."""
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor {executor!r}; expected one of {', '.join(EXECUTORS)}")
    if tasks < 1:
        raise InputError(f"tasks is {tasks}; expected 1 or more")
    require("datatrove", extra)
    if executor == "ray":
        require("ray", extra)


# datatrove's local executor starts processes of its own, its queue's among them, which would wait for good where we are
# killed. A forked process looks here whether it is one of them.
_local_ranks_run = False


def _end_with_parent() -> None:
    if _local_ranks_run and sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


os.register_at_fork(after_in_child=_end_with_parent)


class _Quiet:
    """A step that switches datatrove's log off where it is, and in every process to which it is sent.

    One progress bar and one sentence are enough on a terminal.
    """

    def __init__(self, step):
        self.__setstate__({"step": step})

    def __setstate__(self, state: dict):
        from loguru import logger

        logger.disable("datatrove")
        self.step = state["step"]

    def __call__(self, data, rank: int, world_size: int):
        return self.step(data, rank, world_size)
