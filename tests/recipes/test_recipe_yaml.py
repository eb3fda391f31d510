"""Every YAML of `recipes/` says something, and something that its reader understands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, Qwen2Config, Qwen3Config

from unicorn_hf import InputError, UnicornConfig

accelerate = pytest.importorskip("accelerate", reason="the recipes need the extra 'train'")
peft = pytest.importorskip("peft", reason="the recipes need the extra 'train'")
trl = pytest.importorskip("trl", reason="the recipes need the extra 'train'")

from accelerate.commands.config.config_args import load_config_from_file  # noqa: E402
from accelerate.commands.launch import _validate_launch_command, launch_command_parser  # noqa: E402
from accelerate.utils.fsdp_utils import get_module_class_from_name  # noqa: E402
from trl import TrlParser, get_peft_config, get_quantization_config  # noqa: E402

from unicorn_hf.training import FinetuneArguments, PreferArguments, PretrainArguments, option_classes  # noqa: E402

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
ARGUMENTS = {"pretrain": PretrainArguments, "finetune": FinetuneArguments, "prefer": PreferArguments}
PRETRAIN = sorted(path.stem for path in (RECIPES / "pretrain").glob("*.yaml"))
FINETUNE = sorted(path.stem for path in (RECIPES / "finetune").glob("*.yaml"))
PREFER = sorted(path.stem for path in (RECIPES / "prefer").glob("*.yaml"))
ACCELERATE = sorted(path.stem for path in (RECIPES / "accelerate").glob("*.yaml"))
TEXT_CONFIGS = {"llama3": LlamaConfig, "qwen3": Qwen3Config, "qwen2.5": Qwen2Config}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def parse(stage, *options):
    parser = TrlParser(option_classes(ARGUMENTS[stage]))
    # The YAML are for GPUs, and SFTConfig refuses bfloat16 where there is neither a GPU nor `use_cpu`.
    return parser.parse_args_and_config([*options, "--dataset", "d", "--output_dir", "o", "--use_cpu", "true"])


def load(stage, name):
    return parse(stage, "--config", str(RECIPES / stage / f"{name}.yaml"))


def tiny_model(name):
    """The named recipe's kind of model, with an image tower, without weights."""
    text_config = TEXT_CONFIGS[name.split("-")[0]](**SIZES)
    tower = {**SIZES, "projection_dim": 16}
    del tower["vocab_size"], tower["num_key_value_heads"]
    config = UnicornConfig(text_config=text_config, vision_config=CLIPVisionConfig(**tower), embed_dim=16)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def test_there_is_a_recipe_for_each_model_and_way_to_train():
    models = ["llama3-8b", "qwen2.5-0.5b", "qwen3-4b", "qwen3-8b"]
    assert models == PRETRAIN
    assert sorted(f"{model}{way}" for model in models for way in ("", "-lora", "-qlora")) == FINETUNE
    assert set(ACCELERATE) == {"cpu", "single_gpu", "ddp", "fsdp2", "zero2", "zero3", "two_nodes"}


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_has_the_papers_settings(name):
    data_args, training_args, model_args = load("pretrain", name)
    assert model_args.model_name_or_path.count("/") == 1
    assert data_args.dataset_config == "unicorn-1.2m"
    assert (training_args.learning_rate, training_args.warmup_steps, training_args.num_train_epochs) == (5e-4, 0.03, 1)
    assert (training_args.lr_scheduler_type.value, training_args.bf16) == ("cosine", True)
    batch = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    assert batch == ((32, 8) if name == "qwen2.5-0.5b" else (8, 4))


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_has_the_papers_settings(name):
    data_args, training_args, model_args = load("finetune", name)
    assert data_args.dataset_config == "unicorn-471k-instruction"
    assert (training_args.warmup_steps, training_args.num_train_epochs) == (0.03, 1)
    assert (training_args.lr_scheduler_type.value, training_args.bf16) == ("cosine", True)
    batch = training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps
    assert batch == ((8, 8) if name.startswith("qwen2.5-0.5b") else (4, 2))
    rates = training_args.learning_rate, data_args.projector_learning_rate
    assert rates == ((2e-4, 2e-5) if "lora" in name else (1e-5, None))
    assert model_args.use_peft == ("lora" in name)
    assert model_args.load_in_4bit == ("qlora" in name)
    if "lora" in name:
        assert (model_args.lora_r, model_args.lora_alpha) == (128, 256)


