import numpy as np
import pytest
import torch

from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.transfer import MeanShift


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_scaled_shifted_and_projected_twice_are_what_the_formula_says(kind, dtype):
    rng = np.random.default_rng(0)
    x, first, second = (rng.standard_normal(shape) for shape in ((50, 12), 12, 12))
    expected = unit(0.3 * unit(1.5 * unit(x) + first) + second)
    x, first, second = (kind(array.astype(dtype)) for array in (x, first, second))
    moved = UnitRows.normalized(x).moved(1.5, first).moved(0.3, second)
    np.testing.assert_allclose(np.asarray(moved.dense()), expected, rtol=0, atol=2e-6 if dtype == np.float32 else 1e-14)


def test_the_sum_of_moved_rows_is_that_of_their_dense_form():
    rng = np.random.default_rng(0)
    rows, bad = UnitRows.of_block(rng.standard_normal((77, 12)).astype(np.float16))
    moved = rows.moved(0.7, rng.standard_normal(12).astype(np.float32))
    assert not len(bad)
    np.testing.assert_allclose(moved.sum(), moved.dense().astype(np.float64).sum(axis=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_row_near_the_mean_is_moved_with_all_its_digits(kind):
    rng = np.random.default_rng(0)
    text = (rng.standard_normal(64) + rng.standard_normal((4000, 64))).astype(np.float32)
    transfer = MeanShift.fit(text)
    mean = transfer.statistics["mu_text"]
    # Of unit length, and a thousandth away from the mean times its length: float32 would lose the length.
    transfer.statistics["mu_text"] = mean / np.linalg.norm(mean)
    near = (transfer.statistics["mu_text"] + 1e-3 * rng.standard_normal((30, 64)) / 8).astype(np.float32)
    moved = np.asarray(transfer.apply(kind(near)))
    expected = unit(unit(near.astype(np.float64)) - transfer.statistics["mu_text"])
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-6)


def test_a_block_is_not_changed():
    rows = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    rows[3] = 0
    before = rows.copy()
    unit_rows, bad = UnitRows.of_block(rows)
    unit_rows.moved(1.0, np.ones(8, np.float32)).dense()
    assert bad.tolist() == [3]
    np.testing.assert_array_equal(rows, before)
