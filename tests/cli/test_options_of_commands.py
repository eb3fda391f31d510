"""Every option of every command: what it cannot be is one sentence, from a flag, a YAML and Python."""

import contextlib
import inspect
import io
import re
import sys
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unicorn_hf.cli import main
from unicorn_hf.cli.command import COMMANDS
from unicorn_hf.options import arms_of, choices_of

OPTIONS = [(name, parameter) for name, made in COMMANDS.items() for parameter in made.parameters]
ANYTHING_BUT_TEXT = st.one_of(
    st.dictionaries(st.integers(), st.integers(), min_size=1, max_size=2),
    st.lists(st.dictionaries(st.text(max_size=2), st.integers(), max_size=1), min_size=1, max_size=2),
    st.just(b"bytes"),
)
NO_NUMBER = st.sampled_from(["nan", "inf", "-inf", "x", "1..5", "1e400", "0x10", "", " ", "None", "1/2", "ten"])


def command_line(arguments) -> tuple[int, str]:
    """The status of a command, and what it said of its errors."""
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["unicorn-hf", *map(str, arguments)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as ended:
        return ended.code, said.getvalue()
    finally:
        sys.argv = argv
    raise AssertionError("main ends with a status")


def is_one_sentence(result: tuple[int, str]) -> bool:
    status, said = result
    return status == 2 and re.fullmatch(r"unicorn-hf: [^\n]+\n", said) is not None and len(said) < 2000


def needed(name: str, but: str) -> dict:
    """A value for everything that a command has to be told, so that the bad one alone is refused."""
    required = [each for each in COMMANDS[name].parameters if each.default is inspect.Parameter.empty]
    return {each.name: (choices_of(each.hint) or ["x"])[0] for each in required if each.name != but}


def bad_numbers(parameter, kind):
    outside = [NO_NUMBER]
    at_least, above, at_most = (parameter.bounds.get(key) for key in ("at_least", "above", "at_most"))
    numbers = st.integers if kind is int else lambda **bounds: st.floats(allow_nan=False, **bounds)
    low = at_least if at_least is not None else above
    if low is not None:
        outside.append(numbers(max_value=low - 1))
    if at_most is not None:
        outside.append(numbers(min_value=at_most + 1))
    if kind is int:
        outside.append(st.floats(0.01, 0.99).map(lambda fraction: (low or 0) + fraction))
    return st.one_of(outside)


def bad_texts(parameter):
    """Values that no flag can be given for this option; None where any text will do."""
    arms = [arm for arm in arms_of(parameter.hint) if arm is not type(None)]
    if any(arm in (str, Path) or typing.get_origin(arm) is list for arm in arms) or bool in arms:
        return None
    numbers = [arm for arm in arms if arm in (int, float)]
    if numbers:
        return bad_numbers(parameter, numbers[0])
    if choices := choices_of(parameter.hint):
        return st.text(st.characters(codec="ascii", exclude_categories=["C"])).filter(lambda text: text not in choices)
    mappings = ["x", "{", "{'a': 1}", "[1]", "=1"]
    return st.sampled_from([*mappings, "x=nan", "x=y", "a=1,b"] if parameter.name == "mix" else mappings)


@pytest.mark.parametrize(("name", "parameter"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_a_value_that_an_option_cannot_have_is_one_sentence(name, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = bad_texts(parameter)
    of_yaml = ANYTHING_BUT_TEXT if texts is None else st.one_of(ANYTHING_BUT_TEXT, texts)
    if dict in [arm if typing.get_origin(arm) is None else typing.get_origin(arm) for arm in arms_of(parameter.hint)]:
        of_yaml = texts

    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(of_yaml)
    def in_a_yaml(value):
        options = {**needed(name, parameter.name), parameter.name: value}
        (tmp_path / "options.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
        result = command_line([*name.split(), "--config", tmp_path / "options.yaml"])
        assert is_one_sentence(result), (value, result)

    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def as_a_flag(value):
        options = needed(name, parameter.name)
        words = COMMANDS[name].words(options)
        result = command_line([*words, f"{parameter.flags[0]}={value}"])
        assert is_one_sentence(result), (value, result)
        assert parameter.flags[0] in result[1]

    in_a_yaml()
    if texts is not None and parameter.flags:
        as_a_flag()
    assert [path.name for path in tmp_path.iterdir()] == ["options.yaml"]
