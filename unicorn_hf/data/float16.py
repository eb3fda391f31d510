"""Fast conversion between float16 and float32 in NumPy.

NumPy converts one number at a time on most processors. Shifting the bits of a whole block and correcting the exponent
with one multiplication is several times as fast and needs no other library.
"""

import numpy as np

_SIGN_EXPONENT_MANTISSA = np.int32(0x8FFFE000 - (1 << 32))  # where the bits of a float16 lie after the shift
_EXPONENT_BIAS = np.float32(2.0**112)  # 2 ** (127 - 15)


def float16_to_float32(values: np.ndarray) -> np.ndarray:
    """Exact for every finite number, subnormals included; Inf and NaN become finite numbers of 65536 and more."""
    result = np.empty(values.shape, np.float32)
    bits = result.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # extends the sign over the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_EXPONENT_MANTISSA, out=bits)
    np.multiply(result, _EXPONENT_BIAS, out=result)
    return result


def float32_to_float16(values: np.ndarray) -> np.ndarray:
    """Round to nearest even, for absolute values below 65520; overwrites `values`."""
    np.multiply(values, np.float32(1) / _EXPONENT_BIAS, out=values)
    bits = values.view(np.int32)
    rounded = np.right_shift(bits, 13)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0xFFF, out=rounded)
    np.right_shift(rounded, 13, out=rounded)
    result = rounded.astype(np.int16)
    # The three upper bits of the exponent are zero here, so the sign sits three bits too high and is shifted down.
    np.right_shift(rounded, 3, out=rounded)
    sign = rounded.astype(np.int16)
    np.bitwise_and(sign, np.int16(-0x8000), out=sign)
    np.bitwise_or(result, sign, out=result)
    return result.view(np.float16)
