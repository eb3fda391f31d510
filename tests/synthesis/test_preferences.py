import json
import re

import datasets
import pytest

from unicorn_hf import retry_failed, write_captions, write_preferences
from unicorn_hf.errors import InputError
from unicorn_hf.sandbox.world import check_answer, split_scenes
from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.preference_stage import PreferenceStage

CAPTION = "A brown dog with a red collar runs across wet grass toward a wooden gate while two crows watch."
ROW = {"id": "1", "caption": CAPTION}


def test_the_world_agrees_with_the_chosen_answer_and_not_with_the_rejected_one():
    scenes = split_scenes(0, num_captions=300, num_pictures=10, num_test=10).captions
    of_seed = {scene.seed(): scene for scene in scenes}
    captions = write_captions(list(of_seed), writer="grammar")
    seed_of = dict(zip(captions["id"], captions["seed"], strict=True))
    yes, kinds = [], set()
    for row in write_preferences(captions, writer="grammar"):
        scene = of_seed[seed_of[row["id"]]]
        question, chosen, rejected = (row[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
        assert [row[name][0]["role"] for name in ("prompt", "chosen", "rejected")] == ["user", "assistant", "assistant"]
        if asked := re.fullmatch(r"<image>\nIs there an? (\w+) (\w+)\?", question):
            there = any((thing.color, thing.shape) == asked.groups() for thing in scene.things)
            assert {True: ("yes", "no"), False: ("no", "yes")}[there] == (chosen, rejected)
            yes.append(there)
        else:
            assert check_answer(scene, question, chosen)
            assert not check_answer(scene, question, rejected)
            kinds.add(" ".join(question.split()[1:3]))
    assert {"What color", "How many", "Where is", "Are the", "Which object"} <= kinds
    assert 0.4 < sum(yes) / len(yes) < 0.6 and len(yes) > 100


def test_a_pair_depends_on_its_seed_and_caption_only(tmp_path):
    captions = datasets.Dataset.from_dict({"id": ["a", "b"], "caption": ["a red circle", "a blue square over a cross"]})
    captions = captions.map(lambda row: {"caption": row["caption"].replace("a cross", "a green cross")})
    rows = write_preferences(captions, tmp_path / "preferences", writer="grammar", seed=1)
    assert write_preferences(captions.select([1]), writer="grammar", seed=1)[0] == rows[1]
    read = datasets.load_dataset(str(tmp_path / "preferences"), split="train")
    assert read.column_names == ["id", "caption", "prompt", "chosen", "rejected"]
    assert read.to_list() == rows.to_list()


def read(question, answer, wrong_answer):
    text = json.dumps({"question": question, "answer": answer, "wrong_answer": wrong_answer})
    return PreferenceStage().read(ROW, text)


def test_a_models_answer_becomes_a_prompt_and_two_completions():
    assert read("Is there a cat?", "No, only a dog.", "Yes, a cat.") == {
        "prompt": [{"role": "user", "content": "<image>\nIs there a cat?"}],
        "chosen": [{"role": "assistant", "content": "No, only a dog."}],
        "rejected": [{"role": "assistant", "content": "Yes, a cat."}],
    }


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (("What color is the collar?", "Red.", "red"), "same_answer"),
        (("Is there a cat?", "No.", "No, a dog."), "same_answer"),
        (("Is there a cat?", "No.", "A cat."), "same_answer"),
        (("How many crows watch?", "Two.", "It cannot be determined."), "unanswerable"),
        (("How many crows watch?", "Two.", "Three, and each of them sits on a post."), "unlike_lengths"),
        (("What color is the cat's bed?", "Red.", "Blue."), "not_in_caption"),
        (("Is it in the caption?", "Yes.", "No."), "names_caption"),
    ],
)
def test_an_unsound_pair_is_refused(pair, reason):
    with pytest.raises(BadAnswer) as raised:
        read(*pair)
    assert raised.value.reason == reason


@pytest.mark.parametrize(("second", "kept"), [("Red.", True), ("Blue.", False), ("unknown", False)])
def test_the_second_opinion_bears_the_chosen_answer_out(second, kept):
    stage = PreferenceStage(verify=True)
    record = read("What color is the collar?", "Red.", "Blue.")
    assert "What color is the collar?" in stage.verification(ROW, record).messages[1]["content"]
    if kept:
        stage.confirm(record, json.dumps({"answers": [second]}))
    else:
        with pytest.raises(BadAnswer, match="not_verified"):
            stage.confirm(record, json.dumps({"answers": [second]}))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (datasets.Dataset.from_dict({"id": ["a"]}), "no column 'caption'"),
        (datasets.Dataset.from_dict({"id": ["a"], "caption": ["a dog"]}), "one or two colored shapes"),
        (
            datasets.Dataset.from_dict({"id": ["a"], "caption": ["a red cross by a red cross"]}),
            "differ in color or shape",
        ),
    ],
)
def test_unusable_captions_are_one_sentence_and_leave_nothing_behind(tmp_path, captions, message):
    with pytest.raises(InputError, match=message):
        write_preferences(captions, tmp_path / "preferences", writer="grammar")
    assert not list(tmp_path.iterdir())


def test_the_mix_decides_what_is_wrong():
    captions = datasets.Dataset.from_dict(
        {"id": ["a", "b"], "caption": ["a red circle", "a blue square over a red cross"]}
    )
    rows = write_preferences(captions, writer="grammar", mix={"count": 1, "object": 0})
    assert {row["prompt"][0]["content"] for row in rows} == {"<image>\nHow many objects are there?"}
    assert [row["chosen"][0]["content"] for row in rows] == ["one", "two"]
    with pytest.raises(InputError, match=r"mix size=.*: expected shares of 0 or more for some of object, color, count"):
        write_preferences(captions, writer="grammar", mix={"size": 1})


def test_every_pair_of_a_language_model_is_accounted_for_through_all_faults(llm_server, chat_writer, tmp_path):
    captions = datasets.Dataset.from_list(
        [{"id": str(number), "caption": f"A boat and {number} red buoys at dusk."} for number in range(120)]
    )
    output = tmp_path / "preferences"
    write_preferences(captions, output, writer=chat_writer(llm_server("--faults")))
    summary = json.loads((output / "summary.json").read_text())
    assert summary["dead_letters"] and summary["checking"]["usage"]["calls"] > 100
    rows = retry_failed(output, servers=[llm_server().base_url])
    summary = json.loads((output / "summary.json").read_text())
    assert summary["dead_letters"] == {} and summary["rejected"].keys() == {"not_verified"}
    assert len(rows) == summary["rows"] == 120 - summary["rejected"]["not_verified"]
    assert rows.features["prompt"] == rows.features["rejected"]
    for row in rows:
        (question,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert question["role"] == "user" and question["content"].startswith("<image>\nWhich thing is")
        assert chosen["role"] == rejected["role"] == "assistant" and chosen["content"] != rejected["content"]
