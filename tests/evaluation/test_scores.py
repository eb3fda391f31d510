import numpy as np
import pytest

from unicorn_hf.evaluation.scores import mean_of, measure


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    rng = np.random.default_rng(1)
    right = rng.random(2000) < 0.7
    score = measure(mean_of(right), None, np.arange(2000))
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert score.value == pytest.approx(right.mean())
    assert score.interval == pytest.approx((right.mean() - half, right.mean() + half), abs=0.1 * half)


def test_questions_about_one_image_are_one_draw():
    right = np.random.default_rng(2).random(400) < 0.5
    alone = measure(mean_of(right), None, np.arange(400)).interval
    copied = measure(mean_of(right.repeat(9)), None, np.arange(400).repeat(9)).interval
    unaware = measure(mean_of(right.repeat(9)), None, np.arange(3600)).interval
    assert copied == pytest.approx(alone)
    assert unaware[1] - unaware[0] == pytest.approx((alone[1] - alone[0]) / 3, rel=0.15)


def test_the_gain_over_blind_is_resampled_in_pairs():
    blind = np.random.default_rng(3).random(500) < 0.4
    better = blind | (np.arange(500) % 5 == 0)
    score = measure(mean_of(better), mean_of(blind), np.arange(500))
    assert score.gain == pytest.approx(score.value - score.blind) == better.mean() - blind.mean()
    assert score.gain_interval[1] - score.gain_interval[0] < 0.7 * (score.interval[1] - score.interval[0])
    same = measure(mean_of(blind), mean_of(blind), np.arange(500))
    assert (same.gain, same.gain_interval) == (0, (0, 0))


def test_equal_answers_have_equal_intervals():
    values = np.random.default_rng(4).random(50)
    assert measure(mean_of(values), None, np.arange(50)) == measure(mean_of(values), None, np.arange(50))


def test_a_part_of_the_questions_is_scored_alone():
    values = np.array([1, 0, 1, 1.0])
    score = measure(mean_of(values), mean_of(1 - values), np.arange(4), np.array([0, 2]))
    assert (score.value, score.blind, score.total, score.interval) == (1, 0, 2, (1, 1))
