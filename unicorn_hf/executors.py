"""Run a datatrove step over ranks: in this process, in several local processes, on Slurm, or on Ray."""

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
    """Run `step` once for each of `tasks` ranks, then the step `then` once.

    A finished rank leaves a marker in `logging_dir`; a second call runs only the ranks without a marker.

    Args:
        step, then: datatrove `PipelineStep`s; they are pickled, and get their `rank` and `world_size`.
        logging_dir: the folder of datatrove's logs and markers; on a cluster, all machines must share it.
        extra: the extra of this package that installs datatrove for the calling command.
        executor: "local" (a single task runs in this process), "slurm" or "ray".
        tasks: the number of ranks.
        workers: the number of ranks that run at the same time; -1 for all.
        options: further arguments of the datatrove executor. Slurm needs at least `partition` and `time`; options of
            `sbatch` itself are called `sbatch.NAME` (`sbatch.account`).

    Returns:
        True if everything has run, False if it is a job in Slurm's queue.

    Raises:
        InputError: the executor or one of its options is unknown, or ranks failed.
    """
    global _local_ranks_run
    check_executor(executor, tasks, extra)
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    options = dict(options or {})
    if executor == "slurm":  # the job calls datatrove's scripts, which are in the folder of this Python
        options.setdefault("env_command", f"export PATH={Path(sys.executable).parent}:$PATH")
        for_sbatch = {key: options.pop(key) for key in list(options) if key.startswith("sbatch.")}
        for_sbatch = {key.removeprefix("sbatch."): value for key, value in for_sbatch.items()}
        options["sbatch_args"] = (options.get("sbatch_args") or {}) | for_sbatch
    kind = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[executor]
    logging_dir = Path(logging_dir).absolute()  # a rank may run in another folder
    if executor == "local":
        step = _Quiet(step)
    try:
        first = kind([step], tasks=tasks, workers=workers, logging_dir=str(logging_dir / "ranks"), **options)
        # The last step also runs after failures ("afterany"): it checks for missing output itself.
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
                f"see the logs in {logging_dir}, then run the same command again to resume them"
            )
    return True


def check_executor(executor: str, tasks: int, extra: str) -> None:
    """Raise unless `executor` is known and installed, and `tasks` is positive."""
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor {executor!r}; expected one of {', '.join(EXECUTORS)}")
    if tasks < 1:
        raise InputError(f"tasks is {tasks}; expected 1 or more")
    require("datatrove", extra)
    if executor == "ray":
        require("ray", extra)


# True while datatrove's local executor runs. Its processes would wait forever if this process were killed, so each
# forked process checks this flag and asks the system to end it with its parent.
_local_ranks_run = False


def _end_with_parent() -> None:
    if _local_ranks_run and sys.platform.startswith("linux"):
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


os.register_at_fork(after_in_child=_end_with_parent)


class _Quiet:
    """A step that turns off datatrove's log in this process and in every process that unpickles it.

    A progress bar and one sentence are enough on a terminal.
    """

    def __init__(self, step):
        self.__setstate__({"step": step})

    def __setstate__(self, state: dict):
        from loguru import logger

        logger.disable("datatrove")
        self.step = state["step"]

    def __call__(self, data, rank: int, world_size: int):
        return self.step(data, rank, world_size)
