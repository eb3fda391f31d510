import numpy as np
import pytest

from unicorn_hf import InputError, ModalityTransfer
from unicorn_hf.transfer import CovarianceTransfer, Moments
from unicorn_hf.transfer.covariance import gaussian_transport, ledoit_wolf_shrinkage, principal_directions


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_transport_gives_the_text_the_images_covariance_and_is_symmetric():
    rng = np.random.default_rng(0)
    source, target = (np.cov(rng.standard_normal((12, 200)) * np.linspace(0.1, 3, 12)[:, None]) for _ in range(2))
    transport = gaussian_transport(source, target)
    np.testing.assert_allclose(transport @ source @ transport, target, atol=1e-12)
    np.testing.assert_allclose(transport, transport.T, atol=1e-12)
    assert np.linalg.eigvalsh(transport).min() > 0  # the gradient of a convex function, as optimal maps are


def test_the_moved_text_has_the_images_moments_before_the_projection(text, image):
    transfer = CovarianceTransfer.fit(text, image, shrinkage=0.0)
    moved = transfer._map_dense(unit(text), transfer.statistics)
    np.testing.assert_allclose(moved.mean(0), unit(image).mean(0), atol=1e-6)
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.cov(unit(image).T, bias=True), atol=1e-6)
    np.testing.assert_allclose(transfer.apply(text), unit(moved), rtol=0, atol=2e-6)


def test_ledoit_wolf_from_moments_equals_scikit_learns(text):
    ledoit_wolf = pytest.importorskip("sklearn.covariance", reason="needs the extra [gap]").ledoit_wolf
    for rows in (text, text[:40], text[:5]):
        shrinkage = ledoit_wolf_shrinkage(Moments.measure(rows, covariance=True))
        assert shrinkage == pytest.approx(ledoit_wolf(unit(rows))[1], abs=1e-5)


def test_shrinkage_makes_a_few_rows_enough(text, image):
    few = text[:20]
    with pytest.raises(InputError, match="directions without variance"):
        CovarianceTransfer.fit(few, image, shrinkage=0.0)
    for options in ({}, {"shrinkage": 0.3}, {"shrinkage": 0.0, "ridge": 0.01}, {"shrinkage": 0.0, "rank": 4}):
        assert np.isfinite(CovarianceTransfer.fit(few, image, **options).apply(few)).all()


def test_outside_the_chosen_rank_the_map_is_the_mean_shift(text, image):
    transfer = CovarianceTransfer.fit(text, image, shrinkage=0.0, rank=5)
    moments = [Moments.measure(rows, covariance=True).covariance for rows in (text, image)]
    _, directions = principal_directions(sum(moments))
    outside = directions[:, 5:]
    transport = transfer.statistics["transport"]
    np.testing.assert_allclose(transport @ outside, outside, atol=1e-10)
    assert np.abs(transport @ directions[:, :5] - directions[:, :5]).max() > 0.01


def test_full_rank_equals_no_rank(text, image):
    whole = CovarianceTransfer.fit(text, image).statistics["transport"]
    np.testing.assert_allclose(CovarianceTransfer.fit(text, image, rank=32).statistics["transport"], whole, atol=1e-9)


@pytest.mark.parametrize(
    "options", [{"shrinkage": 2}, {"shrinkage": "much"}, {"rank": 0}, {"rank": 33}, {"ridge": -1}], ids=str
)
def test_options_out_of_range_are_refused(options, text, image):
    with pytest.raises(InputError, match="expected"):
        CovarianceTransfer.fit(text, image, **options)


def test_moments_with_covariance_are_enough(text, image):
    moments = [Moments.measure(rows, covariance=True) for rows in (text, image)]
    transfer = ModalityTransfer.fit(*moments, method="covariance")
    np.testing.assert_allclose(transfer.apply(text), CovarianceTransfer.fit(text, image).apply(text), atol=1e-6)
    with pytest.raises(InputError, match="--covariance"):
        ModalityTransfer.fit(Moments.measure(text), moments[1], method="covariance")
