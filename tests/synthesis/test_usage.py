import pytest

from unicorn_hf.synthesis.usage import in_units, money


@pytest.mark.parametrize(("count", "shown"), [(0, "0"), (873, "873"), (12_400, "12.4k"), (3_080_000, "3.08M")])
def test_a_number_of_tokens_is_shown_in_units_that_say_something(count, shown):
    assert in_units(count) == shown


@pytest.mark.parametrize(("cost", "shown"), [(0, "0.00"), (0.00034, "0.00034"), (0.5, "0.50"), (1234.5, "1,234.50")])
def test_a_small_sum_is_not_shown_as_nothing(cost, shown):
    assert money(cost) == shown
