"""The sets of versions that are written down are those of setup.cfg."""

import configparser
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
