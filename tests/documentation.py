"""What README and docs show: their pages in reading order, and the snippets in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Snippet:
    """A fenced block. One with a title is to be checked, not run: the title says what it needs."""

    page: str
    line: int
    language: str
    title: str
    code: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The commands of a shell block, as lists of words."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages() -> list[Path]:
    """README, then the documentation in the order of its menu."""
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def names(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from names(each)

    return [ROOT / "README.md", *(ROOT / "docs" / name for name in names(menu))]


def snippets() -> list[Snippet]:
    found = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for block in re.finditer(r'^```(\w*)(?: title="([^"\n]*)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
            language, title, code = block.groups(default="")
            found.append(Snippet(path.name, text[: block.start()].count("\n") + 1, language, title, code))
    return found
