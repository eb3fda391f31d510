import json
import pickle
import re
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN
from huggingface_hub import DatasetCard, HfApi, snapshot_download
from small_datasets import (
    EMBED_DIM,
    captions,
    conversations,
    ids,
    preferences,
    released_records,
    vectors,
    write_released,
)
from typer.testing import CliRunner

from unicorn_hf import (
    InputError,
    ModalityTransfer,
    UnicornConfig,
    UnicornForConditionalGeneration,
    UnicornProcessor,
    import_released,
    load_unicorn,
    publish,
    push_to_hub,
)
from unicorn_hf.cli import app
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.staging import MARKER

PROVENANCE = {"image_embeds": {"encoder": "sandbox", "embed_dim": EMBED_DIM, "transfer": "realign"}}


@pytest.fixture
def published(tmp_path):
    return publish(captions(), conversations(), tmp_path / "published", provenance=PROVENANCE, license="apache-2.0")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def load(folder, config, tmp_path, **arguments):
    return datasets.load_dataset(str(folder), config, split="train", cache_dir=str(tmp_path / "cache"), **arguments)


def contents(folder):
    """The files that a push would take: not the marker of who wrote the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What was published, in the hands of others.


def test_load_dataset_reads_both_configurations(published, tmp_path):
    pretrain = load(published, "unicorn-1.2m", tmp_path)
    instruction = load(published, "unicorn-471k-instruction", tmp_path)
    assert pretrain["id"][:] == ids()
    assert (np.array(pretrain["image_embeds"][:], np.float16) == vectors()).all()
    assert instruction[4]["messages"] == conversations()[4]["messages"]
    assert (np.array(instruction["image_embeds"][:], np.float16) == vectors()[::3]).all()
    assert instruction.features["image_embeds"] == datasets.List(datasets.Value("float16"), length=EMBED_DIM)


def test_load_dataset_reads_preferences_with_the_captions_vectors(tmp_path):
    folder = publish(captions(), None, tmp_path / "published", preference=preferences(), provenance=PROVENANCE)
    rows = load(folder, "unicorn-preference", tmp_path)
    assert rows.column_names == ["id", "caption", "prompt", "chosen", "rejected", "image_embeds"]
    assert rows.remove_columns("image_embeds").to_list() == preferences().to_list()
    assert (np.array(rows["image_embeds"][:], np.float16) == vectors()[::3]).all()
    assert load(folder, "unicorn-1.2m", tmp_path)["id"][:] == ids()
    assert load_unicorn("unicorn-preference", folder, cache_dir=tmp_path / "cache").to_list() == rows.to_list()
    card = (folder / "README.md").read_text()
    assert 'preferences = load_dataset("…", "unicorn-preference", split="train")' in card
    assert "conversations" not in card


def test_load_dataset_without_a_name_reads_the_captions(published, tmp_path):
    assert load(published, None, tmp_path).column_names == ["id", "caption", "image_embeds"]


def test_it_streams(published, tmp_path):
    rows = list(load(published, "unicorn-471k-instruction", tmp_path, streaming=True))
    assert [row["id"] for row in rows] == ids()[::3]


def test_it_gives_torch_tensors(published, tmp_path):
    dataset = load(published, "unicorn-1.2m", tmp_path).with_format("torch", columns=["image_embeds"])
    batch = dataset[:4]["image_embeds"]
    assert batch.shape == (4, EMBED_DIM) and (batch.half().numpy() == vectors()[:4]).all()


@pytest.mark.parametrize("library", ["pyarrow", "pandas", "polars", "duckdb"])
def test_other_libraries_read_the_shards(published, library):
    (shard,) = (published / "unicorn-471k-instruction").iterdir()
    if library == "pyarrow":
        rows = pq.read_table(shard).to_pylist()
    elif library == "pandas":
        rows = pandas.read_parquet(shard).to_dict("records")
    elif library == "polars":
        rows = polars.read_parquet(shard).to_dicts()
    else:
        result = duckdb.sql(f"select * from '{shard}'")
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.fetchall()]
    assert [row["id"] for row in rows] == ids()[::3]
    assert list(rows[1]["messages"][1].values()) == ["assistant", "3 of them"]
    np.testing.assert_array_equal(np.array([row["image_embeds"] for row in rows], np.float16), vectors()[::3])


def test_the_viewers_statistics_can_be_computed(published):
    """What the Hub's viewer counts of a column: missing values, lengths of strings and of lists."""
    (shard,) = (published / "unicorn-471k-instruction").iterdir()
    columns = polars.read_parquet(shard, columns=["caption", "messages", "image_embeds"])
    assert columns.null_count().row(0) == (0, 0, 0)
    assert columns["caption"].str.len_chars().max() == len("a scene with 57 things")
    assert columns["messages"].list.len().unique().to_list() == [2]
    as_lists = columns["image_embeds"].cast(polars.List(polars.Float32))
    assert as_lists.list.len().unique().to_list() == [EMBED_DIM]


