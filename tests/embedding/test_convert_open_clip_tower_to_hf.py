import numpy as np
import open_clip
import pytest
import torch
from transformers import AutoImageProcessor, CLIPVisionModelWithProjection, LlamaConfig
from typer.testing import CliRunner
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration

from unicorn_hf import load_encoder
from unicorn_hf.cli import app
from unicorn_hf.errors import InputError

from .conftest import TINY, save_open_clip
from .test_encoder import pictures, unit

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}


def convert(name, output) -> str:
    result = CliRunner().invoke(app, ["convert-tower", str(name), "-o", str(output)])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    ("vision", "model"),
    [
        (VIT, {}),
        (VIT, {"quick_gelu": True}),
        (VIT | {"image_size": 48, "patch_size": 16, "layers": 3, "mlp_ratio": 2.5}, {"custom_text": True}),
    ],
    ids=["gelu", "quick_gelu", "other_sizes"],
)
def test_a_converted_tower_gives_the_vectors_of_open_clip(vision, model, tmp_path):
    source = save_open_clip(tmp_path / "source", vision, **model)
    convert(source, tmp_path / "tower")
    tower = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower")
    original = open_clip.create_model_from_pretrained(f"local-dir:{source}", return_transform=False).eval()
    pixel_values = torch.randn(3, 3, vision["image_size"], vision["image_size"])
    vectors = tower(pixel_values).image_embeds
    assert vectors.shape == (3, 24) and torch.cdist(vectors, vectors)[0, 1] > 1e-3
    torch.testing.assert_close(vectors, original.encode_image(pixel_values), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preprocess", [{}, {"resize_mode": "squash", "interpolation": "bilinear"}])
def test_a_model_with_a_converted_tower_sees_in_a_picture_what_the_encoder_sees(preprocess, tmp_path):
    source = save_open_clip(tmp_path / "source", VIT, preprocess=preprocess)
    convert(source, tmp_path / "tower")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "tower", backend="pil")  # open_clip resizes by PIL
    text_config = LlamaConfig(**TINY, vocab_size=30)
    model = UnicornForConditionalGeneration(UnicornConfig.from_text_config(text_config, embed_dim=24)).eval()
    model.set_vision_tower(CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower"))
    model.save_pretrained(tmp_path / "model")
    model = UnicornForConditionalGeneration.from_pretrained(tmp_path / "model")

    expected = load_encoder(source, device="cpu").encode_images(pictures())
    pixel_values = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    vectors = unit(model.get_image_embeds(pixel_values))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    ids = torch.tensor([[model.config.image_token_id, 5]] * 3)
    with torch.no_grad():
        by_pictures = model(ids, pixel_values=pixel_values).logits
        torch.testing.assert_close(by_pictures, model(ids, image_embeds=torch.tensor(expected)).logits)


@pytest.mark.parametrize(
    ("vision", "model", "reason"),
    [
        ({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, {}, "it is a ModifiedResNet"),
        (VIT | {"attentional_pool": True, "attn_pooler_heads": 2}, {}, "attn_pool.* only one of them has"),
        (VIT | {"pool_type": "avg"}, {}, "its vectors differ"),
        (VIT | {"image_size": [32, 16]}, {}, "not square"),
        (VIT, {"preprocess": {"resize_mode": "longest"}}, "fills pictures up"),
    ],
    ids=["resnet", "coca", "mean_pooling", "wide", "padded"],
)
def test_a_tower_that_clip_cannot_express_is_refused_in_one_sentence(vision, model, reason, tmp_path):
    source = save_open_clip(tmp_path / "source", vision, **model)
    with pytest.raises(InputError, match=reason):
        convert(source, tmp_path / "tower")
    assert not (tmp_path / "tower").exists()


def test_an_encoder_of_another_library_is_refused(transformers_clip, tmp_path):
    with pytest.raises(InputError, match="is one of transformers; expected open_clip"):
        convert(transformers_clip, tmp_path / "tower")
