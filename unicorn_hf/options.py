"""The options of a step: one dataclass defines them for the Python call, the flags and the YAML.

    @dataclass(kw_only=True)
    class CaptionConfig(Options):
        captions_per_seed: int = option(3, "Captions a seed is expanded into.", at_least=1)

Flags are strings, a YAML has numbers and lists, Python has any objects: one function reads and checks all of them.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from pathlib import Path

from unicorn_hf.errors import InputError

# The groups in which the help shows options.
WHAT, MODEL, LIMITS, CLUSTER = "What", "Model", "Limits", "Cluster"


def option(
    default=None,
    help: str = "",
    *,
    required: bool = False,
    panel: str = WHAT,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    flags: tuple[str, ...] = (),
    repeat: bool = False,
):
    """A field of an `Options` dataclass.

    Args:
        required: the user must set it; `default` stays None.
        panel: its group in the help.
        at_least, above, at_most: bounds of a number.
        flags: replaces the default flag, which is the field's name with hyphens.
        repeat: for a mapping: its flag is given once per name, as the flag of a list always is.
    """
    metadata = {
        "help": help,
        "required": required,
        "panel": panel,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "flags": flags,
        "repeat": repeat,
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(kw_only=True)
class Options:
    """Base class of the steps' configurations: creating one reads and checks every field.

    Raises:
        InputError: a value is not allowed, or a required option is missing.
    """

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in option_fields(type(self)):
            value = getattr(self, field.name)
            if value is None and field.metadata["required"]:
                choices = choices_of(hints[field.name])
                one_of = f"one of {', '.join(choices)}" if choices else field.metadata["help"].rstrip(".")
                raise InputError(f"{flag_of(field.name)} is missing; name {one_of}")
            if value is None and types.NoneType not in arms_of(hints[field.name]):
                value = default_of(field)  # an empty value in a YAML
            setattr(self, field.name, read_value(flag_of(field.name), value, hints[field.name], field.metadata))

    def given(self) -> list[str]:
        """The names of the options that differ from their default."""
        fields = option_fields(type(self))
        return [field.name for field in fields if getattr(self, field.name) != default_of(field)]

    @classmethod
    def of(cls, config: "Options | None", options: dict, **arguments):
        """The configuration of a Python call: `config`, with single fields replaced by the keyword `options`.

        Args:
            arguments: fields of a subclass that are not options.

        Raises:
            InputError: an option is unknown, or a value is not allowed.
        """
        names = [field.name for field in option_fields(cls)]
        check_names(options, names, cls.__name__)
        given = {} if config is None else {name: getattr(config, name) for name in names}
        return cls(**{**given, **options}, **arguments)


def option_fields(kind: type[Options]) -> list[dataclasses.Field]:
    """The fields of a configuration that are options."""
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata]


def default_of(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_names(given, known: list[str], where: str) -> None:
    """Raise if `given` holds a name that is not in `known`."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
            raise InputError(f"{where}: there is no option {str(name)[:100]!r}; {hint}")


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def arms_of(hint) -> tuple:
    """The types of a union; a single type gives itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def choices_of(hint) -> list[str]:
    """The values of a `Literal` type as strings; empty for other types."""
    arms = [arm for arm in arms_of(hint) if typing.get_origin(arm) is typing.Literal]
    return [str(choice) for arm in arms for choice in typing.get_args(arm)]


def read_value(name: str, value, hint, bounds=types.MappingProxyType({})):
    """`value` converted to the type `hint`, and checked; strings are parsed.

    Args:
        hint: int, float, bool, str, Path, dict, `Literal`, lists and unions of them; for any other class, only its
            instances are allowed.
        bounds: `at_least`, `above` and `at_most` of a number.

    Raises:
        InputError: the value does not fit; the message has `name`, the value and what is expected.
    """
    arms = arms_of(hint)
    for arm in arms:
        try:
            return _read(value, arm, bounds)
        except (ValueError, OverflowError, RecursionError):
            continue
    said = [arm for arm in arms if arm is not types.NoneType and not getattr(arm, "_is_protocol", False)]
    expected = " or ".join(_expected(arm, bounds) for arm in said)  # without protocols, which only Python can pass
    raise InputError(f"{name} is {_shown(value)}; expected {expected}")


def _read(value, hint, bounds):
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
    elif origin is list:
        values = value if isinstance(value, list | tuple) else [value]
        return [_read(each, arguments[0], bounds) for each in values]
    elif origin is dict or hint is dict:
        return _read_mapping(value, arguments[1] if arguments else None)
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif hint in (int, float):
        return _read_number(value, hint, bounds)
    elif hint in (str, Path):
        if isinstance(value, str | Path | int | float) and not isinstance(value, bool):
            text = str(value)
            if "\0" not in text and (text or hint is str):
                return hint(text)
    elif isinstance(value, hint):
        return value
    raise ValueError


def _read_number(value, kind: type, bounds):
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    number = kind(value)  # int("1.5") and int("1e3") raise
    if number != value and not isinstance(value, str):  # int(1.5) does not
        raise ValueError
    if not math.isfinite(number):
        raise ValueError
    at_least, above, at_most = (bounds.get(key) for key in ("at_least", "above", "at_most"))
    if (at_least is not None and number < at_least) or (above is not None and number <= above):
        raise ValueError
    if at_most is not None and number > at_most:
        raise ValueError
    return number


def _read_mapping(value, kind: type | None) -> dict:
    """A mapping; strings may be a JSON object, or `NAME=VALUE` separated by commas or in a list."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = json.loads(value)
    elif isinstance(value, str | list | tuple):
        texts = value.split(",") if isinstance(value, str) else value
        pairs = [str(text).partition("=") for text in texts]
        if not all(name and equals for name, equals, _ in pairs):
            raise ValueError
        value = {name: int(text) if text.isdecimal() else text for name, _, text in pairs}
    if not isinstance(value, dict):
        raise ValueError
    return {name: _read(each, kind, {}) for name, each in value.items()} if kind else value


def _expected(hint, bounds) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return arguments[0] if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list, each {_expected(arguments[0], bounds)}"
    if origin is dict or hint is dict:
        number = arguments and arguments[1] is float
        return "NAME=NUMBER by commas" if number else "a JSON object, or NAME=VALUE by commas"
    if hint in (int, float):
        return ("a whole number" if hint is int else "a number") + _range(bounds)
    return {bool: "true or false", str: "a text", Path: "a path"}.get(hint) or f"an object of {hint.__name__}"


def _range(bounds) -> str:
    at_least, above, at_most = (bounds.get(key) for key in ("at_least", "above", "at_most"))
    if above is not None:
        return f" above {above:,}" + ("" if at_most is None else f" and up to {at_most:,}")
    if at_least is not None:
        return f" from {at_least:,}" + (" on" if at_most is None else f" to {at_most:,}")
    return "" if at_most is None else f" up to {at_most:,}"


def _shown(value) -> str:
    text = "empty" if value is None else repr(str(value)) if isinstance(value, str | Path) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
