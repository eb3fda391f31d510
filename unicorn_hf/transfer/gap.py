"""Measure the modality gap between a text set and an image set, before and after each transfer.

All measures use one sample of rows, drawn with a fixed seed. The last column compares images with other images of the
same set: it shows the value of each measure without a gap.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unicorn_hf.data.provenance import Origin
from unicorn_hf.data.staging import new_file, write_json
from unicorn_hf.data.vector_sets import Vectors
from unicorn_hf.data.vectors import VectorSource, open_vectors
from unicorn_hf.errors import InputError, require
from unicorn_hf.transfer.modality_transfer import ModalityTransfer
from unicorn_hf.transfer.quality import Quality, covariance, effective_rank, examine

BEFORE = "before"
NO_GAP = "no gap (images against images)"

_NEIGHBOURS = 10
_FLOOR_ROWS = 1000  # with fewer spare images, the two halves of the sample are compared instead
_SUBSPACE = 16  # principal directions compared
_CLASSIFIER_ROWS = 2000  # of each modality
_KERNEL_ROWS = 3000  # of each modality


class Spread:
    """Unit rows [n, D] with their mean, covariance, and principal variances and directions in descending order."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows
        self.mean = rows.mean(axis=0, dtype=np.float64)
        self.covariance = covariance(rows)
        values, vectors = np.linalg.eigh(self.covariance)
        self.variances, self.directions = values[::-1].clip(0), vectors[:, ::-1]


@dataclass
class Gap:
    """The results of `measure_gap`.

    Attributes:
        text, image: quality of each set, with its flags.
        paired: whether row i of the text belongs to row i of the images.
        measures: state -> measure -> number. The states are `BEFORE`, one per transfer, and `NO_GAP`.
        samples: state -> (text, image), the measured unit rows.
        flags: one entry per problem found: {"set", "kind", "message"}.
    """

    text: Quality
    image: Quality
    paired: bool
    measures: dict[str, dict[str, float]]
    samples: dict[str, tuple[Spread, Spread]]
    flags: list[dict]

    def to_dict(self) -> dict:
        """The content of the report as JSON values."""

        def about(quality):
            return {
                "source": quality.name,
                "rows": quality.num_rows,
                "sampled": len(quality.sample),
                "embed_dim": quality.embed_dim,
                "encoder": quality.encoder,
                "non_finite_rows": quality.num_bad,
                "duplicated_rows": quality.num_duplicates,
            }

        return {
            "text": about(self.text),
            "image": about(self.image),
            "paired": self.paired,
            "flags": self.flags,
            "measures": self.measures,
        }

    def save_json(self, path, *, overwrite: bool = False) -> None:
        """Write `to_dict()` to a file.

        Raises:
            InputError: `path` exists, and `overwrite` is not given.
        """
        with new_file(path, overwrite=overwrite) as file:
            write_json(self.to_dict(), file)


