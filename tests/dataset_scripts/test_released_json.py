import json
import tracemalloc
from collections import Counter

import pytest
from small_datasets import released_records
from unicorn_hf.dataset_scripts.released_json import Rejected, convert, iter_records, read_rows

from unicorn_hf import InputError


def turns(*values, roles=("human", "gpt")):
    return [{"from": roles[place % len(roles)], "value": value} for place, value in enumerate(values)]


def record(**changes):
    return {**released_records(1)[0], **changes}


def test_released_turns_become_chat_messages():
    row = convert(record(conversations=turns("<image>\nWhat?", "A dog.", "Why?", "It barks.")), with_messages=True)
    assert row["messages"] == [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "It barks."},
    ]


@pytest.mark.parametrize(
    "conversation",
    [
        turns("What is it?\n<image>", "A dog.", "Why?", "It barks."),
        turns("What is it?", "A dog.", "<image>\nWhy?", "It barks."),
        turns("<image> What is it? <image>", "A dog.", "Why?", "It barks."),
        turns("What is it?", "A dog.", "Why?", "It barks."),
    ],
)
def test_the_placeholder_goes_to_the_first_user_turn_and_nowhere_else(conversation):
    messages = convert(record(conversations=conversation), with_messages=True)["messages"]
    assert [message["content"] for message in messages] == ["<image>\nWhat is it?", "A dog.", "Why?", "It barks."]


def test_a_system_turn_stays_first_and_without_a_placeholder():
    conversation = [{"from": "system", "value": "Be brief."}, *turns("<image>\nWhat?", "A dog.")]
    messages = convert(record(conversations=conversation), with_messages=True)["messages"]
    assert [(message["role"], message["content"]) for message in messages][:2] == [
        ("system", "Be brief."),
        ("user", "<image>\nWhat?"),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": None}, "no caption"),
        ({"caption": "  "}, "no caption"),
        ({"id": None}, "no id"),
        ({"id": {"a": 1}}, "no id"),
        ({"conversations": None}, "no conversation"),
        ({"conversations": []}, "no conversation"),
        ({"conversations": turns("Hi", "Ho", roles=("human", "narrator"))}, "unknown role"),
        ({"conversations": [{"from": ["human"], "value": "Hi"}]}, "unknown role"),
        ({"conversations": turns("Hi", "Ho", "Why?")}, "odd turns"),
        ({"conversations": turns("Hi", "Ho", roles=("gpt", "human"))}, "odd turns"),
        ({"conversations": turns("Hi", "Ho", roles=("human", "human"))}, "odd turns"),
        ({"conversations": [{"from": "system", "value": "Be brief."}]}, "odd turns"),
        ({"conversations": turns("Hi", "")}, "empty turn"),
        ({"conversations": [{"from": "human"}]}, "empty turn"),
        ({"conversations": ["Hi", "Ho"]}, "empty turn"),
    ],
)
def test_a_record_that_cannot_be_used_has_a_reason(changes, reason):
    assert convert(record(**changes), with_messages=True) == reason


def test_captions_need_no_conversation():
    assert convert(record(conversations=None), with_messages=False) == {"id": "000000", "caption": record()["caption"]}


def test_every_record_is_a_row_or_is_kept_among_the_rejected(tmp_path):
    records = released_records(50)
    records[3].pop("caption")
    records[4]["conversations"].pop()
    records[7]["id"] = records[5]["id"]
    records[8] = "a string"
    (tmp_path / "Instruction.json").write_text(json.dumps(records))
    with Rejected(tmp_path / "rejected.jsonl", "unicorn-471k-instruction") as rejected:
        batches = read_rows(tmp_path / "Instruction.json", with_messages=True, rejected=rejected, batch_size=6)
        rows = [row for batch in batches for row in batch]
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert len(rows) + len(lines) == 50
    assert [line["record"] for line in lines] == [records[place] for place in (3, 4, 8)]
    assert rejected.counts == {"no caption": 1, "odd turns": 1, "not a record": 1}


def test_all_conversations_of_an_id_are_rows_with_ids_of_their_own(tmp_path):
    records = [{**record, "id": place // 3} for place, record in enumerate(released_records(900))]
    records.append({**records[0], "id": "7-2"})
    (tmp_path / "sft.json").write_text(json.dumps(records))
    with Rejected(tmp_path / "rejected.jsonl", "unicorn-471k-instruction") as rejected:
        rows = [
            row
            for batch in read_rows(tmp_path / "sft.json", with_messages=True, rejected=rejected, batch_size=7)
            for row in batch
        ]
    assert [row["id"] for row in rows[:4]] == ["0", "0-2", "0-3", "1"]
    assert len({row["id"] for row in rows}) == len(rows) == 901
    assert [row["record"] for row in rows] == records
    assert rejected.changes["id made unique"] == 601
    assert not rejected.counts


@pytest.mark.parametrize(
    ("conversation", "messages", "changes"),
    [
        (turns("<image>\nWhat?", " A dog.\n"), ["<image>\nWhat?", " A dog.\n"], {}),
        (turns("What?\n<image>", "A dog."), ["<image>\nWhat?", "A dog."], {}),
        (turns("<image>", "A dog."), ["<image>", "A dog."], {}),
        (turns("What?", "A dog."), ["<image>\nWhat?", "A dog."], {"image added": 1}),
        (
            turns("What?", "A dog.", " Why? <image>", "So."),
            ["<image>\nWhat?", "A dog.", "Why?", "So."],
            {"image moved to the first question": 1},
        ),
        (
            turns("<image>\nWhat?<image>", "A <image> dog."),
            ["<image>\nWhat?", "A  dog."],
            {"images merged into one": 1},
        ),
        (
            turns("Hello.", "<image>\nWhat?", "A dog.", roles=("gpt", "human")),
            ["<image>\nWhat?", "A dog."],
            {"assistant's turn before the first question left out": 1},
        ),
    ],
)
def test_words_are_kept_and_what_changes_is_counted(conversation, messages, changes):
    counts = Counter()
    row = convert(record(conversations=conversation), with_messages=True, changes=counts)
    assert [message["content"] for message in row["messages"]] == messages
    assert counts == changes


def test_leading_zeros_and_numbers_stay_different_ids(tmp_path):
    records = released_records(2)
    records[0]["id"], records[1]["id"] = "0012", 12
    (tmp_path / "Pretrain.json").write_text(json.dumps(records))
    with Rejected(tmp_path / "rejected.jsonl", "unicorn-1.2m") as rejected:
        (rows,) = read_rows(tmp_path / "Pretrain.json", with_messages=False, rejected=rejected)
    assert [row["id"] for row in rows] == ["0012", "12"]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n \t"])
@pytest.mark.parametrize("lines", [False, True])
def test_lists_and_lines_are_read_alike(tmp_path, start, lines):
    records = released_records(5)
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, indent=1)
    (tmp_path / "data.json").write_text(start + text, encoding="utf-8")
    assert list(iter_records(tmp_path / "data.json")) == records


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "Pretrain.json"
    line = json.dumps(record(caption="word " * 400))
    path.write_text("[" + ",".join([line] * 10_000) + "]")
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in iter_records(path)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(released_records(30))[:-700], r"is damaged after record 2\d .*fetch the file again"),
        ('[{"id": "1", "caption": nonsense}]', "is damaged after record 0"),
        ("version https://git-lfs.github.com/spec/v1\n", "is neither a JSON list of records"),
        ("", "is neither a JSON list of records"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "Pretrain.json").write_text(text)
    with pytest.raises(InputError, match=rf"Pretrain\.json: {message}"):
        list(iter_records(tmp_path / "Pretrain.json"))
