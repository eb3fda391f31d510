"""The converter, on tiny checkpoints in the released layout, against the released way of reading them."""

import json
import pickle

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tiny_models import EMBED_DIM, FAMILIES, SIZES
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from unicorn_hf.cli import app
from unicorn_hf.errors import InputError

COPIES = 576


# Of each family: its words' pattern, its begin token if it writes one, its own end token, and the released turn's end.
SPLIT = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PROMPTS = {
    "llama": (SPLIT, "<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),
    "llama-instruct": (SPLIT, "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"),
    "qwen2": (SPLIT.replace("{1,3}", ""), None, "<|endoftext|>", "<|endoftext|>"),
    "qwen2-instruct": (SPLIT.replace("{1,3}", ""), None, "<|im_end|>", "<|endoftext|>"),
    "phi": (None, None, "<|endoftext|>", "<|endoftext|>"),
    "phi3": (SPLIT, "<s>", "<|endoftext|>", "<|endoftext|>"),
    "stablelm": (SPLIT, None, "<|endoftext|>", "<|endoftext|>"),
}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions."
)
WORDS = [SYSTEM, "USER: What is in the picture? ASSISTANT: A red car, and 2 dogs.", "How many of them? There are 42."]
QUESTIONS = ["What is in the picture?", "How many?\nAnswer with a number.", "Où est le café ☕?"]
ANSWERS = ["A red car, and 2 dogs.", "42", "(none)", "\nTwo lines:\n- one\n- two", "«Ça va», 猫。", "yes"]
# One turn, several turns, and text alone: 18 of them.
SAMPLES = [
    [(f"<image>\n{QUESTIONS[i % 3]}", ANSWERS[i]), *[(QUESTIONS[j % 3], ANSWERS[(i + j) % 6]) for j in range(i % 4)]]
    for i in range(6)
]
SAMPLES += [[(f"<image>\n{question}", answer)] for question, answer in zip(QUESTIONS * 2, ANSWERS, strict=True)]
SAMPLES += [[(QUESTIONS[i % 3], ANSWERS[i]), (QUESTIONS[(i + 1) % 3], ANSWERS[5 - i])] for i in range(6)]


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the family's pattern, begin token and end tokens."""
    pattern, begin, end, turn_end = PROMPTS[name]
    bpe = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern is not None else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys(token for token in (begin, turn_end, end, "<|pad|>") if token))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=alphabet)
    bpe.train_from_iterator(WORDS * 3, trainer)
    if begin is not None:
        marks = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, bpe.token_to_id(begin))])
        bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=begin or end, eos_token=end, pad_token="<|pad|>", model_max_length=4096
    )


def sentencepiece_tokenizer(prepend_scheme: str) -> PreTrainedTokenizerFast:
    """What a `tokenizer.model` becomes: pieces that begin with their space, a begin token, and a space before a text.

    Args:
        prepend_scheme: "always" behind special tokens too, as the slow tokenizers of old do; "first": before a text
            alone, as newer settings (`legacy=False`) have it.
    """
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    unigram.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    specials = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|pad|>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=specials, unk_token="<unk>", show_progress=False)
    unigram.train_from_iterator((WORDS + QUESTIONS + ANSWERS) * 5, trainer)
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", unigram.token_to_id("<s>"))]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=unigram, model_max_length=4096, **names)


def released_ids(text: str, tokenizer) -> list[int]:
    """The pieces between the images one by one, each without its begin token but the first; -200 for an image."""
    pieces = [tokenizer(piece)["input_ids"] for piece in text.split("<image>")]
    has_begin = pieces[0][:1] == [tokenizer.bos_token_id]
    ids = pieces[0]
    for piece in pieces[1:]:
        ids = [*ids, -200, *piece[has_begin:]]
    return ids


def released_text(turns, turn_end: str) -> str:
    return f"{SYSTEM} " + "".join(f"USER: {question} ASSISTANT: {answer}{turn_end}" for question, answer in turns)