def measure_gap(
    text: VectorSource,
    image: VectorSource,
    *,
    paired: bool = False,
    transfers=(),
    text_column: str = "text_embeds",
    image_column: str = "image_embeds",
    sample_size: int = 5000,
    seed: int = 0,
    allow_pickle: bool = False,
) -> Gap:
    """Measure the modality gap, before and after each of `transfers`.

    Args:
        text, image: sets of vectors (see `open_vectors`).
        paired: row i of the text belongs to row i of the images; adds the cosine of pairs and retrieval.
        transfers: `ModalityTransfer`s, or their folders or Hub ids.
        sample_size: rows to sample from each set; counts and flags use all rows.

    Raises:
        InputError: a set cannot be read, the dimensions differ, or `paired` sets do not have the same rows.
    """
    for package in ("sklearn", "scipy"):
        require(package, "gap")
    text = open_vectors(text, text_column, allow_pickle=allow_pickle)
    image = open_vectors(image, image_column, allow_pickle=allow_pickle)
    if differ := Origin(embed_dim=text.embed_dim).difference(Origin(embed_dim=image.embed_dim)):
        raise InputError(
            f"The text vectors have {differ[0]} and the image vectors {differ[1]}; a gap can only be measured within "
            "one space"
        )
    if paired:
        _check_pairs(text, image)
    rng = np.random.default_rng(seed)
    text_rows = _draw(rng, text.num_rows, sample_size)
    image_rows = text_rows if paired else _draw(rng, image.num_rows, sample_size)
    others = np.setdiff1d(np.arange(image.num_rows), image_rows)
    other_rows = others[_draw(rng, len(others), sample_size)]

    text_quality = examine(text, text_rows)
    both_images = examine(image, np.union1d(image_rows, other_rows))
    among = np.isin(both_images.rows, image_rows)
    other_images, both_images.sample = both_images.sample[~among], both_images.sample[among]
    both_images.rows = both_images.rows[among]
    image_quality = both_images
    if paired:  # drop both vectors of a pair if one of them is unusable
        common = np.intersect1d(text_quality.rows, image_quality.rows)
        for quality in (text_quality, image_quality):
            quality.sample = quality.sample[np.isin(quality.rows, common)]
            quality.rows = common
    for quality in (text_quality, image_quality):
        if len(quality.sample) < 2:
            raise InputError(f"{quality.name}: has fewer than two usable rows; a gap needs more")

    image_spread = Spread(image_quality.sample)  # most methods leave the images as they are
    samples = {BEFORE: (Spread(text_quality.sample), image_spread)}
    for transfer in transfers:
        name, transfer = _named(transfer, samples)
        moved_image = image_spread
        if transfer.moves_images:
            transfer.statistics.setdefault("mu_image", image_spread.mean)
            moved_image = Spread(transfer.condition_image(image_quality.sample))
        samples[name] = (Spread(transfer.apply(text_quality.sample)), moved_image)
    if len(other_images) >= min(_FLOOR_ROWS, len(image_quality.sample)):
        samples[NO_GAP] = (Spread(other_images), image_spread)
    elif len(image_quality.sample) >= 4:
        order = rng.permutation(len(image_quality.sample))
        one, other = (Spread(image_quality.sample[half]) for half in np.array_split(order, 2))
        samples[NO_GAP] = (one, other)
    measures = {
        state: measure(*spreads, paired=paired and state != NO_GAP, seed=seed) for state, spreads in samples.items()
    }
    flags = [
        {"set": name, **flag}
        for name, quality in (("text", text_quality), ("image", image_quality))
        for flag in quality.flags
    ]
    if differ := Origin(text.encoder).difference(Origin(image.encoder)):
        message = f"the text comes from {differ[0]} and the images from {differ[1]}: two different spaces"
        flags.append({"set": "both", "kind": "mixed", "message": message})
    return Gap(text_quality, image_quality, paired, measures, samples, flags)


def measure(text: Spread, image: Spread, *, paired: bool = False, seed: int = 0) -> dict[str, float]:
    """Every measure between the unit rows of `text` [n, D] and `image` [m, D]; `paired` needs n = m."""
    from scipy.linalg import subspace_angles

    size = min(_SUBSPACE, text.rows.shape[1] // 2 or 1, len(text.rows) - 1, len(image.rows) - 1)
    angles = subspace_angles(text.directions[:, :size], image.directions[:, :size])
    distance = float(np.linalg.norm(text.mean - image.mean))
    bures = bures_distance(text, image)
    skewness, never = hubness(text.rows, image.rows)
    result = {
        "centroid_distance": distance,
        "trace_text": float(text.variances.sum()),
        "trace_image": float(image.variances.sum()),
        "trace_ratio": float(image.variances.sum() / max(text.variances.sum(), 1e-12)),
    }
    if paired:
        result["paired_cosine"] = float(np.einsum("ij,ij->i", text.rows, image.rows).mean(dtype=np.float64))
        for k in (1, 10):
            to_image, to_text = recall(text.rows, image.rows, k)
            result |= {f"recall_at_{k}_text_to_image": to_image, f"recall_at_{k}_image_to_text": to_text}
    return result | {
        "separability": separability(text.rows, image.rows, seed),
        "cmmd": cmmd(text.rows, image.rows),
        "frechet_distance": distance**2 + bures,
        "frechet_centred": bures,
        "distribution_gap": distribution_gap(text.rows, image.rows),
        "effective_rank_text": effective_rank(text.covariance),
        "effective_rank_image": effective_rank(image.covariance),
        "subspace_overlap": float(np.mean(np.cos(angles) ** 2)),
        "largest_principal_angle": float(np.degrees(angles.max())),
        "hubness": skewness,
        "never_retrieved": never,
    }


def bures_distance(text: Spread, image: Spread) -> float:
    """The Fréchet distance of centred Gaussians: tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2) (Dowson and Landau 1982)."""
    root = (image.directions * np.sqrt(image.variances)) @ image.directions.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ text.covariance @ root).clip(0)).sum()
    return float(max(0.0, text.variances.sum() + image.variances.sum() - 2 * cross))