def test_the_card_says_what_is_known(tmp_path):
    captions_step = tmp_path / "captions-step"
    captions_step.mkdir()
    (captions_step / "summary.json").write_text(json.dumps({"model": "Qwen|2.5", "rejected": {"refusal": 7}}))
    transfer = ModalityTransfer.fit(vectors(seed=1).astype(np.float32), vectors(seed=2).astype(np.float32))
    transfer.save_pretrained(tmp_path / "transfer")
    folder = publish(
        captions(),
        conversations(),
        tmp_path / "out",
        title="My data",
        license="mit",
        provenance=PROVENANCE,
        transfer=tmp_path / "transfer",
        steps=[captions_step],
    )
    card = DatasetCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["unicorn"] == PROVENANCE and data["license"] == "mit" and data["size_categories"] == ["n<1K"]
    assert [(each["config_name"], each.get("default")) for each in data["configs"]] == [
        ("unicorn-1.2m", True),
        ("unicorn-471k-instruction", None),
    ]
    info = {each["config_name"]: each for each in data["dataset_info"]}["unicorn-1.2m"]
    assert info["splits"][0]["num_examples"] == 60
    assert info["download_size"] == sum(file.stat().st_size for file in (folder / "unicorn-1.2m").iterdir())
    text = card.text
    assert text.startswith("\n# My data") or text.startswith("# My data")
    for line in (
        "| `image_embeds` | List(float16, length=16) |",
        "| `image_embeds` | sandbox | 16 | realign |",
        "| model | Qwen\\|2.5 |",
        "| rejected: refusal | 7 |",
        "| multiple_choice | 20 |",
        f"| centroid distance before | {transfer.config['centroid_distance_before']:.4g} |",
        '"messages": [{"role": "user", "content": "<image>\\nHow many things?"}',
    ):
        assert line in text, line
    histogram = text.split("| words per caption | rows | |")[1].split("\n\n")[0]
    assert sum(int(count.replace(",", "")) for count in re.findall(r"\| ([\d,]+) \| █", histogram)) == 60


def test_provenance_comes_from_the_inputs_cards(tmp_path):
    step = write_dataset(captions(), tmp_path / "step", title="step", provenance=PROVENANCE)
    folder = publish(step, conversations(), tmp_path / "out")
    assert DatasetCard.load(folder / "README.md").data.to_dict()["unicorn"] == PROVENANCE


def test_two_encoders_are_not_published_together(tmp_path):
    step = write_dataset(captions(), tmp_path / "step", title="step", provenance=PROVENANCE)
    embedded = conversations().add_column("image_embeds", captions().select(range(0, 60, 3))["image_embeds"][:])
    other = {"image_embeds": {"encoder": "clip", "embed_dim": EMBED_DIM}}
    instruction = write_dataset(embedded, tmp_path / "instruction", title="step", provenance=other)
    with pytest.raises(InputError, match=r"'clip'.* but those of the captions have .*'sandbox'"):
        publish(step, instruction, tmp_path / "out")


def test_an_id_twice_among_the_captions_is_an_error(tmp_path):
    twice = datasets.concatenate_datasets([captions(2500), captions().select([7])])
    with pytest.raises(InputError, match="has the id '000007' twice"):
        publish(twice, None, tmp_path / "out")


