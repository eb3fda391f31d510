"""Stage 2 with a language model: the requests, and how a conversation is read from an answer."""

import dataclasses
import functools
import random
import re
from dataclasses import dataclass, field
from typing import Annotated

import pydantic

from unicorn_hf.synthesis.answers import BadAnswer, json_schema, parse_answer
from unicorn_hf.synthesis.completion import Prompt
from unicorn_hf.synthesis.conversation_checks import agree, check_options, check_turns, words
from unicorn_hf.synthesis.grammar import TASKS
from unicorn_hf.synthesis.pairs import IMAGE_PLACEHOLDER
from unicorn_hf.synthesis.prompts import Prompts
from unicorn_hf.synthesis.tasks import draw_task
from unicorn_hf.synthesis.untrusted_text import neutralise, one_line

MAX_CAPTION_CHARS = 4000
LETTERS = "ABCDEF"

Text = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=2000)]


class Turn(pydantic.BaseModel):
    question: Text
    answer: Text


class ChoiceTurn(Turn):
    options: list[Text] = pydantic.Field(min_length=2, max_length=len(LETTERS))


class ConversationAnswer(pydantic.BaseModel):
    turns: list[Turn] = pydantic.Field(min_length=1, max_length=10)


class MultipleChoiceAnswer(pydantic.BaseModel):
    turns: list[ChoiceTurn] = pydantic.Field(min_length=1, max_length=10)


class VerificationAnswer(pydantic.BaseModel):
    answers: list[str] = pydantic.Field(max_length=10)


@dataclass(frozen=True)
class VerifiedStage:
    """The common part of stages that write one record per caption and may check it by a second request."""

    verify: bool = False
    prompt_dir: str | None = None

    per_row = 1

    @property
    def num_passes(self) -> int:
        return 1 + self.verify

    def output_row(self, row: dict, record: dict) -> dict:
        return {"id": row["id"], "caption": row["caption"], **record}

    @functools.cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.prompt_dir)

    def warm_up(self) -> None:
        """These stages need no models."""

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict):
        return cls(**options)

    def __reduce__(self):
        return type(self).from_dict, (self.to_dict(),)  # templates cannot be pickled


@dataclass(frozen=True)
class ConversationStage(VerifiedStage):
    """Requests one conversation for every row `id, caption`; its task is drawn by the shares of `mix`.

    Args:
        mix: task -> share.
        seed: the seed of the tasks, the number of turns and the order of options.
        verify: ask for the answers a second time, from the caption alone, and keep conversations whose answers agree.
        prompt_dir: see `Prompts`.
    """

    mix: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 1.0))
    seed: int = 0

    name = "instructions"
    title = "Instructions"
    columns = ("id", "caption", "task", "messages")

    def prompt(self, row: dict, number: int) -> Prompt:
        """The request for the conversation of a row.

        Raises:
            BadAnswer: the caption is too long to be one.
        """
        check_caption_length(row["caption"])
        task, rng = draw_task(row["caption"], self.mix, self.seed)
        schema = MultipleChoiceAnswer if task == "multiple_choice" else ConversationAnswer
        messages = self.prompts.messages(task, caption=row["caption"], num_turns=rng.randint(2, 4))
        return Prompt(messages, json_schema(schema), max_tokens=1024, seed=rng.randrange(1 << 31))

    def read(self, row: dict, text: str, cut_off: bool = False) -> dict:
        """The record `{"task", "messages"}` in an answer.

        Raises:
            BadAnswer: see `parse_answer` and `conversation_checks`.
        """
        task, _ = draw_task(row["caption"], self.mix, self.seed)
        plain, turns = [], []  # a choice is checked without its letters
        if task == "multiple_choice":
            for turn in parse_answer(text, MultipleChoiceAnswer, cut_off).turns:
                question, options = clean(turn.question), list(map(clean, turn.options))
                right = options[check_options(question, options, clean(turn.answer))]
                plain.append((question, right))
                turns.append(self._lettered(row, question, options, right))
        else:
            answered = parse_answer(text, ConversationAnswer, cut_off).turns
            plain = turns = [(clean(turn.question), clean(turn.answer)) for turn in answered]
        check_turns(plain, row["caption"])
        messages: list[dict[str, str]] = []
        for question, answer in turns:
            placeholder = "" if messages else IMAGE_PLACEHOLDER
            messages += [
                {"role": "user", "content": placeholder + question},
                {"role": "assistant", "content": answer},
            ]
        return {"task": task, "messages": messages}

    def verification(self, row: dict, record: dict) -> Prompt | None:
        """The request that checks a record."""
        if not self.verify:
            return None
        questions = [question for question, _ in _turns(record)]
        messages = self.prompts.messages("verify", caption=row["caption"], questions=questions)
        return Prompt(messages, json_schema(VerificationAnswer), max_tokens=512, seed=self.seed)

    def confirm(self, record: dict, text: str, cut_off: bool = False) -> None:
        """Raise `BadAnswer` unless the check agrees with every answer of the record."""
        second = parse_answer(text, VerificationAnswer, cut_off).answers
        turns = _turns(record)
        if len(second) != len(turns):
            raise BadAnswer("wrong_schema", f"{len(second)} answers to {len(turns)} questions", malformed=True)
        for (question, answer), other in zip(turns, second, strict=True):
            other = clean(other)
            if record["task"] == "multiple_choice":
                agreed = words(_option(other)) == words(_option(answer))
            else:
                agreed = agree(answer, other)
            if not agreed:
                detail = f"{question[:80]!r} was answered {answer[:80]!r}, then {other[:80]!r}"
                raise BadAnswer("not_verified", detail)

    def text(self, row: dict, record: dict) -> str:
        """The key of a record; two records with the same key are duplicates."""
        return "\n".join([row["caption"], *(message["content"] for message in record["messages"])])

    def _lettered(self, row: dict, question: str, options: list[str], right: str) -> tuple[str, str]:
        """The question with its options in a new order, and the right one with its letter."""
        options = list(options)
        random.Random(f"options {self.seed} {row['id']} {question}").shuffle(options)
        listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
        return f"{question}\n{listed}", f"{right} ({LETTERS[options.index(right)]})"


def check_caption_length(caption: str) -> None:
    """Raise `BadAnswer` if the text is too long for a caption."""
    if len(caption) > MAX_CAPTION_CHARS:
        detail = f"the caption has {len(caption)} characters; expected at most {MAX_CAPTION_CHARS}"
        raise BadAnswer("caption_too_long", detail)


def clean(text: str) -> str:
    """One line without prompt tokens, markdown marks and a leading number or letter."""
    text = one_line(neutralise(text, 2000).replace("**", "").replace("`", ""), 2000)
    return re.sub(r"^(?:\(?[A-Fa-f]\)|[A-F][.:]|Q\d*[:.]|\d{1,2}[.)])\s+", "", text)


def _turns(record: dict) -> list[tuple[str, str]]:
    contents = [message["content"] for message in record["messages"]]
    contents[0] = contents[0].removeprefix(IMAGE_PLACEHOLDER)
    return list(zip(contents[::2], contents[1::2], strict=True))


def _option(answer: str) -> str:
    """An option without its letter."""
    return re.sub(r"\s*\([A-F]\)\s*", " ", answer).strip()
