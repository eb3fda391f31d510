import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unicorn_hf import embed, load_encoder
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.embedding import job
from unicorn_hf.errors import InputError
from unicorn_hf.transfer import Moments

from .conftest import check_same


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("sandbox", device="cpu")


def captions(count: int) -> list[str]:
    """Captions of very different lengths, so that sorting by length moves nearly all of them."""
    return [f"a {'small ' * (i * 7 % 11)}red circle {'and a blue square ' * (i % 3)}{i}" for i in range(count)]


@pytest.fixture
def source(tmp_path) -> Path:
    """120 captions in a file; two of them are none."""
    texts = captions(120)
    texts[17], texts[90] = None, "  "
    path = tmp_path / "captions.parquet"
    datasets.Dataset.from_dict({"id": [f"c{i}" for i in range(120)], "caption": texts}).to_parquet(path)
    return path


def vectors_of(dataset, column: str) -> np.ndarray:
    return dataset.with_format("numpy")[column][:]


def test_vectors_stand_beside_the_rows_they_were_made_of(encoder):
    texts = captions(120)
    dataset = embed(datasets.Dataset.from_dict({"caption": texts, "n": range(120)}), encoder=encoder, shard_rows=50)
    assert dataset["n"][:] == list(range(120))
    feature = dataset.features["text_embeds"]
    assert feature == datasets.List(datasets.Value("float16"), length=encoder.embed_dim)
    np.testing.assert_allclose(vectors_of(dataset, "text_embeds"), encoder.encode_text(texts), atol=1e-3)


def test_the_folder_is_read_by_load_dataset_and_says_which_encoder_it_is_of(source, tmp_path, encoder):
    returned = embed(source, tmp_path / "out", encoder="sandbox")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert loaded["id"][:] == returned["id"][:]
    assert loaded.column_names == ["id", "caption", "text_embeds"]
    provenance = {"encoder": "sandbox", "embed_dim": encoder.embed_dim}
    assert read_provenance(tmp_path / "out") == {"text_embeds": provenance}


