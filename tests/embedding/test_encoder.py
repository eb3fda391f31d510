import html
import re

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unicorn_hf.embedding import load_encoder
from unicorn_hf.embedding.open_clip_towers import create_open_clip
from unicorn_hf.errors import InputError, MissingExtraError

from .conftest import CAPTIONS, LONG_CAPTION

TEXTS = [*CAPTIONS, LONG_CAPTION]


def pictures() -> list[Image.Image]:
    """Noise of several shapes, so that every transform has to resize and crop."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (h, w, 3), np.uint8)) for h, w in ((40, 50), (64, 33), (32, 32))]


@pytest.fixture(
    params=[
        "open_clip_resnet",
        "open_clip_vit",
        "open_clip_siglip",
        "transformers_clip",
        "transformers_siglip",
        "transformers_siglip2",
        "llm2clip",
        "sentence_transformers_clip",
    ]
)
def encoder(request):
    folder = request.getfixturevalue(request.param)
    name = "llm2clip/{}+{}".format(*folder) if request.param == "llm2clip" else str(folder)
    return load_encoder(name, device="cpu")


@pytest.fixture(scope="module")
def sandbox_encoder():
    return load_encoder("sandbox", device="cpu")


def unit(features) -> np.ndarray:
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    return torch.nn.functional.normalize(features, dim=-1).detach().numpy()


def test_rows_are_unit_length_float32_in_the_order_of_the_input(encoder):
    vectors = encoder.encode_text(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.embed_dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(TEXTS[::-1]), vectors[::-1], atol=1e-5)
    images = encoder.encode_images(pictures())
    assert images.shape == (3, encoder.embed_dim) and images.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a dog"], b"a dog"])
def test_what_is_no_text_is_named(sandbox_encoder, value):
    with pytest.raises(InputError, match="text 1 of 2 is "):
        sandbox_encoder.encode_text(["a dog", value])


def test_one_text_or_image_in_place_of_a_list_is_refused(sandbox_encoder):
    with pytest.raises(InputError, match="list of texts"):
        sandbox_encoder.encode_text("a dog")
    with pytest.raises(InputError, match="list of images"):
        sandbox_encoder.encode_images("dog.png")


def test_a_batch_gives_what_one_by_one_gives(encoder):
    one_by_one = np.concatenate([encoder.encode_text([text]) for text in TEXTS])
    for batch_size in ("auto", 1, 2, 5):
        np.testing.assert_allclose(encoder.encode_text(TEXTS, batch_size=batch_size), one_by_one, atol=1e-5)
    one_by_one = np.concatenate([encoder.encode_images([image]) for image in pictures()])
    np.testing.assert_allclose(encoder.encode_images(pictures(), batch_size=2), one_by_one, atol=1e-5)


SPECIAL_TOKENS = {
    "open_clip_resnet": ["<end_of_text>", "<START_OF_TEXT>", "&lt;end_of_text&gt;", "&amp;amp;lt;end_of_text&gt;"],
    "open_clip_siglip": ["<end_of_text>"],
    "transformers_clip": ["<|endoftext|>", "<|startoftext|>"],
    "transformers_siglip": ["<eos>", "<pad>", "<mask>"],
    "fixed_resolution_siglip2": ["<eos>", "<bos>"],
    "transformers_siglip2": ["<eos>", "<pad>"],
    "llm2clip": ["<|eot_id|>", "<|end_header_id|>"],
    "sentence_transformers_clip": ["<|endoftext|>"],
}


@pytest.mark.parametrize("fixture", SPECIAL_TOKENS)
def test_a_special_token_that_a_caption_spells_is_text(fixture, request):
    folder = request.getfixturevalue(fixture)
    encoder = load_encoder("llm2clip/{}+{}".format(*folder) if fixture == "llm2clip" else str(folder), device="cpu")
    cut = encoder.encode_text(["a red circle"])
    for token in SPECIAL_TOKENS[fixture]:
        words = re.sub(r"[<>|]", "", html.unescape(html.unescape(html.unescape(token))))
        vectors = encoder.encode_text([f"a red circle {token} on green", f"a red circle {words} on green"])
        np.testing.assert_array_equal(vectors[0], vectors[1], err_msg=token)
        assert np.abs(vectors[0] - cut).max() > 1e-3, token


@pytest.mark.parametrize("folder", ["open_clip_resnet", "open_clip_vit", "open_clip_siglip"])
def test_open_clip_vectors_equal_the_library_s_own(folder, request):
    folder = request.getfixturevalue(folder)
    encoder = load_encoder(f"open_clip/{folder}", device="cpu")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), unit(model.encode_text(tokens)), atol=1e-5)
    pixels = torch.stack([preprocess(image) for image in pictures()])
    np.testing.assert_allclose(encoder.encode_images(pictures()), unit(model.encode_image(pixels)), atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "padding"),
    [("transformers_clip", True), ("transformers_siglip", "max_length"), ("transformers_siglip2", "max_length")],
)
def test_transformers_vectors_equal_the_library_s_own(folder, padding, request):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = request.getfixturevalue(folder)
    encoder = load_encoder(f"transformers/{folder}", device="cpu")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")
    if padding == "max_length":
        inputs = {"input_ids": inputs["input_ids"]}
    np.testing.assert_allclose(encoder.encode_text(TEXTS), unit(model.get_text_features(**inputs)), atol=1e-5)
    inputs = AutoImageProcessor.from_pretrained(folder)(images=pictures(), return_tensors="pt")
    np.testing.assert_allclose(encoder.encode_images(pictures()), unit(model.get_image_features(**inputs)), atol=1e-5)


def test_a_fixed_resolution_siglip2_reads_lower_case_as_it_was_trained(transformers_siglip, fixed_resolution_siglip2):
    from transformers import AutoTokenizer

    as_released = AutoTokenizer.from_pretrained(fixed_resolution_siglip2)
    assert as_released("A Cat").input_ids != as_released("a cat").input_ids
    texts = ["A Cat", "a cat", "ΟΔΟΣ, İstanbul, STRASSE"]
    vectors = load_encoder(fixed_resolution_siglip2, device="cpu").encode_text(texts)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    expected = load_encoder(transformers_siglip, device="cpu").encode_text(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_every_pretrained_tag_of_open_clip_runs_the_activation_it_was_trained_with(monkeypatch):
    """Walks all tags: what `create_open_clip` asks for is an architecture with the tag's activation."""
    asked = {}

    def create(model_name, pretrained, *, force_quick_gelu=False, **_):
        quick_gelu = force_quick_gelu or open_clip.get_model_config(model_name).get("quick_gelu", False)
        asked[model_name, pretrained] = bool(quick_gelu)
        return None, None

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: None)
    for architecture, tag in open_clip.list_pretrained():
        create_open_clip("", f"{architecture}/{tag}")
    trained = {pair: bool(open_clip.get_pretrained_cfg(*pair).get("quick_gelu")) for pair in asked}
    assert len(asked) == len(open_clip.list_pretrained()) and sum(trained.values()) > 26
    # These two tags say nothing, and their architectures were made for them.
    said_by_the_architecture = {
        ("roberta-ViT-B-32", "laion2b_s12b_b32k"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide"),
    }
    assert {pair for pair in asked if asked[pair] != trained[pair]} <= said_by_the_architecture


def test_sentence_transformers_vectors_equal_the_library_s_own(sentence_transformers_clip):
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(sentence_transformers_clip, device="cpu")
    model = SentenceTransformer(str(sentence_transformers_clip), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-5)
    expected = model.encode(pictures(), normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_images(pictures()), expected, atol=1e-5)


def llm2clip_by_hand(clip, llm, text: str) -> np.ndarray:
    """One caption without padding or batches, written out from the method: turn, bidirectional Llama, mean, adapter."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm)
    model = AutoModel.from_pretrained(llm, attn_implementation="eager").eval()
    header = "<|start_header_id|>user<|end_header_id|>\n\n"
    ids = tokenizer(f"{header}{text}<|eot_id|>").input_ids[:512]
    mask = torch.zeros(1, 1, len(ids), len(ids))  # every position sees every other
    hidden = model(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
    x = unit(hidden[len(tokenizer(header).input_ids) :].mean(0, keepdim=True))
    weights = {
        key.removeprefix("text_adapter.adaptor."): tensor
        for key, tensor in load_file(clip / "model.safetensors").items()
    }
    x = torch.from_numpy(x)
    for block in "01":
        y = torch.nn.functional.layer_norm(x, x.shape[1:], weights[f"{block}.ln.weight"], weights[f"{block}.ln.bias"])
        y = torch.nn.functional.gelu(y @ weights[f"{block}.fn.0.weight"].T + weights[f"{block}.fn.0.bias"])
        x = x + y @ weights[f"{block}.fn.3.weight"].T + weights[f"{block}.fn.3.bias"]
    x = torch.nn.functional.layer_norm(x, x.shape[1:], weights["2.weight"], weights["2.bias"])
    return unit(x @ weights["3.weight"].T + weights["3.bias"])[0]


def test_llm2clip_text_vectors_equal_the_method_written_out_by_hand(llm2clip):
    encoder = load_encoder("llm2clip/{}+{}".format(*llm2clip), device="cpu")
    expected = np.stack([llm2clip_by_hand(*llm2clip, text) for text in CAPTIONS])
    np.testing.assert_allclose(encoder.encode_text(CAPTIONS), expected, atol=1e-5)


def test_llm2clip_reads_no_white_space_around_a_text(llm2clip):
    encoder = load_encoder("llm2clip/{}+{}".format(*llm2clip), device="cpu")
    around = [
        f"{before}{CAPTIONS[0]}{behind}" for before, behind in (("", " "), (" ", ""), ("", "\n"), ("\t ", " \n\n"))
    ]
    expected = np.stack([llm2clip_by_hand(*llm2clip, CAPTIONS[0])] * len(around))
    np.testing.assert_allclose(encoder.encode_text(around), expected, atol=1e-5)


def test_llm2clip_names_a_language_model_that_does_not_fit(llm2clip, models):
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    wide = models / "wide_llama"
    if not wide.exists():
        AutoTokenizer.from_pretrained(llm2clip[1]).save_pretrained(wide)
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaModel(LlamaConfig(**sizes, vocab_size=300)).save_pretrained(wide)
    with pytest.raises(InputError, match=r"takes vectors of 32 dimensions, .* gives 64"):
        load_encoder(f"llm2clip/{llm2clip[0]}+{wide}", device="cpu")


def test_mean_of_windows_is_the_unit_mean_of_the_windows_vectors(open_clip_resnet):
    encoder = load_encoder(open_clip_resnet, device="cpu")
    windows = encoder.tokenizer([LONG_CAPTION])[0]
    assert len(windows) > 1
    vectors = [encoder.forward(encoder.text_tower, encoder.tokenizer.pad([window])) for window in windows]
    expected = unit(torch.cat(vectors).mean(0, keepdim=True))
    got = encoder.encode_text(["short", LONG_CAPTION, "other"], overflow="mean")
    np.testing.assert_allclose(got[1:2], expected, atol=1e-5)
    np.testing.assert_allclose(got[[0, 2]], encoder.encode_text(["short", "other"]), atol=1e-5)


def test_a_text_that_overflows_is_an_error_where_asked_for(open_clip_resnet):
    encoder = load_encoder(open_clip_resnet, device="cpu")
    with pytest.raises(InputError, match=r"text 1 .* longer than the encoder's 77 tokens"):
        encoder.encode_text(["short", LONG_CAPTION], overflow="error")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_to_float32(encoder, dtype):
    half = load_encoder(encoder.name, device="cpu", dtype=dtype)
    assert (half.encode_text(TEXTS) * encoder.encode_text(TEXTS)).sum(1).min() > 0.995
    assert (half.encode_images(pictures()) * encoder.encode_images(pictures())).sum(1).min() > 0.995


def test_missing_weights_are_refused(transformers_clip, tmp_path):
    import shutil

    folder = shutil.copytree(transformers_clip, tmp_path / "broken")
    weights = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}  # not mapped
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights, text_projection\.weight"):
        load_encoder(folder, device="cpu")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"the weight text_projection\.weight has the shape \[3, 3\]; its config\.json"
    ):
        load_encoder(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("clip-vit", r"is not known; expected sandbox, open_clip/"),
        ("open_clip/ViT-B-32", "no weights '' for ViT-B-32; expected one of openai"),
        ("open_clip/ViT-B-33/openai", "no architecture 'ViT-B-33'"),
        ("transformers/no/such-model", "cannot be loaded"),
        ("llm2clip/only-one", "expected llm2clip/<clip repository>"),
    ],
)
def test_an_unusable_name_is_one_sentence(name, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=reason) as error:
        load_encoder(name)
    assert "\n" not in str(error.value)


def test_a_text_model_without_an_image_tower_is_refused(llm2clip):
    with pytest.raises(InputError, match=r"lacks a text or an image tower|cannot be loaded"):
        load_encoder(llm2clip[1], device="cpu")


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "open_clip" else real(name))
    with pytest.raises(MissingExtraError, match=r"unicorn-hf\[clip\]"):
        load_encoder("open_clip/ViT-B-32/openai")


@pytest.mark.slow  # the compiler takes its time
def test_compiled_towers_give_the_same_vectors(transformers_clip):
    encoder, compiled = (load_encoder(transformers_clip, device="cpu", compile=each) for each in (False, True))
    for texts in (TEXTS, TEXTS[:2]):  # another batch size and length
        np.testing.assert_allclose(compiled.encode_text(texts), encoder.encode_text(texts), atol=1e-5)
    np.testing.assert_allclose(compiled.encode_images(pictures()), encoder.encode_images(pictures()), atol=1e-5)
