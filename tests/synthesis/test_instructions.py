from collections import Counter

import datasets
import pytest

from unicorn_hf import write_captions, write_instructions
from unicorn_hf.errors import InputError
from unicorn_hf.sandbox.world import check_answer, split_scenes

CAPTIONS = datasets.Dataset.from_dict(
    {"id": ["a", "b"], "caption": ["a small red circle at the top left", "a blue square above a green cross"]}
)


def test_the_world_agrees_with_every_answer():
    scenes = split_scenes(0, num_captions=200, num_pictures=10, num_test=10).captions
    of_seed = {scene.seed(): scene for scene in scenes}
    captions = write_captions(list(of_seed), writer="grammar")
    seed_of = dict(zip(captions["id"], captions["seed"], strict=True))
    checked = Counter()
    for row in write_instructions(captions, writer="grammar"):
        messages = row["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert check_answer(of_seed[seed_of[row["id"]]], question["content"], answer["content"])
            checked[row["task"]] += 1
    assert min(checked[task] for task in ("multiple_choice", "question_answering", "complex_reasoning")) > 100


def test_the_first_user_turn_alone_holds_the_image():
    for row in write_instructions(CAPTIONS, writer="grammar"):
        contents = [message["content"] for message in row["messages"]]
        assert contents[0].startswith("<image>\n")
        assert "".join(contents).count("<image>") == 1


def test_the_mix_decides_the_tasks(tmp_path):
    mix = {"multiple_choice": 1, "question_answering": 0}
    rows = write_instructions(CAPTIONS, tmp_path / "conversations", writer="grammar", mix=mix)
    assert set(rows["task"]) == {"multiple_choice"}
    read = datasets.load_dataset(str(tmp_path / "conversations"), split="train")
    assert read.to_list() == rows.to_list()


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (CAPTIONS, {"writer": "parrot"}, "--writer is 'parrot'"),
        (CAPTIONS, {"mix": {"poetry": 1}}, "poetry"),
        (CAPTIONS, {"mix": {"multiple_choice": -1}}, "shares of 0 or more"),
        (CAPTIONS.remove_columns("caption"), {}, "no column 'caption'"),
        (datasets.Dataset.from_dict({"id": ["a"], "caption": ["a dog"]}), {}, "one or two colored shapes"),
    ],
)
def test_unusable_input_is_one_sentence_and_leaves_nothing_behind(tmp_path, captions, options, message):
    with pytest.raises(InputError, match=message) as raised:
        write_instructions(captions, tmp_path / "conversations", **{"writer": "grammar", **options})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
