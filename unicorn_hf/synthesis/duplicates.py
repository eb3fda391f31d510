"""Exact, near and semantic duplicates among captions."""

from collections.abc import Callable, Sequence

import numpy as np

from unicorn_hf.errors import require

# 3-grams of words; 32 bands of 4 rows find .99 of the captions with 5 % of their words changed, .67 at 15 %.
_NUM_PERM, _NUM_BANDS, _SEED = 128, 32, 42


class NearDuplicates:
    """Finds texts whose word 3-grams overlap (MinHash with locality-sensitive hashing, estimated Jaccard index).

    Args:
        threshold: the lowest Jaccard index, 0 to 1, at which a text is a near duplicate of an earlier one.

    Raises:
        MissingExtraError: rensa is not installed.
    """

    def __init__(self, threshold: float = 0.6):
        require("rensa", "synthesis")
        import rensa

        self.threshold = threshold
        self._min_hash = rensa.RMinHash
        self._index = rensa.RMinHashLSH(threshold, _NUM_PERM, _NUM_BANDS)
        self._seen: list = []  # sketches

    def seen(self, text: str) -> bool:
        """Whether `text` nearly repeats one seen before; if not, it counts as seen from now on."""
        sketch = self._min_hash(_NUM_PERM, _SEED)
        sketch.update(word_ngrams(text))
        # The bands alone also find pairs far below the threshold, so the estimate decides.
        if any(sketch.jaccard(self._seen[key]) >= self.threshold for key in self._index.query(sketch)):
            return True
        self._index.insert(len(self._seen), sketch)
        self._seen.append(sketch)
        return False


def word_ngrams(text: str, size: int = 3) -> list[str]:
    """All `size`-grams of words; of characters if the text has fewer words; else the text itself."""
    words = text.lower().split()
    if len(words) < size:
        words = list(text.lower().strip())
    return [" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1))]


def semantic_duplicates(
    texts: Sequence[str],
    embed_text: Callable[[Sequence[str]], np.ndarray],
    threshold: float = 0.97,
    num_clusters: int | None = None,
) -> np.ndarray:
    """Which texts mean the same as an earlier one, by their text embeddings (SemDeDup, arXiv 2303.09540).

    Embeddings are clustered first (spherical k-means), and compared within their cluster.

    Args:
        texts: N texts.
        embed_text: texts -> vectors [N, D].
        threshold: the lowest cosine at which a text is a duplicate.
        num_clusters: N / 1000 by default, so that time grows with N and not with its square.

    Returns:
        bool [N], True for duplicates; the first of a group is False.
    """
    vectors = np.asarray(embed_text(texts), dtype=np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cluster_of = _cluster(vectors, num_clusters or max(1, len(vectors) // 1000))
    order = np.argsort(cluster_of, kind="stable")
    duplicate = np.zeros(len(vectors), dtype=bool)
    for members in np.split(order, np.flatnonzero(np.diff(cluster_of[order])) + 1):
        for start in range(0, len(members), 1024):
            block = members[start : start + 1024]
            similar = vectors[block] @ vectors[members[: start + len(block)]].T >= threshold
            # Only earlier texts count. The members of a cluster ascend, because the sort is stable.
            duplicate[block] = np.tril(similar, start - 1).any(axis=1)
    return duplicate


def _cluster(vectors: np.ndarray, count: int, rounds: int = 8) -> np.ndarray:
    """The number of each vector's cluster, [N]."""
    if count == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    rng = np.random.default_rng(0)
    sample = vectors[rng.choice(len(vectors), min(len(vectors), 100 * count), replace=False)]
    centers = sample[:count].copy()
    for _ in range(rounds):
        nearest = _nearest(sample, centers)
        np.add.at(sums := np.zeros_like(centers), nearest, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centers)
    return _nearest(vectors, centers)


def _nearest(vectors: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.argmax(vectors[start : start + 8192] @ centers.T, axis=1) for start in range(0, len(vectors), 8192)]
    )
