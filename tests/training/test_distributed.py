"""Two processes on CPUs (gloo) learn what one learns."""

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from recipe_runs import losses
from safetensors.torch import load_file

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"


def launch_environment(name):
    """What `accelerate launch --config_file recipes/accelerate/NAME.yaml --mixed_precision no` sets for the script."""
    words = ["--config_file", str(ACCELERATE / f"{name}.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    arguments = launch_command_parser().parse_args([*words, "recipe.py"])
    _validate_launch_command(arguments)
    return {key: value for key, value in prepare_multi_gpu_env(arguments).items() if key.startswith(("ACC", "FSDP"))}


@pytest.mark.parametrize("way", ["pretrain", "finetune", "lora"])
def test_fsdp2_gives_the_losses_and_the_weights_of_one_process(recipe, whole, way, tmp_path):
    environment = launch_environment("fsdp2")
    assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
    arguments = {"per_device_train_batch_size": 2, "save_steps": 20}
    run = recipe(way, tmp_path / "output", num_processes=2, environment=environment, arguments=arguments)
    assert run.status == [0, 0], run.log[-3000:]
    assert "trained as DistributedType.FSDP" in run.log
    assert losses(run.output_dir) == pytest.approx(losses(whole[way].output_dir), abs=1e-3)
    name = "adapter_model.safetensors" if way == "lora" else "model.safetensors"
    ours, theirs = load_file(run.output_dir / name), load_file(whole[way].output_dir / name)
    assert ours.keys() - theirs.keys() <= {"lm_head.weight"}  # the tied head, which FSDP saves a second time
    for key, value in theirs.items():
        assert (ours[key] - value).abs().max() < 1e-3, key


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_two_processes_share_a_stream(recipe, whole, strategy, tmp_path):
    stream = {"streaming": "true", "train_sampling_strategy": strategy}
    one = recipe("finetune", tmp_path / "one", arguments=stream)
    assert one.status == [0], one.log[-3000:]
    two = recipe("finetune", tmp_path / "two", num_processes=2, arguments=stream | {"per_device_train_batch_size": 2})
    assert two.status == [0, 0], two.log[-3000:]
    assert losses(two.output_dir) == pytest.approx(losses(one.output_dir), abs=1e-3)
