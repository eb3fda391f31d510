import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image
from trl import SFTConfig, TrlParser

from unicorn_hf import InputError, UnicornProcessor
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import DataArguments, Mixture, UnicornCollator, standardize_image_embeds, tokenize_captions
from unicorn_hf.training import tokenize_conversations as tokenize

PROVENANCE = {"encoder": "sandbox", "embed_dim": 2, "transfer": "realign"}


def chat(number, image=False):
    question = ("<image>\n" if image else "") + f"What is {number}?"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"it is {number}"}]


def write_chats(folder, num_rows, *, dtype="float16", **provenance):
    rows = {
        "id": [f"{folder.name} {row}" for row in range(num_rows)],
        "messages": [chat(row, image=True) for row in range(num_rows)],
        "image_embeds": [[1.0, row / num_rows] for row in range(num_rows)],
    }
    data = Dataset.from_dict(rows).cast_column("image_embeds", List(Value(dtype), length=2))
    facts = {name: value for name, value in (PROVENANCE | provenance).items() if value is not None}
    write_dataset(data, folder, title="chats", provenance={"image_embeds": facts})
    return str(folder)


def write_texts(path, num_rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"messages": chat(row)}) + "\n" for row in range(num_rows)))
    return str(path)


@pytest.fixture(autouse=True)
def no_pause_at_the_end_of_a_stream(monkeypatch):
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def processor():
    texts = [turn["content"] for number in range(150) for turn in chat(number)]
    return UnicornProcessor(train_tokenizer(texts), num_image_tokens=2, embed_dim=2, image_encoder="sandbox")


def training_args(folder, **options):
    options = {
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": 4,
    } | options
    return SFTConfig(str(folder), **options)


def mix(processor, tmp_path, *entries, seed=0, **options):
    data_args = DataArguments(mixture=list(entries), **options)
    return Mixture.read(data_args).tokenize(tokenize, processor, data_args, training_args(tmp_path, seed=seed))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_draws_by_weight_until_every_row_was_seen(processor, tmp_path, streaming):
    images, texts = write_chats(tmp_path / "images", 150), write_texts(tmp_path / "texts.jsonl", 40)
    rows = list(mix(processor, tmp_path, f"{images}=3,{texts}=1", streaming=streaming))
    with_image = [row for row in rows if row["image_embeds"] is not None and len(row["image_embeds"])]
    assert len({row["id"] for row in with_image}) == 150
    assert len({tuple(row["input_ids"]) for row in rows}) == 190
    assert len(with_image) / len(rows) == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_seed_decides_the_order(processor, tmp_path, streaming):
    images, texts = write_chats(tmp_path / "images", 20), write_texts(tmp_path / "texts.jsonl", 9)

    def order(seed):
        rows = mix(processor, tmp_path, f"{images}=0.7", f"{texts}=0.3", seed=seed, streaming=streaming)
        return [tuple(row["input_ids"]) for row in rows]

    assert order(0) == order(0) != order(1)


def test_without_weights_every_row_comes_once(processor, tmp_path):
    images, texts = write_chats(tmp_path / "images", 20), write_texts(tmp_path / "texts.jsonl", 9)
    assert len(mix(processor, tmp_path, images, texts)) == 29


def test_samples_of_one_batch_may_have_images_or_none(processor, tmp_path):
    """A file of text comes first, so that the first row of a batch has no vector."""
    images = write_chats(tmp_path / "images", 3, dtype="float32")
    texts = write_texts(tmp_path / "texts.jsonl", 2)
    tokens = mix(processor, tmp_path, texts, images)
    batch = UnicornCollator(processor)(tokens.__getitems__([0, 2, 1, 4]))
    assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == [0, 2, 0, 2]
    torch.testing.assert_close(batch["image_embeds"], torch.tensor([[1.0, 0.0], [1.0, 2 / 3]]), rtol=0, atol=1e-3)


def test_vectors_of_one_kind_are_left_where_they_are(processor, tmp_path):
    images = write_chats(tmp_path / "images", 3)
    tokens = mix(processor, tmp_path, images)
    assert tokens.features["image_embeds"] == List(Value("float16"), length=2)


def test_flags_and_yaml_name_a_mixture_in_the_same_way(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("mixture: [a:b=0.7, c.jsonl=0.3]\n")
    parser = TrlParser((DataArguments,))
    (from_yaml,) = parser.parse_args_and_config(["--config", str(config)])
    (from_flags,) = parser.parse_args_and_config(["--mixture", "a:b=0.7", "c.jsonl=0.3"])
    assert from_yaml == from_flags == DataArguments(mixture=["a:b=0.7", "c.jsonl=0.3"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "exactly one"),
        ({"dataset": "a", "mixture": ["b"]}, "exactly one"),
        ({"mixture": ["{images}=heavy"]}, "number above 0"),
        ({"mixture": ["{images}=0"]}, "number above 0"),
        ({"mixture": ["{images}=1", "{images}"]}, "has no weight, but others"),
        ({"mixture": ["{images}:nothing"]}, "has no configuration 'nothing'"),
        ({"mixture": ["{images}/missing"]}, "no such file"),
    ],
)
def test_data_that_cannot_be_mixed_are_refused(tmp_path, options, reason):
    images = write_chats(tmp_path / "images", 2)
    options = {
        name: [v.format(images=images) for v in value] if name == "mixture" else value
        for name, value in options.items()
    }
    with pytest.raises(InputError, match=reason):
        Mixture.read(DataArguments(**options))