def separability(text: np.ndarray, image: np.ndarray, seed: int = 0) -> float:
    """Held-out accuracy of a linear classifier that tells text from images; 0.5 is chance.

    The classifier is linear discriminant analysis with Ledoit and Wolf's shrinkage: closed form, nothing to tune.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import train_test_split

    count = min(len(text), len(image), _CLASSIFIER_ROWS)
    if count < 4:
        return float("nan")
    rng = np.random.default_rng(seed)
    rows = np.concatenate([x[rng.permutation(len(x))[:count]] for x in (text, image)])
    train, test, train_labels, test_labels = train_test_split(
        rows, np.repeat([0, 1], count), test_size=0.5, random_state=seed, stratify=np.repeat([0, 1], count)
    )
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, train_labels)
    return float(model.score(test, test_labels))


def cmmd(text: np.ndarray, image: np.ndarray) -> float:
    """CMMD (Jayasumana et al. 2024): squared MMD, Gaussian kernel of sigma 10, times 1000, as in the authors' code."""
    return _squared_mmd(text, image, 1 / (2 * 10**2))


def distribution_gap(text: np.ndarray, image: np.ndarray) -> float:
    """The difference that remains after both sets are centred: squared MMD, times 1000.

    The kernel is Gaussian, its bandwidth the median distance between images. As with CMMD, small samples read higher.
    """
    text, image = text - text.mean(axis=0), image - image.mean(axis=0)
    distances = _squared_distances(image[:1000], image[:1000])
    gamma = 1 / max(float(np.median(distances[np.triu_indices(len(distances), 1)])), 1e-12)
    return _squared_mmd(text, image, gamma)


def recall(text: np.ndarray, image: np.ndarray, k: int) -> tuple[float, float]:
    """The share of rows whose partner is among the k nearest: text to image, image to text."""
    shares = []
    for queries, targets in ((text, image), (image, text)):
        hits = 0
        for start in range(0, len(queries), 1024):
            scores = queries[start : start + 1024] @ targets.T
            own = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
            hits += int(((scores > own[:, None]).sum(axis=1) < k).sum())
        shares.append(hits / len(queries))
    return shares[0], shares[1]


def hubness(text: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """How unevenly texts retrieve images, and the share of images that no text retrieves.

    A text retrieves its 10 nearest images. The first number is the skewness, over images, of the number of texts that
    retrieve an image (Radovanović et al. 2010).
    """
    from scipy.stats import skew

    neighbours = min(_NEIGHBOURS, len(image))
    counts = np.zeros(len(image), np.int64)
    for start in range(0, len(text), 1024):
        scores = text[start : start + 1024] @ image.T
        nearest = np.argpartition(-scores, neighbours - 1, axis=1)[:, :neighbours]
        counts += np.bincount(nearest.ravel(), minlength=len(image))
    return float(skew(counts)) if counts.std() else 0.0, float((counts == 0).mean())


def _squared_mmd(text: np.ndarray, image: np.ndarray, gamma: float) -> float:
    text, image = text[:_KERNEL_ROWS], image[:_KERNEL_ROWS]
    within = _mean_kernel(text, text, gamma) + _mean_kernel(image, image, gamma)
    return 1000 * (within - 2 * _mean_kernel(text, image, gamma))


def _mean_kernel(a: np.ndarray, b: np.ndarray, gamma: float) -> float:
    total = 0.0
    for start in range(0, len(a), 1024):
        distances = _squared_distances(a[start : start + 1024], b)
        total += float(np.exp(-gamma * distances).sum(dtype=np.float64))
    return total / (len(a) * len(b))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b)[None]
    return (squares - 2 * (a @ b.T)).clip(0)


def _draw(rng, count: int, size: int) -> np.ndarray:
    return np.sort(rng.permutation(count)[:size])


def _check_pairs(text: Vectors, image: Vectors) -> None:
    if text.num_rows != image.num_rows:
        raise InputError(
            f"Paired sets need as many texts as images: {text.name} has {text.num_rows:,} rows, {image.name} "
            f"{image.num_rows:,}; leave out --paired for unpaired sets"
        )
    text_ids, image_ids = text.ids(), image.ids()
    if text_ids is not None and image_ids is not None:
        for row, (text_id, image_id) in enumerate(zip(text_ids, image_ids, strict=True)):
            if text_id != image_id:
                raise InputError(
                    f"Paired sets need the same ids in the same order: row {row} is {text_id!r} in {text.name} and "
                    f"{image_id!r} in {image.name}"
                )


def _named(transfer, taken) -> tuple[str, ModalityTransfer]:
    """The name of a transfer's column: its method, plus its folder if two have the same method."""
    loaded = transfer if isinstance(transfer, ModalityTransfer) else ModalityTransfer.from_pretrained(transfer)
    name = loaded.method
    if name in taken and not isinstance(transfer, ModalityTransfer):
        name = f"{loaded.method} ({Path(transfer).name})"
    number = 2
    while name in taken:
        name = f"{loaded.method} ({number})"
        number += 1
    return name, loaded
