"""`unicorn-hf train pretrain`, `finetune` and `prefer`."""

import difflib
import logging
from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.cli import app
from unicorn_hf.errors import InputError, require

group = typer.Typer(
    help="Train: pretrain (the projector), finetune (the whole model, or LoRA), prefer (right answers to wrong ones)."
)
app.add_typer(group, name="train")

EXAMPLES = {
    "pretrain": [
        "unicorn-hf train pretrain --config pretrain/qwen2.5-0.5b.yaml --dataset dataset --output_dir stage-1",
        "unicorn-hf train pretrain --accelerate-config accelerate/fsdp2.yaml --config pretrain/llama3-8b.yaml "
        "--dataset dataset --output_dir stage-1",
    ],
    "finetune": [
        "unicorn-hf train finetune --config finetune/qwen2.5-0.5b.yaml --model_name_or_path stage-1 --dataset dataset "
        "--output_dir stage-2",
        "unicorn-hf train finetune --config finetune/llama3-8b-lora.yaml --model_name_or_path stage-1 "
        "--dataset dataset --output_dir stage-2",
    ],
    "prefer": [
        "unicorn-hf train prefer --config prefer/qwen2.5-0.5b-lora.yaml --model_name_or_path stage-2 --dataset dataset "
        "--output_dir stage-3",
    ],
}
# The recipe reads all but --accelerate-config, --help included.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
AccelerateConfig = Annotated[Path | None, typer.Option(help="A configuration of accelerate.")]


@group.command("pretrain", context_settings=_PASSED_ON)
def pretrain(context: typer.Context, accelerate_config: AccelerateConfig = None):
    """Stage 1: the projector alone, on captions. `unicorn-hf train pretrain --help` lists the recipe's options."""
    _train("pretrain", context.args, accelerate_config)


@group.command("finetune", context_settings=_PASSED_ON)
def finetune(context: typer.Context, accelerate_config: AccelerateConfig = None):
    """Stage 2: on conversations. `unicorn-hf train finetune --help` lists the recipe's options."""
    _train("finetune", context.args, accelerate_config)


@group.command("prefer", context_settings=_PASSED_ON)
def prefer(context: typer.Context, accelerate_config: AccelerateConfig = None):
    """Stage 3: on preference pairs. `unicorn-hf train prefer --help` lists the recipe's options."""
    _train("prefer", context.args, accelerate_config)


def _train(stage: str, options: list[str], accelerate_config: Path | None) -> None:
    """Run a recipe under `accelerate launch`; a YAML that is not on disk is looked for among the package's."""
    import subprocess
    from importlib.resources import files

    require("accelerate", "train")
    require("trl", "train")
    if "--help" in options:
        _print_help(stage)
        return
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it would take where no configuration says otherwise is what a user wants.
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    launcher = []
    if accelerate_config is not None:
        launcher += ["--config_file", str(find_recipe(accelerate_config))]
    recipe = files("unicorn_hf.recipes") / f"{stage}.py"
    if "--config" in options[:-1]:
        position = options.index("--config") + 1
        options[position] = str(find_recipe(Path(options[position])))
    try:
        launch_command(launch_command_parser().parse_args([*launcher, str(recipe), *options]))
    except subprocess.CalledProcessError as error:  # the recipe has said in a sentence what is wrong
        raise typer.Exit(error.returncode) from None
    except ChildFailedError as error:
        raise typer.Exit(error.get_first_failure()[1].exitcode) from None
    except (ValueError, TypeError) as error:  # accelerate's words for a configuration that it cannot use
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--accelerate-config {accelerate_config}: {reason}") from error


def _print_help(stage: str) -> None:
    from trl import TrlParser

    from unicorn_hf.training.arguments import FinetuneArguments, PreferArguments, PretrainArguments
    from unicorn_hf.training.options import option_classes

    arguments = {"pretrain": PretrainArguments, "finetune": FinetuneArguments, "prefer": PreferArguments}[stage]
    parser = TrlParser(
        option_classes(arguments),
        prog=f"unicorn-hf train {stage}",
        usage=f"unicorn-hf train {stage} [--accelerate-config FILE] [--config FILE] [OPTIONS]",
        epilog="Examples: " + "; ".join(EXAMPLES[stage]),
    )
    parser.add_argument("--accelerate-config", metavar="FILE", help="A configuration of accelerate.")
    parser.add_argument("--config", metavar="FILE", help="A YAML with these options, as pretrain/llama3-8b.yaml.")
    parser.print_help()


def find_recipe(path: Path) -> Path:
    """`path` itself, or the YAML of this name, with or without `recipes/` in front, that comes with the package."""
    from importlib.resources import files

    if path.is_file():
        return path
    recipes = Path(str(files("unicorn_hf.recipes")))
    packaged = recipes.joinpath(*path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts)
    if not packaged.is_file():
        names = [str(each.relative_to(recipes)) for each in recipes.rglob("*.yaml")]
        near = difflib.get_close_matches(str(path), names, 1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{path}: there is no such file, and the package has no recipe of this name{hint}")
    return packaged
