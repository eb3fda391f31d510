"""Round trips: save and load, pretrained language models, Auto classes with and without this package, cards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_models import EMBED_DIM, FAMILIES, IMAGE_TOKEN_ID, SIZES, batch_of, new_model, prompt, random_prompts
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CohereConfig,
    FalconH1Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    MambaConfig,
    NemotronHConfig,
    OPTConfig,
    PhiConfig,
    Qwen3MoeConfig,
)
from unicorn_hf.modeling import UnicornForConditionalGeneration, UnicornModel, UnicornProcessor


def logits_of(model, k: int = 1) -> torch.Tensor:
    torch.manual_seed(3)
    prompts, image_embeds = random_prompts(k)
    with torch.no_grad():
        return model(**batch_of(prompts), image_embeds=image_embeds).logits


def assert_same_weights(one, other) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].cpu(), other[name].cpu()), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_saved_model_is_loaded_bit_for_bit(family, tied, shard_size, tmp_path):
    model = new_model(family, sizes={"tie_word_embeddings": tied}, num_image_tokens=2)
    model.set_image_embeds_statistics(mean=torch.randn(EMBED_DIM), scale=torch.rand(EMBED_DIM))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard_size == "1GB")
    loaded, info = UnicornForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_weights(loaded, model)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits_of(loaded, 2), logits_of(model, 2))


def test_bfloat16_keeps_the_statistics_in_float32(tmp_path):
    model = new_model()
    mean = torch.randn(EMBED_DIM)
    model.set_image_embeds_statistics(mean=mean)
    model.save_pretrained(tmp_path)
    loaded = UnicornForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.model.image_conditioner.image_embeds_mean, mean)
    loaded.save_pretrained(tmp_path / "again")
    again = UnicornForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert again.dtype == torch.bfloat16
    assert_same_weights(again, loaded)
    torch.testing.assert_close(logits_of(loaded).float(), logits_of(model), rtol=0.1, atol=0.5)


def test_base_model_loads_from_the_whole_models_folder(tmp_path):
    model = new_model()
    model.save_pretrained(tmp_path)
    assert_same_weights(UnicornModel.from_pretrained(tmp_path), model.model)


# Over a pretrained language model

MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
OTHERS = {
    "gpt2": lambda: GPT2Config(
        vocab_size=280, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
    "phi (a head with a bias)": lambda: PhiConfig(**SIZES),
    "opt": lambda: OPTConfig(**SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "cohere (scaled logits)": lambda: CohereConfig(**SIZES | {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "granite (divided logits)": lambda: GraniteConfig(**SIZES, logits_scaling=3.0),
    "qwen3 moe": lambda: Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "gpt neox (a head of another name in the file)": lambda: GPTNeoXConfig(**SIZES),
    "llama 4 (a prefix of another name)": lambda: Llama4TextConfig(
        **SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, num_experts_per_tok=1
    ),
    "falcon h1 (Mamba beside attention, buffers that the model fills)": lambda: FalconH1Config(
        **SIZES | MAMBA | {"lm_head_multiplier": 0.5, "ssm_multipliers": [0.5, 2.0, 1.5, 0.7, 1.2]}
    ),
    "nemotron h (Mamba layers, a decoder of another name in the file)": lambda: NemotronHConfig(
        **{key: value for key, value in SIZES.items() if key != "num_hidden_layers"},
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        head_dim=8,
        chunk_size=8,
        layers_block_type=["mamba", "attention"],
    ),
}


def saved_lm(text_config, folder, tokenizer=None):
    causal_lm = AutoModelForCausalLM.from_config(text_config).eval()
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.normal_(0, 0.2)
    causal_lm.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return causal_lm


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_language_model_is_taken_as_it_is(name, tokenizer, tmp_path):
    text_config = FAMILIES[name](vocab_size=len(tokenizer)) if name in FAMILIES else OTHERS[name]()
    causal_lm = saved_lm(text_config, tmp_path / "lm", tokenizer)
    model = UnicornForConditionalGeneration.from_text_pretrained(
        tmp_path / "lm", embed_dim=EMBED_DIM, num_image_tokens=2
    )
    old = causal_lm.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[: len(old)], old)
    assert torch.equal(model.lm_head.weight[: len(old)], causal_lm.get_output_embeddings().weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., : len(old)], causal_lm(ids).logits)

    image_token_id = model.config.image_token_id
    assert image_token_id == len(tokenizer)
    assert model.get_input_embeddings().num_embeddings == (320 if name in FAMILIES else 280)
    assert model.generation_config.suppress_tokens[0] == image_token_id
    assert model.generation_config.eos_token_id == causal_lm.generation_config.eos_token_id
    inputs = {"input_ids": torch.tensor([[5, *[image_token_id] * 2, 6]]), "image_embeds": torch.randn(1, EMBED_DIM)}
    model.generate(**inputs, attention_mask=torch.ones(1, 4), max_new_tokens=2)

    model.save_pretrained(tmp_path / "unicorn")
    assert_same_weights(UnicornForConditionalGeneration.from_pretrained(tmp_path / "unicorn"), model)


def test_a_tokenizer_that_is_given_gets_the_placeholder(tokenizer, tmp_path):
    saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path)
    assert "<image>" not in tokenizer.get_vocab()
    model = UnicornForConditionalGeneration.from_text_pretrained(
        tmp_path, EMBED_DIM, tokenizer=tokenizer, dtype="bfloat16"
    )
    processor = UnicornProcessor(tokenizer)
    assert processor.image_token_id == model.config.image_token_id
    assert len(tokenizer) == processor.image_token_id + 1
    assert processor.tokenizer("<image>")["input_ids"] == [processor.image_token_id]
    assert model.dtype == torch.bfloat16


def test_language_model_of_a_multimodal_model_is_taken(tokenizer, tmp_path):
    text_config = FAMILIES["gemma3"](vocab_size=len(tokenizer)).to_dict()
    vision_config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision_config |= {"image_size": 28, "patch_size": 14}
    gemma = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text_config, vision_config=vision_config)).eval()
    gemma.save_pretrained(tmp_path)
    model = UnicornForConditionalGeneration.from_text_pretrained(tmp_path, EMBED_DIM, tokenizer=tokenizer)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = gemma(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(ids).logits[..., :259], expected)


def test_only_the_projector_is_new(tokenizer, tmp_path):
    saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path, tokenizer)
    first, second = (UnicornForConditionalGeneration.from_text_pretrained(tmp_path, EMBED_DIM) for _ in range(2))
    changed = {
        name
        for name, value in first.state_dict().items()
        if not torch.equal(value[:259], second.state_dict()[name][:259])
    }
    assert changed == {f"model.multi_modal_projector.layers.{layer}.weight" for layer in (0, 2)}
    assert torch.equal(first.model.image_conditioner.image_embeds_scale, torch.ones(EMBED_DIM))


def test_incomplete_or_unknown_language_models_are_refused(tokenizer, tmp_path):
    causal_lm = saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path / "lm", tokenizer)
    weights = load_file(tmp_path / "lm" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "lm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lm lacks 1 weights .* model\.language_model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "lm", EMBED_DIM)
    causal_lm.config.vocab_size = 300
    bert = AutoConfig.for_model("bert", **SIZES, is_decoder=True)
    saved_lm(bert, tmp_path / "bert", tokenizer)
    with pytest.raises(ValueError, match="what a bert model does behind its last hidden state is not known"):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "bert", EMBED_DIM)
    saved_lm(MambaConfig(vocab_size=280, hidden_size=32, num_hidden_layers=2), tmp_path / "mamba", tokenizer)
    with pytest.raises(ValueError, match="MambaModel cannot be the language model: it takes no past_key_values"):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "mamba", EMBED_DIM)
    with pytest.raises(ValueError, match="tower of random weights"):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "lm", EMBED_DIM, vision_config={})


@pytest.mark.parametrize("tied", [True, False])
def test_resized_vocabulary_keeps_the_logits(tied, tmp_path):
    model = new_model(sizes={"tie_word_embeddings": tied})
    before = logits_of(model)
    model.resize_token_embeddings(300)
    assert model.config.text_config.vocab_size == 300
    after = logits_of(model)
    assert after.shape[-1] == 300
    torch.testing.assert_close(after[..., :280], before)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    batch = batch_of([[5, 6, 299]])
    assert model(**batch, labels=batch["input_ids"]).loss.isfinite()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(UnicornForConditionalGeneration.from_pretrained(tmp_path)), after)


# Auto classes


@pytest.fixture
def folder(processor, tmp_path):
    model = new_model(
        num_image_tokens=2,
        image_token_id=processor.image_token_id,
        image_encoder="org/some-clip",
        transfer="realign",
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_auto_classes_find_the_installed_classes_without_trust(folder):
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is UnicornForConditionalGeneration
    assert type(AutoModel.from_pretrained(folder)) is UnicornModel
    assert type(AutoProcessor.from_pretrained(folder)) is UnicornProcessor
    assert AutoConfig.from_pretrained(folder).image_encoder == "org/some-clip"
    trusted = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    assert type(trusted) is UnicornForConditionalGeneration


def run_python(code: str, *arguments, **environment) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_fresh_process_that_imports_the_package_needs_no_trust(folder):
    code = """
