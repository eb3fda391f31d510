"""Image towers: pictures give what their vectors give, the towers stay frozen, and pipelines answer about JPEGs."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import EMBED_DIM, batch_of, new_model, prompt, random_prompts
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    pipeline,
)
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration, UnicornProcessor

SIZES = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE = SIZES | {"image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}
TOWERS = {
    "clip": (
        lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE, hidden_size=16, projection_dim=EMBED_DIM)),
        lambda: CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
    ),
    "siglip": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**IMAGE, hidden_size=EMBED_DIM)),
        lambda: SiglipImageProcessor(size=SIZE),
    ),
    "siglip2": (
        lambda: Siglip2VisionModel(Siglip2VisionConfig(**SIZES, hidden_size=EMBED_DIM, patch_size=8, num_patches=16)),
        lambda: Siglip2ImageProcessor(patch_size=8, max_num_patches=16),
    ),
}


QUESTION = [{"type": "text", "text": "What is this?"}]


@pytest.fixture(params=TOWERS)
def tower_name(request) -> str:
    return request.param


def new_tower(name: str = "clip"):
    tower = TOWERS[name][0]().eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(0, 0.2)
    return tower


def model_and_processor(tokenizer, name: str = "clip"):
    """A model that takes pictures, with its processor, and the tower before it was put in."""
    processor = UnicornProcessor(tokenizer, TOWERS[name][1](), num_image_tokens=2, embed_dim=EMBED_DIM)
    model = new_model(num_image_tokens=2, image_token_id=processor.image_token_id)
    tower = new_tower(name)
    model.set_vision_tower(tower)
    return model, processor, tower


def pictures(count: int) -> list[Image.Image]:
    """Coloured blocks, of different sizes."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, 3, 3, 3), np.uint8)
    return [Image.fromarray(colours).resize((40 + 8 * index, 24), 0) for index, colours in enumerate(blocks)]


def test_pictures_give_what_their_vectors_give(tokenizer, tower_name):
    model, processor, tower = model_and_processor(tokenizer, tower_name)
    text = ["<image> one", "none", "<image> and <image>"]
    batch = processor(images=pictures(3), text=text, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = tower(**{name: batch[name] for name in processor.image_processor.model_input_names})
        vectors = outputs.image_embeds if tower_name == "clip" else outputs.pooler_output
        logits = model(**batch).logits
        expected = model(batch["input_ids"], batch["attention_mask"], image_embeds=vectors).logits
    assert vectors.shape == (3, EMBED_DIM) and not torch.allclose(vectors[0], vectors[1])
    torch.testing.assert_close(logits, expected)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    by_vectors = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "image_embeds": vectors}
    assert torch.equal(model.generate(**batch, **options), model.generate(**by_vectors, **options))


def test_model_with_a_tower_is_saved_and_loaded(tokenizer, tower_name, tmp_path):
    model, processor, _ = model_and_processor(tokenizer, tower_name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    batch = AutoProcessor.from_pretrained(tmp_path)(images=pictures(1), text="<image>", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_tower_is_frozen_however_the_model_was_made(tmp_path):
    config = UnicornConfig.from_text_config(
        new_model().config.text_config, EMBED_DIM, image_token_id=279, vision_config=new_tower().config
    )
    made = UnicornForConditionalGeneration(config)
    made.save_pretrained(tmp_path)
    loaded = UnicornForConditionalGeneration.from_pretrained(tmp_path)
    given = new_model()
    given.set_vision_tower(new_tower())
    for model in (made, loaded, given):
        trainable = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {"multi_modal_projector", "language_model", "weight"}
        batch = {
            "input_ids": torch.tensor([[279, 5]]),
            "pixel_values": torch.rand(1, 3, 16, 16),
        }
        model(**batch, labels=batch["input_ids"]).loss.backward()
        assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
        assert model.model.multi_modal_projector.layers[0].weight.grad is not None
    loaded.model.vision_tower.requires_grad_(True)
    loaded(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.model.vision_tower.visual_projection.parameters())


def test_a_tower_of_another_dimension_is_refused():
    model = new_model(embed_dim=20, image_encoder="tiny-clip")
    with pytest.raises(ValueError, match=r"gives vectors of 12 dimensions, but embed_dim is 20 .* encoder 'tiny-clip'"):
        model.set_vision_tower(new_tower())
    assert model.config.vision_config is None


def test_beams_keep_each_prompts_pictures(tokenizer):
    model, processor, _ = model_and_processor(tokenizer)
    images, options = pictures(3), {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4}
    text = ["<image><image> two", "<image> another"]
    together = processor(images=images, text=text, padding=True, padding_side="left", return_tensors="pt")
    together = model.generate(**together, **options)[:, -4:].split(3)
    for rows, one, its_images in zip(together, text, (images[:2], images[2:]), strict=True):
        alone = processor(images=its_images, text=one, return_tensors="pt")
        assert torch.equal(rows, model.generate(**alone, **options)[:, -4:])


def test_pipeline_answers_about_a_jpeg(tokenizer, tmp_path):
    model, processor, tower = model_and_processor(tokenizer)
    # A tower of random weights gives all pictures nearly one vector: take what they share away.
    with torch.no_grad():
        vectors = tower(processor(images=pictures(2), return_tensors="pt")["pixel_values"]).image_embeds
    model.set_image_embeds_statistics(mean=torch.nn.functional.normalize(vectors).mean(0), scale=20)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    jpegs = [tmp_path / f"{index}.jpg" for index in range(2)]
    for path, picture in zip(jpegs, pictures(2), strict=True):
        picture.save(path)

    def messages(path) -> list[dict]:
        return [
            {"role": "user", "content": [{"type": "image", "path": str(path)}, *QUESTION]},
        ]

    ask = pipeline("image-text-to-text", model=str(tmp_path / "model"))
    options = {"max_new_tokens": 6, "return_full_text": False}
    answers = [ask(text=messages(path), **options)[0]["generated_text"] for path in jpegs]
    assert answers[0] != answers[1]
    for path, answer in zip(jpegs, answers, strict=True):
        batch = processor.apply_chat_template(
            messages(path), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True)
    # a picture and a text without a chat, as `pipe(images=…, text=…)`
    assert ask(images=str(jpegs[0]), text="<image> What is this?", **options)[0]["generated_text"]


def test_pipeline_takes_a_vector_in_place_of_a_picture(tokenizer):
    model = new_model(num_image_tokens=2, image_token_id=259)
    ask = pipeline("image-text-to-text", model=model, processor=UnicornProcessor(tokenizer, num_image_tokens=2))
    content = [{"type": "image", "image": torch.ones(EMBED_DIM)}, *QUESTION]
    answer = ask(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)


def test_pixel_values_of_prompts_that_were_counted_wrong_are_told(tokenizer):
    model, processor, _ = model_and_processor(tokenizer)
    pixel_values = processor(images=pictures(2), return_tensors="pt")["pixel_values"]
    prompts, _ = random_prompts(2, (1,))
    prompts = [[token if token != 279 else processor.image_token_id for token in ids] for ids in prompts]
    with pytest.raises(ValueError, match="tokens: 2, features: 4"):
        model(**batch_of(prompts), pixel_values=pixel_values)
    with pytest.raises(ValueError, match="tokens: 2, features: 4"):
        model.generate(**batch_of(prompts), pixel_values=pixel_values, num_beams=2)
    assert prompt("i", k=1) == [279]
