"""Turn a function into a command: its own parameters, plus the fields of its configuration, become options.

Flags pass strings, which the configuration parses. `--config` names a YAML with the same options; flags override it.
"""

import dataclasses
import inspect
import json
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unicorn_hf.errors import InputError
from unicorn_hf.options import Options, arms_of, check_names, choices_of, default_of, flag_of, option_fields, read_value


@dataclasses.dataclass(frozen=True)
class Argument:
    """Annotation of a command's parameter that is positional."""

    help: str


class Flag:
    """Annotation of a command's parameter that has a flag; without `flags`, the flag is the parameter's name."""

    def __init__(self, help: str, *flags: str, at_least: float | None = None, at_most: float | None = None):
        self.help, self.flags, self.bounds = help, flags, {"at_least": at_least, "at_most": at_most}


# The output folder of most commands.
Output = Annotated[Path, Flag("The folder to write; must not exist, or be empty.", "--output", "-o")]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One option or argument of a command.

    Attributes:
        name: its key in a YAML.
        flags: its flags on the command line; empty for a positional argument.
        hint: its type.
        default: `inspect.Parameter.empty` if it is required.
        bounds: of a number (see `read_value`).
    """

    name: str
    flags: tuple[str, ...]
    hint: object
    default: object
    help: str
    panel: str | None = None
    repeat: bool = False
    bounds: Mapping = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.flags[0] if self.flags else self.name.upper()


class Command:
    """A command's parameters, and the reading of their values.

    Attributes:
        own: the function's own parameters.
        config: the class of its configuration, or None.
    """

    def __init__(self, name: str, function: Callable):
        self.name, self.function = name, function
        hints = typing.get_type_hints(function, include_extras=True)
        self.config: type[Options] | None = hints.get("config")
        self.own = [
            _own_parameter(name, hints[name], parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
            if name != "config"
        ]

    @property
    def parameters(self) -> list[Parameter]:
        return [*self.own, *(_config_parameters(self.config) if self.config else [])]

    def read(self, given: dict) -> dict:
        """The function's arguments, from parameter names and their values.

        Raises:
            InputError: a parameter is unknown or missing, or a value is not allowed.
        """
        check_names(given, [parameter.name for parameter in self.parameters], self.name)
        arguments = {}
        for parameter in self.own:
            value = given.get(parameter.name)
            if value is not None:
                arguments[parameter.name] = read_value(parameter.label, value, parameter.hint, parameter.bounds)
            elif parameter.default is inspect.Parameter.empty:
                raise InputError(f"{self.name}: {parameter.label} is missing; expected {_start_low(parameter.help)}")
        if self.config:
            own = {parameter.name for parameter in self.own}
            arguments["config"] = self.config(**{name: value for name, value in given.items() if name not in own})
        return arguments

    def words(self, given: dict) -> list[str]:
        """The command line as a list of words, from parameter names and their values."""
        words = self.name.split()
        for parameter in self.parameters:
            value = given.get(parameter.name)
            if isinstance(value, dict) and not parameter.repeat:
                value = json.dumps(value)
            if isinstance(value, dict):
                value = [f"{key}={each}" for key, each in value.items()]
            if isinstance(value, bool):
                words.append(parameter.flags[0] if value else f"--no-{parameter.flags[0].removeprefix('--')}")
            elif value is not None:
                for each in value if isinstance(value, list) else [value]:
                    # With "=", because a separate value that begins with a hyphen would be read as a flag.
                    words += [f"{parameter.flags[0]}={each}"] if parameter.flags else [str(each)]
        return words


COMMANDS: dict[str, Command] = {}


def command(app: typer.Typer, name: str, *, examples: Sequence[str], prefix: str = "") -> Callable:
    """A decorator that makes a function the command `name` of `app`.

    Args:
        examples: command lines for the end of the help.
        prefix: the name of `app` if it is a group of commands, such as "transfer".
    """

    def decorate(function: Callable) -> Callable:
        made = COMMANDS[f"{prefix} {name}".strip()] = Command(f"{prefix} {name}".strip(), function)

        def run(**given) -> None:
            given = {key: value for key, value in given.items() if value is not None and value != []}
            file = given.pop("config", None)
            function(**made.read({**read_yaml(file), **given} if file else given))

        parameters = [
            inspect.Parameter(
                parameter.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_annotation(parameter),
                default=None,
            )
            for parameter in made.parameters
        ]
        if made.config:
            help = "A YAML with these options; flags override it."
            parameters.append(
                inspect.Parameter(
                    "config",
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[str | None, typer.Option("--config", metavar="FILE", help=help)],
                    default=None,
                )
            )
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = function.__doc__
        epilog = "\n\n".join(["Examples:", *examples])
        app.command(name, epilog=epilog)(run)
        return function

    return decorate


def read_yaml(path) -> dict:
    """The options in a YAML file, by their names with underscores.

    Raises:
        InputError: the file cannot be read, or is not a mapping of options.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as YAML ({reason})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path}: expected options, each as NAME: VALUE")
    return {name.replace("-", "_"): value for name, value in values.items()}


