"""ReAlign against a float64 re-implementation of the released four-pass algorithm, and its properties."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf import InputError
from unicorn_hf.transfer import Moments, ReAlign


def released_realign(text, image):
    """Four passes in float64: means, traces, the mean after projection, the output."""
    text, image = text.astype(np.float64), image.astype(np.float64)
    text, image = (x / np.abs(x).max(axis=1, keepdims=True) for x in (text, image))  # or squares would overflow
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
    mu_text, mu_image = text.mean(0), image.mean(0)
    trace_text, trace_image = (((x - x.mean(0)) ** 2).sum(1).mean() for x in (text, image))
    scale = np.sqrt(trace_image / trace_text)
    aligned = mu_image + scale * (text - mu_text)
    aligned /= np.linalg.norm(aligned, axis=1, keepdims=True)
    moved = aligned - aligned.mean(0) + mu_image
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def cone(rows, dim, seed, spread=1.0, spectrum=None):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(dim)
    return centre + spread * rng.standard_normal((rows, dim)) * (np.ones(dim) if spectrum is None else spectrum)


SETS = {
    "random": (cone(3000, 64, 1), cone(2000, 64, 2)),
    "anisotropic": (cone(3000, 64, 1, spectrum=np.geomspace(3, 0.01, 64)), cone(900, 64, 2)),
    "tiny": (cone(2, 16, 1), cone(2, 16, 2)),
    "two dimensions": (cone(50, 2, 1), cone(60, 2, 2)),
    "huge norm, float32": (np.float32(1e30) * cone(700, 32, 1).astype(np.float32), cone(500, 32, 2)),
    "huge norm, float64": (1e200 * cone(700, 32, 1), 1e-200 * cone(500, 32, 2)),
    "tiny norm, float32": (np.float32(1e-38) * cone(700, 32, 1).astype(np.float32), cone(500, 32, 2)),
    "mixed norms": (cone(700, 32, 1) * np.geomspace(1e-25, 1e25, 700)[:, None], cone(500, 32, 2)),
    "float16": (cone(3000, 128, 1).astype(np.float16), cone(2000, 128, 2).astype(np.float16)),
    "float16 near its limits": (
        (30000 * cone(600, 32, 1).clip(-2, 2)).astype(np.float16),
        (1e-6 * cone(600, 32, 2)).astype(np.float16),
    ),
    "nearly collapsed text": (cone(3000, 64, 1, spread=1e-3).astype(np.float32), cone(2000, 64, 2)),
    "nearly collapsed image": (cone(3000, 64, 1), cone(2000, 64, 2, spread=1e-3)),
}


@pytest.mark.parametrize("name", SETS)
def test_realign_equals_the_released_algorithm(name):
    text, image = SETS[name]
    moved = ReAlign.fit(text, image).apply(text)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, released_realign(text, image), rtol=0, atol=1e-6)


shapes = st.tuples(st.integers(3, 40), st.integers(2, 24))
numbers = st.just(0.0) | st.floats(0.0625, 100, width=32) | st.floats(-100, -0.0625, width=32)


@st.composite
def two_sets(draw):
    """Text and image sets with some spread, in a cone each, of any sizes."""
    rows, dim = draw(shapes)
    image_rows = draw(st.integers(3, 40))
    sets = []
    for count in (rows, image_rows):
        noise = draw(hnp.arrays(np.float64, (count, dim), elements=numbers))
        seed = draw(st.integers(0, 2**16))
        rng = np.random.default_rng(seed)
        sets.append(noise / 300 + rng.standard_normal(dim) * 2 + 0.3 * rng.standard_normal((count, dim)))
    return sets


@settings(max_examples=60, deadline=None)
@given(two_sets())
def test_realign_moves_the_text_mean_onto_the_image_mean(sets):
    text, image = sets
    transfer = ReAlign.fit(text, image)
    moved = transfer.apply(text).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    # Before the last projection the means are equal; the projection moves each row by how far its length is from 1.
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    image_mean = (image / np.linalg.norm(image, axis=1, keepdims=True)).mean(0)
    aligned = image_mean + transfer.config["scale"] * (unit - unit.mean(0))
    aligned /= np.linalg.norm(aligned, axis=1, keepdims=True)
    lengths = np.linalg.norm(aligned - aligned.mean(0) + image_mean, axis=1)
    distance = np.linalg.norm(moved.mean(0) - image_mean)
    assert distance <= np.abs(1 - lengths).mean() + 1e-6
    assert transfer.config["centroid_distance_after"] == pytest.approx(distance, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(two_sets(), st.randoms(use_true_random=False))
def test_a_permutation_of_rows_permutes_the_output(sets, random):
    text, image = sets
    order = list(range(len(text)))
    random.shuffle(order)
    image_order = list(range(len(image)))
    random.shuffle(image_order)
    expected = ReAlign.fit(text, image).apply(text)[order]
    moved = ReAlign.fit(text[order], image[image_order]).apply(text[order])
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(two_sets(), st.integers(0, 2**16))
def test_an_orthogonal_change_of_basis_commutes_with_realign(sets, seed):
    text, image = sets
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((text.shape[1],) * 2))
    moved = ReAlign.fit(text @ basis, image @ basis).apply(text @ basis)
    np.testing.assert_allclose(moved, ReAlign.fit(text, image).apply(text) @ basis, rtol=0, atol=2e-6)


def test_the_length_of_the_input_does_not_matter():
    text, image = SETS["random"]
    lengths = np.geomspace(1e-3, 1e3, len(text))[:, None]
    expected = ReAlign.fit(text, image).apply(text)
    np.testing.assert_allclose(ReAlign.fit(text * lengths, 7 * image).apply(text * lengths), expected, atol=1e-6)


def test_images_measured_apart_give_the_same_transfer():
    text, image = SETS["random"]
    shards = [Moments.measure(shard) for shard in (image[:100], image[100:500], image[500:])]
    transfer = ReAlign.fit(text, shards[2].merge(shards[0], shards[1]))
    np.testing.assert_allclose(transfer.apply(text), ReAlign.fit(text, image).apply(text), rtol=0, atol=1e-6)


def test_moments_of_the_text_are_not_enough():
    text, image = (Moments.measure(x) for x in SETS["random"])
    with pytest.raises(InputError, match="reads the text a second time"):
        ReAlign.fit(text, image)


def test_text_vectors_that_are_all_the_same_are_refused():
    with pytest.raises(InputError, match="all the same"):
        ReAlign.fit(np.ones((5, 4)), SETS["two dimensions"][1].repeat(2, axis=1))


def test_realign_needs_images():
    with pytest.raises(InputError, match="needs image vectors"):
        ReAlign.fit(SETS["tiny"][0])
