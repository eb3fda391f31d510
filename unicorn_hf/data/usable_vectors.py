"""Which vectors are usable: finite, not zero, and with the same direction after rounding to float16."""

import numpy as np

_LARGEST_FLOAT16 = 65519
# The largest allowed change by rounding, as a share of a vector's length; the rounding error of the smallest numbers.
_LARGEST_CHANGE, _ROUNDING = 2e-3, 2.0**-25


def find_unusable(block: np.ndarray, *, for_float16: bool = False) -> np.ndarray:
    """The indices [m] of the rows of a block [n, D] that hold NaN or Inf, or only zeros.

    With `for_float16` also the rows so long or so short that rounding to float16 would change their direction.
    """
    largest = _largest(block)
    if not for_float16 or block.dtype == np.float16:
        return np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
    shortest = _ROUNDING * block.shape[1] ** 0.5 / _LARGEST_CHANGE
    return np.flatnonzero(~((largest > shortest) & (largest <= _LARGEST_FLOAT16)))


def as_float16(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A block [n, D] in float16, and the indices [m] of the rows that are not usable in it."""
    with np.errstate(over="ignore"):
        return block.astype(np.float16, copy=False), find_unusable(block, for_float16=True)


def what_is_wrong(row: np.ndarray) -> str:
    """What an unusable row [D] holds."""
    row = row.astype(np.float64)
    if not np.isfinite(row).all():
        return "NaN" if np.isnan(row).any() else "Inf"
    return f"numbers up to {np.abs(row).max():.2g}, which float16 cannot keep" if row.any() else "only zeros"


def _largest(block: np.ndarray) -> np.ndarray:
    """The largest absolute value [n] of each row; NaN if the row holds one."""
    if block.dtype != np.float16:
        return np.abs(block).max(axis=1)
    # Without the sign, floats sort like their bits. Comparing bits is far faster than NumPy's float16 arithmetic.
    return (np.ascontiguousarray(block).view(np.uint16) & 0x7FFF).max(axis=1).view(np.float16).astype(np.float32)
