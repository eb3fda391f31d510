from collections import Counter

import pytest
from small_datasets import captions, conversations
from unicorn_hf.dataset_scripts.dataset_card import Observed, histogram


def test_what_passes_is_counted_and_passes_unchanged():
    table = conversations().data.table
    seen = Observed()
    passed = list(seen.watch(table.slice(start, 7) for start in range(0, 20, 7)))
    assert sum(map(len, passed)) == 20 and passed[0].equals(table.slice(0, 7))
    assert seen.caption_words == {5: 20} and seen.turns == {2: 20}
    assert seen.tasks == Counter(conversations()["task"][:])
    assert [row["id"] for row in seen.samples] == ["000000", "000003", "000006"]


def test_samples_show_the_first_numbers_of_a_vector():
    seen = Observed()
    list(seen.watch([captions().data.table]))
    assert len(seen.samples[0]["image_embeds"]) == 5 and seen.samples[0]["image_embeds"][-1] == "…"


@pytest.mark.parametrize(
    ("counts", "labels"),
    [
        ({5: 3}, ["5"]),
        ({2: 1, 4: 1}, ["2", "3", "4"]),
        ({10: 4, 109: 1}, ["10–19", *[f"{low}–{low + 9}" for low in range(20, 100, 10)], "100–109"]),
    ],
)
def test_a_histogram_has_at_most_ten_bins_and_loses_nothing(counts, labels):
    bins = histogram(Counter(counts))
    assert [label for label, _, _ in bins] == labels
    assert sum(count for _, count, _ in bins) == sum(counts.values())
    assert max(len(bar) for _, _, bar in bins) == 20
