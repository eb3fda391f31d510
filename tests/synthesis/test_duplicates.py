import random

import numpy as np
import pytest

from unicorn_hf.synthesis.duplicates import NearDuplicates, semantic_duplicates

WORDS = [f"{a}{b}" for a in ("ra", "lo", "mi", "tu", "ke", "no") for b in ("dan", "ver", "sol", "pim", "gat", "hur")]


def edit(text, share, rng):
    words = text.split()
    for place in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 1.0, 1.0), (0.05, 0.95, 1.0), (0.6, 0.0, 0.02)])
def test_near_duplicates_are_found_by_how_much_was_edited(share, low, high):
    rng = random.Random(0)
    texts = [" ".join(rng.choice(WORDS) for _ in range(30)) for _ in range(300)]
    near = NearDuplicates(0.5)
    assert not any(near.seen(text) for text in texts)
    found = [near.seen(edit(text, share, rng) if share else text) for text in texts]
    assert low <= np.mean(found) <= high


def test_short_texts_are_compared_whole():
    near = NearDuplicates()
    assert [near.seen(text) for text in ("a dog", "a cat", "a dog", "")] == [False, False, True, False]


@pytest.mark.parametrize("num_clusters", [None, 8])
def test_semantic_duplicates_are_later_texts_with_almost_the_same_vector(num_clusters):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(1500, 32))
    again = first[::3] + 0.01 * rng.normal(size=(500, 32))
    vectors = np.concatenate([first, again])
    texts = [str(index) for index in range(len(vectors))]
    found = semantic_duplicates(texts, lambda texts: vectors[[int(t) for t in texts]], 0.97, num_clusters)
    assert not found[:1500].any()
    assert found[1500:].mean() > 0.97  # a pair on the border of two clusters is missed
