"""TRL's `SFTTrainer` and `DPOTrainer`, with what a run of days needs."""

import json
import logging
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import DPOTrainer, SFTTrainer

from unicorn_hf.data.staging import sync, sync_tree, write_text
from unicorn_hf.errors import DISK_FULL, InputError
from unicorn_hf.training.batching import EndlessStream, LengthGroupedSampler
from unicorn_hf.training.dry_run import dry_run_report
from unicorn_hf.training.model_card import trained_model_card

logger = logging.getLogger(__name__)


class StageTrainer(Trainer):
    """What the stages have in common; in front of TRL's trainer among the bases of theirs.

    * A loss that is not finite ends the run; the message has the ids of the batch, if the data have ids.
    * The model's files appear only when they are complete, and a run resumes from the last complete checkpoint.
    * The projector can have its own learning rate (Unicorn's LoRA recipe).
    * `train_sampling_strategy="group_by_length"` uses the column `length`. Flattened batches are still drawn at random:
      they have no padding to save, and so all have the same size.
    * The logs have `data_wait`, the share of time since the last log in which the loop waited for a batch.
    * `create_model_card` describes the data, the settings and the loss.

    Args:
        data_args: the recipe's `DataArguments`, for the card and for `projector_learning_rate`.

    All other arguments are those of `SFTTrainer`.
    """

    def __init__(self, *args, data_args, **kwargs):
        self.data_args = data_args
        self.ids_of_step: list[str] = []  # the ids of the batches since the last optimizer step
        self._waited, self._last_log = 0.0, None
        if kwargs["args"].max_steps == 0:  # a dry run leaves no files, not even the folder that Trainer creates
            self._nowhere = tempfile.TemporaryDirectory()
            kwargs["args"].output_dir = self._nowhere.name
        if kwargs["data_collator"].padding_free and kwargs["args"].train_sampling_strategy == "group_by_length":
            kwargs["args"].train_sampling_strategy = "random"  # there is no padding to save
        # Older checkpoints go when the new one is on the disk, and not, as in `Trainer`, before.
        self.num_checkpoints, kwargs["args"].save_total_limit = kwargs["args"].save_total_limit, None
        super().__init__(*args, **kwargs)
        self.add_callback(EndedRun())
        self.add_callback(FiniteGradients(self))
        self.add_callback(DurableCheckpoints(self))
        self._keep_projector_in_float32(self.model)

    def dry_run(self) -> None:
        """Print the data, the steps and the memory of the training; train and write nothing."""
        report = dry_run_report(self)
        if self.is_world_process_zero():
            print(report)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As in `Trainer`, but "true" means the last checkpoint, or the beginning if there is none.

        So a requeued job can use the command of its first start.
        """
        value = str(resume_from_checkpoint).lower()
        if value in ("true", "false", "none"):
            last = last_whole_checkpoint(self.args.output_dir)
            resume_from_checkpoint = last if value == "true" else None
        elif not Path(resume_from_checkpoint, "trainer_state.json").is_file():
            raise InputError(
                f"{resume_from_checkpoint}: is not a checkpoint (it has no trainer_state.json); name a folder "
                "checkpoint-N of an output_dir, or true for the last one"
            )
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except _NothingLeft:
            logger.warning("%s is the end of the run: nothing is left to train", resume_from_checkpoint)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_failed_writing(error):
                raise
            raise InputError(self._not_saved(error)) from error

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

    def get_train_dataloader(self):
        dataset, sampler, args = self.train_dataset, None, self.args
        if not hasattr(dataset, "__len__"):
            dataset = EndlessStream(dataset)
        elif args.train_sampling_strategy == "group_by_length":
            batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler = LengthGroupedSampler(dataset["length"][:], batch_size, seed)
        else:
            return super().get_train_dataloader()
        dataloader = DataLoader(
            dataset,
            batch_size=args.train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(dataloader)

    def _not_saved(self, error: Exception) -> str:
        checkpoint = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        free = shutil.disk_usage(self.args.output_dir).free / 1e9
        if self.args.should_save and not is_whole(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
        return (
            f"{self.args.output_dir}: {checkpoint.name} could not be saved ({str(error).splitlines()[0]}; {free:.2g} GB"
            " free); earlier checkpoints are intact: make room, and resume with --resume_from_checkpoint true"
        )

    def _keep_projector_in_float32(self, model) -> None:
        """Where it is trained: bfloat16 would round small updates away."""
        if not self.is_deepspeed_enabled:  # DeepSpeed itself keeps float32 copies of the weights
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "multi_modal_projector" in name:
                    parameter.data = parameter.data.float()

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
        self.ids_of_step += ids
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        except ValueError as error:  # a vector that is not finite, images that do not match their placeholders
            raise InputError(f"Step {self.state.global_step + 1}: {error}; {_batch(ids)}") from error
        if not torch.isfinite(loss).all():
            raise InputError(self.not_finite("loss", loss.item(), ids))
        return loss

    def not_finite(self, what: str, value: float, ids: list[str]) -> str:
        rate = self.lr_scheduler.get_last_lr()[0]
        return (
            f"Step {self.state.global_step + 1}: the {what} is {value}; {_batch(ids)}; look at these rows, or lower "
            f"the learning rate (now {rate:.3g})"
        )

    def save_model(self, output_dir=None, *args, **kwargs):
        """As in `Trainer`, but the files get their names only when all of them are complete."""
        output_dir = Path(output_dir or self.args.output_dir)
        partial = output_dir / "_partial"  # names with an underscore are not pushed to the Hub
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            state = output_dir / TRAINER_STATE_NAME
            if state.exists():  # a checkpoint that is written over is not whole until its new state is there
                state.unlink()
                sync(output_dir)
        self.accelerator.wait_for_everyone()
        partial.mkdir(parents=True, exist_ok=True)
        super().save_model(str(partial), *args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.args.should_save and partial.exists():  # a push calls this again and has moved the files already
            if (partial / "adapter_config.json").exists():  # peft does not save where the model stops
                self.accelerator.unwrap_model(self.model).generation_config.save_pretrained(partial)
            sync_tree(partial)
            # The configuration comes last: without it, a folder is not a model yet.
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                if path.is_dir():
                    shutil.rmtree(output_dir / path.name, ignore_errors=True)
                path.replace(output_dir / path.name)
            partial.rmdir()
            sync(output_dir)
        self.accelerator.wait_for_everyone()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write `README.md` into `output_dir`."""
        if self.is_world_process_zero():
            card = trained_model_card(self.model, self.args, self.data_args, self.state, self.accelerator.num_processes)
            write_text(str(card), Path(self.args.output_dir, "README.md"))


