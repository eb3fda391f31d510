"""TRL's `SFTTrainer`, with what a run of days needs."""

import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.data import RandomSampler
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from trl import SFTTrainer

from unicorn_hf.errors import InputError
from unicorn_hf.training.batching import LengthGroupedSampler
from unicorn_hf.training.dry_run import dry_run_report
from unicorn_hf.training.model_card import trained_model_card


class UnicornTrainer(SFTTrainer):
    """`SFTTrainer` for both stages.

    * A loss that is not finite ends the run with the ids of its batch (`ids` of the batch, where the data have them).
    * A checkpoint, and the model in the end, appear when they are whole; until then nothing older is removed.
    * The projector may have a learning rate of its own (Unicorn's LoRA recipe).
    * `train_sampling_strategy="group_by_length"` goes by the column `length`. Flattened batches are drawn at random all
      the same: they have no padding to save, and are then of one size.
    * The logs have `data_wait`, the share of the time since the last log that the loop waited for a batch.
    * `create_model_card` says what was trained on what, how, and how the loss went.

    Args:
        data_args: the recipe's `DataArguments`, for the card and for `projector_learning_rate`.

    The others as in `SFTTrainer`.
    """

    def __init__(self, *args, data_args, **kwargs):
        self.data_args = data_args
        self._ids_of_step: list[str] = []
        self._partial: Path | None = None
        self._waited, self._last_log = 0.0, None
        if kwargs["args"].max_steps == 0:  # a dry run leaves nothing behind, not even the folder that Trainer makes
            self._nowhere = tempfile.TemporaryDirectory()
            kwargs["args"].output_dir = self._nowhere.name
        super().__init__(*args, **kwargs)
        if not self.is_deepspeed_enabled:  # which keeps weights in float32 by itself
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and "multi_modal_projector" in name:
                    parameter.data = parameter.data.float()  # bfloat16 would round small updates away

    def dry_run(self) -> None:
        """Print what training would do: the data, the steps, the memory; nothing is trained or written."""
        report = dry_run_report(self)
        if self.is_world_process_zero():
            print(report)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As in `Trainer`; "true" is the last checkpoint or, where there is none, the beginning.

        So a job that is queued again runs the command of its first start.
        """
        value = str(resume_from_checkpoint).lower()
        if value in ("true", "false", "none"):
            last = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
            resume_from_checkpoint = last if value == "true" else None
        elif not Path(resume_from_checkpoint, "trainer_state.json").is_file():
            raise InputError(
                f"{resume_from_checkpoint}: is not a checkpoint (it has no trainer_state.json); name a folder "
                "checkpoint-N of an output_dir, or say true for the last one"
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def create_optimizer(self, model=None):
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        learning_rate = getattr(self.data_args, "projector_learning_rate", None)
        if not new or learning_rate is None:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        projector = {id(parameter) for name, parameter in named if "multi_modal_projector" in name}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in projector]
            if moved:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in projector]
                optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})
        return optimizer

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        if self.data_collator.padding_free:
            return RandomSampler(dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(dataset["length"][:], batch_size, seed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self._last_log is None:
            self._last_log = time.perf_counter()
        return super().get_batch_samples(self._timed(epoch_iterator), num_batches, device)

    def _timed(self, batches: Iterator) -> Iterator:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def log(self, logs, start_time=None):
        if self._last_log is not None and "loss" in logs:
            now = time.perf_counter()
            logs["data_wait"] = self._waited / (now - self._last_log)
            self._waited, self._last_log = 0.0, now
        super().log(logs, start_time)

    def compute_loss(self, model, inputs, *args, **kwargs):
        ids = [str(each) for each in inputs.pop("ids", [])]
        self._ids_of_step += ids
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        except ValueError as error:  # a vector that is not finite, images that do not match their placeholders
            raise InputError(f"Step {self.state.global_step + 1}: {error}; {_batch(ids)}") from error
        if not torch.isfinite(loss).all():
            raise InputError(self._not_finite("loss", loss.item(), ids))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # Checked here too, or the next batch, which is innocent, would be named. A scaler skips such steps by itself.
        if self.accelerator.scaler is None and not math.isfinite(grad_norm):
            raise InputError(self._not_finite("norm of the gradients", float(grad_norm), self._ids_of_step))
        self._ids_of_step = []
        return grad_norm

    def _not_finite(self, what: str, value: float, ids: list[str]) -> str:
        return (
            f"Step {self.state.global_step + 1}: the {what} is {value}; {_batch(ids)}; look at these rows, or lower "
            f"the learning rate (now {self._get_learning_rate():.3g})"
        )

    def save_model(self, output_dir=None, _internal_call=False):
        if _internal_call:  # a part of a checkpoint
            super().save_model(output_dir, _internal_call=True)
            return
        with self._saved_whole(Path(output_dir or self.args.output_dir), "the model") as partial:
            super().save_model(str(partial), _internal_call=True)
        self.create_model_card()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_checkpoint(self, model, trial):
        name = f"checkpoint-{self.state.global_step}"
        with self._saved_whole(Path(self.args.output_dir), name) as self._partial:
            super()._save_checkpoint(model, trial)
        self._partial = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(Path(self.args.output_dir, name)))
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(self.args.output_dir, limit, best, use_mtime=True)

    # While a checkpoint is being saved, it goes elsewhere, is not pushed yet, and is alone, so that none is removed.

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._partial is None else str(self._partial)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._partial is None:
            super()._push_from_checkpoint(checkpoint_folder)

    @contextlib.contextmanager
    def _saved_whole(self, output_dir: Path, what: str) -> Iterator[Path]:
        """A folder whose content moves to `output_dir` when every process has ended the block well."""
        partial = output_dir / "_partial"  # an underscore keeps it from being pushed
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            free = shutil.disk_usage(output_dir).free / 1e9
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(
                f"{output_dir}: {what} could not be saved ({reason}; {free:.2g} GB free); earlier checkpoints are "
                "whole: make room, and run the same with --resume_from_checkpoint true"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(output_dir / path.name, ignore_errors=True)
                path.replace(output_dir / path.name)
            partial.rmdir()
        self.accelerator.wait_for_everyone()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write `README.md` into `output_dir`."""
        if self.is_world_process_zero():
            card = trained_model_card(self.model, self.args, self.data_args, self.state, self.accelerator.num_processes)
            path = Path(self.args.output_dir, "README.md")
            partial = path.with_name("_README.md")
            partial.write_text(str(card), encoding="utf-8")
            partial.replace(path)


def check_trackers(report_to: list[str]) -> None:
    """Raise `InputError` unless every tracker of `SFTConfig.report_to` is installed."""
    installed = get_available_reporting_integrations()
    for name in report_to:
        if name not in installed:
            raise InputError(
                f"report_to: {name!r} is not installed, or no tracker: pip install {name}, or choose among those that "
                f"are here ({', '.join(installed) or 'none'})"
            )


def _batch(ids: list[str]) -> str:
    return f"the batch's ids are {', '.join(ids)}" if ids else "the data have no column 'id' that would name the rows"
