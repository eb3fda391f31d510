"""float16 to float32 and back in NumPy, at the speed of the cache.

NumPy converts one number at a time on most processors; shifting the bits of a whole block and letting one
multiplication mend the exponent is several times as fast, and needs no other library.
"""

import numpy as np

_SIGN_EXPONENT_MANTISSA = np.int32(0x8FFFE000 - (1 << 32))  # where the bits of a float16 lie after the shift
_EXPONENT_BIAS = np.float32(2.0**112)  # 2 ** (127 - 15)


def float16_to_float32(values: np.ndarray) -> np.ndarray:
    """Exact for every finite number, subnormal ones included; Inf and NaN become finite numbers of 65536 and more."""
    result = np.empty(values.shape, np.float32)
    bits = result.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # extends the sign over the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_EXPONENT_MANTISSA, out=bits)
    np.multiply(result, _EXPONENT_BIAS, out=result)
    return result


def float32_to_float16(values: np.ndarray) -> np.ndarray:
    """Round to nearest even, for numbers below 65520 in size; overwrites `values`."""
    np.multiply(values, np.float32(1) / _EXPONENT_BIAS, out=values)
    bits = values.view(np.uint32)
    sign = np.right_shift(bits, 16).astype(np.uint16)
    sign &= np.uint16(0x8000)
    half = np.right_shift(bits, 13)
    half &= np.uint32(1)
    half += np.uint32(0xFFF)
    bits &= np.uint32(0x7FFFFFFF)
    half += bits
    half >>= np.uint32(13)
    result = half.astype(np.uint16)
    result |= sign
    return result.view(np.float16)
