"""The one rule for the values of a vector: finite, not zero, and still the same direction where float16 keeps it."""

import numpy as np

_LARGEST_FLOAT16 = 65519
# What rounding to float16 may change, as a share of a vector's length, and how much it changes the smallest numbers by.
_LARGEST_CHANGE, _ROUNDING = 2e-3, 2.0**-25


def find_unusable(block: np.ndarray, *, for_float16: bool = False) -> np.ndarray:
    """The rows of a block [n, D] that are NaN, Inf or zero: their indices [m].

    With `for_float16` also those so long or so short that rounding to float16 would change their direction.
    """
    largest = _largest(block)
    if not for_float16 or block.dtype == np.float16:
        return np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    shortest = _ROUNDING * block.shape[1] ** 0.5 / _LARGEST_CHANGE
    return np.flatnonzero(~((largest > shortest) & (largest <= _LARGEST_FLOAT16)))


def as_float16(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A block [n, D] in float16, and the indices [m] of the rows that are not usable there."""
    with np.errstate(over="ignore"):
        return block.astype(np.float16, copy=False), find_unusable(block, for_float16=True)


def what_is_wrong(row: np.ndarray) -> str:
    """What an unusable row [D] holds."""
    row = row.astype(np.float64)
    if not np.isfinite(row).all():
        return "NaN" if np.isnan(row).any() else "Inf"
    return f"numbers up to {np.abs(row).max():.2g}, which float16 cannot keep" if row.any() else "only zeros"


def _largest(block: np.ndarray) -> np.ndarray:
    """The largest number of each row, its sign left out; NaN where there is one."""
    if block.dtype != np.float16:
        return np.abs(block).max(axis=1)
    # Numbers without a sign are in the order of their bits, which is far faster than NumPy's arithmetic of float16.
    return (np.ascontiguousarray(block).view(np.uint16) & 0x7FFF).max(axis=1).view(np.float16).astype(np.float32)
