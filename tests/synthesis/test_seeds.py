import logging

from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf.synthesis.seeds import read_seeds


def test_two_files_that_both_count_from_one_lose_no_seed(tmp_path, caplog):
    for name, texts in (("a", ["red", "blue"]), ("b", ["dog", "blue"])):
        lines = "".join(f"{index},{text}\n" for index, text in enumerate(texts, 1))
        (tmp_path / f"{name}.csv").write_text(f"id,seed\n{lines}")
    with caplog.at_level(logging.WARNING):
        seeds = read_seeds([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert seeds["seed"][:] == ["red", "blue", "dog"]
    assert seeds["id"][:2] == ["1", "2"] and seeds["id"][2].startswith("1-")
    assert "1 seeds have an id that another seed has" in caplog.text


def test_ids_stay_as_they_are_written(tmp_path):
    (tmp_path / "seeds.csv").write_text("id,seed\n1,red\n1,blue\n01,green\n,grey\n")
    seeds = read_seeds(tmp_path / "seeds.csv")
    assert seeds["seed"][:] == ["red", "blue", "green", "grey"]
    assert (seeds["id"][0], seeds["id"][2]) == ("1", "01") and seeds["id"][1].startswith("1-")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["1", "01", "2", None]), st.sampled_from("abcdef")), min_size=1, max_size=12))
def test_ids_are_unique_and_every_seed_of_an_id_is_there(rows):
    import datasets

    table = {"id": [key for key, _ in rows], "seed": [text for _, text in rows]}
    features = datasets.Features({"id": datasets.Value("string"), "seed": datasets.Value("string")})
    seeds = read_seeds(datasets.Dataset.from_dict(table, features=features))
    assert len(set(seeds["id"][:])) == len(seeds)
    assert set(seeds["seed"][:]) == {text for _, text in rows}
    assert len(seeds) == len(set(rows))
