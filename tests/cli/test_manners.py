"""Help, version, status and what goes to which stream."""

import json
import subprocess
import sys

import pytest
import yaml
from PIL import Image
from unicorn_hf.dataset_scripts.config import PublishAndPushConfig

from unicorn_hf import EmbedConfig, __version__
from unicorn_hf.cli.command import COMMANDS, shown_line
from unicorn_hf.errors import InputError

GROUPS = ["", "transfer", "report", "train"]
OTHERS = ["run", "env"]


def unicorn_hf(*arguments, program: str | None = None, **options) -> subprocess.CompletedProcess:
    start = ["-m", "unicorn_hf"] if program is None else ["-c", program]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_every_help_is_there_with_two_examples_and_without_torch():
    program = """
import contextlib, io, sys
from unicorn_hf.cli import main
for words in sys.argv[1:]:
    sys.argv = ["unicorn-hf", *words.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    examples = " ".join(said.getvalue().partition("Examples:")[2].split()).count("unicorn-hf ")
    assert "Usage: unicorn-hf" in said.getvalue(), words
    print(words or "-", examples)
heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "tqdm"} & set(sys.modules)
assert not heavy, heavy
"""
    named = [*GROUPS, *COMMANDS, *OTHERS]
    result = unicorn_hf(*named, program=program)
    assert result.returncode == 0, result.stderr
    counts = dict(line.rsplit(" ", 1) for line in result.stdout.splitlines())
    assert len(counts) == len(named)
    assert {name for name, count in counts.items() if count != "2"} == {"-", "transfer", "report", "train"}


def test_choices_are_choices_in_the_help():
    said = unicorn_hf("captions", "--help", env={"COLUMNS": "200", "PATH": ""}).stdout
    assert "grammar|chat|transformers|batch" in said and "local|slurm|ray" in said
    for panel in ("What", "Model", "Limits", "Cluster"):
        assert f"─ {panel} ─" in said


def test_version():
    result = unicorn_hf("--version")
    assert (result.returncode, result.stdout) == (0, f"unicorn-hf {__version__}\n")


def test_env_names_versions_and_machine():
    result = unicorn_hf("env")
    assert result.returncode == 0, result.stderr
    assert [word for word in ("torch", "transformers", "trl", "python", "GPUs") if word not in result.stdout] == []


def test_without_its_libraries_the_command_names_the_installation():
    for missing in ("typer", "rich"):
        program = f"import sys; sys.modules[{missing!r}] = None; from unicorn_hf.cli import main; main()"
        result = unicorn_hf("--version", program=program)
        assert result.returncode == 2 or missing == "rich", result.stderr  # a typer may do without it
        if result.returncode:
            assert result.stderr.startswith("unicorn-hf: the package") and "pip install unicorn-hf" in result.stderr
            assert result.stderr.count("\n") == 1


def test_a_command_never_asks(tmp_path):
    (tmp_path / "model").mkdir()
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(foreign))
    (tmp_path / "model" / "code.py").write_text("open('was-run', 'w')")
    (tmp_path / "seeds.txt").write_text("a dog\n")
    arguments = ("captions", "seeds.txt", "-o", "out", "--writer", "transformers", "--model", "model")
    result = unicorn_hf(*arguments, cwd=tmp_path, input="y\n" * 99)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "[y/N]" not in result.stdout + result.stderr and not (tmp_path / "was-run").exists()