import sys, unicorn_hf.modeling.configuration_unicorn
print("unicorn_hf.modeling.modeling_unicorn" in sys.modules)  # the configuration alone is light
from transformers import AutoModelForImageTextToText, AutoProcessor
print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__module__)
print(type(AutoProcessor.from_pretrained(sys.argv[1])).__module__)
"""
    expected = ["False", "unicorn_hf.modeling.modeling_unicorn", "unicorn_hf.modeling.processing_unicorn"]
    assert run_python(code, folder).split() == expected


def test_a_fresh_process_without_the_package_loads_with_trust_and_saves_again(folder, tmp_path):
    code = """
import sys
sys.modules["unicorn_hf"] = None  # not installed
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
classes = AutoConfig, AutoModel, AutoProcessor, AutoModelForImageTextToText
for auto_class in classes:
    loaded = auto_class.from_pretrained(sys.argv[1], trust_remote_code=True)
    print(type(loaded).__name__)
    loaded.save_pretrained(sys.argv[2])
processor = AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)
batch = processor(text="<image> a", image_embeds=torch.ones(12), return_tensors="pt")
print(loaded(**batch).logits.double().sum().item())
print(loaded.generate(**batch, max_new_tokens=3, do_sample=False)[0].tolist())
"""
    names = "UnicornConfig", "UnicornModel", "UnicornProcessor", "UnicornForConditionalGeneration"
    output = run_python(code, folder, tmp_path / "again", HF_MODULES_CACHE=str(tmp_path / "modules")).splitlines()
    assert tuple(output[:4]) == names
    for saved in (folder, tmp_path / "again"):
        model = UnicornForConditionalGeneration.from_pretrained(saved)
        processor = UnicornProcessor.from_pretrained(saved)
        batch = processor(text="<image> a", image_embeds=torch.ones(EMBED_DIM), return_tensors="pt")
        assert float(output[4]) == pytest.approx(model(**batch).logits.double().sum().item(), rel=1e-5)
        assert output[5] == str(model.generate(**batch, max_new_tokens=3, do_sample=False)[0].tolist())


def test_the_three_source_files_travel_with_the_model(folder):
    sources = {path.name for path in folder.glob("*.py")}
    assert sources == {"configuration_unicorn.py", "modeling_unicorn.py", "processing_unicorn.py"}
    assert json.loads((folder / "config.json").read_text())["auto_map"].keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
    }
    for source in sources:
        assert "unicorn_hf." not in (folder / source).read_text()


# Cards


def test_card_says_what_the_model_reads(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "transformers"
    for fact in ("org/some-clip", "realign", "2 tokens", f"{EMBED_DIM} dimensions", "llama"):
        assert fact in card.text


def test_card_that_someone_wrote_is_kept(folder):
    (folder / "README.md").write_text("mine")
    UnicornForConditionalGeneration.from_pretrained(folder).save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("method", ["push_to_hub", "save_pretrained"])
def test_push_uploads_weights_sources_and_our_card_in_one_commit(folder, tmp_path, monkeypatch, method):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.hf_api import RepoUrl

    commits = []

    def create_commit(self, repo_id, operations, **kwargs):
        commits.append({file.path_in_repo: Path(file.path_or_fileobj).read_bytes() for file in operations})

    def no_card(*args, **kwargs):
        raise EntryNotFoundError("no README.md")

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **kwargs: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(ModelCard, "load", no_card)
    model = UnicornForConditionalGeneration.from_pretrained(folder)
    if method == "push_to_hub":
        model.push_to_hub("org/name")
    else:
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="org/name")
    (files,) = commits
    assert {"config.json", "model.safetensors", "configuration_unicorn.py", "modeling_unicorn.py"} <= files.keys()
    assert b"org/some-clip" in files["README.md"]


# Placement


def test_device_map_offloads_layers_to_disk(tmp_path):
    model = new_model(sizes={"num_hidden_layers": 4}, num_image_tokens=2)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    loaded = UnicornForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "100KB"}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    torch.testing.assert_close(logits_of(loaded, 2), logits_of(model, 2))
    batch = batch_of([prompt(5, "i", 6, k=2)]) | {"image_embeds": torch.ones(1, EMBED_DIM)}
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))


def test_placeholder_is_never_generated():
    model = new_model()
    assert model.generation_config.suppress_tokens == [IMAGE_TOKEN_ID]
