"""Unit rows during a transfer, kept as the original block and a few numbers per row.

After any number of scalings, shifts by a vector and projections to the sphere, a row x_i is a_i x_i + sum_k b_ik v_k.
Lengths and the sum of the rows need only products of the block with vectors. So the block is converted to float32 once
and never rewritten, and it stays in the CPU's cache.
"""

import numpy as np

from unicorn_hf.data.float16 import float16_to_float32

# A shifted row shorter than this was equal to the mean up to rounding, so it has no direction.
_NO_LENGTH = 1e-6
# A squared length is a sum of large terms of both signs. If they cancel by more than this factor, float32 is not exact
# to 1e-6 any more.
LARGEST_CANCELLATION = 8.0
# The number of rows that are summed in float32 before the sum continues in float64: small, but large enough to be fast.
_SUMMED_ROWS = 16


class UnitRows:
    """Rows [n, D] of unit length, from an array or a tensor.

    Attributes:
        x: the original block [n, D]; never changed.
        scale: [n], a_i; NaN for a row without a direction.
        terms: pairs of b_k [n] and v_k [D].
        cancelled: whether a length lost so many digits that the caller must repeat the work in float64.
    """

    def __init__(self, x, scale, terms=(), cancelled: bool = False):
        self.x, self.scale, self.terms, self.cancelled = x, scale, terms, cancelled

    @classmethod
    def of_block(cls, block: np.ndarray, dtype=np.float32) -> tuple["UnitRows", np.ndarray]:
        """The rows of a block of vectors, and the indices of the rows without a direction (NaN, Inf, zero).

        Very long and very short rows are first divided by their largest number, so that their squares fit `dtype`.
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
        """The rows of an array or a tensor at unit length; rows shorter than a rounding error have no direction."""
        squares = _dot(x, x)
        squares[squares < _NO_LENGTH**2] = float("nan")
        return cls(x, squares**-0.5)

    def moved(self, scale: float, shift) -> "UnitRows":
        """normalize(scale * row + shift), with `shift` [D] of the same library and dtype as the rows."""
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
        """The original rows, without `terms`, in another dtype; NumPy only."""
        x = self.x.astype(dtype)
        scale = np.vecdot(x, x) ** -0.5
        scale[np.isnan(self.scale)] = np.nan
        return UnitRows(x, scale)

    def without(self, rows) -> "UnitRows":
        """The original rows, without `terms` and without some rows; NumPy only."""
        return UnitRows(np.delete(self.x, rows, axis=0), np.delete(self.scale, rows))

    def sum(self) -> np.ndarray:
        """The sum of the rows [D], float64; NumPy only."""
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


# These products avoid BLAS: when several threads call it, its own threads wait for one another.
def _dot(rows, vectors):
    """Dot products [n] of rows [n, D] with rows [n, D] or one vector [D]."""
    if isinstance(rows, np.ndarray):
        return np.vecdot(rows, vectors)
    return (rows * vectors).sum(dim=-1)


def _product(weights, vectors):
    """sum_k weights_k vectors_k [n, D], of k arrays [n] and k vectors [D]."""
    if isinstance(vectors[0], np.ndarray):
        return np.einsum("kn,kd->nd", weights, vectors)
    import torch

    return torch.stack(weights, dim=1) @ torch.stack(vectors)
