"""Images become the vectors that the model was trained on, by whichever way it has."""

import copy
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from unicorn_hf.modeling import UnicornProcessor

from unicorn_hf import InputError, MeanShift, load_encoder
from unicorn_hf.evaluation.images import answer, encode_images, find_image_encoder, read_image, user_message


@pytest.fixture(scope="module")
def model_with_a_tower(model_and_processor):
    """The same model with an image tower of its own, of random weights."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=128, image_size=32, patch_size=8))
    model, processor = copy.deepcopy(model_and_processor[0]), model_and_processor[1]
    model.set_vision_tower(tower)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, UnicornProcessor(processor.tokenizer, image_processor, num_image_tokens=2, embed_dim=128)


def test_images_go_through_the_encoder_that_the_model_names(model_and_processor, images):
    vectors = encode_images(*model_and_processor, images)
    assert vectors.shape == (4, 128) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, load_encoder("sandbox").encode_images(images), atol=1e-6)


def test_images_go_through_the_tower_of_a_model_that_has_one(model_with_a_tower, images):
    model, processor = model_with_a_tower
    with torch.inference_mode():
        pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        expected = model.base_model.vision_tower(pixel_values).image_embeds
    np.testing.assert_allclose(encode_images(*model_with_a_tower, images, batch_size=3), expected, atol=1e-5)
    assert find_image_encoder(model) is None


def test_an_answer_is_what_the_pipeline_says_of_the_image_itself(model_with_a_tower, images):
    from transformers import pipeline

    model, processor = model_with_a_tower
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": "what color is the image"}]
    chat = [{"role": "user", "content": content}]
    expected = pipe(text=chat, return_full_text=False, generate_kwargs={"max_new_tokens": 8, "do_sample": False})
    said = answer(
        model, processor, "what color is the image", encode_images(model, processor, images[:1]), max_new_tokens=8
    )
    assert said == expected[0]["generated_text"].strip() != ""


def test_vectors_go_through_the_transfer(model_and_processor, images):
    rng = np.random.default_rng(0)
    transfer = MeanShift.fit(rng.normal(1, 1, (50, 128)), rng.normal(2, 1, (50, 128)), centred=True)
    plain, moved = (encode_images(*model_and_processor, images, transfer=each) for each in (None, transfer))
    np.testing.assert_array_equal(moved, transfer.condition_image(plain))
    assert np.abs(moved - plain).max() > 0.01


def test_images_are_read_from_wherever_they_are(model_and_processor, images, tmp_path):
    image, path = images[0], tmp_path / "image.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/image.png"
        there = read_image(address, allow_private_addresses=True)
        sources = [image, path, str(path), buffer.getvalue(), {"bytes": buffer.getvalue(), "path": None}, there]
        vectors = encode_images(*model_and_processor, sources)
        with pytest.raises(InputError, match=r"none\.png: cannot be read \(the server answers with the status 404"):
            read_image(address.replace("image", "none"), allow_private_addresses=True)
        with pytest.raises(InputError, match=r"an address of this machine"):
            encode_images(*model_and_processor, [address])
        server.shutdown()
    np.testing.assert_allclose(vectors, vectors[:1].repeat(len(sources), axis=0), atol=1e-6)


def test_no_image_is_no_vector(model_and_processor):
    assert encode_images(*model_and_processor, []).shape == (0, 128)


def test_a_model_that_does_not_say_its_encoder_is_refused_unless_it_is_named(model_and_processor, monkeypatch):
    model, _ = model_and_processor
    monkeypatch.setattr(model.config, "image_encoder", None)
    with pytest.raises(InputError, match=r"does not say whose vectors it reads.*--encoder"):
        find_image_encoder(model)
    assert find_image_encoder(model, "sandbox").embed_dim == 128


def test_an_encoder_of_another_dimension_is_refused(model_and_processor, monkeypatch):
    model, _ = model_and_processor
    monkeypatch.setattr(model.config, "embed_dim", 64)
    with pytest.raises(InputError, match=r"128 dimensions, but .* reads vectors of 64"):
        find_image_encoder(model)


@pytest.mark.parametrize(
    ("question", "num_images", "content"),
    [
        ("what", 0, "what"),
        ("what", 2, "<image><image>\nwhat"),
        ("<image> or <image>", 2, "<image> or <image>"),
        ("an <image>", 0, "an "),
        ("an <image>", 2, "<image><image>\nan "),
    ],
)
def test_images_stand_where_the_question_has_them_or_else_in_front(question, num_images, content):
    assert user_message(question, num_images) == {"role": "user", "content": content}


def test_images_of_16_bits_keep_their_shades():
    image = read_image(Image.fromarray(np.full((4, 4), 30000, np.uint16)))
    assert image.getpixel((0, 0)) == (117, 117, 117)
