"""Recipes run as the commands of a user, in processes that are forked from one that has imported TRL already."""

import errno
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import Trainer
from trl import SFTTrainer  # noqa: F401  (imported once, here)

import unicorn_hf.training.trainer  # noqa: F401  (the same)

RECIPES = Path(__file__).parents[2] / "recipes"
TIME_LIMIT = 600


def run_recipe(stage, arguments, log, *, num_processes=1, environment=None, fault=None):
    """Run a recipe to its end; the exit status of each process. What they print is in the file `log`.

    Args:
        fault: `(kind, step)`: what happens halfway through the checkpoint of a step, "SIGKILL" or "disk full".
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recipe_runs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(num_processes):
        variables = dict(environment or {})
        if num_processes > 1:  # as torchrun sets them
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
        words = [str(RECIPES / f"{stage}.py"), *map(str, arguments)]
        processes.append(context.Process(target=_run, args=(words, str(log), variables, fault)))
        processes[-1].start()
    try:
        for process in processes:
            process.join(TIME_LIMIT)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def losses(output_dir) -> dict[int, float]:
    """Step -> loss, of the last checkpoint's log."""
    last = max(Path(output_dir).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def _run(words, log, variables, fault):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(variables)
    sys.argv = words
    if fault is not None:
        _break_checkpoint(*fault)
    if "ACCELERATE_USE_FSDP" in variables:
        _shard_on_cpus()
    runpy.run_path(words[0], run_name="__main__")
    if "ACCELERATE_USE_FSDP" in variables:
        print("trained as", AcceleratorState().distributed_type)


def _shard_on_cpus() -> None:
    """accelerate shards on GPUs and their like, and ignores its FSDP settings on CPUs: let it take these for GPUs."""
    init = AcceleratorState.__init__

    def init_as_on_gpus(state, *args, **kwargs):
        if PartialState(cpu=True).distributed_type == DistributedType.MULTI_CPU:  # it is called more than once
            PartialState().distributed_type = DistributedType.MULTI_GPU
        init(state, *args, **kwargs)

    AcceleratorState.__init__ = init_as_on_gpus


def _break_checkpoint(kind: str, step: int) -> None:
    save = Trainer._save_optimizer_and_scheduler

    def break_or_save(trainer, output_dir):
        if trainer.state.global_step != step:
            return save(trainer, output_dir)
        torch.save({}, os.path.join(output_dir, "optimizer.pt"))
        if kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Trainer._save_optimizer_and_scheduler = break_or_save
