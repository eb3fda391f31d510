"""The sets of versions that are written down are those of setup.cfg."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def requirements() -> list[Requirement]:
    """Everything that `[dev]` brings, by the names that setup.cfg gives."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]

    def read(text):
        for line in filter(None, map(str.strip, text.splitlines())):
            requirement = Requirement(line)
            if requirement.name == "unicorn-hf":
                for extra in requirement.extras:
                    yield from read(extras[extra])
            elif not line.startswith("#"):
                yield requirement

    return list(read(config["options"]["install_requires"])) + list(read(extras["dev"]))


def pins(name: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        requirement = Requirement(line)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_floor_is_the_version_of_the_oldest_set(requirement):
    (floor,) = requirement.specifier
    (pin,) = pins("oldest.txt")[canonicalize_name(requirement.name)]
    assert floor.operator == ">="
    assert f"{version(pin)}.0.0".startswith(f"{floor.version}.")


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_is_within_the_range(requirement):
    for pin in pins("lock.txt")[canonicalize_name(requirement.name)]:
        assert requirement.specifier.contains(version(pin))


def test_the_pages_name_the_versions_of_both_sets():
    oldest, lock = pins("oldest.txt"), pins("lock.txt")
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| (\d[\d.]+) \| (\d[\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for name, floor, locked in rows:
        assert floor == version(oldest[name][0]) and locked in map(version, lock[name]), name
    readme = (ROOT / "README.md").read_text()
    names = ("transformers", "torch", "trl", "datasets")
    for command, pinned in (("`make test`, `make demo`", lock), ("`make test-oldest`", oldest)):
        (row,) = re.findall(rf"^\| {command} \| (.*) \|$", readme, re.MULTILINE)
        for name, shown in zip(names, row.split(" | "), strict=True):
            assert shown in map(version, pinned[name]), (command, name)


def test_what_the_package_leans_on_names_tests_that_exist():
    section = (ROOT / "docs" / "versions.md").read_text().split("## What it leans on")[1]
    rows = [row for row in section.splitlines() if row.startswith("| ")][2:]
    assert 8 < len(rows) <= 12
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row.split(" | ")[-1])
        assert named, row
        for file, function in named:
            (path,) = (ROOT / "tests").rglob(file)
            assert f"def {function or 'test_'}" in path.read_text(), (file, function)
