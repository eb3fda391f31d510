"""Put samples of similar length into a batch, because padding dominates the cost of short sequences."""

import itertools
from collections.abc import Sequence

import numpy as np
from torch.utils.data import IterableDataset, Sampler, get_worker_info

WINDOW = 50  # batches sorted together: enough for little padding, few enough to keep the order random


class LengthGroupedSampler(Sampler):
    """Yields indices in an order in which every `batch_size` consecutive samples have similar lengths.

    Unlike transformers' sampler of this name, the order of an epoch depends only on the seed and the epoch, so that a
    resumed run sees the same samples, and the batches of a window come in random order instead of by length.

    Args:
        lengths: of the samples, in tokens.
        batch_size: samples per optimizer step, over all processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = np.random.default_rng([self.seed, self.epoch])
        rows = generator.permutation(len(self.lengths))
        for start in range(0, len(rows), WINDOW * self.batch_size):
            window = rows[start : start + WINDOW * self.batch_size]
            yield from window[length_grouped_order(self.lengths[window], self.batch_size, generator)].tolist()


def length_grouped_order(lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """An order of `lengths` in batches of similar length; the batches are shuffled, an incomplete one comes last."""
    order = np.argsort(lengths, kind="stable")
    rest = len(order) % batch_size
    batches = order[rest:].reshape(-1, batch_size)
    return np.concatenate([generator.permutation(batches).ravel(), order[:rest]]).astype(int)


class EndlessStream(IterableDataset):
    """Yields the rows of a shuffled `datasets.IterableDataset` again and again, each time in another order.

    `Trainer` counts a stream as one epoch of `max_steps`. If the stream ended earlier, a resumed run would skip rows of
    its first pass only, and train on those of a later pass twice.

    Args:
        stream: with at least one row. Each pass deals its shards anew, so that a worker process may get empty ones.
    """

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        worker = get_worker_info()
        if worker is not None and worker.id >= self.stream.num_shards:  # it never gets a shard
            return
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)
            yield from self.stream


def group_stream_by_length(tokens, batch_size: int, seed: int = 0):
    """Sort a stream of tokenized samples in the same way, window by window."""

    def sort(batch, rows):
        order = length_grouped_order(np.array(batch["length"]), batch_size, np.random.default_rng([seed, rows[0]]))
        return {name: [values[row] for row in order] for name, values in batch.items()}

    return tokens.map(sort, with_indices=True, batched=True, batch_size=WINDOW * batch_size, features=tokens.features)