class UnicornTrainer(StageTrainer, SFTTrainer):
    """`SFTTrainer` for stages 1 and 2; see `StageTrainer`."""


class PreferenceTrainer(StageTrainer, DPOTrainer):
    """`DPOTrainer` for stage 3; see `StageTrainer`.

    The reference that the model may not leave far behind is `ref_model`, a second copy of what it was; of an adapter it
    is the model without it, or the adapter as it was loaded.
    """

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except (ValueError, NotImplementedError) as error:  # of losses and their options, which TRL checks here
            raise InputError(f"The options cannot be used: {' '.join(str(error).split())[:400]}") from error

    def save_model(self, output_dir=None, *args, **kwargs):
        """As in `StageTrainer`, without the adapter that is the reference alone."""
        super().save_model(output_dir, *args, **kwargs)
        reference = Path(output_dir or self.args.output_dir, "ref")
        if self.args.should_save and (reference / "adapter_config.json").is_file():
            shutil.rmtree(reference)


class _NothingLeft(Exception):
    """The checkpoint that a run resumes from is its last one."""


class EndedRun(TrainerCallback):
    """Ends a run that resumes from its own end, whose weights are loaded by then: `Trainer` would do one step more."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise _NothingLeft


class FiniteGradients(TrainerCallback):
    """Ends a run whose gradients are not finite, before they reach the weights.

    The next loss would show it too, but with the ids of the next batch, which is not the cause.
    """

    def __init__(self, trainer: StageTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        # A gradient scaler skips such steps itself, and DeepSpeed does not expose the gradients.
        if trainer.accelerator.scaler is None and not trainer.is_deepspeed_enabled:
            gradients = [each.grad for each in trainer.model.parameters() if each.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            if not torch.isfinite(norm):
                message = trainer.not_finite("norm of the gradients", norm.item(), trainer.ids_of_step)
                raise InputError(message)
        trainer.ids_of_step = []


class DurableCheckpoints(TrainerCallback):
    """Hands a checkpoint to the disk, and then removes the oldest ones of more than `save_total_limit`."""

    def __init__(self, trainer: StageTrainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            sync_tree(Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
            sync(Path(args.output_dir))
            rotate_checkpoints(
                args.output_dir, self.trainer.num_checkpoints, state.best_model_checkpoint, use_mtime=True
            )


def last_whole_checkpoint(output_dir) -> str | None:
    """The latest checkpoint that a run can resume from; None if there is none."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[1].isdigit()]
    found.sort(key=lambda path: int(path.name.split("-")[1]))
    return next((str(path) for path in reversed(found) if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the state of the run comes last, behind all other files.

    After a power cut a file may be shorter than it was, though one behind it is whole.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        for path in checkpoint.rglob("*.safetensors"):
            safe_open(path, "pt")  # reads the header, and whether the file is as long as that says
    except (OSError, ValueError, SafetensorError):
        return False
    of_torch = [path for suffix in ("pt", "pth", "bin") for path in checkpoint.rglob(f"*.{suffix}")]
    return all(map(zipfile.is_zipfile, of_torch))


def _is_failed_writing(error: Exception) -> bool:
    """Whether an error means that the disk is full, as reported by the system or by torch or safetensors."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error)


def check_trackers(report_to: list[str]) -> None:
    """Raise `InputError` unless every tracker of `SFTConfig.report_to` is installed."""
    installed = get_available_reporting_integrations()
    for name in report_to:
        if name not in installed:
            raise InputError(
                f"report_to: {name!r} is not installed, or is not a tracker: pip install {name}, or choose one of the "
                f"installed ones ({', '.join(installed) or 'none'})"
            )


def _batch(ids: list[str]) -> str:
    return f"the batch's ids are {', '.join(ids)}" if ids else "the data have no column 'id' to name the rows"
