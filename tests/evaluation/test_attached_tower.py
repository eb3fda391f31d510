"""A trained model and its encoder's image tower in one folder."""

import copy
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    GenerationConfig,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)
from typer.testing import CliRunner
from unicorn_hf.modeling import UnicornForConditionalGeneration

from unicorn_hf import InputError
from unicorn_hf.cli import app
from unicorn_hf.evaluation.images import encode_images, load_model
from unicorn_hf.evaluation.vision_tower import attach_tower, load_vision_tower


def test_the_folder_reads_an_image_as_the_encoder_does_and_holds_all_that_is_needed(
    model_folder, clip_folder, images, tmp_path
):
    shutil.copytree(model_folder, tmp_path / "model")
    GenerationConfig(max_new_tokens=7, eos_token_id=3).save_pretrained(tmp_path / "model")
    command = ["attach-tower", tmp_path / "model", "-o", tmp_path / "served", "--encoder", clip_folder]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    model, processor = load_model(tmp_path / "served", device="cpu")
    clip = CLIPModel.from_pretrained(clip_folder)
    inputs = CLIPImageProcessor.from_pretrained(clip_folder)(images, return_tensors="pt")
    with torch.no_grad():
        expected = clip.get_image_features(**inputs).pooler_output
    np.testing.assert_allclose(encode_images(model, processor, images), expected, atol=1e-5)
    assert model.generation_config.max_new_tokens == 7
    assert processor.chat_template == AutoProcessor.from_pretrained(model_folder).chat_template
    with pytest.raises(InputError, match="has an image tower already"):
        attach_tower(tmp_path / "served", tmp_path / "twice")


def test_an_adapter_is_merged_into_the_model_that_gets_the_tower(model_folder, clip_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, processor = load_model(model_folder, device="cpu")
    inputs = {"input_ids": torch.arange(10)[None]}
    before = base(**inputs).logits
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    attach_tower(tmp_path / "adapter", tmp_path / "served", encoder=str(clip_folder))
    model, _ = load_model(tmp_path / "served", device="cpu")
    torch.testing.assert_close(model(**inputs).logits, adapted(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert (model(**inputs).logits - before).abs().max() > 0.01


def test_a_siglip_tower_gives_the_models_own_vectors(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(text_config=sizes, vision_config=sizes | {"image_size": 32, "patch_size": 8})
    model = SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    tower, _ = load_vision_tower(str(tmp_path))
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            tower(pixel_values).pooler_output, model.get_image_features(pixel_values).pooler_output
        )


@pytest.mark.parametrize(
    ("change", "encoder", "reason"),
    [
        ({"image_encoder": None}, None, "does not say whose vectors"),
        ({"normalize_image_embeds": False}, None, "does not normalize vectors"),
        ({}, None, "it is a ModifiedResNet; embed images with it"),
        ({"embed_dim": 64}, "clip", "of 128 dimensions, but embed_dim is 64"),
        ({}, "sentence-transformers/clip-ViT-B-32", "sentence-transformers model, whose image tower"),
        ({}, "nonsense", "encoder 'nonsense' is not known"),
    ],
)
def test_what_cannot_be_attached_is_one_sentence_and_no_folder(
    change, encoder, reason, model_and_processor, clip_folder, tmp_path
):
    model, processor = model_and_processor
    config = copy.deepcopy(model.config)
    for name, value in change.items():
        setattr(config, name, value)
    UnicornForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=reason):
        encoder = str(clip_folder) if encoder == "clip" else encoder
        attach_tower(tmp_path / "model", tmp_path / "served", encoder=encoder)
    assert not (tmp_path / "served").exists()
