"""Check the quality of a set of vectors: one flag per problem found.

One pass over all rows counts NaN, Inf, zeros, lengths and equal rows. A sample estimates the rest: collapse, and a
mixture of two encoders.
"""

from dataclasses import dataclass, field

import numpy as np

from unicorn_hf.data.vector_sets import Vectors, unit_rows

# The limits beyond which a set is flagged.
_DUPLICATE_SHARE = 0.01
_LENGTH_SPREAD = 3.0  # a row this many times longer or shorter than the median
_COLLAPSED_TRACE = 0.05
_COLLAPSED_RANK = 2.0
_MIXED_SILHOUETTE = 0.1
_MIXED_COSINE = 0.3
_CLUSTER_ROWS = 1000


@dataclass
class Quality:
    """Counts over all rows of a set, a sample of its unit rows, and its flags."""

    name: str
    num_rows: int
    embed_dim: int
    encoder: str | None
    rows: np.ndarray  # [n] indices of the sampled rows
    sample: np.ndarray  # [n, D] float32 unit rows, without rows that have no direction
    num_bad: int
    first_bad: list[str]
    num_duplicates: int
    lengths: np.ndarray  # [N] of the rows with a direction
    flags: list[dict] = field(default_factory=list)


def examine(vectors: Vectors, rows: np.ndarray) -> Quality:
    """Read all of `vectors` once, keep the unit rows with the (sorted) indices `rows`, and flag problems."""
    lengths, projections, sample, kept, bad_rows = [], [], [], [], []
    axis = np.random.default_rng(0).standard_normal(vectors.embed_dim)
    first_row = 0
    for block in vectors.blocks():
        unit, bad = unit_rows(block)
        good = np.delete(np.arange(len(block)), bad)
        with np.errstate(over="ignore"):
            lengths.append(np.linalg.norm(block[good].astype(np.float64), axis=1))
        # Equal rows have equal projections onto a random axis; different rows almost never do.
        projections.append(np.einsum("ij,j->i", unit[good].astype(np.float64), axis))
        bad_rows += [first_row + int(row) for row in bad]
        chosen = rows[np.searchsorted(rows, first_row) : np.searchsorted(rows, first_row + len(block))] - first_row
        chosen = chosen[np.isin(chosen, good)]
        sample.append(unit[chosen])
        kept.append(chosen + first_row)
        first_row += len(block)
    quality = Quality(
        name=vectors.name,
        num_rows=first_row,
        embed_dim=vectors.embed_dim,
        encoder=vectors.encoder,
        rows=np.concatenate(kept),
        sample=np.concatenate(sample),
        num_bad=len(bad_rows),
        first_bad=[vectors.row_name(row) for row in bad_rows[:3]],
        num_duplicates=first_row - len(bad_rows) - len(np.unique(np.concatenate(projections))),
        lengths=np.concatenate(lengths),
    )
    for kind, check in _CHECKS.items():
        message = check(quality)
        if message:
            quality.flags.append({"kind": kind, "message": message})
    return quality


def _non_finite(quality: Quality) -> str | None:
    if quality.num_bad:
        first = ", ".join(quality.first_bad)
        return f"{quality.num_bad:,} of {quality.num_rows:,} rows hold NaN, Inf or only zeros (first: {first})"
    return None


def _duplicated(quality: Quality) -> str | None:
    share = quality.num_duplicates / quality.num_rows
    if share > _DUPLICATE_SHARE:
        return f"{quality.num_duplicates:,} rows ({share:.1%}) repeat another row"
    return None


def _mis_scaled(quality: Quality) -> str | None:
    if not len(quality.lengths):
        return None
    median = np.median(quality.lengths)
    far = int(((quality.lengths > _LENGTH_SPREAD * median) | (quality.lengths < median / _LENGTH_SPREAD)).sum())
    if far:
        return (
            f"{far:,} rows are more than {_LENGTH_SPREAD:g} times longer or shorter than the median row "
            f"(lengths {quality.lengths.min():.3g} to {quality.lengths.max():.3g}, median {median:.3g})"
        )
    if abs(median - 1) > 0.02:
        return f"rows do not have unit length (median {median:.3g}); every method normalizes them first"
    return None


def _collapsed(quality: Quality) -> str | None:
    trace = 1 - float(np.square(quality.sample.mean(axis=0, dtype=np.float64)).sum())
    if len(quality.sample) > 1 and trace < _COLLAPSED_TRACE:
        return f"rows are nearly all the same: mean squared distance to their mean {trace:.2g} (usual: 0.2 to 0.8)"
    rank = effective_rank(covariance(quality.sample))
    if quality.embed_dim >= 8 and len(quality.sample) >= 8 and rank < _COLLAPSED_RANK:
        return f"rows vary in hardly more than one direction: effective rank {rank:.2g} of {quality.embed_dim}"
    dead = int((quality.sample.std(axis=0) < 1e-7).sum())
    if dead and len(quality.sample) > 1:
        return f"{dead} of {quality.embed_dim} dimensions are constant"
    return None


def _mixed(quality: Quality) -> str | None:
    """Whether the set mixes two encoders: two clear groups whose means are almost orthogonal.

    Each encoder puts its vectors into a cone of its own. Topics of one encoder share its cone, so their means have a
    large cosine, or they form more than two groups.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    sample = quality.sample[np.linspace(0, len(quality.sample) - 1, _CLUSTER_ROWS).astype(int)]
    sample = np.unique(sample, axis=0)
    if len(sample) < 20:
        return None
    labels = KMeans(2, n_init=3, random_state=0).fit_predict(sample)
    means = np.stack([sample[labels == label].mean(axis=0) for label in (0, 1)])
    lengths = np.linalg.norm(means, axis=1)
    cosine = float(means[0] @ means[1] / lengths.prod())
    if not lengths.min() > _MIXED_COSINE > abs(cosine):
        return None
    separation = silhouette_score(sample, labels)
    more = (KMeans(k, n_init=3, random_state=0).fit_predict(sample) for k in (3, 4, 6, 8))
    if separation > _MIXED_SILHOUETTE and all(silhouette_score(sample, groups) < separation for groups in more):
        share = max(labels.mean(), 1 - labels.mean())
        return (
            f"looks like vectors of two encoders or two modalities: two groups ({share:.0%} and {1 - share:.0%}) "
            f"whose means have a cosine of {cosine:.2f}"
        )
    return None


_CHECKS = {
    "non-finite": _non_finite,
    "duplicated": _duplicated,
    "mis-scaled": _mis_scaled,
    "collapsed": _collapsed,
    "mixed": _mixed,
}


def covariance(rows: np.ndarray) -> np.ndarray:
    """The covariance [D, D] of rows [n, D], in float64, divided by n."""
    centred = rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
    return (centred.T @ centred).astype(np.float64) / len(rows)


def effective_rank(covariance: np.ndarray) -> float:
    """The participation ratio of a covariance [D, D]: the effective number of directions with variance."""
    square = np.square(covariance).sum()
    return float(np.trace(covariance) ** 2 / square) if square > 0 else 0.0
