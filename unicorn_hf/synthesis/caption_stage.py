"""Stage 1 with a language model: the requests, and how a caption is read from an answer."""

import contextlib
import dataclasses
import functools
import random
from dataclasses import dataclass, field

import pydantic

from unicorn_hf.synthesis.answers import BadAnswer, json_schema, parse_answer
from unicorn_hf.synthesis.caption_filters import CaptionFilters
from unicorn_hf.synthesis.completion import Prompt
from unicorn_hf.synthesis.prompts import Prompts
from unicorn_hf.synthesis.seeds import text_id
from unicorn_hf.synthesis.untrusted_text import neutralise

MAX_SEED_CHARS = 1000


class CaptionAnswer(pydantic.BaseModel):
    caption: str = pydantic.Field(min_length=1, max_length=4000)


@dataclass(frozen=True)
class CaptionStage:
    """Requests `per_row` captions for every row `id, seed, domain`, each by another plan (style, length, ...).

    Args:
        per_row: captions per seed.
        seed: the seed of the plans. A plan depends only on it, on the row's id and on the caption's number.
        filters: the requirements for a caption.
        prompt_dir: see `Prompts`.
    """

    per_row: int = 3
    seed: int = 0
    filters: CaptionFilters = field(default_factory=CaptionFilters)
    prompt_dir: str | None = None

    name = "captions"
    title = "Captions"
    columns = ("id", "seed", "domain", "caption")
    num_passes = 1

    def prompt(self, row: dict, number: int) -> Prompt:
        """The request for caption `number` of a row.

        Raises:
            BadAnswer: the seed is too long to be one.
        """
        if len(row["seed"]) > MAX_SEED_CHARS:
            detail = f"the seed has {len(row['seed'])} characters; expected at most {MAX_SEED_CHARS}"
            raise BadAnswer("seed_too_long", detail)
        rng = random.Random(f"captions {self.seed} {row['id']} {number}")
        messages = self.prompts.messages(
            "caption",
            seed=row["seed"],
            domain=row["domain"],
            plan=self.prompts.plan(rng),
            variation=number + 1,
        )
        return Prompt(messages, json_schema(CaptionAnswer), max_tokens=256, seed=rng.randrange(1 << 31))

    def read(self, row: dict, text: str, cut_off: bool = False) -> dict:
        """The record `{"caption"}` in an answer.

        Raises:
            BadAnswer: see `parse_answer` and `CaptionFilters`.
        """
        caption = neutralise(parse_answer(text, CaptionAnswer, cut_off).caption, 4000).strip('"“”')
        self.filters.check(caption, row["seed"])
        return {"caption": " ".join(caption.split())}

    def verification(self, row: dict, record: dict) -> None:
        """Captions are not checked by a second request."""

    def output_row(self, row: dict, record: dict) -> dict:
        caption = record["caption"]
        return {"id": text_id(caption), "seed": row["seed"], "domain": row["domain"], "caption": caption}

    def text(self, row: dict, record: dict) -> str:
        """The key of a record; two records with the same key are duplicates."""
        return record["caption"]

    @functools.cached_property
    def prompts(self) -> Prompts:
        # English takes about 1.3 CLIP tokens a word.
        settings = {"language": self.filters.language or "en", "max_words": int((self.filters.max_tokens - 2) / 1.35)}
        return Prompts(self.prompt_dir, **settings)

    def warm_up(self) -> None:
        """Load the models of the filters."""
        with contextlib.suppress(BadAnswer):
            self.filters.check("A dog runs across a lawn.", "dog")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, options: dict) -> "CaptionStage":
        return cls(**{**options, "filters": CaptionFilters(**options["filters"])})

    def __reduce__(self):
        return type(self).from_dict, (self.to_dict(),)  # templates cannot be pickled