def test_captions_without_vectors_are_an_error(tmp_path):
    with pytest.raises(InputError, match=r"has no column 'image_embeds' .*`transfer apply`"):
        publish(captions().remove_columns("image_embeds"), None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_captions_alone_can_be_published(tmp_path):
    folder = publish(captions(text_embeds=vectors(seed=1)), None, tmp_path / "out")
    assert load(folder, None, tmp_path).column_names == ["id", "caption", "text_embeds", "image_embeds"]


def test_nothing_is_overwritten_unless_asked_for(published, tmp_path):
    before = contents(published)
    with pytest.raises(InputError, match=r"exists and is not empty.* --overwrite"):
        publish(captions(30), None, published)
    assert contents(published) == before
    publish(captions(30), None, published, overwrite=True)
    assert load(published, "unicorn-1.2m", tmp_path).num_rows == 30
    assert not (published / "unicorn-471k-instruction").exists()


def test_a_failed_overwrite_leaves_the_old_dataset(published):
    before = contents(published)
    with pytest.raises(InputError):
        publish(captions(30), conversations(), published, overwrite=True)
    assert contents(published) == before
    assert [path.name for path in published.parent.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_no_dataset_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not a dataset folder"):
        publish(captions(), None, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_shards_have_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("unicorn_hf.data.shards.ROW_GROUP_BYTES", 1)
    dataset = captions(3000)
    folder = publish(dataset, None, tmp_path / "out", shard_size="20KB")
    assert len(list((folder / "unicorn-1.2m").iterdir())) > 2
    assert load(folder, None, tmp_path)["id"][:] == ids(3000)
    with pytest.raises(InputError, match="--shard-size is 'many'"):
        publish(dataset, None, tmp_path / "other", shard_size="many")


# The released files.


def test_released_files_become_a_dataset_that_can_be_loaded(tmp_path):
    records = released_records(61)
    records[7].pop("caption")
    folder = write_released(tmp_path / "released", records)
    result = CliRunner().invoke(
        app, ["import", str(folder), "-o", str(tmp_path / "out"), "--allow-pickle", "--encoder", "LLM2CLIP"]
    )
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert json.dumps(summary, indent=2) in result.output
    assert summary["unicorn-1.2m"]["rows"] == 59
    assert summary["unicorn-1.2m"]["rejected"] == {"no caption": 1, "no embedding": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert sorted({(line["config"], line["reason"]) for line in lines}) == [
        ("unicorn-1.2m", "no caption"),
        ("unicorn-1.2m", "no embedding"),
        ("unicorn-471k-instruction", "no caption"),
        ("unicorn-471k-instruction", "no embedding"),
    ]
    dataset = load(tmp_path / "out", "unicorn-471k-instruction", tmp_path)
    assert (np.array(dataset[7]["image_embeds"], np.float16) == vectors()[8]).all()
    card = DatasetCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert card["unicorn"] == {"image_embeds": {"encoder": "LLM2CLIP", "embed_dim": EMBED_DIM}}


def test_one_released_file_can_be_imported_without_vectors(tmp_path):
    folder = write_released(tmp_path / "released")
    out = import_released(folder / "Pretrain.json", tmp_path / "out")
    assert load(out, None, tmp_path).column_names == ["id", "caption"]


def test_records_that_a_pickle_spoils_are_rejected_and_the_others_imported(tmp_path):
    records = released_records(8)
    records += [{**records[0], "caption": "Another."}]
    folder = write_released(tmp_path / "released", records)
    embeds = [{"id": record["id"], "embed": vectors()[row]} for row, record in enumerate(records[:8])]
    embeds[0]["embed"], embeds[3]["embed"], embeds[4]["embed"] = None, None, np.ones(3, np.float16)
    embeds[5]["embed"] = np.full(EMBED_DIM, np.inf, np.float16)
    embeds += [{"id": "000000", "embed": vectors()[20]}, {"id": "000001", "embed": vectors()[21]}, {"embed": None}, 5]
    del embeds[6]
    (folder / "embeddings" / "chunk_0.pkl").write_bytes(b"")
    (folder / "embeddings" / "chunk_1.pkl").write_bytes(pickle.dumps([]))
    (folder / "embeddings" / "chunk_2.pkl").write_bytes(pickle.dumps(embeds))
    import_released(folder, tmp_path / "out", allow_pickle=True)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["unicorn-471k-instruction"]
    reasons = ("without embedding", "embedding of another length", "embedding not finite", "no embedding")
    assert summary["rejected"] == dict.fromkeys(reasons, 1)
    assert (summary["rows"], summary["changed"]) == (5, {"id made unique": 1})
    dataset = load(tmp_path / "out", "unicorn-471k-instruction", tmp_path)
    assert dataset["id"][:] == ["000000", "000001", "000002", "000007", "000000-2"]
    found = np.array(dataset["image_embeds"][:], np.float16)
    assert (found == vectors()[[20, 21, 2, 7, 20]]).all()  # the last vector of an id, as in the released code
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines if line["config"] == "unicorn-1.2m"] == [records[i] for i in (3, 4, 5, 6)]


def test_other_file_names_are_known_or_named(tmp_path):
    folder = write_released(tmp_path / "released")
    (folder / "Pretrain.json").rename(folder / "filtered_output.json")
    (folder / "Instruction.json").rename(folder / "sft.json")
    out = import_released(folder, tmp_path / "out", allow_pickle=True)
    summary = json.loads((out / "summary.json").read_text())
    assert {config: Path(facts["file"]).name for config, facts in summary.items()} == {
        "unicorn-1.2m": "filtered_output.json",
        "unicorn-471k-instruction": "sft.json",
    }
    (folder / "sft.json").rename(folder / "mine.json")
    arguments = ["import", str(folder), "--allow-pickle", "--instruction"]
    result = CliRunner().invoke(app, [*arguments, "mine.json", "-o", str(tmp_path / "mine")])
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "mine" / "summary.json").read_text())) == ["unicorn-471k-instruction"]
    with pytest.raises(InputError, match=r"released/yours\.json: no such file; expected one in"):
        import_released(folder, tmp_path / "yours", instruction="yours.json")


