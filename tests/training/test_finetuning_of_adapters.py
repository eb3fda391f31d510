"""Stage 2 from the output of a stage 2, in every combination of full training, LoRA and QLoRA."""

import json

import pytest
import torch
import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from datasets import load_dataset
from run_settings import LORA, SETTINGS
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from unicorn_hf import InputError
from unicorn_hf.evaluation.images import answer, load_model
from unicorn_hf.training import new_adapter

peft = pytest.importorskip("peft", reason="adapters need the extra 'train'")
trl = pytest.importorskip("trl", reason="the recipes need the extra 'train'")

WAYS = {
    "full": {"learning_rate": 2e-3},
    "lora": {"learning_rate": 2e-2, **LORA},
    "qlora": {"learning_rate": 2e-2, **LORA, "load_in_4bit": "true"},
}
# The command's own weights of 4 bits; they are not written down in an adapter's folder.
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture(scope="module")
def finetune(tiny, whole):
    """Run stage 2 here; its output folder, and the logits that its model gave before and after training."""
    from unicorn_hf.recipes import finetune as recipe

    from unicorn_hf.training import FinetuneArguments

    def run(way, model, output_dir, **options):
        if way == "qlora":
            pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
        arguments = SETTINGS | {"max_steps": 3, "save_strategy": "no"} | WAYS[way] | options
        arguments |= {"model_name_or_path": model, "dataset": tiny.conversations, "output_dir": output_dir}
        words = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
        seen = []

        class Trainer(recipe.UnicornTrainer):
            def train(self, *args, **kwargs):
                seen.append(logits_of(self.model, inputs(model, tiny)))
                super().train(*args, **kwargs)

            def save_model(self, *args, **kwargs):
                seen.append(logits_of(self.model, inputs(model, tiny)))
                super().save_model(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "UnicornTrainer", Trainer)
            classes = FinetuneArguments, trl.SFTConfig, trl.ModelConfig
            recipe.main(*trl.TrlParser(classes).parse_args_and_config(words))
        return output_dir, *seen

    return run


@pytest.fixture(scope="module")
def first(finetune, whole, tmp_path_factory):
    """Way -> the output of stage 2 after stage 1, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("first"), {}

    def output(way):
        if way not in made:
            made[way] = finetune(way, whole["pretrain"].output_dir, folder / way)
        return made[way]

    return output


def inputs(model, tiny):
    processor = AutoProcessor.from_pretrained(model)
    rows = load_dataset(str(tiny.conversations), split="train[:4]")
    prompts = [
        processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        for messages in rows["messages"]
    ]
    return processor(text=prompts, image_embeds=rows["image_embeds"][:], padding=True, return_tensors="pt")


def logits_of(model, batch):
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(**batch).logits.float()
    model.train(was_training)
    return logits


def quantization(way):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**FOUR_BITS) if way == "qlora" else None


@pytest.mark.parametrize("then", WAYS)
@pytest.mark.parametrize("before", WAYS)
def test_what_is_saved_gives_the_logits_that_memory_gave(before, then, first, finetune, whole, tiny, tmp_path):
    start, _, saved = first(before)
    output, begun, memory = finetune(then, start, tmp_path / "output")
    if "qlora" not in (before, then):  # rounding to 4 bits moves them
        torch.testing.assert_close(begun, saved, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(begun, memory, atol=1e-2)
    loaded = AutoModelForImageTextToText.from_pretrained(output, quantization_config=quantization(then))
    if then == "qlora":  # TRL keeps its adapters in bfloat16, and loading makes them float32
        for name, parameter in loaded.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.bfloat16()
    torch.testing.assert_close(logits_of(loaded, inputs(output, tiny)), memory, rtol=1e-3, atol=1e-3)
    is_adapter = (output / "adapter_config.json").exists()
    assert is_adapter == (then != "full")
    assert (output / "config.json").exists() == (not is_adapter)
    if is_adapter and before != "full":  # the same adapter goes on, over the same base
        config = json.loads((output / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(whole["pretrain"].output_dir)
        names = [set(load_file(folder / "adapter_model.safetensors")) for folder in (start, output)]
        assert names[0] == names[1]


@pytest.mark.parametrize("way", ["lora", "qlora"])
def test_an_adapters_folder_answers_as_its_merged_model(way, first, tiny, tmp_path):
    output, *_ = first(way)
    model, processor = load_model(output)
    base = AutoModelForImageTextToText.from_pretrained(peft.PeftConfig.from_pretrained(output).base_model_name_or_path)
    merged = peft.PeftModel.from_pretrained(base, output).merge_and_unload()
    batch = inputs(output, tiny)
    torch.testing.assert_close(logits_of(model, batch), logits_of(merged, batch), rtol=1e-4, atol=1e-4)
    assert isinstance(answer(model, processor, "How many things?", max_new_tokens=3), str)


def test_options_that_differ_from_the_adapters_own_are_refused(first, finetune, tmp_path):
    start, *_ = first("lora")
    with pytest.raises(InputError, match=r"lora_r is 4, but the adapter .*, which is trained further, has 8"):
        finetune("lora", start, tmp_path / "output", lora_r=4)


def test_an_adapter_whose_base_is_gone_is_one_sentence(first, finetune, tmp_path):
    start, *_ = first("lora")
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in start.iterdir():
        if file.is_file():
            (moved / file.name).write_bytes(file.read_bytes())
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "stage-1/that/is/gone"}))
    with pytest.raises(InputError, match="stage-1/that/is/gone: no such folder; expected the folder of a model"):
        finetune("lora", moved, tmp_path / "output")
    with pytest.raises(InputError, match="its base model stage-1/that/is/gone is neither a folder nor on the Hub"):
        load_model(moved)


def test_an_adapter_is_no_language_model_for_stage_1(recipe, first, tmp_path):
    start, *_ = first("lora")
    run = recipe("pretrain", tmp_path / "output", arguments={"model_name_or_path": start})
    assert run.status == [2]
    assert "is an adapter: merge it" in run.log


def test_lora_without_layers_is_one_sentence(finetune, whole, tmp_path):
    words = {"use_peft": "true", "learning_rate": 1e-3}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="needs --lora_target_modules"):
        patch.setitem(WAYS, "bare", words)
        finetune("bare", whole["pretrain"].output_dir, tmp_path / "output")


@pytest.mark.parametrize(
    "options",
    [
        {"lora_target_modules": ["lm_head"]},
        {"lora_target_modules": ["q_proj", "embed_tokens"]},
        {"lora_target_modules": [r".*\.(q_proj|embed_tokens)"]},
        {"lora_target_parameters": ["embed_tokens.weight"]},
    ],
    ids=str,
)
def test_an_adapter_of_one_of_two_layers_with_the_same_weights_is_refused(options, whole):
    model = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
    with pytest.raises(
        InputError, match=r"cannot have an adapter.*--lora_modules_to_save (lm_head|embed_tokens) multi"
    ):
        new_adapter(model, trl.ModelConfig(use_peft=True, **options))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    assert new_adapter(model, trl.ModelConfig(use_peft=True, **options)) is not None


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj"], ["all-linear"]])
def test_lora_by_flags_trains_the_projector_as_a_whole(targets, whole):
    model = AutoModelForImageTextToText.from_pretrained(whole["pretrain"].output_dir)
    arguments = trl.ModelConfig(use_peft=True, lora_target_modules=targets)
    adapted = peft.get_peft_model(model, new_adapter(model, arguments))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    projector = [name for name in trained if "multi_modal_projector" in name]
    assert projector and all("modules_to_save" in name and "lora" not in name for name in projector)
    assert any("q_proj" in name for name in trained)
