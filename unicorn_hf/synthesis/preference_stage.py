"""Preference data from a language model: the requests, and how a pair is read from an answer."""

from dataclasses import dataclass, field

import pydantic

from unicorn_hf.synthesis.answers import BadAnswer, json_schema, parse_answer
from unicorn_hf.synthesis.completion import Prompt
from unicorn_hf.synthesis.conversation_checks import bears_out, check_pair
from unicorn_hf.synthesis.conversation_stage import Text, VerificationAnswer, VerifiedStage, check_caption_length, clean
from unicorn_hf.synthesis.grammar import FAULTS
from unicorn_hf.synthesis.pairs import make_pair, split_pair
from unicorn_hf.synthesis.tasks import draw_fault


class PreferenceAnswer(pydantic.BaseModel):
    question: Text
    answer: Text
    wrong_answer: Text


@dataclass(frozen=True)
class PreferenceStage(VerifiedStage):
    """Requests one question with a right and a wrong answer for every row `id, caption`.

    Args:
        mix: fault of the wrong answer -> share.
        seed: the seed of the faults.
        verify: ask the question a second time, from the caption alone, and keep pairs that the second answer confirms.
        prompt_dir: see `Prompts`.
    """

    mix: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAULTS, 1.0))
    seed: int = 0

    name = "preferences"
    title = "Preferences"
    columns = ("id", "caption", "prompt", "chosen", "rejected")

    def prompt(self, row: dict, number: int) -> Prompt:
        """The request for the pair of a row.

        Raises:
            BadAnswer: the caption is too long to be one.
        """
        check_caption_length(row["caption"])
        fault, rng = draw_fault(row["caption"], self.mix, self.seed)
        messages = self.prompts.messages("preference", caption=row["caption"], fault=fault)
        return Prompt(messages, json_schema(PreferenceAnswer), max_tokens=512, seed=rng.randrange(1 << 31))

    def read(self, row: dict, text: str, cut_off: bool = False) -> dict:
        """The record `{"prompt", "chosen", "rejected"}` in an answer.

        Raises:
            BadAnswer: see `parse_answer` and `check_pair`.
        """
        answer = parse_answer(text, PreferenceAnswer, cut_off)
        question, chosen, rejected = map(clean, (answer.question, answer.answer, answer.wrong_answer))
        check_pair(question, chosen, rejected, row["caption"])
        return make_pair(question, chosen, rejected)

    def verification(self, row: dict, record: dict) -> Prompt | None:
        """The request that checks a record."""
        if not self.verify:
            return None
        question, _, _ = split_pair(record)
        messages = self.prompts.messages("verify", caption=row["caption"], questions=[question])
        return Prompt(messages, json_schema(VerificationAnswer), max_tokens=256, seed=self.seed)

    def confirm(self, record: dict, text: str, cut_off: bool = False) -> None:
        """Raise `BadAnswer` unless the check agrees with the right answer and not with the wrong one."""
        second = parse_answer(text, VerificationAnswer, cut_off).answers
        if len(second) != 1:
            raise BadAnswer("wrong_schema", f"{len(second)} answers to one question", malformed=True)
        question, chosen, rejected = split_pair(record)
        other = clean(second[0])
        if not bears_out(other, chosen, rejected):
            detail = f"{question[:80]!r} was answered {chosen[:80]!r}, not {rejected[:80]!r}, then {other[:80]!r}"
            raise BadAnswer("not_verified", detail)

    def text(self, row: dict, record: dict) -> str:
        """The key of a record; two records with the same key are duplicates."""
        return "\n".join([row["caption"], *split_pair(record)])
