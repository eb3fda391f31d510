"""The processor: placeholders, vectors in every form, real chat templates, and pictures of every kind."""

import base64
import inspect
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import EMBED_DIM
from transformers import AutoProcessor, CLIPImageProcessor, PreTrainedTokenizerBase
from unicorn_hf.modeling import UnicornProcessor

# The published templates of these models' tokenizers, which TRL ships, and those with {% generation %} marks in them.
TEMPLATES = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
MODELS = ["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3", "phi3", "phi3_5", "phi4", "gemma", "gemma3", None]
PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
MASKED = ["llama3_training", "qwen2_5_training", "qwen3_training", "phi3_training", "gemma_training", None]

PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
STRING = [{"role": "user", "content": "<image>\nWhat is this?"}]


def use_template(tokenizer, name: str | None) -> None:
    """None: the ChatML that the test tokenizer has."""
    if name is not None:
        tokenizer.chat_template = PHI_4 if name == "phi4" else (TEMPLATES / f"{name}.jinja").read_text()
        tokenizer.bos_token = "<|im_start|>"  # Gemma's asks for one


@pytest.mark.parametrize("messages", [PARTS, STRING], ids=["parts", "string"])
@pytest.mark.parametrize("name", MODELS)
def test_placeholder_is_put_into_the_tokenizers_own_template(tokenizer, name, messages):
    use_template(tokenizer, name)
    expected = tokenizer.apply_chat_template(STRING, add_generation_prompt=True, tokenize=False)
    assert "<image>\nWhat is this?" in expected
    processor = UnicornProcessor(tokenizer, num_image_tokens=3)
    assert processor.chat_template == tokenizer.chat_template
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    encoded = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        image_embeds=np.ones(5),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert tokenizer.decode(encoded["input_ids"][0]) == expected.replace("<image>", "<image>" * 3)
    assert encoded["image_embeds"].shape == (1, 5)


def test_template_variables_and_prefill_are_passed_on(tokenizer):
    use_template(tokenizer, "qwen3")
    processor = UnicornProcessor(tokenizer)
    text = processor.apply_chat_template(PARTS, add_generation_prompt=True, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    prefilled = [*PARTS, {"role": "assistant", "content": [{"type": "text", "text": "A red"}]}]
    assert processor.apply_chat_template(prefilled, continue_final_message=True).endswith("A red")


def test_messages_are_left_as_they_were(processor):
    vector = np.ones(EMBED_DIM)
    messages = [{"role": "user", "content": [{"type": "image", "image": vector}, {"type": "text", "text": "x"}]}]
    processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert messages[0]["content"][0]["image"] is vector


def test_several_images_keep_their_places_in_a_message(processor):
    content = [
        {"type": "text", "text": "Is "},
        {"type": "image"},
        {"type": "text", "text": "like "},
        {"type": "image"},
    ]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    assert text == "<|im_start|>user\nIs <image>\nlike <image><|im_end|>\n"


def test_image_parts_fill_the_placeholders_that_a_text_has_already(processor):
    """TRL puts an image part before a text that may hold the placeholder itself."""
    content = [{"type": "image"}, {"type": "text", "text": "<image>\nWhat is this?"}]
    assert processor.apply_chat_template([{"role": "user", "content": content}]).count("<image>") == 1


@pytest.mark.parametrize("name", MASKED)
def test_assistant_mask_covers_the_answers_behind_expanded_placeholders(tokenizer, name):
    use_template(tokenizer, name)
    processor = UnicornProcessor(tokenizer, num_image_tokens=2)
    conversation = [*PARTS, {"role": "assistant", "content": "a red circle"}]
    conversation += [{"role": "user", "content": "And <image>?"}, {"role": "assistant", "content": "no"}]
    encoded = processor.apply_chat_template(
        [conversation, conversation[2:]],
        image_embeds=[np.ones((2, EMBED_DIM)), np.ones((1, EMBED_DIM))],
        processor_kwargs={"padding": True, "padding_side": "left"},
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
    )
    said = [
        processor.decode(ids[mask.bool()])
        for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    ]
    # What ends a turn differs between the templates, and Qwen 3's thinks about nothing before its last answer.
    said = [re.sub(r"<[^>]*>|\s", "", text) for text in said]
    assert said == ["aredcircleno", "no"]
    assert encoded["image_embeds"].shape == (3, EMBED_DIM)


def test_a_chat_is_padded_as_a_prompt_is_by_grouped_arguments_too(processor):
    chats = [[{"role": "user", "content": text}] for text in ("a", "a red circle")]
    grouped = {"text_kwargs": {"padding": True, "padding_side": "right"}, "common_kwargs": {"return_tensors": "pt"}}
    padded = processor.apply_chat_template(chats, processor_kwargs=grouped, tokenize=True, return_dict=True)
    assert padded["attention_mask"][:, 0].tolist() == [1, 1]
    assert padded["attention_mask"][:, -1].tolist() == [0, 1]
    texts = processor.apply_chat_template(chats)
    assert torch.equal(padded["input_ids"], processor(text=texts, add_special_tokens=False, **grouped)["input_ids"])


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    reason="this version of transformers has no sanitize_control_tokens",
)
def test_a_placeholder_that_a_user_writes_can_be_taken_as_text(processor):
    messages = [{"role": "user", "content": "What does <image> mean?"}]
    encoded = processor.apply_chat_template(messages, tokenize=True, return_dict=True, sanitize_control_tokens=True)
    assert processor.image_token_id not in encoded["input_ids"][0]


