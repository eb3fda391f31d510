"""Embed shards: worker processes tokenise and decode while the tower runs."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from unicorn_hf.data.usable_vectors import as_float16
from unicorn_hf.embedding.batches import TextBatches, decode_images, image_batch_size
from unicorn_hf.embedding.encoder import Encoder, mean_of_windows
from unicorn_hf.errors import InputError
from unicorn_hf.progress import progress_bar


class EmbeddedShard(NamedTuple):
    """The vectors of one shard.

    Attributes:
        index: the shard's number.
        rows: the indices, in order, of the shard's rows that have a vector.
        vectors: float16 `[len(rows), embed_dim]`, unit length up to rounding.
        reasons: index -> reason, for the rows without a vector.
        counts: rows, failed rows, tokens, padded tokens, overflowing texts.
    """

    index: int
    rows: list[int]
    vectors: np.ndarray
    reasons: dict[int, str]
    counts: dict[str, int]


class _Start(NamedTuple):
    shard: int
    num_vectors: int


class _Batch(NamedTuple):
    shard: int
    places: torch.Tensor  # int64 [batch], indices of the batch's vectors among the shard's
    inputs: dict[str, torch.Tensor]
    num_tokens: int


class _End(NamedTuple):
    shard: int
    rows: list[int]  # rows with a vector
    windows_per_row: list[int]
    reasons: dict[int, str]  # row -> why it has no vector
    counts: dict[str, int]


def embed_shards(
    source,
    shards: Sequence[int],
    encoder: Encoder,
    *,
    kind: str,
    column: str,
    batch_size: int | str = "auto",
    overflow: str = "truncate",
    num_workers: int = 0,
    progress: str = "embed",
    position: int = 0,
) -> Iterator[EmbeddedShard]:
    """Embed some shards of a source and yield each when it is finished.

    Args:
        source: `RowShards` or `TarShards`.
        shards: the numbers of the shards.
        kind: `text` or `image`.
        num_workers: processes that tokenise or decode, each a whole shard at a time; 0 uses this process.
        progress, position: the label and the line of the progress bar.

    Raises:
        InputError: a shard cannot be read, or a text overflows and `overflow` is `error`.
    """
    prepared = _PreparedShards(source, shards, encoder, kind, column, batch_size, overflow)
    loader = torch.utils.data.DataLoader(
        prepared,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
        pin_memory=encoder.device.type == "cuda",
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker,
    )
    tower = encoder.text_tower if kind == "text" else encoder.image_tower
    buffers: dict[int, torch.Tensor] = {}
    total = source.num_rows and sum(len(source.read(each)) for each in shards)
    tokens = padded = 0
    with progress_bar(total=total, desc=progress, unit="row", position=position) as bar:
        for event in loader:
            match event:
                case InputError():
                    raise event
                case _Start(shard, num_vectors):
                    buffers[shard] = torch.empty(num_vectors, encoder.embed_dim, device=encoder.device)
                case _Batch(shard, places, inputs, num_tokens):
                    vectors = encoder.forward(tower, inputs)
                    buffers[shard][places.to(encoder.device, non_blocking=True)] = vectors
                    bar.update(len(places) if overflow != "mean" else 0)  # with `mean` a row has several windows
                    if num_tokens:
                        tokens, padded = tokens + num_tokens, padded + inputs["input_ids"].numel()
                        rate = tokens / max(bar.format_dict["elapsed"], 1e-9)
                        bar.set_postfix_str(f"{rate:,.0f} tokens/s, {1 - tokens / padded:.0%} padding", refresh=False)
                case _End(shard, rows, windows_per_row, reasons, counts):
                    bar.update(counts["rows"] if overflow == "mean" else len(reasons))
                    vectors = mean_of_windows(buffers.pop(shard)[: sum(windows_per_row)], windows_per_row)
                    yield _finish_shard(shard, rows, vectors, reasons, counts)


def default_num_workers(kind: str, device: torch.device, num_shards: int, num_rows: int | None, ranks: int = 1) -> int:
    """The number of worker processes worth starting for each of `ranks` ranks on this machine.

    It is 0 if there is little work or the platform cannot fork. It is also 0 for texts on a CPU: tokenising takes less
    than a hundredth of the time of a CLIP base tower, and a process would only take a core from the tower.
    """
    if sys.platform != "linux" or (num_rows is not None and num_rows < 2_000):
        return 0
    if device.type == "cpu":
        return 1 if kind == "image" else 0
    cores = len(os.sched_getaffinity(0)) // ranks
    return max(1, min(num_shards, cores, 8 if kind == "text" else 16))


def _start_worker(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # without it, tokenizers warns after a fork


class _PreparedShards(torch.utils.data.IterableDataset):
    """Yields for each shard a `_Start`, its `_Batch`es and an `_End`. An `InputError` is yielded too, and ends it."""

    def __init__(self, source, shards, encoder: Encoder, kind: str, column: str, batch_size, overflow: str):
        self.source = source
        self.shards = shards
        self.encoder = encoder
        self.prepare = self._prepare_text if kind == "text" else self._prepare_images
        self.column = column
        self.batch_size = batch_size
        self.overflow = overflow

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        mine = self.shards[worker.id :: worker.num_workers] if worker else self.shards
        try:
            for shard in mine:
                yield from self.prepare(shard, self.source.read(shard)[self.column])
        except InputError as error:
            yield error  # raised in a worker, it would arrive wrapped in a traceback

    def _prepare_text(self, shard: int, texts):
        texts = list(texts)
        reasons = {row: reason for row, text in enumerate(texts) if (reason := _text_fault(text))}
        rows = [row for row in range(len(texts)) if row not in reasons]
        batches = TextBatches(
            self.encoder.tokenizer,
            [texts[row] for row in rows],
            overflow=self.overflow,
            batch_size=self.batch_size,
            device=self.encoder.device,
            labels=[self.source.place(shard, row) for row in rows],
        )
        yield _Start(shard, batches.num_windows)
        for places, inputs in batches:
            yield _Batch(shard, places, inputs, int(inputs["attention_mask"].sum()))
        counts = {"rows": len(texts), "tokens": batches.num_tokens, "padded_tokens": batches.num_padded}
        counts["overflowing"] = batches.num_overflowing
        yield _End(shard, rows, batches.windows_per_text, reasons, counts)

    def _prepare_images(self, shard: int, images):
        size = image_batch_size(self.batch_size, self.encoder.device)
        rows, reasons = [], {}
        yield _Start(shard, len(images))
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            inputs, failures = decode_images(batch, self.encoder.transform, self.encoder.read)
            reasons |= {start + place: reason for place, reason in failures.items()}
            decoded = [start + place for place in range(len(batch)) if place not in failures]
            if decoded:
                yield _Batch(shard, torch.arange(len(rows), len(rows) + len(decoded)), inputs, 0)
                rows += decoded
        yield _End(shard, rows, [1] * len(rows), reasons, {"rows": len(images)})


def _text_fault(text) -> str | None:
    if text is None:
        return "there is no text"
    if not isinstance(text, str):
        return f"the text is of type {type(text).__name__}"
    return None if text.strip() else "the text is empty"


def _finish_shard(shard: int, rows: list[int], vectors: torch.Tensor, reasons: dict[int, str], counts) -> EmbeddedShard:
    vectors, unusable = as_float16(vectors.float().cpu().numpy())
    for place in unusable:
        is_finite = np.isfinite(vectors[place]).all()
        reasons[rows[place]] = f"the encoder gave a vector with {'only zeros' if is_finite else 'NaN or Inf'}"
    vectors = np.delete(vectors, unusable, axis=0)
    rows = [row for row in rows if row not in reasons]
    return EmbeddedShard(shard, rows, vectors, reasons, {**counts, "failed": len(reasons)})
