"""A run that was stopped anywhere goes on from its last whole checkpoint as if nothing had been."""

import shutil

import pytest
import transformers
from packaging.version import Version
from recipe_runs import losses

from unicorn_hf.training.trainer import last_whole_checkpoint


def checkpoints(output_dir):
    return sorted(path.name for path in output_dir.iterdir() if path.name.startswith("checkpoint"))


def resume(recipe, way, broken, **options):
    again = recipe(way, broken.output_dir, arguments={"resume_from_checkpoint": "true", **options})
    assert again.status == [0], again.log[-3000:]
    return again


@pytest.mark.parametrize("way", ["finetune", "lora"])
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before_with_the_same_losses(
    recipe, whole, way, tmp_path
):
    killed = recipe(way, tmp_path / "output", fault=("SIGKILL", 16))
    assert killed.status == [-9]
    assert checkpoints(killed.output_dir) == ["checkpoint-16", "checkpoint-8"]
    assert last_whole_checkpoint(killed.output_dir) == str(killed.output_dir / "checkpoint-8")
    again = resume(recipe, way, killed)
    assert losses(again.output_dir) == losses(whole[way].output_dir)
    assert checkpoints(again.output_dir) == ["checkpoint-16", "checkpoint-20", "checkpoint-8"]
    assert not list(again.output_dir.glob("_*"))


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_stream_goes_on_in_a_later_pass_with_the_rows_that_it_had_left(recipe, whole, strategy, tmp_path):
    """A pass has ten steps."""
    stream = {"streaming": "true", "train_sampling_strategy": strategy}
    through = recipe("finetune", tmp_path / "through", arguments=stream)
    assert through.status == [0], through.log[-3000:]
    output = shutil.copytree(through.output_dir, tmp_path / "output")
    shutil.rmtree(output / "checkpoint-20")
    again = recipe("finetune", output, arguments=stream | {"resume_from_checkpoint": "true"})
    assert again.status == [0], again.log[-3000:]
    assert losses(output) == losses(through.output_dir)


@pytest.mark.parametrize("way", ["finetune", "lora"])
def test_two_processes_that_were_killed_go_on_with_the_losses_of_one(recipe, whole, way, tmp_path):
    if Version(transformers.__version__) < Version("5.24"):
        pytest.skip("transformers before 5.24 cannot read an optimizer's state back to several CPU processes")
    two = {"num_processes": 2, "arguments": {"per_device_train_batch_size": 2}}
    killed = recipe(way, tmp_path / "output", fault=("SIGKILL", 16), **two)
    assert -9 in killed.status
    assert 0 not in killed.status  # whoever was not killed first may have noticed that the other was
    assert last_whole_checkpoint(killed.output_dir) == str(killed.output_dir / "checkpoint-8")
    two["arguments"]["resume_from_checkpoint"] = "true"
    again = recipe(way, tmp_path / "output", **two)
    assert again.status == [0, 0], again.log[-3000:]
    assert losses(again.output_dir) == pytest.approx(losses(whole[way].output_dir), rel=1e-4)


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(recipe, whole, tmp_path):
    limit = {"save_total_limit": 1}
    full = recipe("finetune", tmp_path / "output", fault=("disk full", 16), arguments=limit)
    assert full.status == [2]
    (sentence,) = (line for line in full.log.splitlines() if line.startswith("unicorn-hf: "))
    assert "checkpoint-16 could not be saved ([Errno 28] No space left on device" in sentence
    assert "--resume_from_checkpoint true" in sentence
    assert checkpoints(full.output_dir) == ["checkpoint-8"]
    again = resume(recipe, "finetune", full, **limit)
    assert losses(again.output_dir) == losses(whole["finetune"].output_dir)
    assert checkpoints(again.output_dir) == ["checkpoint-20"]


@pytest.mark.parametrize(
    "file", ["trainer_state.json", "rng_state.pth", "optimizer.pt", "scheduler.pt", "model.safetensors"]
)
def test_a_checkpoint_with_a_file_cut_short_is_not_the_last_whole_one(whole, tmp_path, file):
    output = shutil.copytree(whole["pretrain"].output_dir, tmp_path / "output")
    assert last_whole_checkpoint(output) == str(output / "checkpoint-20")
    content = (output / "checkpoint-20" / file).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 5):
        (output / "checkpoint-20" / file).write_bytes(content[:length])
        assert last_whole_checkpoint(output) == str(output / "checkpoint-16")
    (output / "checkpoint-20" / "trainer_state.json").unlink()
    assert last_whole_checkpoint(output) == str(output / "checkpoint-16")
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_that_is_written_over_is_not_whole_in_between(recipe, whole, tmp_path):
    """Its old state would stand beside new weights."""
    output = shutil.copytree(whole["finetune"].output_dir, tmp_path / "output")
    arguments = {"resume_from_checkpoint": output / "checkpoint-8"}
    killed = recipe("finetune", output, fault=("SIGKILL", 16), arguments=arguments)
    assert killed.status == [-9]
    shutil.rmtree(output / "checkpoint-20")
    assert last_whole_checkpoint(output) == str(output / "checkpoint-8")


def test_a_folder_that_is_no_checkpoint_is_refused(recipe, whole, tmp_path):
    arguments = {"resume_from_checkpoint": tmp_path, "max_steps": 1}
    refused = recipe("finetune", tmp_path / "output", arguments=arguments)
    assert refused.status == [2]
    assert f"unicorn-hf: {tmp_path}: is not a checkpoint" in refused.log


@pytest.mark.parametrize("way", ["pretrain", "lora"])
def test_a_run_that_was_done_does_no_step_more_and_saves_what_it_had(recipe, whole, way, tmp_path):
    output = shutil.copytree(whole[way].output_dir, tmp_path / "output")
    (weights,) = (
        output / name for name in ("model.safetensors", "adapter_model.safetensors") if (output / name).exists()
    )
    expected = weights.read_bytes()
    weights.unlink()
    again = recipe(way, output, arguments={"resume_from_checkpoint": "true"})
    assert again.status == [0], again.log[-3000:]
    assert "nothing is left to train" in again.log
    assert checkpoints(output)[-1] != "checkpoint-21" and losses(output) == losses(whole[way].output_dir)
    assert weights.read_bytes() == expected
