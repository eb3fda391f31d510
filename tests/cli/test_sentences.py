"""What a user gets wrong is told in one sentence, with status 2, and leaves nothing behind."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset

from unicorn_hf import InputError, ModalityTransfer, errors
from unicorn_hf.cli import main
from unicorn_hf.data.dataset_folder import write_dataset


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unicorn-hf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def check(result, output, *words):
    status, message = result
    assert status == 2
    (sentence,) = (line for line in message.splitlines() if line.startswith("unicorn-hf: "))
    assert "Traceback" not in message
    for word in words:
        assert word in sentence
    assert not output.exists()
    assert not list(output.parent.glob(".*partial*"))


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.txt"
    path.write_text("red circle, small, top left, white background\n")
    return path


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "seeds.txt"),
        (b"\n  \n", "seeds.txt"),
        (b"\xff\xfe\x00red", "seeds.txt"),
        (b"a cat on a mat", "a cat on a mat"),
    ],
)
def test_seeds_that_cannot_be_used(run, tmp_path, content, word):
    (tmp_path / "seeds.txt").write_bytes(content)
    check(
        run("captions", tmp_path / "seeds.txt", "-o", tmp_path / "out", "--writer", "grammar"), tmp_path / "out", word
    )


def test_seeds_that_do_not_exist(run, tmp_path):
    check(
        run("captions", tmp_path / "none.txt", "-o", tmp_path / "out", "--writer", "grammar"),
        tmp_path / "out",
        "none.txt",
    )


def test_an_unknown_writer(run, tmp_path, seeds):
    check(run("captions", seeds, "-o", tmp_path / "out", "--writer", "bard"), tmp_path / "out", "'bard'", "grammar")


def test_an_output_folder_that_holds_something(run, tmp_path, seeds):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    status, message = run("captions", seeds, "-o", tmp_path / "out", "--writer", "grammar")
    assert status == 2 and "not an empty folder" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_unknown_encoder(run, tmp_path):
    write_dataset(Dataset.from_dict({"id": ["1"], "caption": ["a"]}), tmp_path / "captions", title="captions")
    output = tmp_path / "out"
    check(run("embed", tmp_path / "captions", "-o", output, "--encoder", "resnet"), output, "'resnet'", "open_clip/")


@pytest.fixture
def vectors(tmp_path):
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    for name, array in (("text", rows), ("image", rows + 1), ("narrow", rows[:, :4])):
        np.save(tmp_path / f"{name}.npy", array)
    rows[7, 3] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    return tmp_path


def fit(text, image, method="realign"):
    return ("transfer", "fit", "--text", text, "--image", image, "--method", method)


def test_an_unknown_method(run, vectors):
    output = vectors / "out"
    check(run(*fit(vectors / "text.npy", vectors / "image.npy", "magic"), "-o", output), output, "'magic'", "realign")


def test_vectors_of_different_dimensions(run, vectors):
    output = vectors / "out"
    check(run(*fit(vectors / "text.npy", vectors / "narrow.npy"), "-o", output), output, "8", "4")


def test_vectors_with_nan_are_refused_by_row(run, vectors):
    output = vectors / "out"
    check(run(*fit(vectors / "nan.npy", vectors / "image.npy"), "-o", output), output, "nan.npy", "7")


def test_an_output_that_cannot_be_written(run, vectors):
    inside_a_file = vectors / "text.npy" / "out"
    command = fit(vectors / "text.npy", vectors / "image.npy")
    status, message = run(*command, "-o", inside_a_file)
    assert status == 2 and "Traceback" not in message
    assert "text.npy" in message and "cannot be read or written" in message


def test_a_full_disk_is_one_sentence_and_leaves_nothing(vectors):
    """Full but for the last bytes of the last block: a file may not grow beyond the limit."""
    ModalityTransfer.fit(vectors / "text.npy", vectors / "image.npy").save_pretrained(vectors / "fitted")
    program = "import resource, sys; from unicorn_hf.cli import main\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 8 * 4 + 128 - 10,) * 2); main()"
    arguments = ["transfer", "apply", "text.npy", "--transfer", "fitted", "-o", "moved.npy"]
    result = subprocess.run([sys.executable, "-c", program, *arguments], cwd=vectors, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(r"unicorn-hf: the disk is full [^\n]*make room[^\n]*\n", result.stderr)
    assert not list(vectors.glob("*moved*")) and not list(vectors.glob(".*moved*"))


def test_a_missing_extra_is_named(run, tmp_path, monkeypatch):
    found = errors.importlib.util.find_spec
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None if name == "trl" else found(name))
    check(run("demo", "--output", tmp_path / "out"), tmp_path / "out", "'trl'", "unicorn-hf[train]")


def test_an_unknown_stage(run, tmp_path):
    check(run("train", "posttrain"), tmp_path / "out", "'posttrain'", "unicorn-hf train --help")


def test_a_model_that_does_not_exist(run, tmp_path):
    check(run("evaluate", tmp_path / "model", tmp_path / "data"), tmp_path / "out", "model")


def test_a_message_that_quotes_several_lines_is_one_line():
    error = InputError("rows.pkl: is damaged (a load instruction\n  was met\r\n)")
    assert str(error) == "rows.pkl: is damaged (a load instruction was met )"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_input_whose_name_is_no_text(run, tmp_path):
    data = Dataset.from_dict({"id": ["1"], "caption": ["a"], "text_embeds": [[1.0, 2.0]]})
    write_dataset(data, tmp_path / "data", title="captions")
    (tmp_path / "data").rename(folder := tmp_path / os.fsdecode(b"\xff"))
    output = tmp_path / "out"
    check(run("publish", "--pretrain", folder, "-o", output), output, "is no text in UTF-8")


def test_a_sentence_that_quotes_megabytes_is_cut(run, tmp_path):
    (tmp_path / "seeds.txt").write_text("one " * 1_000_000)
    status, message = run("captions", tmp_path / "seeds.txt", "--writer", "grammar", "-o", tmp_path / "out")
    assert status == 2 and len(message.splitlines()[-1]) < 2000 and "shapes: circle" in message