def released_labels(turns, tokenizer, turn_end: str) -> list[int] | None:
    """Each round counted in tokens alone: its question is masked up to the colon, and its answer and end are learnt.

    None where the rounds alone have other tokens than together: the released code then warns, and learns nothing.
    """
    ids = released_ids(released_text(turns, turn_end), tokenizer)
    begin = int(ids[0] == tokenizer.bos_token_id and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    labels, place = [-100] * begin + ids[begin:], begin
    for round_ in released_text(turns, turn_end).split(turn_end)[:-1]:
        question = round_.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        masked = len(released_ids(question, tokenizer)) - 1 - begin
        labels[place : place + masked] = [-100] * masked
        place += len(released_ids(round_, tokenizer)) + 1 - begin
    return labels if place == len(ids) else None


@pytest.fixture
def released(tokenizer, tmp_path):
    """A folder as the released training leaves it, and the language model and the projector in it."""

    def write(family="llama", layout="safetensors", projector_type="mlp2x_gelu", tied=False, tokenizer=tokenizer):
        folder = tmp_path / "released"
        sizes = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied, "max_position_embeddings": 2048}
        config = FAMILIES[family](**sizes) if family in FAMILIES else AutoConfig.for_model(family, **SIZES | sizes)
        causal_lm = AutoModelForCausalLM.from_config(config).eval()
        layers = [torch.nn.Linear(EMBED_DIM, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)]
        projector = torch.nn.Sequential(*layers) if projector_type == "mlp2x_gelu" else layers[0]
        weights = causal_lm.state_dict()
        if tied:
            del weights["lm_head.weight"]
        weights.pop("lm_head.bias", None)  # Bunny's phi has none
        weights |= {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
        weights = {name: value.detach().clone() for name, value in weights.items()}
        folder.mkdir()
        if layout == "safetensors":
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            shards = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
            for index, (name, value) in enumerate(weights.items()):
                list(shards.values())[index % 2][name] = value
            for name, shard in shards.items():
                torch.save(shard, folder / name)
            weight_map = {key: name for name, shard in shards.items() for key in shard}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        config = causal_lm.config.to_dict() | {
            "architectures": ["BunnyLlamaForCausalLM"],
            "model_type": f"bunny-{family}",
            "mm_hidden_size": EMBED_DIM,
            "mm_projector_type": projector_type,
            "use_mm_proj": True,
        }
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer.save_pretrained(folder)
        return folder, causal_lm, projector

    return write


def convert(source, output, *options) -> None:
    result = CliRunner().invoke(app, ["convert-checkpoint", *map(str, (source, "-o", output, *options))])
    if result.exception is not None:
        raise result.exception


def released_logits(causal_lm, projector, tokenizer, text: str, vector: torch.Tensor) -> torch.Tensor:
    """As the released code does it: -200 in the ids, 576 copies of the vector through the projector, spliced in."""
    before, after = (tokenizer(part)["input_ids"] for part in text.split("<image>"))
    ids = torch.tensor([*before, -200, *after])
    embed = causal_lm.get_input_embeddings()
    (place,) = torch.where(ids == -200)[0].tolist()
    images = projector(vector.expand(COPIES, -1))
    inputs_embeds = torch.cat([embed(ids[:place]), images, embed(ids[place + 1 :])])
    return causal_lm(inputs_embeds=inputs_embeds[None]).logits


@pytest.mark.parametrize(
    ("family", "layout", "projector_type", "tied"),
    [
        ("llama", "safetensors", "mlp2x_gelu", False),
        ("llama", "bin", "mlp2x_gelu", False),
        ("phi3", "bin", "linear", False),
        ("qwen3", "safetensors", "mlp2x_gelu", True),
    ],
)
def test_converted_model_gives_the_released_logits(released, tokenizer, tmp_path, family, layout, projector_type, tied):
    source, causal_lm, projector = released(family, layout, projector_type, tied)
    convert(source, tmp_path / "unicorn", "--image-encoder", "llm2clip", "--transfer", "mean_shift")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "unicorn")
    processor = AutoProcessor.from_pretrained(tmp_path / "unicorn")
    assert (model.config.num_image_tokens, model.config.projector_expand) == (COPIES, "copy")
    assert (model.config.image_encoder, model.config.transfer) == ("llm2clip", "mean_shift")

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    vector = torch.randn(EMBED_DIM)
    batch = processor.apply_chat_template(
        messages,
        image_embeds=vector,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    text = processor.decode(batch["input_ids"][0]).replace("<image>" * COPIES, "<image>")
    assert text.endswith("polite answers to the user's questions. USER: <image>\nWhat is this? ASSISTANT:")
    with torch.no_grad():
        expected = released_logits(causal_lm, projector, tokenizer, text, vector)
        logits = model(**batch).logits[..., : len(tokenizer)]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*PROMPTS, "phi3-always", "phi3-first", "phi3-never"])
