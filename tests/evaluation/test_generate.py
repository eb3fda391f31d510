"""`unicorn-hf generate`: the answer on the terminal, or one sentence about what is wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unicorn_hf.cli import main
from unicorn_hf.evaluation.images import answer, encode_images

QUESTION = "what color is the image ?"


@pytest.fixture
def generate(model_folder, monkeypatch, capsys):
    def generate(*arguments, model=model_folder):
        options = map(str, ("generate", model, QUESTION, "--max-new-tokens", 12, *arguments))
        monkeypatch.setattr(sys, "argv", ["unicorn-hf", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out.strip(), captured.err

    return generate


@pytest.fixture
def files(images, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_answer_is_about_the_images_that_are_given(generate, model_and_processor, images, files, count):
    arguments = [argument for file in files[:count] for argument in ("--image", file)]
    status, said, _ = generate(*arguments)
    vectors = encode_images(*model_and_processor, images[:count])
    assert (status, said) == (0, answer(*model_and_processor, QUESTION, vectors, max_new_tokens=12))


def test_another_image_has_another_answer(generate, files):
    assert len({generate("--image", file)[1] for file in files}) > 1


def test_an_empty_answer_is_said_to_be_one(generate, monkeypatch):
    monkeypatch.setattr("unicorn_hf.evaluation.answering.ask", lambda *_, **__: "")
    status, said, message = generate()
    assert (status, said) == (0, "") and "answer is empty" in message


def test_a_temperature_samples(generate, files):
    torch.manual_seed(0)
    answers = {generate("--image", files[0], "--temperature", 2)[1] for _ in range(3)}
    assert len(answers) > 1


def one_sentence(result, *words):
    status, _, message = result
    (sentence,) = (line for line in message.splitlines() if line.startswith("unicorn-hf: "))
    assert status == 2 and "Traceback" not in message
    for word in words:
        assert word in sentence


def test_an_image_that_is_not_there(generate, tmp_path):
    one_sentence(generate("--image", tmp_path / "cat.jpg"), "cat.jpg", "no such image")


def test_a_file_that_is_no_image(generate, tmp_path):
    (tmp_path / "cat.jpg").write_text("meow")
    one_sentence(generate("--image", tmp_path / "cat.jpg"), "cat.jpg", "cannot be read as an image")


def test_a_model_that_is_not_there(generate, tmp_path):
    one_sentence(generate(model=tmp_path / "none"), "none", "cannot be loaded as a model")


def test_a_model_that_does_not_say_its_encoder(generate, model_folder, files, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = (folder / "config.json").read_text()
    assert '"image_encoder": "sandbox"' in config
    (folder / "config.json").write_text(config.replace('"image_encoder": "sandbox"', '"image_encoder": null'))
    one_sentence(generate("--image", files[0], model=folder), "does not say whose vectors it reads", "--encoder")
    named = generate("--image", files[0], "--encoder", "sandbox", model=folder)
    assert named[:2] == generate("--image", files[0])[:2]


def test_an_unknown_encoder_or_transfer(generate, files, tmp_path):
    one_sentence(generate("--image", files[0], "--encoder", "resnet"), "'resnet'", "open_clip/")
    one_sentence(generate("--image", files[0], "--transfer", tmp_path / "none"), "none")


def test_a_device_or_a_dtype_that_is_not_there(generate):
    for device in ("nonsense", "cuda:99", "cpu:x"):
        one_sentence(generate("--device", device), device, "cannot be used here")
    one_sentence(generate("--dtype", "nonsense"), "nonsense", "expected one of auto")


@pytest.fixture
def copy_of_model(model_folder, tmp_path):
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.mark.parametrize("size", [0, 4, 100, -100])
def test_weights_that_are_cut_short(generate, copy_of_model, size):
    weights = copy_of_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    one_sentence(generate(model=copy_of_model), "copy", "cannot be loaded as a model")


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_a_model_that_is_damaged(generate, copy_of_model, name):
    path = copy_of_model / name
    for text in (path.read_text()[:20], "[]", "null", "\x00\x01"):
        path.write_text(text)
        one_sentence(generate(model=copy_of_model), "copy", "cannot be loaded as a model")


@pytest.mark.parametrize("template", ["{{ messages.__class__.__mro__ }}", "{{ messages + 1 }}", "{% for"])
def test_a_chat_template_that_cannot_write_a_question(generate, copy_of_model, template):
    (copy_of_model / "chat_template.jinja").write_text(template)
    one_sentence(generate(model=copy_of_model), "copy", "chat template")


@pytest.mark.parametrize("question", ["<image>", "red <image><image> ?", "<im<image>age> ?", "<i<im<image>age>mage>"])
def test_a_question_that_spells_the_placeholder_is_asked(question, model_and_processor):
    for vectors in ([], torch.ones(1, 128).numpy()):
        assert isinstance(answer(*model_and_processor, question, vectors, max_new_tokens=2), str)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_that_a_model_brings_is_refused_without_asking(generate, copy_of_model, name, monkeypatch):
    path = copy_of_model / name
    classes = {
        "config.json": ("AutoConfig", "AutoModelForImageTextToText"),
        "processor_config.json": ("AutoProcessor",),
    }
    foreign = {each: "foreign.Foreign" for each in classes.get(name, ("AutoTokenizer", "AutoProcessor"))}
    if name == "tokenizer_config.json":
        foreign = {"AutoTokenizer": [None, "foreign.Foreign"], "AutoProcessor": "foreign.Foreign"}
    settings = json.loads(path.read_text()) | {"auto_map": foreign}
    kind = {"config.json": "model_type", "processor_config.json": "processor_class"}.get(name, "tokenizer_class")
    settings[kind] = "foreign"
    path.write_text(json.dumps(settings))
    (copy_of_model / "foreign.py").write_text("raise SystemExit('foreign code ran')\n")

    def ask(*_):
        raise AssertionError("a question at the prompt")

    monkeypatch.setattr("builtins.input", ask)
    one_sentence(generate(model=copy_of_model), "its own code", "--trust-remote-code")


@pytest.mark.parametrize(("damage", "said"), [("gone", "lacks 1 of the model's weights"), ("nan", "holds NaN")])
def test_weights_that_are_missing_or_not_finite(generate, copy_of_model, damage, said):
    file = copy_of_model / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "multi_modal_projector" in name and name.endswith("bias"))
    if damage == "gone":
        del weights[name]
    else:
        weights[name][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    one_sentence(generate(model=copy_of_model), "copy", said)