@pytest.mark.parametrize("name", PREFER)
def test_preference_training_reads_pairs_and_learns_right_answers_beside(name):
    data_args, training_args, model_args = load("prefer", name)
    assert data_args.dataset_config == "unicorn-preference"
    assert (training_args.beta, training_args.loss_type) == (0.1, ["sigmoid", "sft"])
    assert model_args.use_peft == ("lora" in name)
    assert name in FINETUNE  # the stage before


def test_the_released_layout_has_the_released_scripts_settings():
    stages = {"pretrain": "pretrain", "finetune": "finetune", "finetune-lora": "finetune"}
    loaded = {
        name: parse(stage, "--config", str(RECIPES / "released" / f"{name}.yaml")) for name, stage in stages.items()
    }
    batches = {
        name: (training_args.per_device_train_batch_size, training_args.gradient_accumulation_steps)
        for name, (_, training_args, _) in loaded.items()
    }
    assert batches == {"pretrain": (8, 4), "finetune": (16, 2), "finetune-lora": (8, 2)}
    assert {data_args.version for data_args, *_ in loaded.values()} == {"llama"}
    data_args, *_ = loaded["pretrain"]
    assert (data_args.num_image_tokens, data_args.projector_expand) == (576, "copy")
    assert not data_args.normalize_image_embeds
    assert [model_args.use_peft for *_, model_args in loaded.values()] == [False, False, True]


@pytest.mark.parametrize("name", [name for name in FINETUNE if "lora" in name])
def test_lora_goes_to_every_linear_layer_of_the_language_model_and_trains_the_projector(name):
    *_, model_args = load("finetune", name)
    model = tiny_model(name)
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model.layers" in name
    }
    assert len(expected) == 7 * SIZES["num_hidden_layers"]
    adapted = peft.get_peft_model(model, get_peft_config(model_args), low_cpu_mem_usage=True)
    assert set(adapted.targeted_module_names) == expected
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora" not in name} == {
        f"base_model.model.model.multi_modal_projector.modules_to_save.default.layers.{layer}.{kind}"
        for layer in (0, 2)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("name", [name for name in FINETUNE if "qlora" in name])