def test_all_samples_have_the_released_ids_and_labels(family, tmp_path):
    from unicorn_hf.evaluation.images import prompt_inputs
    from unicorn_hf.training.tokenization import tokenize_conversations

    architecture, _, kind = family.partition("-")
    tokenizer = family_tokenizer(family) if family in PROMPTS else sentencepiece_tokenizer(kind)
    turn_end, num_labels = PROMPTS[family if family in PROMPTS else architecture][3], 0
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **SIZES | {"vocab_size": len(tokenizer)})
    ).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    lone = tmp_path / "mm_projector.bin"
    torch.save({"weight": torch.zeros(32, EMBED_DIM), "bias": torch.zeros(32)}, lone)
    torch.save({f"model.mm_projector.{name}": value for name, value in torch.load(lone).items()}, lone)
    convert(lone, tmp_path / "unicorn", "--language-model", tmp_path / "lm", "--num-image-tokens", 1)
    processor = AutoProcessor.from_pretrained(tmp_path / "unicorn")

    def as_released(ids):
        return [-200 if token == processor.image_token_id else token for token in ids]

    roles = ("user", "assistant")
    for turns in SAMPLES:
        messages = [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]
        row = {"messages": [messages]} | ({"image_embeds": [[1.0] * EMBED_DIM]} if "<image>" in turns[0][0] else {})
        (tokens,) = tokenize_conversations(Dataset.from_dict(row), processor)
        expected = released_labels(turns, tokenizer, turn_end)
        assert as_released(tokens["input_ids"]) == released_ids(released_text(turns, turn_end), tokenizer)
        if expected is not None:
            assert tokens["labels"] == [-100 if token == -200 else token for token in expected]
            num_labels += 1
        # What `evaluate`, `generate` and lmms-eval ask with.
        prompt = processor.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        vectors = torch.zeros(prompt.count("<image>"), EMBED_DIM)
        (asked,) = prompt_inputs(processor, [prompt], vectors)["input_ids"].tolist()
        text = f"{released_text(turns[:-1], turn_end)}USER: {turns[-1][0]} ASSISTANT:"
        assert as_released(asked) == released_ids(text, tokenizer)
    assert num_labels == (len(SAMPLES) if kind != "first" else sum(len(turns) == 1 for turns in SAMPLES))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "unicorn")
    assert tokenizer.convert_tokens_to_ids(turn_end) in model.generation_config.eos_token_id


def test_a_lone_projector_is_put_on_its_language_model(released, tokenizer, tmp_path):
    _, causal_lm, projector = released()
    causal_lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    lone = tmp_path / "mm_projector.bin"
    torch.save({f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}, lone)
    convert(lone, tmp_path / "unicorn", "--language-model", tmp_path / "lm", "--num-image-tokens", 4)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "unicorn")
    assert model.config.num_image_tokens == 4
    vector = torch.randn(1, EMBED_DIM)
    features = model.get_image_features(image_embeds=vector).pooler_output
    torch.testing.assert_close(features, projector(vector)[:, None].expand(1, 4, -1))
    assert torch.equal(model.get_input_embeddings().weight[:259], causal_lm.get_input_embeddings().weight)

    with pytest.raises(InputError, match=r"mm_projector\.bin holds only a projector: name its language model"):
        convert(lone, tmp_path / "other")
    torch.save({"mm_projector.0.weight": torch.zeros(8, EMBED_DIM), "mm_projector.0.bias": torch.zeros(8)}, lone)
    with pytest.raises(InputError, match=r"the projector's output has 8 dimensions, but .*lm has a hidden size of 32"):
        convert(lone, tmp_path / "other", "--language-model", tmp_path / "lm")
    assert not (tmp_path / "other").exists()


