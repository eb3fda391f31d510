import numpy as np

from unicorn_hf.data.float16 import float16_to_float32, float32_to_float16

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_finite_float16_is_widened_exactly():
    finite = np.isfinite(EVERY)
    widened = float16_to_float32(EVERY)
    np.testing.assert_array_equal(widened[finite], EVERY[finite].astype(np.float32))
    assert (np.abs(widened[~finite]) >= 65536).all()


def test_narrowing_rounds_to_nearest_even():
    finite = EVERY[np.isfinite(EVERY)].astype(np.float32)
    finite.sort()
    between = (finite[1:] + finite[:-1]) / 2  # the ties
    normal = between[np.abs(between) > 2.0**-14]
    nudged = np.concatenate([np.nextafter(normal, -np.inf), normal, np.nextafter(normal, np.inf), finite])
    np.testing.assert_array_equal(float32_to_float16(nudged.copy()), nudged.astype(np.float16))
