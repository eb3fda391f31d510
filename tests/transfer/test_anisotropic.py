import numpy as np
import pytest

from unicorn_hf import InputError
from unicorn_hf.transfer import AnisotropicTransfer, MeanShift


@pytest.fixture
def sets():
    """A text and an image set in 24 dimensions that differ by a shift, and in spread in 3 of the 4 wide directions."""
    rng = np.random.default_rng(0)
    spread = np.r_[[1.0, 0.9, 0.8, 0.7], np.full(20, 0.05)]
    factor = np.r_[[0.5, 0.8, 1.4, 1.0], np.full(20, 1.0)]
    centres = np.zeros((2, 24))
    centres[:, 20] = 6, 5
    centres[:, 21] = -3, 4
    text = centres[0] + rng.standard_normal((20000, 24)) * spread
    image = centres[1] + rng.standard_normal((20000, 24)) * spread * factor
    return text, image


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_inside_the_subspace_each_direction_gets_the_images_spread(sets):
    text, image = sets
    transfer = AnisotropicTransfer.fit(text, image, rank=4, bound=100)
    directions = transfer.statistics["directions"]
    moved = transfer._map_dense(unit(text), transfer.statistics)
    np.testing.assert_allclose((moved @ directions).std(0), (unit(image) @ directions).std(0), rtol=1e-5)


def test_outside_the_subspace_it_is_the_mean_shift(sets):
    text, image = sets
    transfer, shift = AnisotropicTransfer.fit(text, image, rank=4), MeanShift.fit(text, image)
    directions = transfer.statistics["directions"]
    outside = np.eye(24) - directions @ directions.T
    moved = transfer._map_dense(unit(text), transfer.statistics)
    shifted = unit(text) - shift.statistics["mu_text"] + shift.statistics["mu_image"]
    np.testing.assert_allclose(moved @ outside, shifted @ outside, atol=1e-9)
    assert np.abs(moved - shifted).max() > 0.01


def test_the_bound_holds_in_every_direction(sets):
    text, image = sets
    transfer = AnisotropicTransfer.fit(text, image, rank=4, bound=1.2)
    directions = transfer.statistics["directions"]
    moved = transfer._map_dense(unit(text), transfer.statistics)
    gains = (moved @ directions).std(0) / (unit(text) @ directions).std(0)
    assert gains.max() <= 1.2 + 1e-9
    assert gains.min() >= 1 / 1.2 - 1e-9
    assert transfer.config["bounded_directions"] == 2


def test_rank_and_bound_come_from_the_spectra(sets):
    text, image = sets
    config = AnisotropicTransfer.fit(text, image).config
    assert config["rank"] in (3, 4)  # four wide directions of nearly equal spread
    assert config["variance_share"] > 0.85
    assert 1 < config["bound"] < 4


def test_a_bound_of_one_corrects_nothing(sets):
    text, image = sets
    moved = AnisotropicTransfer.fit(text, image, bound=1).apply(text)
    np.testing.assert_allclose(moved, MeanShift.fit(text, image).apply(text), atol=1e-6)


def test_options_out_of_range_are_refused(sets):
    for options in ({"bound": 0.5}, {"rank": 0}, {"rank": 25}):
        with pytest.raises(InputError, match="expected"):
            AnisotropicTransfer.fit(*sets, **options)
