import numpy as np
import pytest
import torch

from unicorn_hf import InputError
from unicorn_hf.transfer import MeanShift
from unicorn_hf.transfer.moments import Moments


def unit(rows):
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_mean_shift_is_the_text_minus_its_mean_plus_the_image_mean(text, image):
    shifted = unit(text) - unit(text).mean(0) + unit(image).mean(0)
    np.testing.assert_allclose(MeanShift.fit(text, image).apply(text), unit(shifted), rtol=0, atol=1e-6)


def test_without_images_the_space_is_the_centred_one_and_says_so(text):
    transfer = MeanShift.fit(text)
    assert transfer.config["space"] == "centred"
    np.testing.assert_allclose(transfer.apply(text), unit(unit(text) - unit(text).mean(0)), rtol=0, atol=1e-6)


def test_real_images_are_centred_with_the_image_mean(text, image):
    transfer = MeanShift.fit(text, image, centred=True)
    expected = unit(unit(image) - unit(image).mean(0))
    np.testing.assert_allclose(transfer.condition_image(image), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(transfer.condition_image(torch.from_numpy(image)), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(transfer.condition_image(image[3]), expected[3], rtol=0, atol=1e-6)
    moved = transfer.apply(text).astype(np.float64)
    distance = np.linalg.norm(moved.mean(0) - expected.mean(0))
    assert transfer.config["centroid_distance_after"] == pytest.approx(distance, abs=1e-6)


def test_real_images_cannot_be_centred_without_their_mean(text, image):
    transfer = MeanShift.fit(text)
    with pytest.raises(InputError, match="mu_image"):
        transfer.condition_image(image)
    transfer.statistics["mu_image"] = unit(image).mean(0)
    assert np.isfinite(transfer.condition_image(image)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_keep_lengths_gives_the_released_directions_for_rows_of_any_length(text, dtype):
    lengths = np.exp(np.random.default_rng(0).normal(0, 1.5, (len(text), 1)))
    rows = (text * lengths).astype(dtype)
    exact = rows.astype(np.float64)
    released = unit(exact - exact.mean(0))
    transfer = MeanShift.fit(rows, keep_lengths=True)
    assert transfer.config["space"] == "centred"
    np.testing.assert_allclose(transfer.apply(rows), released, rtol=0, atol=1e-6)
    np.testing.assert_allclose(transfer.apply(torch.from_numpy(rows)), released, rtol=0, atol=1e-6)
    assert (MeanShift.fit(rows).apply(rows) * released).sum(1).min() < 0.9  # the other order is another direction


def test_keep_lengths_changes_nothing_for_unit_rows_and_outlives_saving(text, image, tmp_path):
    rows = unit(text)
    transfer = MeanShift.fit(rows, image, keep_lengths=True)
    np.testing.assert_allclose(transfer.apply(rows), MeanShift.fit(rows).apply(rows), rtol=0, atol=1e-6)
    transfer.save_pretrained(tmp_path / "fitted")
    again = MeanShift.from_pretrained(tmp_path / "fitted")
    np.testing.assert_array_equal(again.apply(rows * 3), transfer.apply(rows * 3))


def test_keep_lengths_refuses_what_has_no_lengths_and_names_bad_rows(text, image):
    with pytest.raises(InputError, match="moments are of unit rows"):
        MeanShift.fit(Moments.measure(text), keep_lengths=True)
    with pytest.raises(InputError, match="stays in the centred space"):
        MeanShift.fit(text, image, keep_lengths=True, centred=False)
    text = text.copy()
    text[3] = 0
    with pytest.raises(InputError, match="row 3 holds only zeros"):
        MeanShift.fit(text, keep_lengths=True)


def test_centred_false_needs_images(text):
    with pytest.raises(InputError, match="needs image vectors"):
        MeanShift.fit(text, centred=False)


def test_noise_has_the_asked_spread(text, image):
    transfer = MeanShift.fit(text, image, sigma=0.05)
    # Before the last projection: what the noise adds to each coordinate.
    shifted = unit(text) - transfer.statistics["mu_text"] + transfer.statistics["mu_image"]
    added = transfer._map_dense(unit(text), transfer.statistics) - shifted
    assert added.std() == pytest.approx(0.05, rel=0.02)
    assert abs(added.mean()) < 0.001
    assert abs(np.corrcoef(added[:-1].ravel(), added[1:].ravel())[0, 1]) < 0.02


def test_noise_depends_on_the_vector_and_the_seed_only(text, image):
    transfer = MeanShift.fit(text, image, sigma=0.1, seed=3)
    moved = transfer.apply(text)
    np.testing.assert_array_equal(transfer.apply(text[::-1])[::-1], moved)
    np.testing.assert_array_equal(transfer.apply(text[700:710]), moved[700:710])
    np.testing.assert_array_equal(transfer.apply(torch.from_numpy(text)).numpy(), moved)
    assert np.abs(MeanShift.fit(text, image, sigma=0.1, seed=4).apply(text) - moved).max() > 0.01


def test_negative_sigma_is_refused(text, image):
    with pytest.raises(InputError, match="sigma is -1"):
        MeanShift.fit(text, image, sigma=-1)


def test_in_a_set_of_equal_rows_no_direction_is_left(text):
    equal = np.repeat(text[:1], 5, axis=0)
    transfer = MeanShift.fit(np.repeat(text[:1], 5, axis=0), text)
    assert np.isfinite(transfer.apply(equal)).all()
    with pytest.raises(InputError, match="row 0 is the mean"):
        MeanShift.fit(equal).apply(equal)
