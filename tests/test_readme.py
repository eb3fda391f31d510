"""The README is short, and what it promises is there. Its snippets run in `test_docs.py`."""

import re

from documentation import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 120


def test_its_two_commands_are_targets():
    commands = re.findall(r"^    make (\w+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_its_pictures_are_in_the_repository():
    pictures = re.findall(r"/main/(docs/images/\S+?)\)", README)
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)
