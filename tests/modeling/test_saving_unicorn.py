"""Round trips: save and load, pretrained language models, Auto classes with and without this package, cards."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from tiny_models import (
    EMBED_DIM,
    FAMILIES,
    IMAGE_TOKEN_ID,
    SIZES,
    batch_of,
    new_model,
    prompt,
    random_prompts,
    text_config_of,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)
from unicorn_hf.modeling import UnicornForConditionalGeneration, UnicornModel, UnicornProcessor
from unicorn_hf.modeling.modeling_unicorn import LANGUAGE_MODELS


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


def saved_lm(text_config, folder, tokenizer=None):
    causal_lm = AutoModelForCausalLM.from_config(text_config).eval()
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.normal_(0, 0.2)
    causal_lm.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return causal_lm


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))
def test_language_model_is_taken_as_it_is(name, tokenizer, tmp_path):
    saved_lm(text_config_of(name), tmp_path / "lm", tokenizer)
    causal_lm = AutoModelForCausalLM.from_pretrained(tmp_path / "lm").eval()
    model = UnicornForConditionalGeneration.from_text_pretrained(
        tmp_path / "lm", embed_dim=EMBED_DIM, tokenizer=tokenizer, num_image_tokens=2
    )
    assert torch.equal(model.get_input_embeddings().weight, causal_lm.get_input_embeddings().weight)
    assert torch.equal(model.lm_head.weight, causal_lm.get_output_embeddings().weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, causal_lm(ids).logits)

    image_token_id = model.config.image_token_id
    assert image_token_id == len(tokenizer) - 1
    assert model.generation_config.suppress_tokens[0] == image_token_id
    assert model.generation_config.eos_token_id == causal_lm.generation_config.eos_token_id
    inputs = {"input_ids": torch.tensor([[5, *[image_token_id] * 2, 6]]), "image_embeds": torch.randn(1, EMBED_DIM)}
    model.generate(**inputs, attention_mask=torch.ones(1, 4), max_new_tokens=2)

    model.save_pretrained(tmp_path / "unicorn")
    assert_same_weights(UnicornForConditionalGeneration.from_pretrained(tmp_path / "unicorn"), model)


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_without_a_spare_row_grows_by_the_placeholder(tied, tokenizer, tmp_path):
    sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied}
    causal_lm = saved_lm(text_config_of("llama", **sizes), tmp_path, tokenizer)
    model = UnicornForConditionalGeneration.from_text_pretrained(tmp_path, EMBED_DIM)
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 320
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[..., : len(tokenizer)], causal_lm(ids).logits)
    assert model.generation_config.suppress_tokens == list(range(len(tokenizer), 320))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_files_of_a_decoder_alone_are_taken(tokenizer, tmp_path):
    """As GPT-2 lies on the Hub: without a head, and without a prefix in its names."""
    causal_lm = saved_lm(text_config_of("gpt2"), tmp_path / "whole", tokenizer)
    causal_lm.base_model.save_pretrained(tmp_path / "decoder")
    names = load_file(tmp_path / "decoder" / "model.safetensors")
    assert all(not name.startswith("transformer.") for name in names)
    model = UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "decoder", EMBED_DIM, tokenizer=tokenizer)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, causal_lm(ids).logits)


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


def test_a_new_projector_is_not_reported_as_missing_weights(tokenizer, tmp_path, caplog):
    saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path, tokenizer)
    transformers_logger = logging.getLogger("transformers")
    verbosity = transformers_logger.level
    transformers_logger.addHandler(caplog.handler)
    try:
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path, EMBED_DIM)
        assert "LOAD REPORT" not in caplog.text and transformers_logger.level == verbosity
    finally:
        transformers_logger.removeHandler(caplog.handler)


def test_incomplete_or_unknown_language_models_are_refused(tokenizer, tmp_path):
    causal_lm = saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path / "lm", tokenizer)
    weights = load_file(tmp_path / "lm" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "lm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lm lacks 1 weights .* model\.language_model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "lm", EMBED_DIM)
    saved_lm(FAMILIES["llama"](vocab_size=len(tokenizer)), tmp_path / "wide", tokenizer)
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with pytest.raises(ValueError, match=r"wide: the weight .* has the shape \[.*\]; its config\.json says \[.*8.*\]"):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "wide", EMBED_DIM)
    causal_lm.config.vocab_size = 300
    bert = AutoConfig.for_model("bert", **SIZES, is_decoder=True)
    saved_lm(bert, tmp_path / "bert", tokenizer)
    with pytest.raises(
        ValueError, match=r"A bert model cannot be the language model; expected a tested one: .* llama, "
    ):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path / "bert", EMBED_DIM)
    with pytest.raises(ValueError, match="tower with random weights"):
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
import sys, unicorn_hf.modeling
from transformers import AutoModelForImageTextToText, AutoProcessor
print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__module__)
print(type(AutoProcessor.from_pretrained(sys.argv[1])).__module__)
"""
    expected = ["unicorn_hf.modeling.modeling_unicorn", "unicorn_hf.modeling.processing_unicorn"]
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
        assert not re.search(r"^\s*(import|from) unicorn_hf", (folder / source).read_text(), re.MULTILINE)


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


@pytest.mark.parametrize("written", [False, True], ids=["no card", "a card that someone wrote"])
@pytest.mark.parametrize("method", ["push_to_hub", "save_pretrained"])
def test_push_uploads_weights_sources_and_our_card_in_one_commit(hub, folder, tmp_path, method, written):
    if written:
        HfApi().create_repo("org/name")
        HfApi().upload_file(repo_id="org/name", path_or_fileobj=b"mine", path_in_repo="README.md")
    model = UnicornForConditionalGeneration.from_pretrained(folder)
    if method == "push_to_hub":
        model.push_to_hub("org/name", tags="tagged", private=True)
    else:
        model.add_model_tags("tagged")
        model.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="org/name", private=True)
    repo = hub.repo("org/name", "model")
    assert len(repo.commits) == 2 + written  # the first has no files
    files = repo.files()
    assert {"config.json", "model.safetensors", "configuration_unicorn.py", "modeling_unicorn.py"} <= files.keys()
    if written:
        assert files["README.md"] == b"mine"
    else:
        assert repo.private
        assert b"org/some-clip" in files["README.md"] and b"- tagged" in files["README.md"]


def test_push_goes_to_a_branch_or_a_pull_request(hub):
    model = new_model()
    model.push_to_hub("org/name", revision="trial", commit_message="Try this")
    model.push_to_hub("org/name", create_pr=True)
    repo = hub.repo("org/name", "model")
    assert not repo.files("main")
    for branch in ("trial", "refs/pr/1"):
        assert "model.safetensors" in repo.files(branch)


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


def test_a_projector_that_outgrows_the_language_model_is_refused(tokenizer, tmp_path):
    sizes = {"hidden_size": 512, "num_attention_heads": 4}
    AutoModelForCausalLM.from_config(FAMILIES["llama"](**sizes)).save_pretrained(tmp_path)
    options = {"embed_dim": EMBED_DIM, "tokenizer": tokenizer, "num_image_tokens": 576}
    with pytest.raises(
        ValueError, match=r"576 different image tokens make a projector of 0\.2 billion parameters for a"
    ):
        UnicornForConditionalGeneration.from_text_pretrained(tmp_path, **options)
    model = UnicornForConditionalGeneration.from_text_pretrained(tmp_path, **options, projector_expand="copy")
    assert model.model.multi_modal_projector.layers[2].out_features == 512