def converted_logits(folder, vector: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Through `generate`'s own path: its loader, its prompt and its inputs; and the prompt."""
    from unicorn_hf.evaluation.images import load_model, prompt_inputs, user_message

    model, processor = load_model(str(folder), device="cpu")
    chat = [user_message("What is this?", 1)]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    with torch.no_grad():
        return model(**prompt_inputs(processor, [prompt], vector[None])).logits, prompt


@pytest.mark.parametrize("name", PROMPTS)
def test_generate_asks_a_converted_model_as_the_released_code_does(released, tmp_path, name):
    tokenizer = family_tokenizer(name)
    source, causal_lm, projector = released(name.split("-")[0], tokenizer=tokenizer)
    convert(source, tmp_path / "unicorn")
    vector = torch.randn(EMBED_DIM)
    logits, _ = converted_logits(tmp_path / "unicorn", vector)
    text = f"{SYSTEM} USER: <image>\nWhat is this? ASSISTANT:"
    ids = torch.tensor(released_ids(text, tokenizer))
    (place,) = torch.where(ids == -200)[0].tolist()
    with torch.no_grad():
        before, after = (causal_lm.get_input_embeddings()(part) for part in (ids[:place], ids[place + 1 :]))
        inputs_embeds = torch.cat([before, projector(vector.expand(COPIES, -1)), after])
        expected = causal_lm(inputs_embeds=inputs_embeds[None]).logits
    torch.testing.assert_close(logits[..., : len(tokenizer)], expected, rtol=1e-4, atol=1e-4)


def test_a_folder_of_lora_is_converted_with_its_lora(released, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    source, causal_lm, projector = released()
    causal_lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    for file in [source / "model.safetensors", *source.glob("*token*"), *source.glob("*.jinja")]:
        file.unlink()
    targets = ["q_proj", "v_proj", "gate_proj", "down_proj"]
    adapted = get_peft_model(causal_lm, LoraConfig(r=4, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.3)
    adapted.save_pretrained(source)
    others = {f"base_model.model.model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
    torch.save(others, source / "non_lora_trainables.bin")
    with pytest.raises(InputError, match=r"holds only a LoRA adapter: name its language model \(--language-model\)"):
        convert(source, tmp_path / "unicorn")
    convert(source, tmp_path / "unicorn", "--language-model", tmp_path / "lm")
    vector = torch.randn(EMBED_DIM)
    logits, prompt = converted_logits(tmp_path / "unicorn", vector)
    with torch.no_grad():
        expected = released_logits(adapted.merge_and_unload(), projector, tokenizer, prompt, vector)
    torch.testing.assert_close(logits[..., : len(tokenizer)], expected, rtol=1e-4, atol=1e-4)

    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: \d+ of its LoRA weights do not fit"):
        convert(source, tmp_path / "other", "--language-model", tmp_path / "lm")
    (source / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has non_lora_trainables\.bin, but no adapter_model"):
        convert(source, tmp_path / "other", "--language-model", tmp_path / "lm")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("is_whole", [True, False])
def test_bunnys_phi_has_a_head_without_bias(released, tokenizer, tmp_path, is_whole):
    source, causal_lm, projector = released("phi")
    causal_lm.lm_head.bias.data.normal_()
    causal_lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    if not is_whole:
        (source / "model.safetensors").unlink()
        torch.save(
            {f"model.mm_projector.{k}": v for k, v in projector.state_dict().items()}, source / "mm_projector.bin"
        )
    convert(source, tmp_path / "unicorn", *([] if is_whole else ["--language-model", tmp_path / "lm"]))
    causal_lm.lm_head.bias.data.zero_()
    vector = torch.randn(EMBED_DIM)
    logits, prompt = converted_logits(tmp_path / "unicorn", vector)
    with torch.no_grad():
        expected = released_logits(causal_lm, projector, tokenizer, prompt, vector)
    torch.testing.assert_close(logits[..., : len(tokenizer)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["bin", "safetensors"])
def test_what_the_trainer_leaves_beside_the_weights_is_not_read(released, tmp_path, layout):
    source, _, _ = released(layout=layout)
    for name in ("training_args.bin", "optimizer.bin"):
        (source / name).write_bytes(pickle.dumps(Hostile()))
    convert(source, tmp_path / "unicorn")
    assert (tmp_path / "unicorn" / "config.json").is_file()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("spp", ["linear_0.weight", "linear_1.weight", "linear_2.weight"]),
        ("ldp", ["model.mlp.1.weight", "model.mb_block.1.block.0.0.weight"]),
        ("minigpt", ["linear.weight", "linear.bias"]),
        ("vanilla", ["linear.weight", "linear.bias"]),
        ("identity", []),
    ],
)
def test_other_projectors_are_refused_in_a_sentence(released, tmp_path, kind, names):
    source, _, _ = released()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"mm_projector_type": kind}))
    with pytest.raises(
        InputError, match=rf"mm_projector_type '{kind}'\) reads the patches of an image; expected linear"
    ):
        convert(source, tmp_path / "unicorn")
    lone = tmp_path / "mm_projector.bin"
    torch.save({f"model.mm_projector.{name}": torch.zeros(4, 4) for name in names}, lone)
    with pytest.raises(InputError, match=r"mm_projector\.bin: has (a projector of another kind|no weights)"):
        convert(lone, tmp_path / "unicorn", "--language-model", source)
    torch.save({"mm_projector.0.weight": torch.zeros(32, EMBED_DIM)}, lone)
    with pytest.raises(InputError, match=r"mm_projector\.bin: its projector of 1 layers lacks mm_projector\.0\.bias"):
        convert(lone, tmp_path / "unicorn", "--language-model", source)
    assert not (tmp_path / "unicorn").exists()


class Hostile:
    def __reduce__(self):
        return print, ("this must never be run",)


def test_other_files_are_refused_and_nothing_is_written(released, tmp_path, capsys):
    source, causal_lm, _ = released()
    hostile = tmp_path / "mm_projector.bin"
    hostile.write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "plain"
    causal_lm.save_pretrained(plain)
    patches = tmp_path / "patches.bin"
    torch.save({"model.vision_tower.vision_tower.embeddings": torch.zeros(1)}, patches)
    cases = {
        hostile: "holds more than tensors, and other pickles are not read",
        tmp_path / "empty": "is not a checkpoint; expected a folder with safetensors",
        tmp_path / "missing": "is not a checkpoint; expected a folder with safetensors",
        plain: r"has no weights mm_projector\.\*; expected a checkpoint in Bunny's layout",
        patches: "reads patches of an image tower",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=f"{path}.*{message}"):
            convert(path, tmp_path / "unicorn")
    (source / "config.json").write_text('{"model_type": "bunny-minicpm"}')
    with pytest.raises(InputError, match="model_type 'minicpm' is not known"):
        convert(source, tmp_path / "unicorn")
    assert not (tmp_path / "unicorn").exists()
    assert "never be run" not in capsys.readouterr().out


def test_the_converter_does_not_travel_with_the_model(released, tmp_path):
    source, _, _ = released()
    convert(source, tmp_path / "unicorn")
    assert not (tmp_path / "unicorn" / "convert_unicorn_checkpoint_to_hf.py").exists()
    assert (tmp_path / "unicorn" / "modeling_unicorn.py").exists()
