"""What LoRA leaves behind: a folder that loads as a model, and merges into one."""

import pytest
import torch
import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from datasets import load_dataset
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

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


def test_an_image_changes_what_the_adapter_says(adapted, inputs):
    other = {**inputs, "image_embeds": inputs["image_embeds"].roll(1, 0)}
    with torch.no_grad():
        assert not torch.allclose(adapted(**inputs).logits, adapted(**other).logits)
