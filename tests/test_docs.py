"""The documentation holds: its snippets run, its commands parse, its words are the program's."""

import ast
import configparser
import importlib
import re
import sys
from pathlib import Path

import pytest
import typer
from documentation import ROOT, Snippet, pages, snippets

import unicorn_hf
from unicorn_hf import cli

trl = pytest.importorskip("trl", reason="the recipes need the extra 'train'")

from unicorn_hf.training import FinetuneArguments, PreferArguments, PretrainArguments, option_classes  # noqa: E402

ARGUMENTS = {"pretrain": PretrainArguments, "finetune": FinetuneArguments, "prefer": PreferArguments}
SHELL = [snippet for snippet in snippets() if snippet.language == "bash"]
PYTHON = [snippet for snippet in snippets() if snippet.language == "python"]


@pytest.mark.slow
def test_snippets_run_one_after_the_other_in_an_empty_folder(demo_output, tmp_path, monkeypatch, capsys):
    """As for a newcomer: README first, then the menu's pages. The demo is there, so its command is quick."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").symlink_to(demo_output)
    page, names = None, {}
    for snippet in snippets():
        if snippet.title or snippet.language not in ("bash", "python"):
            continue
        if snippet.page != page:
            page, names = snippet.page, {"__name__": "__main__"}
        try:
            if snippet.language == "python":
                exec(compile(snippet.code, str(snippet), "exec"), names)
            else:
                for command in snippet.commands():
                    run(command, monkeypatch)
        except BaseException as error:
            raise AssertionError(f"{snippet}\n{snippet.code}\n{capsys.readouterr()}") from error
    assert (tmp_path / "dataset" / "README.md").is_file()


def run(command: list[str], monkeypatch) -> None:
    """In this process, where everything is imported already."""
    assert command[0] == "unicorn-hf", f"{command}: give a block that needs something else a title"
    monkeypatch.setattr(sys, "argv", command)
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, command


@pytest.mark.parametrize("snippet", [snippet for snippet in PYTHON if snippet.title], ids=str)
def test_python_that_is_not_run_calls_what_there_is(snippet: Snippet):
    tree = ast.parse(snippet.code)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            imported |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    assert imported


@pytest.mark.parametrize("snippet", SHELL, ids=str)
def test_commands_parse(snippet: Snippet):
    for command in snippet.commands():
        check_command(command)


def check_command(command: list[str]) -> None:
    while "=" in command[0]:  # a variable of the environment
        command = command[1:]
    program, *arguments = command
    if program == "unicorn-hf":
        check_ours(arguments)
    elif program == "accelerate":
        check_launch(arguments)
    elif program == "torchrun":
        check_recipe(next(word for word in arguments if word.endswith(".py")), after(arguments, ".py"))
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
    elif program == "pip":
        for extra in re.findall(r"(?:unicorn-hf|\.)\[(.*?)\]", " ".join(arguments)):
            assert set(extra.split(",")) <= extras(), command
    else:
        assert program in {"cd", "curl", "docker", "git", "hf", "lmms-eval", "pytest", "unzip", "vllm"}, command


def check_ours(arguments: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and not arguments[0].startswith("-"):
        name, *arguments = arguments
        assert name in command.commands, name
        command = command.commands[name]
    if set(arguments) & {"--help", "--version"}:
        return
    context = command.make_context(command.name, list(arguments))
    if command.name == "train":
        check_recipe(context.params["stage"], context.args)


def check_launch(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args(arguments[1:])
    assert parsed.config_file is None or packaged(parsed.config_file).is_file()
    if parsed.training_script.endswith(".py"):
        check_recipe(parsed.training_script, parsed.training_script_args)


def check_recipe(recipe: str, options: list[str]) -> None:
    """The options of a recipe are known to its parser, those of its YAML too."""
    stage, options = Path(recipe).stem, list(options)
    if "--config" in options:
        place = options.index("--config") + 1
        options[place] = str(packaged(options[place]))
    if "--use_cpu" not in options:
        options += ["--use_cpu", "true"]  # SFTConfig refuses bfloat16 where there is neither a GPU nor this
    parser = trl.TrlParser(option_classes(ARGUMENTS[stage]))
    parser.parse_args_and_config(options)


def packaged(name: str) -> Path:
    return ROOT / "recipes" / name.removeprefix("recipes/")


def after(words: list[str], ending: str) -> list[str]:
    return words[next(place for place, word in enumerate(words) if word.endswith(ending)) + 1 :]


def extras() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def test_the_api_page_has_every_public_name_where_it_lives():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    public = [getattr(unicorn_hf, name) for name in unicorn_hf.__all__ if name != "__version__"]
    lives = [f"{each.__module__}.{each.__qualname__}" for each in public]
    assert sorted(named) == sorted(re.sub(r"^unicorn_hf\.(?=modeling|dataset_scripts)", "", name) for name in lives)


def test_the_menu_has_every_page():
    assert set(pages()[1:]) == set((ROOT / "docs").glob("*.md"))


def test_troubleshooting_quotes_sentences_that_the_program_says():
    """Each piece of a quoted sentence stands in the sources as it is."""
    sources = "\n".join(
        string.value
        for folder in ("unicorn_hf", "modeling", "dataset_scripts", "recipes")
        for path in (ROOT / folder).rglob("*.py")
        for string in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(string, ast.Constant) and isinstance(string.value, str)
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `(.+?)`", page, re.MULTILINE)
    assert len(quoted) > 30
    pieces = [piece for sentence in quoted for piece in sentence.split("…")]
    assert [piece for piece in pieces if piece not in sources] == []