VECTORS = np.arange(3 * EMBED_DIM, dtype=np.float32).reshape(3, EMBED_DIM)
FORMS = {
    "array": VECTORS,
    "float16 array": VECTORS.astype(np.float16),
    "tensor": torch.tensor(VECTORS),
    "bfloat16 tensor": torch.tensor(VECTORS, dtype=torch.bfloat16),
    "list of lists": VECTORS.tolist(),
    "list of arrays": list(VECTORS),
    "list a prompt": [[VECTORS[0]], [], [VECTORS[1], VECTORS[2]]],
    "array a prompt": [VECTORS[:1], None, torch.tensor(VECTORS[1:])],
    "lists a prompt": [VECTORS[:1].tolist(), [], VECTORS[1:].tolist()],
    "one vector or several a prompt": [VECTORS[0], None, VECTORS[1:]],
}


@pytest.mark.parametrize(
    ("argument", "form"),
    [("image_embeds", form) for form in FORMS]
    # Under `images`, where a table of numbers is a grey picture, each vector is one list or one-dimensional array.
    + [("images", form) for form in ("list of lists", "list of arrays", "list a prompt", "lists a prompt")],
)
def test_vectors_are_taken_in_every_form(processor, argument, form):
    text = ["<image> a", "b", "<image> and <image>"]
    batch = processor(text=text, **{argument: FORMS[form]}, padding=True, return_tensors="pt")
    assert batch["image_embeds"].dtype == torch.float32
    torch.testing.assert_close(batch["image_embeds"], torch.tensor(VECTORS), rtol=0.01, atol=0)
    assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == [2, 0, 4]


def test_one_prompt_takes_one_vector(processor):
    batch = processor(text="<image>", image_embeds=VECTORS[0], return_tensors="pt")
    assert batch["image_embeds"].shape == (1, EMBED_DIM)
    assert "image_embeds" not in processor(text="no image", return_tensors="pt")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_the_side_that_is_asked_for(processor, side):
    batch = processor(text=["<image> long prompt", "b"], image_embeds=VECTORS[:1], padding=True, padding_side=side)
    mask = batch["attention_mask"][1]
    assert mask == sorted(mask, reverse=side == "right") and 0 in mask


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("padding_side", "top", "'left' or 'right'"),
        ("padding", "long", "longest"),
        ("padding", 2.5, "longest"),
        ("truncation", "end", "only_first"),
        ("max_length", -1, "max_length is -1; expected 1 or more"),
        ("pad_to_multiple_of", 0, "expected 1 or more"),
        ("return_overflowing_tokens", True, "leave it out"),
        ("text", [], "holds no prompt"),
    ],
)
def test_unknown_ways_to_pad_and_truncate_are_refused(processor, name, value, expected):
    with pytest.raises(ValueError, match=expected):
        processor(**{"text": ["a", "a long prompt"], "padding": True, "truncation": True, name: value})


def test_an_empty_conversation_is_refused(processor):
    with pytest.raises(ValueError, match="conversation is empty"):
        processor.apply_chat_template([], tokenize=True)


def test_padding_to_a_length_that_nobody_gave_does_not_pad(processor, tokenizer):
    tokenizer.model_max_length = int(1e30)
    prompts = ["a", "a long prompt"]
    assert processor(text=prompts, padding="max_length")["input_ids"] == processor(text=prompts)["input_ids"]


def test_lengths_count_the_image_tokens(processor):
    batch = processor(text=["<image>", "b"], image_embeds=VECTORS[:1], padding=True, return_length=True)
    assert batch["length"] == [sum(mask) for mask in batch["attention_mask"]]


