"""Reads a language model's answer: JSON by schema, or a reason why not."""

import functools
import json
import re
from collections.abc import Iterator
from typing import TypeVar

import pydantic

from unicorn_hf.reasoning import THOUGHT_MARKS, split_reasoning, thought_stays_open

MAX_ANSWER_CHARS = 32_000  # far more than any conversation needs; a longer answer is rejected unread

Schema = TypeVar("Schema", bound=pydantic.BaseModel)

_REFUSAL = re.compile(
    r"^\W*(?:i(?:['’]m| am) (?:sorry|unable|not able|afraid)|sorry\b|unfortunately,? i\b|i apologi[sz]e"
    r"|i (?:can(?:no|['’])t|cannot|won['’]t|do not|don['’]t)|as an ai\b|as a (?:large )?language model)",
    re.IGNORECASE,
)
# Words that introduce what an answer looks like, and texts that stand for one there.
_EXAMPLE = re.compile(r"\b(?:schema|format|form|template|example|e\.g\.|for instance)\W*\Z", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"str|string|text|\.\.\.|…|<[^<>]+>", re.IGNORECASE)


class BadAnswer(Exception):
    """An answer that cannot be kept. The writer is told `detail` and asked again, a bounded number of times.

    `malformed` tells a broken answer (in the end, a failed request) from a well-formed one that a filter refuses. One
    that is `cut_off` needs more tokens, not other words. `answer` is what the writer wrote, if it did.
    """

    answer = ""

    def __init__(self, reason: str, detail: str, *, malformed: bool = False, cut_off: bool = False):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.malformed, self.cut_off = reason, detail, malformed, cut_off


def parse_answer(text: str, schema: type[Schema], cut_off: bool = False) -> Schema:
    """The last record of the schema in an answer: alone, after a thought or a draft, or between prose and fences.

    Text inside a thought never counts, whether the thought ended or not. A thought's mark inside a record is plain
    text. An example of the schema counts only if there is no other record.

    Args:
        cut_off: whether the answer ended at its limit of tokens. It may then hold a draft, or part of a thought that
            the chat template began, so only a record that is the whole answer counts.

    Raises:
        BadAnswer: the answer is empty, only a thought, cut off, too large, a refusal, no JSON, or not of the schema.
    """
    thought, answer = split_reasoning(_with_marks_in_records_as_words(text))
    answer = (answer or "").strip()
    if cut_off and not _is_one_record(answer, schema):
        raise BadAnswer("not_json", "the answer was cut off at its limit of tokens", malformed=True, cut_off=True)
    if not answer:
        if thought:
            raise BadAnswer("empty_answer", "there is a thought, but no answer after it", malformed=True)
        raise BadAnswer("empty_answer", "the answer is empty", malformed=True)
    if len(answer) > MAX_ANSWER_CHARS:
        raise BadAnswer("answer_too_large", f"the answer is longer than {MAX_ANSWER_CHARS} characters", malformed=True)
    first_error, example = None, None
    for start, end in reversed(_json_objects(answer, schema)):
        try:
            record = schema.model_validate_json(answer[start:end])
        except pydantic.ValidationError as error:
            first_error = first_error or error.errors(include_url=False, include_input=False)[0]
            continue
        if not _is_example(record, answer[max(0, start - 40) : start]):
            return record
        example = example or record
    if example is not None:
        return example
    if first_error is not None:
        place = ".".join(map(str, first_error["loc"]))
        detail = f"{place}: {first_error['msg']}" if place else first_error["msg"]
        raise BadAnswer("wrong_schema", detail, malformed=True)
    if "{" not in answer and is_refusal(answer):
        raise BadAnswer("refusal", "the answer is a refusal")
    raise BadAnswer("not_json", "the answer holds no complete JSON object", malformed=True)


def _with_marks_in_records_as_words(text: str) -> str:
    """`text`, where marks of a thought inside a JSON object (and outside a thought) are escaped as JSON."""
    done, rest = "", 0
    for start, end in _spans(text):
        found = text[start:end]
        if not THOUGHT_MARKS.search(found):
            continue
        done, rest = done + text[rest:start], start
        if not thought_stays_open(done):
            done, rest = done + THOUGHT_MARKS.sub(lambda mark: f"\\u{ord(mark[0][0]):04x}{mark[0][1:]}", found), end
    return done + text[rest:]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each outermost JSON object of a text, in order; an end of 0 means that the text ends first."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            _, end = decoder.raw_decode(text, start)
            yield start, end
        except (json.JSONDecodeError, RecursionError) as error:
            if _ends_inside(text, start, error):
                yield start, 0
            end = start + 1
        start = text.find("{", end)


def _json_objects(text: str, schema: type[pydantic.BaseModel]) -> list[tuple[int, int]]:
    """Start and end of each outermost JSON object of a text; none if the last record is incomplete."""
    found = []
    for start, end in _spans(text):
        if end:
            found.append((start, end))
        elif not found or _begins_like(text[start:], schema):
            return []  # the records before it were drafts
        else:
            break
    return found


def _ends_inside(text: str, start: int, error: Exception) -> bool:
    """Whether the JSON object that begins at `start` is incomplete at the end of the text."""
    if not isinstance(error, json.JSONDecodeError) or not re.match(r'\{\s*"', text[start : start + 100]):
        return False
    return error.pos >= len(text) or error.msg.startswith("Unterminated string")


def _begins_like(text: str, schema: type[pydantic.BaseModel]) -> bool:
    """Whether an incomplete JSON object begins with the name of a field of the schema, or with a part of it."""
    match = re.match(r'\{\s*"([^"]*)("?)', text)
    key, closed = match.groups() if match else ("", "")
    if closed:
        return key in schema.model_fields
    return key != "" and any(name.startswith(key) for name in schema.model_fields)


def _is_one_record(answer: str, schema: type[pydantic.BaseModel]) -> bool:
    """Whether an answer is one complete JSON object, perhaps inside a Markdown fence."""
    found = [answer[start:end] for start, end in _json_objects(answer, schema)]
    return found == [re.sub(r"^```\w*\s*|\s*```$", "", answer)]


def _is_example(record: pydantic.BaseModel, words_before: str) -> bool:
    """Whether a record is only an example of the format."""
    return bool(_EXAMPLE.search(words_before)) or all(map(_PLACEHOLDER.fullmatch, _texts(record.model_dump())))


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def is_refusal(text: str) -> bool:
    return bool(_REFUSAL.match(text))


@functools.cache
def json_schema(schema: type[pydantic.BaseModel]) -> dict:
    """The JSON schema to send along: closed objects without limits of length, because not every server accepts them."""

    def simplify(node):
        if isinstance(node, list):
            return [simplify(item) for item in node]
        if not isinstance(node, dict):
            return node
        node = {key: simplify(value) for key, value in node.items() if key not in _LENGTHS}
        return node | {"additionalProperties": False} if node.get("type") == "object" else node

    return {"name": schema.__name__, "strict": True, "schema": simplify(schema.model_json_schema())}


_LENGTHS = ("title", "minLength", "maxLength", "minItems", "maxItems")
