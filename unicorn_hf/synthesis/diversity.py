"""How diverse texts are: distinct-n, self-BLEU, and the Vendi score."""

import collections
import math
from collections.abc import Sequence

import numpy as np


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams of words among all (Li et al., arXiv 1510.03055); 1 is the most diverse.

    It falls with the number of texts: compare samples of one size only.
    """
    grams = [gram for text in texts for gram in _ngrams(text.lower().split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], max_n: int = 4) -> float:
    """The mean BLEU of every text against all others (Zhu et al., arXiv 1802.01886); 0 is the most diverse.

    Orders without a match count as half a match, and the brevity penalty looks at the others' closest length.
    """
    if len(texts) < 2:
        return 0.0
    tokens = [text.lower().split() for text in texts]
    counts = [[collections.Counter(_ngrams(words, n)) for n in range(1, max_n + 1)] for words in tokens]
    # For every n-gram the two highest counts and the owner of the first: the most among the others in one look.
    most: dict[tuple, tuple[int, int, int]] = {}
    for owner, orders in enumerate(counts):
        for order in orders:
            for gram, count in order.items():
                first, holder, second = most.get(gram, (0, -1, 0))
                if count > first:
                    most[gram] = (count, owner, first)
                elif count > second:
                    most[gram] = (first, holder, count)
    lengths = collections.Counter(map(len, tokens))
    scores = []
    for owner, orders in enumerate(counts):
        log_precision, used = 0.0, 0
        for order in orders:
            total = order.total()
            if not total:
                continue
            matches = 0
            for gram, count in order.items():
                first, holder, second = most[gram]
                matches += min(count, second if holder == owner else first)
            log_precision += math.log(max(matches, 0.5) / total)
            used += 1
        length = len(tokens[owner])
        if not used:
            continue
        others = [other for other, count in lengths.items() if other != length or count > 1]
        closest = min(others, key=lambda other: (abs(other - length), other))
        penalty = 1.0 if length >= closest else math.exp(1 - closest / length)
        scores.append(penalty * math.exp(log_precision / used))
    return float(np.mean(scores)) if scores else 0.0


def vendi_score(vectors: np.ndarray) -> float:
    """The effective number of different rows (Friedman and Dieng, arXiv 2210.02410).

    The exponential of the entropy of the eigenvalues of K / N, where K [N, N] holds the cosines of `vectors` [N, D]:
    1 if all rows are alike, N if they are orthogonal.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    # X Xᵀ and Xᵀ X have the same eigenvalues above 0.
    gram = vectors.T @ vectors if vectors.shape[1] < len(vectors) else vectors @ vectors.T
    values = np.linalg.eigvalsh(gram / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))
