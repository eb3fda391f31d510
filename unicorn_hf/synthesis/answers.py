"""Reads a language model's answer: JSON by schema, or a reason why not."""

import functools
import re
from typing import TypeVar

import pydantic

MAX_ANSWER_CHARS = 32_000  # far more than any conversation; a runaway answer is refused, not read

Schema = TypeVar("Schema", bound=pydantic.BaseModel)

_REFUSAL = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|not able|afraid)|sorry\b|unfortunately,? i\b|i apologi[sz]e"
    r"|i (?:can(?:no|['’])t|cannot|won['’]t|do not|don['’]t)|as an ai\b|as a (?:large )?language model)",
    re.IGNORECASE,
)


class BadAnswer(Exception):
    """An answer that cannot be kept. The writer is told `detail` and asked again, a bounded number of times.

    `malformed` tells a broken answer (a dead letter in the end) from a well-formed one that a filter refuses.
    """

    def __init__(self, reason: str, detail: str, *, malformed: bool = False):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.malformed = reason, detail, malformed


def parse_answer(text: str, schema: type[Schema]) -> Schema:
    """The record in an answer, alone or behind a thought, a preamble or a Markdown fence.

    Raises:
        BadAnswer: the answer is empty, too large, a refusal, no JSON, or not of the schema.
    """
    if not text.strip():
        raise BadAnswer("empty_answer", "the answer is empty", malformed=True)
    if len(text) > MAX_ANSWER_CHARS:
        raise BadAnswer("answer_too_large", f"the answer is longer than {MAX_ANSWER_CHARS} characters", malformed=True)
    text = text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        if is_refusal(text):
            raise BadAnswer("refusal", "the answer is a refusal")
        raise BadAnswer("not_json", "the answer holds no complete JSON object", malformed=True)
    try:
        return schema.model_validate_json(text[start : end + 1])
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = "not_json" if first["type"] == "json_invalid" else "wrong_schema"
        raise BadAnswer(reason, f"{place}: {first['msg']}" if place else first["msg"], malformed=True) from None


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
