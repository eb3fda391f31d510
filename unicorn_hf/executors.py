"""Runs a datatrove step over ranks: in this process, in processes of this machine, under Slurm, or on Ray."""

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

from unicorn_hf.errors import InputError, require

EXECUTORS = ("local", "slurm", "ray")


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
        options: further arguments of the datatrove executor: for Slurm at least `partition` and `time`.

    Returns:
        whether everything has run; False says that it is a job now, in Slurm's queue.

    Raises:
        InputError: unknown executor, options that it does not take, or ranks that did not end well.
    """
    check_executor(executor, tasks, extra)
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    options = dict(options or {})
    if executor == "slurm":  # the job calls datatrove's scripts, which lie beside this Python
        options.setdefault("env_command", f"export PATH={Path(sys.executable).parent}:$PATH")
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
        with _manager_that_ends_with_us() if executor == "local" else contextlib.nullcontext():
            stage.run()
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


@contextlib.contextmanager
def _manager_that_ends_with_us():
    """datatrove's local executor keeps its queue in a manager's process, which waits for good where we are killed."""
    import multiprocess
    from multiprocess.managers import SyncManager

    def start() -> SyncManager:
        manager = SyncManager()
        manager.start(initializer=_end_with_parent)
        return manager

    ordinary, multiprocess.Manager = multiprocess.Manager, start
    try:
        yield
    finally:
        multiprocess.Manager = ordinary


def _end_with_parent() -> None:
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


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
