"""Reads a language model's answer: JSON by schema, or a reason why not."""

import functools
import json
import re
from collections.abc import Iterator
from typing import TypeVar

import pydantic

from unicorn_hf.reasoning import split_reasoning

MAX_ANSWER_CHARS = 32_000  # far more than any conversation; a runaway answer is refused, not read

Schema = TypeVar("Schema", bound=pydantic.BaseModel)

_REFUSAL = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|not able|afraid)|sorry\b|unfortunately,? i\b|i apologi[sz]e"
    r"|i (?:can(?:no|['’])t|cannot|won['’]t|do not|don['’]t)|as an ai\b|as a (?:large )?language model)",
    re.IGNORECASE,
)


class BadAnswer(Exception):
    """An answer that cannot be kept. The writer is told `detail` and asked again, a bounded number of times.

    `malformed` tells a broken answer (a dead letter in the end) from a well-formed one that a filter refuses. One that
    is `cut_off` needs more tokens, not another word.
    """

    def __init__(self, reason: str, detail: str, *, malformed: bool = False, cut_off: bool = False):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.malformed, self.cut_off = reason, detail, malformed, cut_off


def parse_answer(text: str, schema: type[Schema], cut_off: bool = False) -> Schema:
    """The last record of the schema in an answer: alone, behind a thought or a draft, or between prose and fences.

    Nothing inside a thought counts, whether the thought ended or not.

    Args:
        cut_off: whether the answer ended at its limit of tokens. What stands in it may then be a draft, or part of a
            thought that the chat template began, so only a record that is the whole answer counts.

    Raises:
        BadAnswer: the answer is empty, only a thought, cut off, too large, a refusal, no JSON, or not of the schema.
    """
    thought, answer = split_reasoning(text)
    answer = (answer or "").strip()
    if cut_off and not _is_one_record(answer):
        raise BadAnswer("not_json", "the answer was cut off at its limit of tokens", malformed=True, cut_off=True)
    if not answer:
        if thought:
            raise BadAnswer("empty_answer", "there is a thought, and no answer behind it", malformed=True)
        raise BadAnswer("empty_answer", "the answer is empty", malformed=True)
    if len(answer) > MAX_ANSWER_CHARS:
        raise BadAnswer("answer_too_large", f"the answer is longer than {MAX_ANSWER_CHARS} characters", malformed=True)
    first_error = None
    for found in reversed(list(_json_objects(answer))):
        try:
            return schema.model_validate_json(found)
        except pydantic.ValidationError as error:
            first_error = first_error or error.errors(include_url=False, include_input=False)[0]
    if first_error is not None:
        place = ".".join(map(str, first_error["loc"]))
        detail = f"{place}: {first_error['msg']}" if place else first_error["msg"]
        raise BadAnswer("wrong_schema", detail, malformed=True)
    if "{" not in answer and is_refusal(answer):
        raise BadAnswer("refusal", "the answer is a refusal")
    raise BadAnswer("not_json", "the answer holds no complete JSON object", malformed=True)


def _json_objects(text: str) -> Iterator[str]:
    """The outermost JSON objects of a text, in order; none where the last one is not complete."""
    decoder, found, start = json.JSONDecoder(), [], text.find("{")
    while start >= 0:
        try:
            _, end = decoder.raw_decode(text, start)
            found.append(text[start:end])
        except (json.JSONDecodeError, RecursionError) as error:
            if _ends_inside(text, start, error):
                return  # what came before was a draft of it
            end = start + 1
        start = text.find("{", end)
    yield from found


def _ends_inside(text: str, start: int, error: Exception) -> bool:
    """Whether the text ends before the JSON object that begins at `start` does."""
    if not isinstance(error, json.JSONDecodeError) or not re.match(r'\{\s*"', text[start : start + 100]):
        return False
    return error.pos >= len(text) or error.msg.startswith("Unterminated string")


def _is_one_record(answer: str) -> bool:
    """Whether an answer is one complete JSON object, but for a Markdown fence."""
    return list(_json_objects(answer)) == [re.sub(r"^```\w*\s*|\s*```$", "", answer)]


def is_refusal(text: str) -> bool:
    return bool(_REFUSAL.match(text))


@functools.cache
def json_schema(schema: type[pydantic.BaseModel]) -> dict:
    """The JSON schema to send along: closed objects, and no limits of length, which not every server takes."""

    def simplify(node):
        if isinstance(node, list):
            return [simplify(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: simplify(value) for key, value in node.items() if key not in _LENGTHS}
        return node | {"additionalProperties": False} if node.get("type") == "object" else node

    return {"name": schema.__name__, "strict": True, "schema": simplify(schema.model_json_schema())}


_LENGTHS = ("title", "minLength", "maxLength", "minItems", "maxItems")