def test_qlora_asks_for_four_bits(name):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    *_, model_args = load("finetune", name)
    quantization = get_quantization_config(model_args)
    assert (quantization.load_in_4bit, quantization.bnb_4bit_quant_type) == (True, "nf4")
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("stage", ARGUMENTS)
def test_an_unknown_key_is_an_error_that_names_it(stage, tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 1.0e-3\n")
    with pytest.raises(ValueError, match="--learning_rat"):
        parse(stage, "--config", str(tmp_path / "recipe.yaml"))


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_takes_every_configuration(name):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))  # an unknown key is an error
    known = {action.dest for action in launch_command_parser()._actions}
    for section in (config.fsdp_config or {}, config.deepspeed_config or {}):
        assert set(section) <= known | {"deepspeed_multinode_launcher"}
    expected = {"fsdp2": "FSDP", "two_nodes": "FSDP", "ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type.value == expected.get(name, "NO")
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2
    if config.deepspeed_config:
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    assert config.num_machines == (2 if name == "two_nodes" else 1)
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")


def test_an_unknown_key_of_accelerate_is_an_error(tmp_path):
    text = (RECIPES / "accelerate" / "fsdp2.yaml").read_text()
    (tmp_path / "config.yaml").write_text(f"{text}num_gpus: 8\n")
    with pytest.raises(ValueError, match="num_gpus"):
        load_config_from_file(str(tmp_path / "config.yaml"))


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_fsdp_shards_decoder_layers_and_the_projector_by_themselves(name):
    """The configurations leave it to `_no_split_modules`, each of which must be a class of the model."""
    model = tiny_model(name)
    classes = {each: get_module_class_from_name(model, each) for each in model._no_split_modules}
    assert "UnicornMultiModalProjector" in classes
    decoder = type(model.model.language_model.layers[0])
    assert classes[decoder.__name__] is decoder
    for config in ("fsdp2", "two_nodes"):
        text = (RECIPES / "accelerate" / f"{config}.yaml").read_text()
        assert "transformer_layer_cls_to_wrap" not in text


@pytest.mark.parametrize("prefix", ["", "recipes/"])
def test_train_finds_the_yaml_of_the_package_from_any_folder(prefix, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unicorn_hf.cli import app

    launched = []

    def launch(arguments):
        launched.append(arguments)
        raise CalledProcessError(3, "recipe")

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch)
    monkeypatch.chdir(tmp_path)
    options = ["--config", f"{prefix}pretrain/llama3-8b.yaml", "--dataset", "d", "--max-steps", "0"]
    result = CliRunner().invoke(
        app, ["train", "pretrain", "--accelerate-config", f"{prefix}accelerate/zero2.yaml", *options]
    )
    assert result.exit_code == 3
    ((flag, yaml, _, dataset, steps, zero),) = [each.training_script_args for each in launched]
    assert Path(launched[0].config_file).samefile(RECIPES / "accelerate" / "zero2.yaml")
    assert Path(launched[0].training_script).samefile(RECIPES / "pretrain.py")
    assert Path(yaml).samefile(RECIPES / "pretrain" / "llama3-8b.yaml")
    assert (flag, dataset, steps, zero) == ("--config", "d", "--max-steps", "0")


def test_a_recipe_that_is_not_there_is_one_sentence_with_the_nearest_name():
    from typer.testing import CliRunner

    from unicorn_hf.cli import app

    error = CliRunner().invoke(app, ["train", "pretrain", "--config", "pretrain/llama9.yaml"]).exception
    assert isinstance(error, InputError)
    assert "pretrain/llama9.yaml: there is no such file" in str(error)
    assert str(error).endswith("; did you mean pretrain/llama3-8b.yaml?")
    error = CliRunner().invoke(app, ["run", "nofile.yaml"]).exception
    assert str(error) == "nofile.yaml: there is no such file, and the package has no recipe of this name"


def command_lines():
    """The `accelerate launch` and `unicorn-hf train` commands of README, docs, recipes."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *RECIPES.glob("*.py"), *RECIPES.glob("*/*.yaml")]:
        text = re.sub(r"^# ", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
        for match in re.finditer(r"^\s*(?:\$ )?((?:accelerate launch|unicorn-hf train) .*)$", text, re.MULTILINE):
            yield pytest.param(match[1], id=f"{path.name}: {match[1][:40]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_the_commands_of_the_documents_parse(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line.replace("...", ""), comments=True)
    if words[0] == "unicorn-hf":
        stage, *options = words[2:]
        for flag in ("--accelerate-config", "--config"):
            if flag in options:
                position = options.index(flag) + 1
                options[position] = str(RECIPES / options[position].removeprefix("recipes/"))
                assert Path(options[position]).is_file()
        if "--accelerate-config" in options:
            position = options.index("--accelerate-config")
            del options[position : position + 2]
    else:
        arguments = launch_command_parser().parse_args(words[2:])
        _validate_launch_command(arguments)
        script = arguments.training_script
        if not script.startswith("recipes/"):
            return
        assert Path(script).is_file()
        stage, options = Path(script).stem, arguments.training_script_args
    if options:
        for required in ("--dataset", "--mixture", "--output_dir"):
            options = options if required != "--output_dir" or required in options else [*options, required, "o"]
        TrlParser(option_classes(ARGUMENTS[stage])).parse_args_and_config([*options, "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bogus", "3"], "--bogus"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--optim", "foo"], "foo"),
        (["--packing", "true"], "packing"),
    ],
)
def test_train_ends_with_status_2_and_one_sentence(options, said, tmp_path):
    usual = ["--model_name_or_path", str(tmp_path / "none"), "--dataset", "nothing.jsonl", "--output_dir", "out"]
    command = [sys.executable, "-m", "unicorn_hf", "train", "pretrain", *usual, *options, "--use_cpu", "true"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert said in result.stderr
