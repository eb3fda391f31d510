"""Scores with confidence intervals, and their gain over the mean-image baseline."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000
_SEED = 0
_PERCENTILES = (2.5, 97.5)
_CHUNK = 1 << 20  # image indices that are drawn at a time


@dataclass(frozen=True)
class Metric:
    """A number about a set of questions, computed from sums over the questions.

    Attributes:
        statistics: float64 `[num_questions, S]`, the terms of each question.
        value: sums `[..., S]` -> the number `[...]`.
    """

    statistics: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]

    def each(self) -> np.ndarray:
        """The metric of each single question, `[num_questions]`."""
        return self.value(self.statistics)


@dataclass(frozen=True)
class Score:
    """A metric's value over `total` questions, with its 95 % bootstrap interval.

    Attributes:
        blind: the value of the mean-image baseline (the mean of all image vectors instead of each image); None if it
            was not measured.
        gain, gain_interval: value minus blind, and its interval; both are resampled together.
    """

    value: float
    interval: tuple[float, float]
    total: int
    blind: float | None = None
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None

    @property
    def accuracy(self) -> float:
        """Another name for `value`, since most tasks measure accuracy."""
        return self.value

    def __str__(self) -> str:
        text = "{:.3f} [{:.3f}, {:.3f}]".format(self.value, *self.interval)
        if self.gain_interval is not None:
            low, high = self.gain_interval
            text += f"  blind {self.blind:.3f}, gain {self.gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"{text}  ({self.total:,} questions)"


def mean_of(values) -> Metric:
    values = np.asarray(values, np.float64)
    return Metric(np.stack([values, np.ones_like(values)], axis=1), lambda sums: share(sums[..., 0], sums[..., 1]))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`; 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def measure(metric: Metric, blind: Metric | None, images: np.ndarray, rows=slice(None)) -> Score:
    """The score of some questions.

    Args:
        blind: the metric of the baseline's answers.
        images: `[num_questions]`, each question's image. Questions about one image are resampled together, because
            their answers are not independent.
        rows: the questions to score.
    """
    seen = metric.statistics[rows]
    if blind is None:
        low_high = np.percentile(_resampled(metric, seen, images[rows]), _PERCENTILES)
        return Score(float(metric.value(seen.sum(axis=0))), _pair(low_high), len(seen))
    unseen = blind.statistics[rows]
    # The same seed and number of images give the same resamples for both.
    resampled, resampled_blind = (_resampled(metric, statistics, images[rows]) for statistics in (seen, unseen))
    value, without = (float(metric.value(statistics.sum(axis=0))) for statistics in (seen, unseen))
    return Score(
        value,
        _pair(np.percentile(resampled, _PERCENTILES)),
        len(seen),
        without,
        value - without,
        _pair(np.percentile(resampled - resampled_blind, _PERCENTILES)),
    )


def _resampled(metric: Metric, statistics: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The metric for resamples of the images, drawn with replacement: `[_RESAMPLES]`."""
    _, image = np.unique(images, return_inverse=True)
    num_images = int(image.max()) + 1
    sums = np.zeros((num_images, statistics.shape[1]))
    np.add.at(sums, image, statistics)
    rng = np.random.default_rng(_SEED)
    at_a_time = max(1, _CHUNK // num_images)
    totals = [
        sums[rng.integers(num_images, size=(min(at_a_time, _RESAMPLES - start), num_images))].sum(axis=1)
        for start in range(0, _RESAMPLES, at_a_time)
    ]
    return metric.value(np.concatenate(totals))


def _pair(low_high) -> tuple[float, float]:
    return float(low_high[0]), float(low_high[1])