@pytest.mark.parametrize("vectors", [["1.0"], [[True]], [{"x": 1.0}], [1.0], [[[[1.0]]]], [["1.0"]]])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_no_vectors_is_refused_by_its_type_and_the_name_of_the_data(vectors, streaming, tmp_path):
    data = tmp_path / "data.parquet"
    Dataset.from_dict({"caption": ["a"], "image_embeds": vectors}).to_parquet(data)
    with pytest.raises(InputError, match=r"data.parquet: its column 'image_embeds' has the type .+; expected one vec"):
        Mixture.read(DataArguments(dataset=str(data), streaming=streaming))


def test_the_wrong_configuration_is_named_beside_the_column_it_lacks(processor, tmp_path):
    folder = tmp_path / "data"
    for name in ("first", "second"):
        write_texts(folder / f"{name}.jsonl", 2)
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    arguments = DataArguments(dataset=str(folder), dataset_config="second")
    with pytest.raises(InputError, match=r"data \(second\): has no column 'caption'; its columns are messages"):
        Mixture.read(arguments).tokenize(tokenize_captions, processor, arguments, training_args(tmp_path))


def test_a_stream_needs_max_steps(processor, tmp_path):
    data_args = DataArguments(dataset=write_chats(tmp_path / "images", 2), streaming=True)
    with pytest.raises(InputError, match="--max_steps"):
        Mixture.read(data_args).tokenize(tokenize, processor, data_args, training_args(tmp_path, max_steps=-1))


# Whose vectors


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [({"encoder": "clip"}, "'clip'.*'sandbox'"), ({"transfer": "mean_shift"}, "'mean_shift'.*'realign'")],
)
def test_vectors_of_another_encoder_or_transfer_are_refused_by_both_names(tmp_path, provenance, expected):
    ours, theirs = write_chats(tmp_path / "ours", 2), write_chats(tmp_path / "theirs", 2, **provenance)
    with pytest.raises(InputError, match=expected):
        Mixture.read(DataArguments(mixture=[ours, theirs]))
    model = SimpleNamespace(image_encoder="sandbox", transfer="realign", embed_dim=2)
    data = Mixture.read(DataArguments(dataset=theirs))
    with pytest.raises(InputError, match=expected):
        data.check_model(model, "the-model")
    Mixture.read(DataArguments(dataset=ours)).check_model(model, "the-model")


def test_a_model_of_another_dimension_is_refused(tmp_path):
    data = Mixture.read(DataArguments(dataset=write_chats(tmp_path / "ours", 2)))
    with pytest.raises(InputError, match="have 2 dimensions, but those that the-model was trained on have 3"):
        data.check_model(SimpleNamespace(image_encoder=None, transfer=None, embed_dim=3), "the-model")


def test_vectors_of_real_pictures_go_with_the_same_encoders_moved_ones(tmp_path):
    real, moved = write_chats(tmp_path / "real", 2, transfer=None), write_chats(tmp_path / "moved", 2)
    data = Mixture.read(DataArguments(mixture=[real, moved]))
    assert (data.image_encoder, data.transfer, data.embed_dim) == ("sandbox", "realign", 2)


def test_a_hub_datasets_card_says_whose_vectors_it_has(tmp_path, hub):
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint)
    api.create_repo("someone/chats", repo_type="dataset")
    write_chats(tmp_path / "chats", 2)
    api.upload_file(
        path_or_fileobj=str(tmp_path / "chats" / "README.md"), path_in_repo="README.md",
        repo_id="someone/chats", repo_type="dataset",
    )  # fmt: skip
    program = (
        "from unicorn_hf.data.provenance import read_provenance as read\nprint(read('someone/chats'), read('no/one'))"
    )
    assert hub.run(program, with_package=True).strip() == str({"image_embeds": PROVENANCE}) + " {}"


def test_stage_1_refuses_data_without_vectors(tmp_path):
    texts = write_texts(tmp_path / "texts.jsonl", 2)
    with pytest.raises(InputError, match=r"texts.jsonl: has no image vectors.*unicorn-hf embed"):
        Mixture.read(DataArguments(dataset=texts)).check_vectors()


def test_pictures_are_not_mixed_with_vectors(tmp_path):
    folder = tmp_path / "pictures"
    rows = Dataset.from_dict({"messages": [chat(0, image=True)], "image": [Image.new("RGB", (8, 8))]})
    write_dataset(rows, folder, title="pictures")
    with pytest.raises(InputError, match="pictures: has images"):
        Mixture.read(DataArguments(mixture=[write_chats(tmp_path / "chats", 2), str(folder)]))


@pytest.mark.parametrize("streaming", [False, True])
def test_standardizing_reads_streams_and_all_members_of_a_mixture(tmp_path, streaming):
    vectors = torch.nn.functional.normalize(
        torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0)) + 1, dim=-1
    )
    features = Features({"caption": Value("string"), "image_embeds": List(Value("float32"), length=4)})
    for part in range(2):
        rows = {"caption": ["a"] * 40, "image_embeds": vectors[part].tolist()}
        write_dataset(Dataset.from_dict(rows, features), tmp_path / str(part), title="captions")
    data = Mixture.read(DataArguments(mixture=[str(tmp_path / "0"), str(tmp_path / "1")], streaming=streaming))
    set_to = {}
    model = SimpleNamespace(model=SimpleNamespace(set_image_embeds_statistics=lambda **values: set_to.update(values)))
    standardize_image_embeds(model, *data.datasets)
    conditioned = (vectors.flatten(0, 1) - torch.tensor(set_to["mean"])) * set_to["scale"]
    torch.testing.assert_close(conditioned.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)
    assert conditioned.square().mean().item() == pytest.approx(1, rel=1e-4)
