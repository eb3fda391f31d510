"""Captions and conversations of a language model that always answers alike, so that a run keeps a journal."""

import functools
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from unicorn_hf.synthesis.completion import Completion, Prompt
from unicorn_hf.synthesis.usage import Prices, Usage

PLACES = ("street", "lawn", "table", "beach", "shelf", "bridge", "bench", "roof", "carpet", "hill")


@dataclass
class ScriptedWriter:
    """Answers in one sentence, by the seed of the request."""

    name: str = "scripted"
    model: str = "script"
    concurrency: int = 1
    max_tokens: int = 512
    prices: Prices = field(default_factory=Prices)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def complete(self, prompt: Prompt) -> Completion:
        rng = random.Random(prompt.seed)
        place, other = rng.sample(PLACES, 2)
        if "turns" in prompt.schema["schema"]["properties"]:
            question, answer = f"What is on the {place}?", f"There is a {other} behind it."
            answer = {"turns": [{"question": question, "answer": answer}]}
        else:
            answer = {"caption": f"A red circle and two green squares lie on the {place} beside a small {other}."}
        return Completion(json.dumps(answer), Usage(calls=1, prompt_tokens=10, completion_tokens=10))


def captions_of_a_model(material: Path, output: Path):
    from unicorn_hf.synthesis import write_captions

    return functools.partial(
        write_captions, material / "seeds.txt", output, writer=ScriptedWriter(), captions_per_seed=4
    )


def conversations_of_a_model(material: Path, output: Path):
    from unicorn_hf.synthesis import write_instructions

    options = {"mix": {"question_answering": 1.0}, "verify": False}
    return functools.partial(write_instructions, material / "lawns", output, writer=ScriptedWriter(), **options)
