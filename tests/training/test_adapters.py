"""What LoRA leaves behind: a folder that loads as a model, and merges into one."""

import shutil

import pytest
import torch
import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from datasets import load_dataset
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from unicorn_hf import InputError
from unicorn_hf.training import load_model_to_finetune, new_adapter

peft = pytest.importorskip("peft", reason="adapters need the extra 'train'")


@pytest.fixture(scope="module")
def inputs(tiny, whole):
    processor = AutoProcessor.from_pretrained(whole["lora"].output_dir)
    rows = load_dataset(str(tiny.conversations), split="train[:4]")
    prompts = [
        processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        for messages in rows["messages"]
    ]
    return processor(text=prompts, image_embeds=rows["image_embeds"][:], padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def adapted(whole):
    return AutoModelForImageTextToText.from_pretrained(whole["lora"].output_dir).eval()


def test_the_folder_of_an_adapter_loads_as_a_model_with_the_projector_that_was_trained(whole, adapted):
    saved = load_file(whole["lora"].output_dir / "adapter_model.safetensors")
    before = load_file(whole["pretrain"].output_dir / "model.safetensors")
    (name,) = (name for name in saved if "multi_modal_projector" in name and name.endswith("layers.0.weight"))
    state = adapted.state_dict()
    (loaded,) = (
        value
        for key, value in state.items()
        if "multi_modal_projector" in key and key.endswith("layers.0.weight") and "original_module" not in key
    )
    assert torch.equal(loaded, saved[name])
    assert not torch.equal(loaded, before["model.multi_modal_projector.layers.0.weight"])


def test_a_merged_adapter_says_what_the_adapter_said(whole, adapted, inputs, tmp_path):
    base = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
    merged = peft.PeftModel.from_pretrained(base, whole["lora"].output_dir).merge_and_unload()
    merged.save_pretrained(tmp_path)
    alone = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(**inputs).logits, adapted(**inputs).logits, rtol=1e-4, atol=1e-4)
    words = [model.generate(**inputs, max_new_tokens=8, do_sample=False) for model in (alone, adapted)]
    assert torch.equal(*words)


def test_an_adapter_stops_where_its_own_generation_config_says(whole, tmp_path):
    folder = shutil.copytree(whole["lora"].output_dir, tmp_path / "lora")
    ends = AutoModelForImageTextToText.from_pretrained(folder).generation_config.eos_token_id
    assert ends in (3, [3], [3, 3])  # the trainer of transformers 5.10 adds the tokenizer's to it
    config = GenerationConfig.from_pretrained(folder)
    config.eos_token_id = [5, 3]
    config.save_pretrained(folder)
    assert AutoModelForImageTextToText.from_pretrained(folder).generation_config.eos_token_id == [5, 3]


def test_an_adapter_names_its_base_by_its_whole_path(whole, model_args, tmp_path, monkeypatch):
    """From another working directory, `pretrain` or `runs/pretrain` would be a model on the Hub."""
    base = whole["pretrain"].output_dir
    monkeypatch.chdir(base.parent)
    model = load_model_to_finetune(model_args(model_name_or_path=base.name))
    made = peft.get_peft_model(model, new_adapter(model, model_args()))
    made.save_pretrained(tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).base_model_name_or_path == str(base)
    again = load_model_to_finetune(model_args(model_name_or_path=str(tmp_path)))
    assert again.active_peft_config.base_model_name_or_path == str(base)


def test_an_image_changes_what_the_adapter_says(adapted, inputs):
    other = {**inputs, "image_embeds": inputs["image_embeds"].roll(1, 0)}
    with torch.no_grad():
        assert not torch.allclose(adapted(**inputs).logits, adapted(**other).logits)


@pytest.fixture
def model_args():
    """TRL's options of a model, with LoRA."""
    from trl import ModelConfig

    def make(**options):
        options = {"use_peft": True, "lora_target_modules": ["all-linear"]} | options
        return ModelConfig(**options)

    return make


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_target_modules": ["foo"]}, "lora_target_modules has 'foo', but the model has nothing of that name"),
        ({"lora_target_modules": ["q_proj", "foo"]}, "lora_target_modules has 'foo'"),
        ({"lora_target_modules": [".*\\.foo"]}, "matches no layer"),
        ({"lora_target_modules": ["*"]}, "not a regular expression"),
        ({"lora_target_parameters": ["x"]}, "lora_target_parameters has 'x'"),
        ({"lora_modules_to_save": ["projector"]}, "lora_modules_to_save has 'projector'"),
    ],
)
def test_a_name_of_nothing_in_the_model_is_refused(options, words, whole, model_args):
    base = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
    with pytest.raises(InputError, match=words):
        new_adapter(base, model_args(**options))


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([r".*layers\..*"], r"layers\.0, a \w+DecoderLayer"),
        (["self_attn"], r"self_attn, a \w+Attention"),
        (["q_proj", "norm"], r"norm, a \w+RMSNorm"),
    ],
)
def test_an_adapter_of_a_whole_block_is_refused(targets, kind, whole, model_args):
    base = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
    with pytest.raises(InputError, match=f"lora_target_modules takes in [a-z_.0-9]*{kind}; an adapter is for linear"):
        new_adapter(base, model_args(lora_target_modules=targets))


def test_the_same_options_over_their_own_output_go_on_with_its_adapter(whole, model_args, tmp_path):
    for way, wanted in (("all", ["all-linear"]), ("one", ["q_proj"])):
        base = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
        made = peft.get_peft_model(base, new_adapter(base, model_args(lora_target_modules=wanted)))
        made.save_pretrained(tmp_path / way)
        again = model_args(model_name_or_path=str(tmp_path / way), lora_target_modules=wanted)
        assert isinstance(load_model_to_finetune(again), peft.PeftModel)
    with pytest.raises(InputError, match=r"leaves out .* linear layers, such as .*k_proj"):
        load_model_to_finetune(model_args(model_name_or_path=str(tmp_path / "one")))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./gone", "no such folder"),
        ("gone/deeper/model", "no such folder"),
        ("gone", r"cannot be loaded as a model \(no such folder, and the Hub says: "),
    ],
)
def test_a_model_that_is_not_there_is_named(name, words, model_args, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"^{name}: {words}"):
        load_model_to_finetune(model_args(model_name_or_path=name))


def test_a_language_model_is_no_output_of_stage_1(tiny, model_args):
    with pytest.raises(InputError, match=r"is a \w+ model; this stage starts from the output of an earlier one"):
        load_model_to_finetune(model_args(model_name_or_path=str(tiny.language_model)))