def option_words(options: dict) -> list[str]:
    """The options of a recipe as a list of words of a command line."""
    words = []
    for name, value in options.items():
        flag = "--accelerate-config" if name == "accelerate_config" else f"--{name}"
        if isinstance(value, dict):
            value = json.dumps(value)
        values = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
        words += [flag, *map(str, values)]
    return words


def shown_line(words: Sequence[str]) -> str:
    """The command as a user would type it."""
    return shlex.join(["unicorn-hf", *words])


def print_next(line: str | None) -> None:
    """Print the next command to standard error, so that a pipe gets only the output."""
    if line is not None:
        print(f"Next: {line}", file=sys.stderr)


def _own_parameter(name: str, hint, default) -> Parameter:
    hint, said = typing.get_args(hint)[:2]
    if isinstance(said, Argument):
        return Parameter(name, (), hint, default, said.help)
    return Parameter(name, said.flags or (flag_of(name),), hint, default, said.help, bounds=said.bounds)


def _config_parameters(config: type[Options]) -> list[Parameter]:
    hints = typing.get_type_hints(config)
    return [
        Parameter(
            field.name,
            field.metadata["flags"] or (flag_of(field.name),),
            hints[field.name],
            inspect.Parameter.empty if field.metadata["required"] else default_of(field),
            field.metadata["help"],
            field.metadata["panel"],
            field.metadata["repeat"],
            field.metadata,
        )
        for field in option_fields(config)
    ]


def _annotation(parameter: Parameter):
    arms = [arm for arm in arms_of(parameter.hint) if arm is not type(None)]
    is_list = parameter.repeat or any(typing.get_origin(arm) is list for arm in arms)
    options: dict[str, Any] = {"help": parameter.help, "show_default": False}
    if not parameter.flags:
        options["metavar"] = parameter.name.upper()
        kind = list[str] if is_list else str
        return Annotated[kind | None, typer.Argument(**options)]
    if parameter.default is inspect.Parameter.empty:
        options["help"] += " (required)"
    elif parameter.default not in (None, "", [], {}) and not isinstance(parameter.default, bool):
        options["help"] += f" (default {parameter.default})"
    elif parameter.default is True:
        options["help"] += " (default)"
    options["rich_help_panel"] = parameter.panel or "What"
    if arms == [bool]:
        flag = parameter.flags[0]
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", **options)]
    if choices := choices_of(parameter.hint):
        options["autocompletion"] = lambda: choices
    options["metavar"] = "|".join([*choices, *filter(None, map(_METAVARS.get, arms))]) or "TEXT"
    return Annotated[(list[str] if is_list else str) | None, typer.Option(*parameter.flags, **options)]


_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT", list[Path]: "PATH", dict: "NAME=VALUE"}


def _start_low(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
