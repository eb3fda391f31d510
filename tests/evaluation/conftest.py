"""A Unicorn model of random weights that reads the sandbox encoder's vectors, and questions over four images."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
WORDS = "what color is the picture provide a one sentence caption for provided image . , : ? ( ) A B C D yes no 0 1 2 3"


@pytest.fixture(scope="session")
def model_and_processor():
    from transformers import LlamaConfig
    from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration, UnicornProcessor

    from unicorn_hf.sandbox.language_model import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer([*WORDS.split(), *COLOURS])
    processor = UnicornProcessor(tokenizer, num_image_tokens=2, embed_dim=128, image_encoder="sandbox")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text_config = LlamaConfig(
        **sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = UnicornConfig.from_text_config(
        text_config,
        embed_dim=128,
        num_image_tokens=2,
        image_token_id=processor.image_token_id,
        image_encoder="sandbox",
    )
    model = UnicornForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    return model, processor


@pytest.fixture(scope="session")
def model_folder(model_and_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in model_and_processor:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A tiny CLIP of random weights, as a folder of transformers; its vectors have 128 dimensions."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 8}  # its projection_dim is left at another, as in many releases
    CLIPModel(CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=128)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), colour) for colour in COLOURS.values()]


@pytest.fixture
def with_images(images):
    """columns -> a dataset of eight rows: two about each of four images, with an `image` column."""

    def make(**columns):
        twice = [image for image in images for _ in range(2)]
        dataset = datasets.Dataset.from_dict({"image": twice, **columns})
        return dataset.cast_column("image", datasets.Image())

    return make


@pytest.fixture
def with_vectors():
    """columns -> a dataset of eight rows: two about each of four vectors."""

    def make(vectors=None, **columns):
        if vectors is None:
            vectors = np.random.default_rng(0).normal(size=(4, 128)).astype(np.float32).repeat(2, axis=0)
        return datasets.Dataset.from_dict({**columns, "image_embeds": list(vectors)})

    return make
