"""What turns a prompt into text. A writer is one of two things:

* in-process: it has `captions(seed, count, rng)` and `conversation(caption, task, rng)` and needs no model
  (`GrammarWriter`);
* a language model: it has `model`, `concurrency`, `prices`, `max_tokens` (the most that an answer may take, thoughts
  included), and is an asynchronous context manager with `async complete(prompt) -> Completion` (`ChatWriter`,
  `TransformersWriter`). `BatchWriter` reads and writes files.
"""

from dataclasses import dataclass, field

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.grammar import GrammarWriter
from unicorn_hf.synthesis.usage import Usage

MAX_TOKENS = 8192  # of one answer and its thought, as long as the user sets no other bound
WRITERS = ("grammar", "chat", "transformers", "batch")


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
    """A call that got no answer within its deadline, or one that nobody can use."""

    def __init__(self, reason: str, detail: str, usage: Usage):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.usage = reason, detail, usage


def load_writer(writer, **options):
    """The writer of a name, made with `options`; a writer object is returned as it is.

    Raises:
        InputError: unknown name.
        MissingExtraError: the writer's package is not installed.
    """
    if not isinstance(writer, str):
        return writer
    if writer == "grammar":
        return GrammarWriter()
    if writer == "chat":
        from unicorn_hf.synthesis.chat_writer import ChatWriter

        return ChatWriter(**options)
    if writer == "transformers":
        from unicorn_hf.synthesis.transformers_writer import TransformersWriter

        return TransformersWriter(**options)
    if writer == "batch":
        from unicorn_hf.synthesis.batch_writer import BatchWriter

        return BatchWriter(**options)
    raise InputError(f"unknown writer {writer!r}; expected one of {', '.join(WRITERS)}")
