"""The types between a stage and the writer of a language model: prompt, completion, failed call."""

from dataclasses import dataclass, field

from unicorn_hf.synthesis.usage import Usage

MAX_TOKENS = 8192  # of one answer with its thought, by default


@dataclass(frozen=True)
class Prompt:
    """Chat messages, and the JSON schema that the answer must follow.

    The first message is the same in every prompt of a kind, so that servers with a prefix cache read it once.
    """

    messages: list[dict[str, str]]
    schema: dict
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """A language model's answer; `cut_off` says that it ended at the limit of tokens."""

    text: str
    usage: Usage = field(default_factory=Usage)
    cut_off: bool = False


class CallFailed(Exception):
    """A call without an answer within its deadline, or with an unusable one."""

    def __init__(self, reason: str, detail: str, usage: Usage):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.usage = reason, detail, usage
