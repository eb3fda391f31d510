import pytest

from unicorn_hf.synthesis.answers import BadAnswer, json_schema, parse_answer
from unicorn_hf.synthesis.caption_stage import CaptionAnswer
from unicorn_hf.synthesis.conversation_stage import MultipleChoiceAnswer


@pytest.mark.parametrize(
    "text",
    [
        '{"caption": "a dog"}',
        'Sure!\n```json\n{"caption": "a dog"}\n```',
        '<think>{"caption": "a cat"}</think>{"caption": "a dog", "note": "extra"}',
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
    ],
)
def test_a_bad_answer_says_why(text, reason, malformed):
    with pytest.raises(BadAnswer) as raised:
        parse_answer(text, CaptionAnswer)
    assert (raised.value.reason, raised.value.malformed) == (reason, malformed)


def test_the_schema_that_is_sent_closes_every_object():
    schema = json_schema(MultipleChoiceAnswer)["schema"]
    objects = [schema, *schema["$defs"].values()]
    assert all(node["additionalProperties"] is False for node in objects)
    assert "maxLength" not in str(schema)
