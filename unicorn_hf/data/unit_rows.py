"""Unit rows on their way through a transfer, as a few numbers a row.

Scaled, shifted by a vector and projected to the sphere, however often, a row x_i becomes a_i x_i + sum_k b_ik v_k. The
lengths need only products of the block with vectors, and so does the sum of the rows: the block is converted to float32
once and only read from then on, while it is in the cache.
"""

import numpy as np

from unicorn_hf.data.float16 import float16_to_float32

# A shifted row shorter than this was the mean itself, but for rounding: it points nowhere.
_NO_LENGTH = 1e-6
# Where the squares that a length is made of cancel by more than this, float32 would not be right to 1e-6.
LARGEST_CANCELLATION = 8.0
# Rows summed in float32 before their sum goes on in float64: as few as cost nothing.
_SUMMED_ROWS = 16


class UnitRows:
    """Rows [n, D] of unit length, of an array or a tensor.

    Attributes:
        x: the block [n, D] that they are made of; never changed.
        scale: [n], a_i; NaN for a row that has no direction.
        terms: pairs of b_k [n] and v_k [D].
        cancelled: whether a length lost so many digits that the arithmetic has to be float64.
    """

    def __init__(self, x, scale, terms=(), cancelled: bool = False):
        self.x, self.scale, self.terms, self.cancelled = x, scale, terms, cancelled

    @classmethod
    def of_block(cls, block: np.ndarray, dtype=np.float32) -> tuple["UnitRows", np.ndarray]:
        """The rows of a block of vectors, and the indices of those that have no direction (NaN, Inf, zero).

        Rows whose squares leave the range of `dtype` are scaled by their largest number first, so any length is right.
        """
        if block.dtype == np.float16 and dtype == np.float32 and block.flags.c_contiguous:
            x = float16_to_float32(block)
        else:
            x = block.astype(dtype, copy=False)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            squares = np.vecdot(x, x)
            odd = np.flatnonzero(~((squares > 1e-30) & (squares < 2.0**31)))
            if not len(odd):
                return cls(x, squares**-0.5), odd
            rows = block[odd].astype(np.float64)
            rows /= np.abs(rows).max(axis=1, keepdims=True)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        has_direction = np.isfinite(rows).all(axis=1)
        if x is block:
            x = x.copy()
        x[odd] = rows
        squares[odd] = np.where(has_direction, 1, np.nan)
        return cls(x, squares**-0.5), odd[~has_direction]

    @classmethod
    def normalized(cls, x) -> "UnitRows":
        """The rows of an array or a tensor at unit length; those shorter than a rounding error have no direction."""
        squares = _dot(x, x)
        squares[squares < _NO_LENGTH**2] = float("nan")
        return cls(x, squares**-0.5)

    def moved(self, scale: float, shift) -> "UnitRows":
        """normalize(scale * row + shift), `shift` [D] being of the rows' kind and type."""
        dot = self.scale * _dot(self.x, shift) + sum(weight * (vector @ shift) for weight, vector in self.terms)
        largest = scale**2 + float(shift @ shift)
        squares = 2 * scale * dot + largest
        cancelled = bool((squares * LARGEST_CANCELLATION < largest).any())
        squares[squares < _NO_LENGTH**2] = float("nan")
        projection = squares**-0.5
        scale = scale * projection
        terms = [(weight * scale, vector) for weight, vector in self.terms]
        return UnitRows(self.x, self.scale * scale, [*terms, (projection, shift)], self.cancelled or cancelled)

    def astype(self, dtype) -> "UnitRows":
        """The rows before they are moved, of another type; NumPy only."""
        x = self.x.astype(dtype)
        scale = np.vecdot(x, x) ** -0.5
        scale[np.isnan(self.scale)] = np.nan
        return UnitRows(x, scale)

    def without(self, rows) -> "UnitRows":
        """The rows before they are moved, less some; NumPy only."""
        return UnitRows(np.delete(self.x, rows, axis=0), np.delete(self.scale, rows))

    def sum(self) -> np.ndarray:
        """[D], float64; NumPy only."""
        rest = len(self.x) % _SUMMED_ROWS
        groups = (-1, _SUMMED_ROWS)
        sums = np.einsum(
            "gi,gij->gj", self.scale[rest:].reshape(groups), self.x[rest:].reshape(*groups, self.x.shape[1])
        )
        total = sums.sum(axis=0, dtype=np.float64)
        total += np.einsum("i,ij->j", self.scale[:rest], self.x[:rest])
        for weight, vector in self.terms:
            total += weight.sum(dtype=np.float64) * vector
        return total

    def dense(self):
        """The rows themselves [n, D], as a new array or tensor."""
        rows = self.x * self.scale[:, None]
        if self.terms:
            weights, vectors = zip(*self.terms, strict=True)
            rows += _product(weights, vectors)
        return rows


# Where products could be BLAS's they are not: its threads wait for one another where several threads call it.
def _dot(rows, vectors):
    """[n], of [n, D] and [n, D] or [D]."""
    if isinstance(rows, np.ndarray):
        return np.vecdot(rows, vectors)
    return (rows * vectors).sum(dim=-1)


def _product(weights, vectors):
    """[n, D], of k arrays [n] and k vectors [D]."""
    if isinstance(vectors[0], np.ndarray):
        return np.einsum("kn,kd->nd", weights, vectors)
    import torch

    return torch.stack(weights, dim=1) @ torch.stack(vectors)
