import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf.synthesis.answers import BadAnswer, json_schema, parse_answer
from unicorn_hf.synthesis.caption_stage import CaptionAnswer
from unicorn_hf.synthesis.conversation_stage import MultipleChoiceAnswer


@pytest.mark.parametrize(
    "text",
    [
        '{"caption": "a dog"}',
        'Sure!\n```json\n{"caption": "a dog"}\n```',
        '<think>{"caption": "a cat"}</think>{"caption": "a dog", "note": "extra"}',
        'First: {"caption": "a cat"}. On second thought:\n\n{"caption": "a dog"}',
        '{"caption": "a cat"}{"caption": "a dog"}',
        '{"caption": "a dog"} (I kept the form {"caption": ...}, as asked.)',
        '{"caption": "a dog"}\nThe set {dog} is what the seed names.',
        'Plan: {seed, style}. {"caption": "a dog"}',
        '{"caption": "a dog"}\n{"verdict": "good"}',
        '```json\n{"caption": "a cat"}\n```\nBetter:\n```json\n{"caption": "a dog"}\n```\nDone.',
        '{"draft": {"caption": "a cat"}, "caption": "a dog"}',
        '{"caption": "a cat} and then {"caption": "a dog"}',
        '{{"caption": "a dog"}}',
        '{"caption": "a dog"} {',
        '{"caption": "a dog"}\n{"',
        '{"caption": "a dog"}\n{"note": "as asked',
        '{"caption": "a dog"}\nSchema: {"caption": "string"}',
        '{"caption": "a dog"}\nThe form was {"caption": "<your caption>"}.',
        'Example: {"caption": "a cat"}\n{"caption": "a dog"}',
        '{"caption": "a dog"} (for instance {"caption": "a cat"})',
        'The example caption: {"caption": "a dog"}',
        'Example: {"caption": "a dog"}',
    ],
)
def test_json_is_found_wherever_it_stands(text):
    assert parse_answer(text, CaptionAnswer).caption == "a dog"


@pytest.mark.parametrize(
    ("text", "reason", "malformed"),
    [
        ("", "empty_answer", True),
        ("  \n", "empty_answer", True),
        ('{"caption": "a do', "not_json", True),
        ('{"caption": "a dog}', "not_json", True),
        ('{"verdict": 42}', "wrong_schema", True),
        ('{"caption": ["a dog"]}', "wrong_schema", True),
        ('{"caption": "%s"}' % ("x" * 40_000), "answer_too_large", True),
        ("I'm sorry, but I can't help with that.", "refusal", False),
        ("A dog.", "not_json", True),
        ('{"caption": "a cat"} Better: {"caption": "a do', "not_json", True),
        ('{"draft": {"caption": "a cat"}, "capt', "not_json", True),
        ('<think>Draft: {"caption": "a cat"} No - the seed names no square, so', "empty_answer", True),
        ('Draft: {"caption": "a cat"} No</think>', "empty_answer", True),
        ('{"a":' * 5_000, "not_json", True),
    ],
)
def test_a_bad_answer_says_why(text, reason, malformed):
    with pytest.raises(BadAnswer) as raised:
        parse_answer(text, CaptionAnswer)
    assert (raised.value.reason, raised.value.malformed) == (reason, malformed)


_words = st.text(st.sampled_from('abc {}[]":,\n\\é'), max_size=30)
_captions = st.text(st.sampled_from('abc {}[]"\\é'), min_size=1, max_size=30)


def _record(caption: str) -> str:
    return json.dumps({"caption": caption}, ensure_ascii=False)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_captions, min_size=1, max_size=3),
    st.sampled_from(["", "\n", " Better: ", "\n```\n```json\n"]),
    st.booleans(),
)
def test_the_last_of_several_records_is_taken(captions, between, fenced):
    text = between.join(map(_record, captions))
    text = f"```json\n{text}\n```" if fenced else text
    assert parse_answer(text, CaptionAnswer).caption == captions[-1]


@settings(max_examples=300, deadline=None)
@given(_words, st.sampled_from([("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]")]))
def test_a_record_in_a_thought_is_never_taken(words, marks):
    opening, closing = marks
    thought = f"{opening}{words}{_record('a cat')}{words}"
    assert parse_answer(f"{thought}{closing}{_record('a dog')}", CaptionAnswer).caption == "a dog"
    for unfinished in (thought, f"{thought}{closing}"):
        with pytest.raises(BadAnswer):
            parse_answer(unfinished, CaptionAnswer)


_MARKS = ("<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "<|channel|>", "<|message|>", "<unused94>")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a dog", *_MARKS]), min_size=1, max_size=4), st.sampled_from(["", "<think>so</think>"])
)
def test_a_mark_of_a_thought_inside_a_record_is_a_word_of_it(words, thought):
    caption = " ".join(words)
    assert parse_answer(f"{thought}{_record(caption)}", CaptionAnswer).caption == caption
    assert parse_answer(f"{thought}Here: {_record(caption)} Done.", CaptionAnswer).caption == caption


@settings(max_examples=200, deadline=None)
@given(_captions, _captions, st.data())
def test_of_an_answer_that_is_cut_off_nothing_but_a_whole_record_is_taken(draft, caption, data):
    text = f"{_record(draft)} Better: {_record(caption)}"
    whole = len(_record(draft))
    cut = data.draw(st.integers(0, len(text)).filter(lambda cut: cut not in (whole, whole + 1)))
    with pytest.raises(BadAnswer) as raised:
        parse_answer(text[:cut], CaptionAnswer, cut_off=True)
    assert raised.value.cut_off and raised.value.malformed
    for whole in (_record(caption), f"```json\n{_record(caption)}\n```", f"{_record(caption)}\n\n\n"):
        assert parse_answer(whole, CaptionAnswer, cut_off=True).caption == caption


def test_the_schema_that_is_sent_closes_every_object():
    schema = json_schema(MultipleChoiceAnswer)["schema"]
    objects = [schema, *schema["$defs"].values()]
    assert all(node["additionalProperties"] is False for node in objects)
    assert "maxLength" not in str(schema)
