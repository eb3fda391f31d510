"""Writers turn prompts into text. A writer is one of two things:

* in-process: it has `captions(seed, count, rng)` and `conversation(caption, task, rng)` and needs no model
  (`GrammarWriter`);
* a language model: it has `model`, `concurrency`, `prices`, `max_tokens` (the most tokens of an answer, its thought
  included), and is an asynchronous context manager with `async complete(prompt) -> Completion` (`ChatWriter`,
  `TransformersWriter`). `BatchWriter` reads and writes files.
"""

from typing import Literal, get_args

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.grammar import GrammarWriter

WriterName = Literal["grammar", "chat", "transformers", "batch"]
WRITERS = get_args(WriterName)


def load_writer(writer, **options):
    """The writer of a name, made with `options`; a writer object is returned as it is.

    Raises:
        InputError: an unknown name, or options that the writer refuses.
        MissingExtraError: the writer's package is not installed.
    """
    return writer_class(writer)(**options) if isinstance(writer, str) else writer


def writer_class(name: str) -> type:
    """The class of a writer's name.

    Raises:
        InputError: unknown name.
    """
    if name == "grammar":
        return GrammarWriter
    if name == "chat":
        from unicorn_hf.synthesis.chat_writer import ChatWriter

        return ChatWriter
    if name == "transformers":
        from unicorn_hf.synthesis.transformers_writer import TransformersWriter

        return TransformersWriter
    if name == "batch":
        from unicorn_hf.synthesis.batch_writer import BatchWriter

        return BatchWriter
    raise InputError(f"unknown writer {name!r}; expected one of {', '.join(WRITERS)}")
