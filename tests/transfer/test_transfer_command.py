"""The commands, as a user types them."""

import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
from typer.testing import CliRunner

from unicorn_hf import InputError
from unicorn_hf.cli import app
from unicorn_hf.transfer import ModalityTransfer, Moments
from unicorn_hf.transfer.moments import merge_files

unicorn_hf = [sys.executable, "-m", "unicorn_hf"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(command):
        result = CliRunner().invoke(app, command.split(), catch_exceptions=True)
        return result

    return run


@pytest.fixture
def files(text, image, tmp_path):
    np.save(tmp_path / "text.npy", text)
    np.save(tmp_path / "image.npy", image)
    for shard in range(3):
        np.save(tmp_path / f"text-{shard}.npy", text[shard::3])


def test_fit_and_apply(run, files, text, image, tmp_path):
    assert run("transfer fit --text text.npy --image image.npy --method realign -o fitted").exit_code == 0
    assert run("transfer apply text.npy --transfer fitted -o moved.npy").exit_code == 0
    expected = ModalityTransfer.fit(text, image).apply(text).astype(np.float16)
    np.testing.assert_array_equal(np.load(tmp_path / "moved.npy"), expected)


def test_apply_adds_a_column_to_a_folder(run, files, make_folder, text, tmp_path):
    run("transfer fit --text text.npy --image image.npy --method mean_shift --sigma 0.01 --seed 1 -o fitted")
    result = run(f"transfer apply {make_folder(text)} --transfer fitted -o out --out-column moved")
    assert result.exit_code == 0
    assert datasets.load_dataset("out", split="train").column_names == ["id", "caption", "text_embeds", "moved"]


def test_every_method_has_its_options(run, files):
    for number, options in enumerate(
        ("none", "mean_shift --centred", "covariance --shrinkage 0.1 --ridge 0.01", "anisotropic --rank 3 --bound 2")
    ):
        result = run(f"transfer fit --text text.npy --image image.npy -o fitted{number} --method {options}")
        assert result.exit_code == 0, result.output


def test_moments_of_shards_fit_as_the_whole_does(run, files, text, image, tmp_path):
    for shard in range(3):
        assert run(f"transfer moments text-{shard}.npy --modality text -o t{shard}.safetensors").exit_code == 0
    run("transfer moments image.npy --modality image -o i.safetensors")
    first = "t0.safetensors t2.safetensors t1.safetensors i.safetensors"
    result = run(f"transfer fit {first} --method mean_shift -o fitted")
    assert result.exit_code == 0, result.output
    moved = ModalityTransfer.from_pretrained(tmp_path / "fitted").apply(text)
    np.testing.assert_allclose(
        moved, ModalityTransfer.fit(text, image, method="mean_shift").apply(text), rtol=0, atol=1e-6
    )


def test_moments_of_images_serve_text_vectors_as_they_are(run, files, text, image, tmp_path):
    run("transfer moments image.npy --modality image -o i.safetensors")
    assert run("transfer fit i.safetensors --text text.npy -o fitted").exit_code == 0
    moved = ModalityTransfer.from_pretrained(tmp_path / "fitted").apply(text)
    np.testing.assert_allclose(moved, ModalityTransfer.fit(text, image).apply(text), rtol=0, atol=1e-6)


def test_skipped_rows_are_counted_and_listed(run, files, text, tmp_path):
    text[[5, 6]] = np.nan
    np.save(tmp_path / "text.npy", text)
    result = run("transfer fit --text text.npy --image image.npy -o fitted --skip-non-finite")
    assert result.exit_code == 0
    assert "2 rows that hold NaN, Inf or zeros: row 5, row 6" in result.stderr


BAD = {
    "fit --text text.npy --image image.npy --method magic -o fitted": "--method is 'magic'; expected one of none",
    "fit --text text.npy -o fitted": "needs image vectors",
    "fit --image image.npy -o fitted": "no text to fit on",
    "fit --text missing.npy --image image.npy -o fitted": "no such file",
    "fit --text text.npy --image image.npy --sigma 1 -o fitted": "has no option 'sigma'",
    "fit --text nan.npy --image image.npy -o fitted": "row 5 holds NaN",
    "fit --text narrow.npy --image image.npy -o fitted": "must come from one encoder",
    "fit --text chunk.pkl --image image.npy -o fitted": "--allow-pickle",
    "fit text.npy -o fitted": "not a file of moments",
    "fit --text text.npy --image image.npy -o taken": "not an empty folder",
    "fit m.safetensors --image image.npy -o fitted": "reads the text a second time",
    "apply text.npy --transfer nowhere/at/all -o fitted": "neither a folder nor a repository",
    "moments text.npy --modality sound -o fitted": "expected one of text, image",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(command, run, files, text, tmp_path):
    broken = text.copy()
    broken[5] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    np.save(tmp_path / "narrow.npy", text[:, :8])
    (tmp_path / "chunk.pkl").write_bytes(b"")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    run("transfer moments text.npy --modality text -o m.safetensors")
    before = sorted(tmp_path.iterdir())
    result = run(f"transfer {command}")
    assert BAD[command] in str(result.exception)
    assert "\n" not in str(result.exception)
    assert sorted(tmp_path.iterdir()) == before


def test_the_whole_process_says_one_sentence_with_status_2(files, tmp_path):
    command = [*unicorn_hf, "transfer", "fit", "--text", "text.npy", "--image", "image.npy", "--method", "x", "-o", "f"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert re.fullmatch(r"unicorn-hf: --method is 'x'; [^\n]*\n", result.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    script = """
import re
from unicorn_hf.cli import app
for command in ("fit --text text.npy --image text.npy -o fitted", "apply text.npy --transfer fitted -o moved.npy"):
    app(["transfer", *command.split()], standalone_mode=False)
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
    peaks = []
    for rows in (4_000, 40_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        np.save(
            folder / "text.npy", np.random.default_rng(0).standard_normal((rows, 512), np.float32).astype(np.float16)
        )
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, cwd=folder, check=True, timeout=120, capture_output=True, text=True)
        peaks.append(int(result.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 20  # MB; the larger file has 41


@pytest.mark.parametrize(("text_name", "moved"), [("text.npy", "moved.npy"), ("folder", "moved")])
def test_vectors_are_moved_without_importing_torch_or_datasets(text_name, moved, files, make_folder, text, tmp_path):
    make_folder(text).rename(tmp_path / "folder")
    script = f"""
import sys
from unicorn_hf.cli import app
fit = "fit --text {text_name} --image image.npy -o fitted"
for command in (fit, "apply {text_name} --transfer fitted -o {moved}"):
    app(["transfer", *command.split()], standalone_mode=False)
heavy = {{"torch", "datasets", "pandas", "transformers", "huggingface_hub", "pyarrow.compute"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)


def test_a_file_is_written_over_only_on_demand(run, files, tmp_path):
    run("transfer fit --text text.npy --image image.npy -o fitted")
    commands = {
        "apply text.npy --transfer fitted -o keep.npy": "keep.npy",
        "moments text.npy --modality text -o keep.safetensors": "keep.safetensors",
    }
    for command, name in commands.items():
        (tmp_path / name).write_text("precious")
        result = run(f"transfer {command}")
        assert "give --overwrite" in str(result.exception), result.output
        assert (tmp_path / name).read_text() == "precious"
        assert run(f"transfer {command} --overwrite").exit_code == 0
        assert (tmp_path / name).read_bytes() != b"precious"


def test_a_file_of_moments_that_is_given_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="is given twice"):
        Moments.measure(np.eye(3, dtype=np.float32)).save(tmp_path / "text.safetensors", modality="text")
        merge_files([tmp_path / "text.safetensors", tmp_path / "." / "text.safetensors"])
