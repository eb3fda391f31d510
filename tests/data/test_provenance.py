import pytest

from unicorn_hf.data.provenance import Origin


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (Origin("a"), Origin("b"), ("the encoder 'a'", "'b'")),
        (Origin("a", "realign"), Origin("a", "mean_shift"), ("the transfer 'realign'", "'mean_shift'")),
        (Origin("a", embed_dim=8), Origin("a", embed_dim=9), ("8 dimensions", "9")),
        (Origin("a"), Origin(), None),
        (Origin("a", None, 8), Origin("a", "realign", 8), None),
        (Origin(), Origin(embed_dim=3), None),
    ],
)
def test_vectors_belong_together_unless_both_say_something_else(ours, theirs, expected):
    assert ours.difference(theirs) == expected
    assert (theirs.difference(ours) is None) == (expected is None)
