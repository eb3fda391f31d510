"""The converter, on tiny checkpoints in the released layout, against the released way of reading them."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import EMBED_DIM, FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from unicorn_hf.cli import app
from unicorn_hf.errors import InputError

COPIES = 576


@pytest.fixture
def released(tokenizer, tmp_path):
    """A folder as the released training leaves it, and the language model and the projector in it."""

    def write(family="llama", layout="safetensors", projector_type="mlp2x_gelu", tied=False):
        folder = tmp_path / "released"
        sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied, "max_position_embeddings": 2048}
        causal_lm = AutoModelForCausalLM.from_config(FAMILIES[family](**sizes)).eval()
        layers = [torch.nn.Linear(EMBED_DIM, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)]
        projector = torch.nn.Sequential(*layers) if projector_type == "mlp2x_gelu" else layers[0]
        weights = causal_lm.state_dict()
        if tied:
            del weights["lm_head.weight"]
        weights |= {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
        weights = {name: value.detach().clone() for name, value in weights.items()}
        folder.mkdir()
        if layout == "safetensors":
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            shards = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
            for index, (name, value) in enumerate(weights.items()):
                list(shards.values())[index % 2][name] = value
            for name, shard in shards.items():
                torch.save(shard, folder / name)
            weight_map = {key: name for name, shard in shards.items() for key in shard}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        config = causal_lm.config.to_dict() | {
            "architectures": ["BunnyLlamaForCausalLM"],
            "model_type": f"bunny-{family}",
            "mm_hidden_size": EMBED_DIM,
            "mm_projector_type": projector_type,
            "use_mm_proj": True,
        }
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer.save_pretrained(folder)
        return folder, causal_lm, projector

    return write


def convert(*arguments) -> None:
    result = CliRunner().invoke(app, ["convert-checkpoint", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception


def released_logits(causal_lm, projector, tokenizer, text: str, vector: torch.Tensor) -> torch.Tensor:
    """As the released code does it: -200 in the ids, 576 copies of the vector through the projector, spliced in."""
    before, after = (tokenizer(part)["input_ids"] for part in text.split("<image>"))
    ids = torch.tensor([*before, -200, *after])
    embed = causal_lm.get_input_embeddings()
    (place,) = torch.where(ids == -200)[0].tolist()
    images = projector(vector.expand(COPIES, -1))
    inputs_embeds = torch.cat([embed(ids[:place]), images, embed(ids[place + 1 :])])
    return causal_lm(inputs_embeds=inputs_embeds[None]).logits


@pytest.mark.parametrize(
    ("family", "layout", "projector_type", "tied"),
    [
        ("llama", "safetensors", "mlp2x_gelu", False),
        ("llama", "bin", "mlp2x_gelu", False),
        ("phi3", "bin", "linear", False),
        ("qwen3", "safetensors", "mlp2x_gelu", True),
    ],
)
def test_converted_model_gives_the_released_logits(released, tokenizer, tmp_path, family, layout, projector_type, tied):
    source, causal_lm, projector = released(family, layout, projector_type, tied)
    convert(source, tmp_path / "unicorn", "--image-encoder", "llm2clip", "--transfer", "mean_shift")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "unicorn")
    processor = AutoProcessor.from_pretrained(tmp_path / "unicorn")
    assert (model.config.num_image_tokens, model.config.projector_expand) == (COPIES, "copy")
    assert (model.config.image_encoder, model.config.transfer) == ("llm2clip", "mean_shift")

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    vector = torch.randn(EMBED_DIM)
    batch = processor.apply_chat_template(
        messages,
        image_embeds=vector,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    text = processor.decode(batch["input_ids"][0]).replace("<image>" * COPIES, "<image>")
    assert text.endswith("polite answers to the user's questions. USER: <image>\nWhat is this? ASSISTANT:")
    with torch.no_grad():
        expected = released_logits(causal_lm, projector, tokenizer, text, vector)
        logits = model(**batch).logits[..., : len(tokenizer)]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_lone_projector_is_put_on_its_language_model(released, tokenizer, tmp_path):
    _, causal_lm, projector = released()
    causal_lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    lone = tmp_path / "mm_projector.bin"
    torch.save({f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}, lone)
    convert(lone, tmp_path / "unicorn", "--language-model", tmp_path / "lm", "--num-image-tokens", 4)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "unicorn")
    assert model.config.num_image_tokens == 4
    vector = torch.randn(1, EMBED_DIM)
    features = model.get_image_features(image_embeds=vector).pooler_output
    torch.testing.assert_close(features, projector(vector)[:, None].expand(1, 4, -1))
    assert torch.equal(model.get_input_embeddings().weight[:259], causal_lm.get_input_embeddings().weight)

    with pytest.raises(InputError, match=r"mm_projector\.bin holds a projector alone: name its language model"):
        convert(lone, tmp_path / "other")
    torch.save({"mm_projector.0.weight": torch.zeros(8, EMBED_DIM), "mm_projector.0.bias": torch.zeros(8)}, lone)
    with pytest.raises(InputError, match=r"the projector's output has 8 dimensions, but .*lm has a hidden size of 32"):
        convert(lone, tmp_path / "other", "--language-model", tmp_path / "lm")
    assert not (tmp_path / "other").exists()


class Hostile:
    def __reduce__(self):
        return print, ("this must never be run",)


def test_other_files_are_refused_and_nothing_is_written(released, tmp_path, capsys):
    source, causal_lm, _ = released()
    hostile = tmp_path / "mm_projector.bin"
    hostile.write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "plain"
    causal_lm.save_pretrained(plain)
    patches = tmp_path / "patches.bin"
    torch.save({"model.vision_tower.vision_tower.embeddings": torch.zeros(1)}, patches)
    cases = {
        hostile: "cannot be read as tensors alone, and no other pickle is read",
        tmp_path / "empty": "no checkpoint; expected a folder of safetensors",
        tmp_path / "missing": "no checkpoint; expected a folder of safetensors",
        plain: r"has no weights mm_projector\.\*; expected a checkpoint in Bunny's layout",
        patches: "reads an image tower's patches",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=f"{path}.*{message}"):
            convert(path, tmp_path / "unicorn")
    (source / "config.json").write_text('{"model_type": "bunny-minicpm"}')
    with pytest.raises(InputError, match="model_type 'minicpm' is not known"):
        convert(source, tmp_path / "unicorn")
    assert not (tmp_path / "unicorn").exists()
    assert "never be run" not in capsys.readouterr().out


def test_the_converter_does_not_travel_with_the_model(released, tmp_path):
    source, _, _ = released()
    convert(source, tmp_path / "unicorn")
    assert not (tmp_path / "unicorn" / "convert_unicorn_checkpoint_to_hf.py").exists()
    assert (tmp_path / "unicorn" / "modeling_unicorn.py").exists()
