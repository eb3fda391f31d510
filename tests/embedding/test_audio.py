"""Sounds in the place of pictures: CLAP's vectors, the same transfer, the same model."""

import io
import json
import wave

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, LlamaConfig, RobertaTokenizer
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration

from unicorn_hf import ModalityTransfer, embed, load_encoder
from unicorn_hf.data.sources import read_dataset

from .conftest import save_transformers

pytest.importorskip("soundfile", reason="needs the extra [audio]")
pytest.importorskip("soxr", reason="needs the extra [audio]")

RATE = 8000
CAPTIONS = ["a dog barks", "rain on a roof", "a bell", "two people talk", "a car starts", "birds sing"]


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """A CLAP of random weights that hears the first second of a sound, at 8,000 samples a second."""
    torch.manual_seed(0)
    letters = sorted({letter for caption in CAPTIONS for letter in caption.replace(" ", "Ġ")})
    vocab = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = RobertaTokenizer(vocab=vocab, merges=[], model_max_length=77)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(vocab), "max_position_embeddings": 80, "pad_token_id": 1}
    audio = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}
    audio |= {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "num_hidden_layers": 2}
    audio |= {"hidden_size": 16}
    sizes = {"feature_size": 16, "hop_length": 100, "fft_window_size": 256, "frequency_max": 4000}
    extractor = ClapFeatureExtractor(**sizes, sampling_rate=RATE, max_length_s=1, truncation="rand_trunc")
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24))
    return save_transformers(tmp_path_factory.mktemp("clap") / "clap", model, tokenizer, extractor)


def sound(pitch, seconds=1.0, rate=RATE, channels=1) -> bytes:
    samples = np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate) * 20000
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(channels)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes(np.repeat(samples.astype("<i2"), channels).tobytes())
    return file.getvalue()


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{pitch}.wav" for pitch in range(200, 200 + 40 * len(CAPTIONS), 40)]
    for path in paths:
        path.write_bytes(sound(int(path.stem)))
    return list(map(str, paths))


def test_a_sound_has_the_vector_that_the_model_itself_gives(clap, files):
    import soundfile

    samples, _ = soundfile.read(files[0], dtype="float32")
    inputs = ClapFeatureExtractor.from_pretrained(clap)(samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = ClapModel.from_pretrained(clap).eval().get_audio_features(**inputs).pooler_output
    vectors = load_encoder(clap, device="cpu").encode_images(files)
    np.testing.assert_allclose(vectors[:1], torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4


def test_another_rate_more_channels_and_a_longer_sound_are_the_same_sound(clap):
    encoder = load_encoder(clap, device="cpu")
    (plain, *others, longer, again) = encoder.encode_images(
        [sound(440), sound(440, rate=16000), sound(440, channels=2), sound(440, seconds=3), sound(440, seconds=3)]
    )
    for other in (*others, longer):
        assert plain @ other > 0.999
    np.testing.assert_array_equal(longer, again)  # no part of it is drawn at random


@pytest.mark.parametrize("kind", ["paths", "audio"])
def test_a_column_of_sounds_becomes_image_embeds(kind, clap, files, tmp_path):
    rows = {"id": list("abcdef"), "audio": files}
    if kind == "paths":
        data = tmp_path / "sounds.jsonl"
        Dataset.from_dict(rows).to_json(data)
    else:
        rows["audio"] = [{"bytes": None, "path": file} for file in files]
        data = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    embedded = embed(data, tmp_path / "out", encoder=str(clap))
    vectors = load_encoder(clap, device="cpu").encode_images(files)
    np.testing.assert_allclose(np.array(embedded["image_embeds"][:]), vectors, atol=1e-3)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["embedded"], summary["failed"]) == (6, 0)


def test_what_is_no_sound_is_listed_with_the_reason(clap, files, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing else")
    (tmp_path / "silent.wav").write_bytes(sound(440, seconds=0))
    names = [files[0], *(str(tmp_path / name) for name in ("broken.wav", "silent.wav", "missing.wav"))]
    embed(Dataset.from_dict({"audio": names}), tmp_path / "out", encoder=str(clap))
    failed = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert [each["row"] for each in failed] == [1, 2, 3]
    assert "the sound is empty" in failed[1]["reason"]


def test_captions_moved_into_the_space_of_sounds_train_a_model_that_answers_about_a_sound(clap, files, tmp_path):
    """The same road as for pictures: what is called image_embeds are vectors of sounds."""
    captions = Dataset.from_dict({"id": list("abcdef"), "caption": CAPTIONS})
    texts = embed(captions, tmp_path / "texts", encoder=str(clap))
    sounds = embed(
        Dataset.from_dict({"audio": files}), tmp_path / "sounds", encoder=str(clap), remove_columns=["audio"]
    )
    transfer = ModalityTransfer.fit(tmp_path / "texts", tmp_path / "sounds", method="realign")
    transfer.apply(tmp_path / "texts", tmp_path / "moved")
    moved = np.array(read_dataset(tmp_path / "moved")["image_embeds"][:], np.float32)
    heard = np.array(sounds["image_embeds"][:], np.float32)
    before = np.array(texts["text_embeds"][:], np.float32)
    assert np.linalg.norm(moved.mean(0) - heard.mean(0)) < np.linalg.norm(before.mean(0) - heard.mean(0)) / 4

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = UnicornForConditionalGeneration(
        UnicornConfig.from_text_config(LlamaConfig(**tiny, vocab_size=30), embed_dim=24)
    )
    ids = torch.tensor([[model.config.image_token_id, 3]] * 6)
    loss = model(ids, image_embeds=torch.tensor(moved), labels=ids).loss
    loss.backward()
    assert model.model.multi_modal_projector.layers[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        logits = model(ids, image_embeds=torch.tensor(heard)).logits
    assert (logits[0] - logits[1]).abs().max() > 0


def test_a_missing_library_is_one_sentence(clap, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "soxr" else find(name, *rest))
    with pytest.raises(ImportError, match=r"unicorn-hf\[audio\]"):
        load_encoder(clap, device="cpu")