def test_a_folder_with_none_of_the_files_says_what_it_holds(tmp_path):
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "data.json").write_text("[]")
    with pytest.raises(InputError, match=r"expected a JSON file with 'pretrain' .* found data\.json"):
        import_released(tmp_path / "released", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_repository_of_released_json_is_imported(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    folder = write_released(tmp_path / "released")
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo("org/Unicorn", repo_type="dataset")
    api.upload_folder(repo_id="org/Unicorn", repo_type="dataset", folder_path=folder)
    out = import_released("org/Unicorn", tmp_path / "out")
    assert load(out, "unicorn-471k-instruction", tmp_path)["id"][:] == ids()
    assert hub.count("GET", r"resolve/.*\.pkl") == 0
    with pytest.raises(InputError, match="org/Nothing: is neither a file or folder nor a readable dataset repository"):
        import_released("org/Nothing", tmp_path / "other")


# Pushes and pulls, against a server.


def test_a_pushed_dataset_loads_and_streams_where_this_package_is_not_installed(hub, published):
    address = push_to_hub(published, "org/name")
    assert address.startswith(f"{hub.endpoint}/datasets/org/name/commit/")
    printed = hub.run("""
import json, datasets
rows = datasets.load_dataset("org/name", "unicorn-471k-instruction", split="train")
streamed = list(datasets.load_dataset("org/name", split="train", streaming=True))
print(json.dumps([rows.column_names, rows[2], len(streamed), streamed[5]]))
""")
    columns, row, count, streamed = json.loads(printed)
    assert columns == ["id", "caption", "task", "messages", "image_embeds"] and count == 60
    assert row["messages"] == conversations()[2]["messages"]
    assert (np.array(row["image_embeds"], np.float16) == vectors()[6]).all()
    assert streamed["id"] == "000005"


def test_the_command_publishes_and_pushes(hub, tmp_path):
    pretrain = write_dataset(captions(), tmp_path / "pretrain", title="step", provenance=PROVENANCE)
    instruction = write_dataset(conversations(), tmp_path / "instruction", title="step")
    preference = write_dataset(preferences(), tmp_path / "preference", title="step")
    arguments = ["--pretrain", str(pretrain), "--instruction", str(instruction), "-o", str(tmp_path / "out")]
    arguments += ["--preference", str(preference)]
    result = CliRunner().invoke(app, ["publish", *arguments, "--push-to-hub", "org/name", "--private"])
    assert result.exit_code == 0, result.output
    assert hub.repo("org/name").private
    assert hub.repo("org/name").files() == contents(tmp_path / "out")
    assert "unicorn-preference/train-00000-of-00001.parquet" in hub.repo("org/name").files()


def test_a_private_dataset_is_there_with_a_token_only(hub, published):
    push_to_hub(published, "org/secret", private=True)
    printed = hub.run(
        f"""
import datasets
try:
    datasets.load_dataset("org/secret", split="train")
except datasets.exceptions.DatasetNotFoundError:
    print("not found")
print(len(datasets.load_dataset("org/secret", split="train", token="{TOKEN}")))
""",
        token=None,
    )
    assert printed.split() == ["not", "found", "60"]


def test_a_stranger_cannot_push(hub, published, monkeypatch):
    with pytest.raises(InputError, match="org/name: the push was refused"):
        push_to_hub(published, "org/name", token="hf_wrong")


def test_an_interrupted_push_goes_on_where_it_stopped(hub, published):
    hub.fail("PUT", "/lfs/", status=403, after=1)
    with pytest.raises(InputError, match=r"org/name: the push was refused .*403"):
        push_to_hub(published, "org/name")
    assert len(hub.lfs) == 1 and hub.repo("org/name").files() == {}
    push_to_hub(published, "org/name")
    assert hub.count("PUT", "/lfs/", status=200) == 2
    assert len(hub.repo("org/name").files()) == 3


def test_a_push_that_has_nothing_new_makes_no_commit(hub, published):
    first = push_to_hub(published, "org/name")
    assert push_to_hub(published, "org/name") == first
    assert hub.count("POST", "/commit/") == 1


@pytest.mark.parametrize("status", [500, 503, None], ids=["500", "503", "dropped connection"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/info/lfs/objects/batch"),
        ("PUT", "/lfs/"),
        ("POST", "/commit/"),
    ],
)
def test_errors_of_the_server_are_waited_out(hub, published, method, path, status):
    hub.fail(method, path, status=status, times=2)
    push_to_hub(published, "org/name")
    assert hub.count(method, path, status=status or 0) == 2
    assert len(hub.repo("org/name").files()) == 3


def test_a_server_that_stays_down_is_told_after_a_while(hub, published, monkeypatch):
    monkeypatch.setattr("unicorn_hf.hub.PUSH_ATTEMPTS", 2)
    hub.fail("POST", "/commit/", status=502, times=1000)
    with pytest.raises(InputError, match=r"the push failed .*run it again: files that have arrived are kept"):
        push_to_hub(published, "org/name")
    assert hub.count("POST", "/commit/") == 2


def test_a_revision_is_a_branch_of_its_own(hub, published, tmp_path):
    push_to_hub(published, "org/name", revision="v2")
    assert hub.repo("org/name").files("main") == {}
    folder = snapshot_download("org/name", repo_type="dataset", revision="v2", cache_dir=tmp_path / "hub-cache")
    assert contents(Path(folder)) == contents(published)


def test_a_pull_request_leaves_the_branch_alone(hub, published):
    push_to_hub(published, "org/name")
    publish(captions(30), None, published, overwrite=True)
    address = push_to_hub(published, "org/name", create_pr=True)
    assert address == f"{hub.endpoint}/datasets/org/name/discussions/1"
    assert "unicorn-471k-instruction/train-00000-of-00001.parquet" in hub.repo("org/name").files("main")
    assert hub.repo("org/name").files("refs/pr/1") == contents(published)


def test_shards_of_an_earlier_version_are_removed(hub, published, tmp_path, monkeypatch):
    push_to_hub(published, "org/name")
    monkeypatch.setattr("unicorn_hf.data.shards.ROW_GROUP_BYTES", 1)
    publish(captions(2000), conversations(), published, overwrite=True, shard_size="30KB")
    push_to_hub(published, "org/name")
    there = {path for path in hub.repo("org/name").files() if path.startswith("unicorn-1.2m/")}
    assert there == {f"unicorn-1.2m/{path.name}" for path in (published / "unicorn-1.2m").iterdir()}
    assert len(there) > 1


def test_a_card_that_the_hub_finds_invalid_is_not_pushed(hub, published):
    text = (published / "README.md").read_text()
    (published / "README.md").write_text(text.replace("license: apache-2.0", "license: 7"))
    with pytest.raises(InputError, match=r"org/name: the push was refused .*license"):
        push_to_hub(published, "org/name")
    assert hub.count("PUT", "/lfs/") == 0


def test_a_folder_of_something_else_is_not_pushed(hub, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no dataset, model or transfer"):
        push_to_hub(tmp_path, "org/name")
    assert hub.repos == {}


def test_a_pushed_transfer_is_loaded_by_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    transfer = ModalityTransfer.fit(vectors(seed=1).astype(np.float32), vectors(seed=2).astype(np.float32))
    push_to_hub(transfer.save_pretrained(tmp_path / "transfer"), "org/transfer")
    loaded = ModalityTransfer.from_pretrained("org/transfer")
    texts = vectors(seed=3).astype(np.float32)
    np.testing.assert_array_equal(loaded.apply(texts), transfer.apply(texts))


@pytest.fixture
def model_and_processor():
    """A Unicorn model of a few thousand parameters over a tiny Llama, and its processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = {word: place for place, word in enumerate(["<pad>", "<eos>", "what", "is", "this", "<image>"])}
    rule = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    rule.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rule, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=["<image>"]
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_config = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=32, **sizes)
    config = UnicornConfig.from_text_config(
        text_config, embed_dim=EMBED_DIM, image_token_id=words["<image>"], image_encoder="sandbox"
    )
    processor = UnicornProcessor(tokenizer, embed_dim=EMBED_DIM, image_encoder="sandbox")
    return UnicornForConditionalGeneration(config).eval(), processor


def test_a_pushed_model_runs_where_this_package_is_not_installed(hub, tmp_path, model_and_processor):
    import torch

    model, processor = model_and_processor
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    push_to_hub(tmp_path / "model", "org/model", private=True)
    assert "image-text-to-text" in hub.repo("org/model", "model").files()["README.md"].decode()
    with torch.no_grad():
        inputs = processor(text="<image> what is this", image_embeds=torch.ones(1, EMBED_DIM), return_tensors="pt")
        expected = model(**inputs).logits[0, -1]
    printed = hub.run(f"""
import json, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("org/model", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("org/model", trust_remote_code=True)
inputs = processor(text="<image> what is this", image_embeds=torch.ones(1, {EMBED_DIM}), return_tensors="pt")
with torch.no_grad():
    print(json.dumps([type(model).__module__, model(**inputs).logits[0, -1].tolist()]))
""")
    module, logits = json.loads(printed.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    torch.testing.assert_close(torch.tensor(logits), expected)


def test_a_model_without_its_processor_is_not_pushed(hub, tmp_path, model_and_processor):
    model_and_processor[0].save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"is a model without processor_config\.json; save it again"):
        push_to_hub(tmp_path / "model", "org/model")


def test_transformers_own_push_sends_the_same_source_files(hub, tmp_path, model_and_processor):
    model, processor = model_and_processor
    model.push_to_hub("org/model")
    processor.push_to_hub("org/model")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pushed, saved = hub.repo("org/model", "model").files(), contents(tmp_path / "model")
    for name in ("configuration_unicorn.py", "modeling_unicorn.py", "processing_unicorn.py", "README.md"):
        assert pushed[name] == saved[name], name
