"""Run recipes in parallel, in processes that share one import of torch, transformers and TRL."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

from unicorn_hf.data.staging import new_folder
from unicorn_hf.progress import progress_bar

NUM_PROCESSES = 3  # one more than the cores of a small machine, so that they stay busy to the end
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Keep freed memory of small tensors: returning it to the system after every step takes a seventh of the time.
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}


@dataclass(frozen=True)
class TrainingRun:
    """One run of `recipes/<stage>.py` with the demo's YAML; the folder `trained` appears only after it succeeded."""

    stage: str
    model: Path
    dataset: Path
    trained: Path
    dataset_config: str | None = None

    def train(self, max_steps: int, seed: int) -> None:
        """Train in this process, and redirect all its further output to `log.txt` in the run's folder.

        Raises:
            RuntimeError: the run failed; the message has the end of its log.
        """
        from unicorn_hf.training import FinetuneArguments, PretrainArguments, parse_options

        stage_arguments = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}[self.stage]
        recipe = import_module(f"unicorn_hf.recipes.{self.stage}")
        with new_folder(self.trained) as partial:
            arguments = [
                *("--config", str(files("unicorn_hf.recipes") / "demo" / f"{self.stage}.yaml")),
                *("--max_steps", str(max_steps), "--seed", str(seed), "--disable_tqdm", "true"),
                *("--model_name_or_path", str(self.model), "--dataset", str(self.dataset)),
                *("--output_dir", str(partial)),
                *(("--dataset_config", self.dataset_config) if self.dataset_config else ()),
            ]
            log = partial / "log.txt"
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                recipe.main(*parse_options(stage_arguments, arguments))
                sys.stdout.flush()
            except Exception as error:
                sys.stdout.flush()
                command = f"recipes/{self.stage}.py {' '.join(arguments)}"
                raise RuntimeError(f"{command} failed: {error}\n{log.read_text()[-3000:]}") from error


def train_all(chains: Sequence[Sequence[TrainingRun]], max_steps: int, seed: int) -> int:
    """Do all missing runs, those of a chain one after the other; returns their number."""
    runs = [run for chain in chains for run in chain]
    missing = [run for run in runs if not run.trained.exists()]
    with (
        patch.dict(os.environ, ENVIRONMENT),
        progress_bar(total=len(runs), initial=len(runs) - len(missing), desc="training", unit="run") as bar,
        ProcessPoolExecutor(NUM_PROCESSES, mp_context=_context()) as pool,
    ):

        def submit(chain: list[TrainingRun]) -> None:
            if chain:
                training[pool.submit(chain[0].train, max_steps, seed)] = chain[1:]

        training = {}
        for chain in chains:
            submit([run for run in chain if run in missing])
        while training:
            for ended in wait(training, return_when=FIRST_COMPLETED).done:
                ended.result()
                bar.update()
                submit(training.pop(ended))
    return len(missing)


def _context() -> multiprocessing.context.BaseContext:
    """Fork processes from one that has imported everything; on systems where forking is unsafe, start new ones."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unicorn_hf.recipes.pretrain", "unicorn_hf.recipes.finetune"])
    return context
