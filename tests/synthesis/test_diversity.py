import numpy as np
import pytest

from unicorn_hf.synthesis.diversity import distinct_n, self_bleu, vendi_score


def test_distinct_n_counts_different_ngrams():
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a"], 2) == 0.0


def test_self_bleu_is_one_for_copies_and_almost_zero_for_strangers():
    assert self_bleu(["a red dog runs far away"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d e f", "g h i j k l"]) < 0.15


def test_self_bleu_is_bleu_against_the_others():
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples match; both are as long as the other.
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(expected)


def test_the_vendi_score_counts_different_rows():
    same, eye = np.ones((10, 4)), np.eye(10)
    assert vendi_score(same) == pytest.approx(1.0)
    assert vendi_score(eye) == pytest.approx(10.0)
    assert vendi_score(np.concatenate([eye, eye])) == pytest.approx(10.0)
    assert vendi_score(np.concatenate([eye, 7 * eye[:, :10]])) == pytest.approx(10.0)