def test_a_yaml_says_what_flags_say_and_a_flag_goes_before_it(tmp_path):
    (tmp_path / "seeds.txt").write_text("red circle, small, top left, white background\n")
    options = {"seeds": ["seeds.txt"], "output": "out", "writer": "grammar", "captions-per-seed": 1}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    result = unicorn_hf("captions", "--config", "options.yaml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "out: 1 captions\n"), result.stderr
    assert result.stderr.splitlines()[-1] == "Next: unicorn-hf instructions out -o conversations --writer grammar"
    result = unicorn_hf("captions", "--config", "options.yaml", "--captions-per-seed", 2, "-o", "two", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "two: 2 captions\n"), result.stderr


def test_an_unknown_key_of_a_yaml_is_one_sentence(tmp_path):
    (tmp_path / "options.yaml").write_text("capions_per_seed: 3\n")
    result = unicorn_hf("captions", "seeds.txt", "-o", "out", "--config", "options.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "unicorn-hf: captions: there is no option 'capions_per_seed'; did you mean captions_per_seed?\n"
    )


def test_a_configuration_goes_below_the_options_of_a_call():
    config = EmbedConfig.of(EmbedConfig(encoder="sandbox", batch_size="7"), {"overflow": "mean"})
    assert (config.encoder, config.batch_size, config.overflow) == ("sandbox", 7, "mean")
    assert sorted(config.given()) == ["batch_size", "encoder", "overflow"]
    with pytest.raises(InputError, match="EmbedConfig: there is no option 'batchsize'; did you mean batch_size"):
        EmbedConfig.of(None, {"encoder": "sandbox", "batchsize": 7})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_words_of_a_command_are_read_as_what_they_say(name):
    """As `unicorn-hf run` prints and starts it."""
    given = {}
    for parameter in COMMANDS[name].parameters:
        if parameter.hint is bool:
            given[parameter.name] = True
        elif parameter.name in ("output", "suffix", "title"):
            given[parameter.name] = "-a b"
    line = shown_line(COMMANDS[name].words(given))
    assert line.startswith(f"unicorn-hf {name}") and line.count("-a b") == len(
        set(given) & {"output", "suffix", "title"}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("embed", "seeds.txt", "--encoder", "sandbox", "--device", "nonsense"),
        ("embed", "seeds.txt", "--encoder", "sandbox", "--device", "cuda:99"),
        ("embed", "seeds.txt", "--encoder", "sandbox", "--dtype", "nonsense"),
        ("embed", "seeds.txt", "--encoder", "open_clip/nonsense/none"),
        ("embed", "seeds.txt", "--encoder", "nonsense"),
        ("embed", "seeds.txt", "--encoder", "sandbox", "--column", "none"),
        ("captions", "seeds.txt", "--writer", "chat", "--model", "m", "--base-url", "notaurl"),
        ("captions", "seeds.txt", "--writer", "chat", "--model", "m", "--base-url", "http://a:99999999/v1"),
        ("captions", "seeds.txt", "--writer", "chat"),
        ("captions", "seeds.txt", "--writer", "grammar", "--budget", "3"),
        ("instructions", "seeds.txt", "--writer", "grammar", "--mix", "poetry=1"),
        ("nonsense",),
        ("transfer",),
        ("captions", "seeds.txt", "--nonsense"),
        ("captions", "seeds.txt", "--writer"),
        ("run", "none.yaml"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(arguments, tmp_path):
    (tmp_path / "seeds.txt").write_text("red circle, small, top left, white background\n")
    output = () if arguments[0] in ("nonsense", "transfer", "run") else ("-o", "out")
    result = unicorn_hf(*arguments[:1], *output, *arguments[1:], cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert result.returncode == 2, result.stderr
    (sentence,) = (line for line in result.stderr.splitlines() if line.startswith("unicorn-hf: "))
    assert result.stderr.splitlines()[-1] == sentence and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["seeds.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--dataset", "none", "--model_name_or_path", "none", "--output_dir", "out"), ("--nonsense", "1")]
)
def test_training_that_cannot_be_ends_with_its_sentence(options, tmp_path):
    result = unicorn_hf("train", "pretrain", "--use_cpu", "true", "--bf16", "false", *options, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr and "CalledProcessError" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("unicorn-hf: ")
    assert not list(tmp_path.iterdir())


def test_the_next_command_after_embedding_pictures_names_them_as_pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures" / "red.png")
    result = unicorn_hf("embed", "pictures", "-o", "vectors", "--encoder", "sandbox", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert " --text TEXTS --image vectors " in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("inputs", "stage", "dataset", "output"),
    [
        ({"instruction": "conversations"}, "pretrain", "dataset", "stage-1"),
        ({"instruction": "conversations", "preference": "preferences"}, "pretrain", "dataset", "stage-1"),
        ({"preference": "preferences"}, "prefer", "dataset-with-pairs", "stage-3"),
    ],
)
def test_the_next_command_after_publishing_trains_on_what_was_published(
    inputs, stage, dataset, output, monkeypatch, capsys
):
    monkeypatch.setattr("unicorn_hf.publish", lambda pretrain, instruction, output, **_: output)
    COMMANDS["publish"].function("aligned-captions", dataset, PublishAndPushConfig(), **inputs)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Next: unicorn-hf train {stage} --config ")
    assert line.endswith(f" --dataset {dataset} --output_dir {output}")
