"""What turns a prompt into text. A writer is one of two things:

* in-process: it has `captions(seed, count, rng)` and `conversation(caption, task, rng)` and needs no model
  (`GrammarWriter`);
* a language model: it has `model`, `concurrency`, `prices`, `max_tokens` (the most that an answer may take, thoughts
  included), and is an asynchronous context manager with `async complete(prompt) -> Completion` (`ChatWriter`,
  `TransformersWriter`). `BatchWriter` reads and writes files.
"""

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.grammar import GrammarWriter

WRITERS = ("grammar", "chat", "transformers", "batch")


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
