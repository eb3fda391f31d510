import itertools

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from unicorn_hf.training import LengthGroupedSampler
from unicorn_hf.training.batching import WINDOW, EndlessStream, group_stream_by_length


def lengths(num_samples=5000):
    """As captions and conversations have them: 20 to 512 tokens, most of them short."""
    return np.random.default_rng(0).lognormal(np.log(90), 0.8, num_samples).clip(20, 512).astype(int)


def padding(order, lengths, batch_size):
    """The share of a padded batch's positions that hold no token."""
    batches = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    return 1 - sum(batch.sum() for batch in batches) / sum(batch.max() * len(batch) for batch in batches)


def test_grouping_by_length_leaves_a_tenth_of_the_padding():
    drawn, order = np.random.default_rng(1).permutation(5000), np.array(list(LengthGroupedSampler(lengths(), 16)))
    assert sorted(order) == list(range(5000))
    assert padding(order, lengths(), 16) < 0.1 * padding(drawn, lengths(), 16)


def test_a_smaller_batch_comes_last_and_the_others_do_not_mix():
    order = np.array(list(LengthGroupedSampler(lengths(1605), 16)))
    assert len(order) == 1605
    assert padding(order[:1600], lengths(1605), 16) < 0.05


def test_batches_come_in_random_order_of_length():
    order = np.array(list(LengthGroupedSampler(lengths(), 16)))
    sizes = lengths()[order[: WINDOW * 16 : 16]]
    assert abs(np.corrcoef(sizes, np.arange(len(sizes)))[0, 1]) < 0.5


def test_an_epochs_order_depends_on_the_seed_and_the_epoch_alone():
    one, other = (LengthGroupedSampler(lengths(), 16, seed=3) for _ in range(2))
    first = list(one)
    one.set_epoch(1)
    other.set_epoch(1)
    assert list(one) == list(other) != first
    assert list(LengthGroupedSampler(lengths(), 16, seed=4)) != first


def test_a_stream_is_grouped_by_windows():
    size = lengths(WINDOW * 8 + 100)
    features = Features({"input_ids": List(Value("int32")), "length": Value("int32")})
    rows = {"input_ids": [[i] for i in range(len(size))], "length": size.tolist()}
    stream = Dataset.from_dict(rows, features).to_iterable_dataset()
    order = np.array([row["input_ids"][0] for row in group_stream_by_length(stream, 8, seed=0)])
    assert sorted(order[: WINDOW * 8]) == list(range(WINDOW * 8))
    assert sorted(order) == list(range(len(size)))
    assert padding(order[: WINDOW * 8], size, 8) == pytest.approx(0.04, abs=0.03)
    assert order.tolist() == [row["input_ids"][0] for row in group_stream_by_length(stream, 8, seed=0)]


def test_an_endless_stream_has_every_row_once_a_pass_in_another_order():
    rows = list(range(20))
    stream = Dataset.from_dict({"row": rows}).to_iterable_dataset().shuffle(seed=0, buffer_size=100)
    taken = [row["row"] for row in itertools.islice(EndlessStream(stream), 60)]
    passes = [taken[:20], taken[20:40], taken[40:]]
    assert all(sorted(each) == rows for each in passes)
    assert passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize(("num_workers", "num_shards"), [(0, 2), (1, 2), (2, 2), (2, 1)])
def test_an_endless_stream_goes_on_though_a_worker_gets_no_shard_or_an_empty_one(num_workers, num_shards):
    rows = Dataset.from_dict({"row": range(4)}).to_iterable_dataset(num_shards)
    stream = rows.filter(lambda row: row["row"] < 2)
    shuffled = EndlessStream(stream.shuffle(seed=0, buffer_size=100))
    batches = itertools.islice(DataLoader(shuffled, batch_size=2, num_workers=num_workers), 20)
    taken = [batch["row"].tolist() for batch in batches]
    assert len(taken) == 20
    assert all(len(batch) == 2 and set(batch) <= {0, 1} for batch in taken)