def test_rows_that_fail_and_rows_that_succeed_are_the_input(source, tmp_path):
    embed(source, tmp_path / "out", encoder="sandbox", shard_rows=50)
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed == [
        {"row": 17, "id": "c17", "reason": "there is no text"},
        {"row": 90, "id": "c90", "reason": "the text is empty"},
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["rows"], summary["embedded"], summary["failed"]) == (120, 118, 2)
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 118


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("first", [True, False])
def test_a_shard_without_a_usable_row_is_only_empty(modality, first, tmp_path):
    if modality == "text":
        empty, usable = '{"caption": ""}\n' * 2, '{"caption": "a"}\n' * 2
        source = tmp_path / "captions.jsonl"
        source.write_text(empty + usable if first else usable + empty)
    else:
        source = tmp_path / "photos"
        source.mkdir()
        for number in range(2):
            Image.new("RGB", (8, 8), (90, number, 0)).save(source / f"m{number}.png")
            (source / f"{'a' if first else 'z'}{number}.png").write_text("no image")
    embed(source, tmp_path / "out", encoder="sandbox", shard_rows=2)
    failed = [json.loads(line)["row"] for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert failed == ([0, 1] if first else [2, 3])
    assert len(datasets.load_dataset(str(tmp_path / "out"), split="train")) == 2
    assert Moments.measure(tmp_path / "out", f"{modality}_embeds").count == 2


def test_data_without_a_usable_row_are_refused_and_can_be_corrected(tmp_path):
    source = tmp_path / "data.jsonl"
    source.write_text('{"caption": " "}\n')
    with pytest.raises(InputError, match=r"none of its 1 rows could be embedded; the first: .*the text is empty"):
        embed(source, tmp_path / "out", encoder="sandbox")
    with pytest.raises(InputError, match="none of its 1 rows could be embedded"):
        embed(source, encoder="sandbox")
    assert os.listdir(tmp_path) == ["data.jsonl"]
    source.write_text('{"caption": "a"}\n')
    assert len(embed(source, tmp_path / "out", encoder="sandbox")) == 1


def test_rows_without_a_vector_are_told_of_where_there_is_no_folder(source):
    with pytest.warns(UserWarning, match=r"2 rows have no vector .*'row': 17"):
        assert len(embed(source, encoder="sandbox")) == 118


def test_an_earlier_column_s_provenance_is_kept(source, tmp_path, encoder):
    embed(source, tmp_path / "once", encoder="sandbox")
    pictures = datasets.load_dataset(str(tmp_path / "once"), split="train").rename_column("text_embeds", "image_embeds")
    other = {"image_embeds": {"encoder": "another", "embed_dim": 128}}
    write_dataset(pictures, tmp_path / "twice", title="Both", provenance=other)
    embed(tmp_path / "twice", tmp_path / "out", encoder="sandbox", column="caption")
    assert read_provenance(tmp_path / "out") == {
        **other,
        "text_embeds": {"encoder": "sandbox", "embed_dim": encoder.embed_dim},
    }


def test_worker_processes_give_the_same_folder(source, tmp_path):
    embed(source, tmp_path / "alone", encoder="sandbox", shard_rows=20, num_workers=0)
    embed(source, tmp_path / "helped", encoder="sandbox", shard_rows=20, num_workers=2)
    check_same(tmp_path / "alone", tmp_path / "helped")


def test_columns_can_be_left_out(source, tmp_path):
    dataset = embed(source, tmp_path / "out", encoder="sandbox", remove_columns=["caption"])
    assert dataset.column_names == ["id", "text_embeds"]
    with pytest.raises(InputError, match="has no column 'picture'"):
        embed(source, tmp_path / "other", encoder="sandbox", remove_columns=["picture"])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_other_file_types_are_read(suffix, source, tmp_path, encoder):
    rows = datasets.load_dataset("parquet", data_files=str(source), split="train").select(range(10))
    path = tmp_path / f"captions{suffix}"
    rows.to_json(path) if suffix == ".jsonl" else rows.to_csv(path)
    assert len(embed(path, encoder=encoder)) == 10


def test_overflowing_texts_are_counted(tmp_path):
    texts = ["short", "a very long caption " * 50, "short too"]
    data = datasets.Dataset.from_dict({"caption": texts})
    embed(data, tmp_path / "cut", encoder="sandbox")
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["overflowing"] == 1
    cut, mean = (
        vectors_of(embed(data, encoder="sandbox", overflow=each), "text_embeds") for each in ("truncate", "mean")
    )
    assert np.abs(cut - mean)[[0, 2]].max() < 1e-3 < np.abs(cut - mean)[1].max()
    with pytest.raises(InputError, match=r"text \{'row': 1\} .* is longer than the encoder's"):
        embed(data, tmp_path / "refused", encoder="sandbox", overflow="error")


def test_vectors_that_are_not_finite_are_failures(source, encoder, monkeypatch):
    real = encoder.text_tower

    def broken(inputs):
        vectors = real(inputs)
        vectors[0] = float("nan")
        return vectors

    monkeypatch.setattr(encoder, "text_tower", broken)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        dataset = embed(datasets.Dataset.from_dict({"caption": captions(10)}), encoder=encoder, batch_size=5)
    assert len(dataset) == 8 and np.isfinite(vectors_of(dataset, "text_embeds")).all()


def test_a_batch_that_does_not_fit_into_memory_is_halved(encoder, monkeypatch):
    import torch

    texts = captions(13)
    expected = encoder.encode_text(texts)
    real = encoder.text_tower

    def small_memory(inputs):
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("no room")
        return real(inputs)

    monkeypatch.setattr(encoder, "text_tower", small_memory)
    np.testing.assert_allclose(encoder.encode_text(texts), expected, atol=1e-5)


class Killed(BaseException):
    """As little caught as a SIGKILL."""


def run_and_die_at(step: int, monkeypatch, *arguments, **options) -> bool:
    """Run `embed`, dying at the n-th time that something on disk changes; whether it came so far."""
    count = 0

    def mortal(function, half_done=None):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                if half_done:
                    half_done(*args)
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", mortal(Path.rename))
        patch.setattr(
            Path, "write_text", mortal(Path.write_text, lambda path, text, **_: path.open("w").write(text[:9]))
        )
        patch.setattr(job.pq, "write_table", mortal(pq.write_table, lambda table, path: path.write_bytes(b"PAR1 half")))
        patch.setattr(job.shutil, "rmtree", mortal(job.shutil.rmtree))
        try:
            embed(*arguments, **options)
        except Killed:
            return True
    return False


def test_killed_at_any_write_and_run_again_the_folder_is_the_same(source, tmp_path, encoder, monkeypatch):
    options = {"encoder": encoder, "shard_rows": 60, "num_workers": 0}
    embed(source, tmp_path / "whole", **options)
    step = 1
    while run_and_die_at(step, monkeypatch, source, out := tmp_path / f"out{step}", **options):
        embed(source, out, **options)
        check_same(out, tmp_path / "whole")
        assert not list(tmp_path.glob(f".out{step}.*")), f"after dying at write {step}"
        step += 1
    assert step > 12


def test_a_finished_shard_is_not_done_again(source, tmp_path, encoder, monkeypatch):
    options = {"encoder": encoder, "shard_rows": 40, "num_workers": 0}
    assert run_and_die_at(9, monkeypatch, source, tmp_path / "out", **options)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.embedding").rglob("train-*.arrow")}
    assert done
    seen = []
    real = encoder.tokenizer.encode
    monkeypatch.setattr(encoder.tokenizer, "encode", lambda texts: seen.extend(texts) or real(texts))
    embed(source, tmp_path / "out", **options)
    assert len(seen) < 118 - 40 * len(done) + 2
    for path, changed in done.items():
        assert (tmp_path / "out" / "data" / path.name).stat().st_mtime_ns == changed


def test_a_finished_run_is_not_done_again(source, tmp_path, encoder, monkeypatch):
    first = embed(source, tmp_path / "out", encoder=encoder)
    monkeypatch.setattr(encoder, "text_tower", None)
    assert embed(source, tmp_path / "out", encoder=encoder)["id"][:] == first["id"][:]
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        embed(source, tmp_path / "out", encoder=encoder, overflow="mean")


def test_sigkill_and_run_again_the_folder_is_the_same(source, tmp_path):
    options = {"encoder": "sandbox", "shard_rows": 4, "num_workers": 1}
    embed(source, tmp_path / "whole", **options)
    out, work = tmp_path / "out", tmp_path / ".out.embedding"
    process = multiprocessing.get_context("spawn").Process(target=embed, args=(source, out), kwargs=options)
    process.start()
    deadline = time.monotonic() + 60
    while not list(work.rglob("train-*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert work.exists() and not out.exists(), "it was killed too late to show anything"
    embed(source, out, **options)
    check_same(out, tmp_path / "whole")


@pytest.mark.parametrize("name", ["dataset/data/train-00001*.arrow", "shards/00001.json"])
@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[: len(old) // 2], lambda old: old[:-9] + bytes(9)])
def test_a_shard_that_was_damaged_in_between_is_made_again(source, tmp_path, encoder, monkeypatch, name, damage):
    options = {"encoder": encoder, "shard_rows": 40, "num_workers": 0}
    embed(source, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(job.EmbeddingJob, "finish", lambda self: sys.exit("killed"))
        with pytest.raises(SystemExit):
            embed(source, tmp_path / "out", **options)
    (path,) = (tmp_path / ".out.embedding").glob(name)
    path.write_bytes(damage(path.read_bytes()))
    embed(source, tmp_path / "out", **options)
    check_same(tmp_path / "out", tmp_path / "whole")


def test_a_source_that_changed_in_between_is_refused(source, tmp_path, encoder, monkeypatch):
    options = {"encoder": encoder, "shard_rows": 40, "num_workers": 0}
    assert run_and_die_at(9, monkeypatch, source, tmp_path / "out", **options)
    datasets.Dataset.from_dict({"id": ["c"], "caption": ["another"]}).to_parquet(source)
    with pytest.raises(InputError, match=r"the source has changed; remove .*\.out\.embedding"):
        embed(source, tmp_path / "out", **options)


def test_other_settings_than_the_unfinished_run_s_are_refused(source, tmp_path, encoder, monkeypatch):
    options = {"encoder": encoder, "shard_rows": 40, "num_workers": 0}
    assert run_and_die_at(9, monkeypatch, source, tmp_path / "out", **options)
    with pytest.raises(InputError, match="overflow was 'truncate', is now 'mean'"):
        embed(source, tmp_path / "out", overflow="mean", **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device that is always full")
def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(source, tmp_path, encoder, monkeypatch):
    options = {"encoder": encoder, "shard_rows": 40, "num_workers": 0}
    embed(source, tmp_path / "whole", **options)
    assert run_and_die_at(9, monkeypatch, source, tmp_path / "out", **options)
    full = tmp_path / ".out.embedding" / "dataset" / "data" / ".train-00002-of-00003.arrow.partial"
    full.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"the disk is full \(.*No space left on device.*run the same command again"):
        embed(source, tmp_path / "out", **options)
    full.unlink(missing_ok=True)  # the failed write has removed it
    embed(source, tmp_path / "out", **options)
    check_same(tmp_path / "out", tmp_path / "whole")


def test_the_vectors_may_be_all_that_is_left(encoder):
    data = datasets.Dataset.from_dict({"caption": ["a", "b"]})
    dataset = embed(data, encoder=encoder, remove_columns=["caption"])
    assert dataset.column_names == ["text_embeds"] and len(dataset) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(source, tmp_path, encoder):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name another folder"):
        embed(source, tmp_path / "file" / "out", encoder=encoder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"column": "title"}, "has no column 'title'"),
        ({"encoder": None}, "--encoder is missing; name sandbox, open_clip/"),
        ({"modality": "sound"}, "--modality is 'sound'; expected one of text, image"),
        ({"encoder": "clip"}, "encoder 'clip' is not known"),
        ({"batch_size": 0}, "--batch-size is 0; expected auto or a whole number from 1"),
        ({"batch_size": "all"}, "--batch-size is 'all'"),
        ({"overflow": "wrap"}, "--overflow is 'wrap'; expected one of truncate, error, mean"),
        ({"tasks": 0}, "--tasks is 0"),
        ({"tasks": 2, "output": None}, "several tasks need an output folder"),
        ({"executor": "kubernetes"}, "'kubernetes'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_sentence_and_leaves_nothing(options, reason, source, tmp_path):
    options = {"output": tmp_path / "out", "encoder": "sandbox", **options}
    with pytest.raises(InputError, match=reason) as error:
        embed(source, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*out*"))


def test_texts_and_images_in_one_dataset_need_a_choice(encoder):
    data = datasets.Dataset.from_dict({"caption": ["a"], "image": [None]})
    with pytest.raises(InputError, match=r"has texts \(caption\) and images \(image\)"):
        embed(data, encoder=encoder)


def test_the_command_prints_a_summary_and_exits_with_3_where_rows_failed(source, tmp_path):
    from typer.testing import CliRunner

    from unicorn_hf.cli import app

    result = CliRunner().invoke(app, ["embed", str(source), "-o", str(tmp_path / "out"), "--encoder", "sandbox"])
    assert result.exit_code == 3, result.output
    summary = json.loads(result.stdout)
    assert summary["embedded"] == 118 and summary["rows_per_second"] > 0 and summary["tokens_per_second"] > 0
    assert 0 <= summary["padding_share"] < 0.5
    assert "2 rows have no vector" in result.stderr
