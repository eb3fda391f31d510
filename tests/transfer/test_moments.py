import numpy as np
import pytest

from unicorn_hf import InputError
from unicorn_hf.data import vector_sets
from unicorn_hf.transfer import Moments


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return (rng.standard_normal(48) + rng.standard_normal((5000, 48)) * np.geomspace(2, 0.1, 48)).astype(np.float16)


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_moments_are_those_of_the_unit_rows(rows):
    moments = Moments.measure(rows, covariance=True)
    assert moments.count == 5000
    np.testing.assert_allclose(moments.mean, unit(rows).mean(0), rtol=0, atol=1e-8)
    np.testing.assert_allclose(moments.covariance, np.cov(unit(rows).T, bias=True), rtol=0, atol=1e-8)
    assert moments.trace == pytest.approx(unit(rows).var(0).sum(), abs=1e-7)


@pytest.mark.parametrize("covariance", [False, True])
def test_block_size_order_of_shards_and_threads_do_not_matter(rows, covariance, monkeypatch):
    whole = Moments.measure(rows, covariance=covariance)
    variants = [Moments.measure(rows, covariance=covariance, block_rows=block_rows) for block_rows in (1, 7, 5000)]
    shards = [Moments.measure(rows[i::3], covariance=covariance) for i in (2, 0, 1)]
    variants.append(shards[0].merge(*shards[1:]))
    monkeypatch.setattr(vector_sets, "THREADS", 1)
    variants.append(Moments.measure(rows, covariance=covariance))
    monkeypatch.setattr(vector_sets, "THREADS", 8)
    variants.append(Moments.measure(rows, covariance=covariance))
    for variant in variants:
        assert variant.count == whole.count
        np.testing.assert_allclose(variant.mean, whole.mean, rtol=0, atol=1e-8)
        if covariance:
            np.testing.assert_allclose(variant.covariance, whole.covariance, rtol=0, atol=1e-8)


def test_the_spread_of_nearly_equal_rows_is_not_lost_to_rounding():
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal(64) + 1e-3 * rng.standard_normal((4000, 64))).astype(np.float32)
    assert Moments.measure(rows).trace == pytest.approx(unit(rows).var(0).sum(), rel=1e-6)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf"), (0, "zeros")])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_without_direction_is_refused_by_number(rows, value, word, dtype):
    rows = rows.astype(dtype)
    rows[4321] = 0
    rows[4321, 5] = value
    with pytest.raises(InputError, match=f"row 4321 .*{word}.*skip_non_finite"):
        Moments.measure(rows)


@pytest.mark.parametrize("covariance", [False, True])
def test_rows_without_direction_are_skipped_and_listed_on_demand(rows, covariance):
    broken = rows.copy()
    broken[3], broken[4000] = np.nan, 0
    moments = Moments.measure(broken, covariance=covariance, skip_non_finite=True)
    expected = Moments.measure(np.delete(rows, [3, 4000], axis=0), covariance=covariance)
    assert moments.count == 4998
    assert moments.skipped == ["row 3", "row 4000"]
    np.testing.assert_allclose(moments.mean, expected.mean, rtol=0, atol=1e-8)


def test_a_set_without_a_single_direction_is_refused():
    with pytest.raises(InputError, match="every row"):
        Moments.measure(np.zeros((4, 8)), skip_non_finite=True)


def test_moments_come_back_from_their_file(rows, tmp_path):
    broken = rows.copy()
    broken[17] = 0
    moments = Moments.measure(broken, covariance=True, encoder="sandbox", skip_non_finite=True)
    moments.save(tmp_path / "text.safetensors", modality="text")
    loaded = Moments.load(tmp_path / "text.safetensors")
    assert (loaded.count, loaded.encoder, loaded.skipped) == (4999, "sandbox", ["row 17"])
    assert loaded.info == {"modality": "text"}
    np.testing.assert_array_equal(loaded.mean, moments.mean)
    np.testing.assert_array_equal(loaded.scatter, moments.scatter)


def test_moments_that_do_not_belong_together_are_not_merged(rows):
    moments = Moments.measure(rows, encoder="a")
    with pytest.raises(InputError, match="48 dimensions and 8"):
        moments.merge(Moments.measure(rows[:, :8]))
    with pytest.raises(InputError, match="'a' and 'b'"):
        moments.merge(Moments.measure(rows, encoder="b"))
    with pytest.raises(InputError, match="without a covariance"):
        moments.merge(Moments.measure(rows, covariance=True))
    with pytest.raises(InputError, match="covariance=True"):
        _ = moments.covariance


def test_a_file_that_is_no_file_of_moments_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a file of moments"):
        Moments.load(tmp_path / "x.safetensors")
