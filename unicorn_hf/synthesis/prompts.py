"""The prompts: Jinja files that users can replace, and the declared distribution that makes captions diverse.

A prompt has two blocks. `system` sees the stage's settings only, so it is the same in every request and a server with a
prefix cache reads it once; `user` sees the row.
"""

import functools
import hashlib
import json
import random
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.untrusted_text import one_line

PROMPT_DIR = Path(__file__).parent / "prompts"
_MAX_QUOTED_CHARS = 4000


class Prompts:
    """The prompts of a folder; missing files are taken from this package.

    Args:
        prompt_dir: a folder with some of `caption.jinja`, `multiple_choice.jinja`, `question_answering.jinja`,
            `complex_reasoning.jinja`, `preference.jinja`, `verify.jinja`, `diversity.json`; None for the package's own.
        settings: the variables of the `system` blocks.

    Raises:
        InputError: the folder does not exist or holds none of these files.
    """

    def __init__(self, prompt_dir=None, **settings):
        self.folders = [Path(prompt_dir), PROMPT_DIR] if prompt_dir else [PROMPT_DIR]
        if prompt_dir and not any((Path(prompt_dir) / path.name).is_file() for path in PROMPT_DIR.iterdir()):
            names = ", ".join(sorted(path.name for path in PROMPT_DIR.iterdir()))
            raise InputError(f"{prompt_dir}: holds no prompt; expected a folder with some of {names}")
        self._settings = settings
        # Seeds and captions are values, never templates, and `quote` writes each as one JSON string.
        self._environment = ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self.folders), undefined=jinja2.StrictUndefined, trim_blocks=True
        )
        self._environment.filters["quote"] = _quote

    def messages(self, name: str, **variables) -> list[dict[str, str]]:
        """The chat messages of one request.

        Raises:
            InputError: the file is no template with the blocks `system` and `user`, or uses an unknown variable.
        """
        return [
            {"role": "system", "content": self._system(name)},
            {"role": "user", "content": self._render(name, "user", variables)},
        ]

    @functools.cache  # noqa: B019 (one object per process)
    def _system(self, name: str) -> str:
        return self._render(name, "system", self._settings)

    def _render(self, name: str, block: str, variables: dict) -> str:
        try:
            template = self._environment.get_template(f"{name}.jinja")
            return "".join(template.blocks[block](template.new_context(variables))).strip()
        except KeyError:
            raise InputError(f"{name}.jinja: has no block {block!r}; expected the blocks system and user") from None
        except (jinja2.TemplateError, TypeError) as error:
            raise InputError(f"{name}.jinja, block {block}: {error}") from error

    @functools.cached_property
    def diversity(self) -> dict[str, dict[str, float]]:
        """Aspect -> choice -> weight, of `diversity.json`.

        Raises:
            InputError: it is not of that form.
        """
        path = self._path("diversity.json")
        try:
            diversity = json.loads(path.read_text(encoding="utf-8"))
            well_formed = all(sum(choices.values()) > 0 <= min(choices.values()) for choices in diversity.values())
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: {error}; expected {{aspect: {{choice: weight}}}}") from error
        if not well_formed:
            raise InputError(f"{path}: a weight is negative, or all of an aspect are 0; expected positive weights")
        return diversity

    def plan(self, rng: random.Random) -> dict[str, str]:
        """One choice for every aspect, drawn by weight."""
        return {
            aspect: rng.choices(list(choices), weights=list(choices.values()))[0]
            for aspect, choices in self.diversity.items()
        }

    def versions(self) -> dict[str, str]:
        """File name -> hash of its content, for the metadata of a dataset."""
        names = sorted(path.name for path in PROMPT_DIR.iterdir())
        return {name: hashlib.sha256(self._path(name).read_bytes()).hexdigest()[:12] for name in names}

    def copy_to(self, folder: Path) -> None:
        """Save the files beside the answers, so that a run can continue later or on another machine."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in PROMPT_DIR.iterdir():
            (folder / path.name).write_bytes(self._path(path.name).read_bytes())

    def _path(self, name: str) -> Path:
        return next(folder / name for folder in self.folders if (folder / name).is_file())


def _quote(text) -> str:
    return json.dumps(one_line(str(text), _MAX_QUOTED_CHARS), ensure_ascii=False)