def test_prompts_are_padded_on_the_left_whatever_the_tokenizer_did(tokenizer, tmp_path):
    """`generate` would go on behind the padding of a short prompt: its answer would depend on the batch."""
    tokenizer.padding_side = "right"
    UnicornProcessor(tokenizer).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    short, long = processor(text=["a", "a long prompt"], padding=True)["attention_mask"]
    assert short == [0] * (len(long) - 1) + [1]


def test_token_types_are_not_passed_to_the_model(tokenizer):
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in tokenizer("a")
    processor = UnicornProcessor(tokenizer)
    texts = (
        processor(text="a"),
        processor.apply_chat_template(STRING[:1], image_embeds=np.ones(5), tokenize=True, return_dict=True),
    )
    assert all("token_type_ids" not in each for each in (*texts, processor.model_input_names))


BAD_INPUT = {
    "another dimension": (
        dict(text="<image>", image_embeds=np.ones(7)),
        "vector 0 has 7 dimensions, but this model reads vectors of 12 dimensions of the encoder 'tiny-clip'",
    ),
    "NaN": (dict(text="<image>", image_embeds=np.full(EMBED_DIM, np.nan)), "vector 0 holds NaN or infinite values"),
    "infinite in float16": (
        dict(text=["<image>"] * 2, image_embeds=np.array([[1.0], [np.inf]], np.float16).repeat(EMBED_DIM, 1)),
        "vector 1 holds NaN or infinite values",
    ),
    "no vectors": (
        dict(text=["a", "<image>"]),
        "prompts have 1 <image> placeholders, but 0 images were passed: the first without an image is in prompt 1",
    ),
    "too few": (
        dict(text=["<image>", "<image><image>"], image_embeds=VECTORS[:2]),
        "have 3 <image> placeholders, but 2 images were passed: the first without an image is in prompt 1",
    ),
    "too many": (dict(text=["a", "<image>"], image_embeds=VECTORS), "have 1 <image> placeholders, but 3 images were"),
    "in the wrong prompt": (
        dict(text=["<image>", "b"], image_embeds=[None, VECTORS[:1]]),
        "Prompt 0 has 1 <image> placeholders, but 0 images",
    ),
    "for other prompts": (dict(text=["<image>"], image_embeds=[[VECTORS[0]], []]), "for 2 prompts, but 1 prompts"),
    "both": (dict(text="<image>", image_embeds=VECTORS[:1], images=VECTORS[0]), "both images and image_embeds"),
    "a picture without a tower": (
        dict(text="<image>", images=Image.new("RGB", (8, 8))),
        "no image_processor, .* vectors of the encoder 'tiny-clip'",
    ),
    "nothing": ({}, "Pass text, images or image_embeds"),
    "a film": (dict(text="a", videos=[1]), "reads images and text"),
    "cut placeholders": (
        dict(text="a <image>", image_embeds=VECTORS[:1], truncation=True, max_length=3),
        "Mismatch in `image` token count .* disable truncation or increase `max_length`",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_in_one_sentence(processor, case):
    inputs, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


@pytest.mark.parametrize("with_image_processor", [False, True])
def test_processor_saves_and_loads(tokenizer, tmp_path, with_image_processor):
    image_processor = CLIPImageProcessor(crop_size=16, size={"shortest_edge": 16}) if with_image_processor else None
    saved = UnicornProcessor(tokenizer, image_processor, num_image_tokens=4, embed_dim=8, image_encoder="tiny-clip")
    saved.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is UnicornProcessor
    assert loaded.to_dict() == {name: value for name, value in saved.to_dict().items() if name != "auto_map"}
    assert loaded.chat_template == saved.chat_template
    assert loaded.get_vocab() == saved.get_vocab()
    assert loaded.model_input_names == saved.model_input_names
    text = ["<image> x"]
    assert (
        loaded(text=text, image_embeds=np.ones(8))["input_ids"]
        == saved(text=text, image_embeds=np.ones(8))["input_ids"]
    )
    if with_image_processor:
        picture = Image.effect_noise((32, 20), 50)
        pixels = [one(images=picture, return_tensors="pt")["pixel_values"] for one in (loaded, saved)]
        assert torch.equal(*pixels) and pixels[0].shape == (1, 3, 16, 16)


def test_tokenizer_without_padding_token_pads_with_its_end_token(tokenizer):
    tokenizer.pad_token = None
    assert UnicornProcessor(tokenizer).tokenizer.pad_token == tokenizer.eos_token


# Pictures


@pytest.fixture
def pictures(tokenizer):
    """A function from a picture to the pixels that the model gets: 8 x 8 RGB, 0 to 255."""
    image_processor = CLIPImageProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False, do_convert_rgb=True
    )
    processor = UnicornProcessor(tokenizer, image_processor)
    return lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()


RED = Image.new("RGB", (8, 8), (255, 0, 0))


def png(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def test_pictures_come_as_object_path_data_url_or_array(pictures, tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(png(RED))
    data_url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    array = np.asarray(RED)
    forms = [RED, path, str(path), data_url, array, array.transpose(2, 0, 1), torch.tensor(array), array / 255.0]
    for form in forms:
        assert (pictures(form) == array).all(), form


def test_pictures_come_from_a_url(pictures, tmp_path):
    import functools
    import http.server
    import threading

    (tmp_path / "red.png").write_bytes(png(RED))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert (pictures(f"http://127.0.0.1:{server.server_port}/red.png") == np.asarray(RED)).all()
        server.shutdown()


def test_exif_rotation_is_honoured(pictures, tmp_path):
    picture = Image.new("RGB", (8, 4), "black")
    picture.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    path = tmp_path / "turned.jpg"
    picture.save(path, exif=exif, quality=100, subsampling=0)
    pixels = pictures(path)
    assert pixels.shape == (8, 4, 3)
    assert pixels[:3].min() > 240 and pixels[5:].max() < 15


KINDS = {
    "transparent": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
    "half transparent": (Image.new("RGBA", (8, 8), (255, 0, 0, 128)), (255, 127, 127)),
    "grey with alpha": (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
    "palette": (RED.quantize(4), (255, 0, 0)),
    "grey": (Image.new("L", (8, 8), 77), (77, 77, 77)),
    "black and white": (Image.new("1", (8, 8), 1), (255, 255, 255)),
    "CMYK": (RED.convert("CMYK"), (255, 0, 0)),
    "16 bits": (Image.fromarray(np.full((8, 8), 257 * 77, np.uint16)), (77, 77, 77)),
    "32 bits": (Image.fromarray(np.full((8, 8), 257 * 77, np.int32)), (77, 77, 77)),
    "float": (Image.fromarray(np.full((8, 8), 0.2, np.float32)), (51, 51, 51)),
    "16-bit colour array": (np.full((8, 8, 3), (65535, 0, 257 * 51), np.uint16), (255, 0, 51)),
    "array with alpha": (np.zeros((8, 8, 4), np.uint8), (255, 255, 255)),
    "grey array": (np.full((8, 8), 77, np.uint8), (77, 77, 77)),
    "grey array with a channel": (np.full((8, 8, 1), 77, np.uint8), (77, 77, 77)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_becomes_rgb(pictures, kind):
    picture, colour = KINDS[kind]
    assert np.abs(pictures(picture) - np.array(colour)).max() <= 1


def test_a_palette_with_a_transparent_colour_lies_on_white(pictures, tmp_path):
    path = tmp_path / "palette.png"
    RED.quantize(4).save(path, transparency=0)
    assert (pictures(path) == 255).all()


def test_sixteen_bit_files_keep_their_greys(pictures, tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
        assert np.abs(pictures(tmp_path / f"ramp.{suffix}")[..., 0] - ramp / 257).max() <= 1


def test_real_photographs_are_read_as_pillow_reads_them(pictures):
    data = pytest.importorskip("skimage.data", reason="the test pictures are those that scikit-image ships")
    for name in ("astronaut", "coffee", "chelsea", "camera", "page"):
        array = getattr(data, name)()
        expected = np.asarray(Image.fromarray(array).convert("RGB"))
        assert (pictures(array) == expected).all(), name
        jpeg = Image.open(io.BytesIO(png(Image.fromarray(array), format="JPEG")))
        assert np.abs(pictures(jpeg) - np.asarray(jpeg.convert("RGB"))).max() == 0, name
    logo = data.logo() if hasattr(data, "logo") else None
    if logo is not None and logo.shape[-1] == 4:
        clear = logo[..., 3] == 0
        assert (pictures(logo)[clear] == 255).all()


def test_a_file_that_is_no_picture_is_told_by_name(pictures, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture")
    with pytest.raises(ValueError, match=r"notes\.jpg.* cannot be read as an image"):
        pictures(path)
    with pytest.raises(ValueError, match=r"missing\.jpg.* cannot be read as an image"):
        pictures(tmp_path / "missing.jpg")
    cut = tmp_path / "cut.png"
    cut.write_bytes(png(Image.effect_noise((64, 64), 100))[:500])
    with pytest.raises(ValueError, match=r"cut\.png.* cannot be read as an image"):
        pictures(cut)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(pictures, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (2000, 2000)).save(path)
    assert path.stat().st_size < 2000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)  # Pillow warns above it, and refuses twice as many
    with pytest.raises(ValueError, match=r"bomb\.png.* larger than the 3000000 pixels"):
        pictures(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=r"bomb\.png.* larger than the 1000000 pixels"):
        pictures(path)
