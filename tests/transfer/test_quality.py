"""Each thing that can be wrong with a set is flagged, and nothing else is."""

import re

import numpy as np
import pytest

from unicorn_hf.data.vector_sets import ArrayVectors
from unicorn_hf.data.vectors import open_vectors
from unicorn_hf.transfer.quality import examine

pytest.importorskip("sklearn", reason="needs the extra [gap]")


def cone(rows, seed, dim=64):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal(dim) + 0.8 * rng.standard_normal((rows, dim)) * np.geomspace(2, 0.3, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def topics():
    """One encoder's cone with five clusters in it."""
    rng = np.random.default_rng(0)
    centres = 0.6 * rng.standard_normal((5, 64))
    rows = rng.standard_normal(64) + centres[rng.integers(5, size=2000)] + 0.2 * rng.standard_normal((2000, 64))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def without_cone():
    """Clusters around the origin, as of an encoder without a modality gap."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 64))
    rows = centres[rng.integers(6, size=2000)] + 0.3 * rng.standard_normal((2000, 64))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def broken(value):
    rows = cone(2000, 1)
    rows[[3, 1999]] = value
    return rows


def one_long_row():
    rows = cone(2000, 1)
    rows[7] *= 50
    return rows


SETS = {
    "healthy": (lambda: cone(2000, 1), {}),
    "topics": (topics, {}),
    "no cone": (without_cone, {}),
    "NaN": (lambda: broken(np.nan), {"non-finite": "2 of 2,000 rows .*first: row 3, row 1999"}),
    "zeros": (lambda: broken(0), {"non-finite": "2 of 2,000"}),
    "repeated": (lambda: cone(500, 1)[np.arange(2000) % 500], {"duplicated": r"1,500 rows \(75.0%\)"}),
    "longer": (lambda: 11.2 * cone(2000, 1), {"mis-scaled": r"not have unit length \(median 11.2\)"}),
    "uneven": (one_long_row, {"mis-scaled": "1 rows are more than 3 times"}),
    "collapsed to a point": (lambda: 1 + 1e-3 * cone(2000, 1), {"mis-scaled": "", "collapsed": "nearly all the same"}),
    "collapsed to a line": (
        lambda: np.eye(64)[0] + np.linspace(-1, 1, 2000)[:, None] * np.eye(64)[1] + 1e-3 * cone(2000, 1),
        {"collapsed": "hardly more than one direction"},
    ),
    "dead dimensions": (
        lambda: np.concatenate([cone(2000, 1, 60), np.zeros((2000, 4))], axis=1),
        {"collapsed": "4 of 64 dimensions are constant"},
    ),
    "two encoders": (lambda: np.concatenate([cone(1400, 1), cone(600, 2)]), {"mixed": "two groups"}),
}


@pytest.mark.parametrize("name", SETS)
def test_flags(name):
    make, expected = SETS[name]
    quality = examine(ArrayVectors(make(), "the set"), np.arange(0, 2000, 2))
    flags = {flag["kind"]: flag["message"] for flag in quality.flags}
    assert set(flags) - {"mis-scaled"} == set(expected) - {"mis-scaled"}
    if name in ("longer", "uneven"):
        assert "mis-scaled" in flags
    for kind, words in expected.items():
        assert re.search(words, flags[kind])
        assert "\n" not in flags[kind]


def test_the_sample_has_the_rows_asked_for_but_the_broken_ones():
    rows = broken(np.nan)
    quality = examine(open_vectors(rows), np.array([0, 3, 700, 1999]))
    assert quality.rows.tolist() == [0, 700]
    np.testing.assert_allclose(quality.sample, rows[[0, 700]], atol=1e-6)
