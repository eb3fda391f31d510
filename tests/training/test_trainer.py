"""What the recipes' trainer adds to TRL's."""

import re

import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from recipe_runs import losses
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from unicorn_hf import InputError
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.training import check_trackers
from unicorn_hf.training.dry_run import activation_bytes


def sentence(run):
    (line,) = (line for line in run.log.splitlines() if line.startswith("unicorn-hf: "))
    return line


# A batch that goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_with_the_ids_of_its_batch(recipe, whole, tiny, tmp_path):
    run = recipe("finetune", tmp_path / "output", arguments={"learning_rate": 1e30, "save_strategy": "no"})
    assert run.status == [2]
    found = re.search(r"Step (\d+): the .* is (nan|inf).*; the batch's ids are ([\d, ]+); look at", sentence(run))
    ids = found[3].split(", ")
    assert len(ids) == 4
    assert set(ids) <= set(load_dataset(str(tiny.conversations), split="train")["id"])
    assert not list((tmp_path / "output").glob("*.safetensors"))


def test_a_vector_that_is_not_finite_ends_the_run_before_it_starts_by_row_and_id(recipe, whole, tiny, tmp_path):
    data = load_dataset(str(tiny.captions), split="train")
    vectors = np.array(data["image_embeds"], dtype=np.float16)
    vectors[5] = np.nan
    column, feature = list(vectors), data.features["image_embeds"]
    broken = data.remove_columns("image_embeds").add_column("image_embeds", column, feature=feature)
    write_dataset(broken, tmp_path / "broken", title="Captions")
    arguments = {"dataset": tmp_path / "broken", "standardize_image_embeds": "true", "save_strategy": "no"}
    for streaming in ("false", "true"):
        run = recipe("pretrain", tmp_path / streaming, arguments=arguments | {"streaming": streaming})
        assert run.status == [2]
        assert "NaN" in sentence(run)
        assert "5" in sentence(run)
        assert not list((tmp_path / streaming).glob("*.safetensors"))
    run = recipe("pretrain", tmp_path / "plain", arguments=arguments | {"standardize_image_embeds": "false"})
    assert "sample '000005' (row 5): 'image_embeds' holds NaN" in sentence(run)


# The projector's learning rate


def test_the_projector_has_a_learning_rate_of_its_own(whole):
    groups = torch.load(whole["lora"].output_dir / "checkpoint-20" / "optimizer.pt")["param_groups"]
    rates = {}
    for group in groups:
        rates[group["initial_lr"]] = rates.get(group["initial_lr"], 0) + len(group["params"])
    # Two matrices for each of seven layers of two blocks; the weight and the bias of two layers.
    assert rates == {2e-3: 2 * 7 * 2, 1e-3: 4}
    one_rate = torch.load(whole["finetune"].output_dir / "checkpoint-20" / "optimizer.pt")["param_groups"]
    assert {group["initial_lr"] for group in one_rate} == {2e-3}


# The card


def test_the_card_says_what_was_trained_on_what_and_how_the_loss_went(whole):
    card = ModelCard.load(whole["lora"].output_dir / "README.md")
    assert card.data.library_name == "peft"
    assert {"unicorn", "sft"} <= set(card.data.tags)
    for row in (
        "| image vectors | 16 dimensions; encoder: sandbox |",
        "| transfer of text vectors to image vectors | realign |",
        "| dataset | conversations |",
        "| adapter | LORA, r 8, alpha 32 |",
        "| projector_learning_rate | 0.001 |",
        "| learning_rate | 0.002 |",
        "| lr_scheduler_type | cosine |",
        "| steps | 20 of 20 |",
    ):
        assert row in card.text
    curve = re.findall(r"^\| (\d+) \| (\d\.\d{4}) \|$", card.text, re.MULTILINE)
    assert [int(step) for step, _ in curve] == list(range(1, 21))
    assert "/" not in re.search(r"\| dataset \| (.*) \|", card.text)[1]  # no folder of this machine
    full = ModelCard.load(whole["finetune"].output_dir / "README.md")
    assert full.data.library_name == "transformers"
    assert "adapter" not in full.text


# A dry run


@pytest.mark.parametrize(("way", "option"), [("pretrain", "max-steps"), ("lora", "max_steps")])
def test_no_steps_report_the_data_and_the_memory_and_write_nothing(recipe, whole, tmp_path, way, option):
    arguments = {option: 0} | ({"max_length": 6} if way == "pretrain" else {})
    run = recipe(way, tmp_path / "output", arguments=arguments)
    assert run.status == [0], run.log[-3000:]
    assert not (tmp_path / "output").exists()
    assert "{'loss'" not in run.log
    rows, per_epoch = (120, 30) if way == "pretrain" else (40, 10)
    assert f"data: {rows} samples that fit max_length" in run.log
    assert ("of 120 samples truncated" in run.log) == (way == "pretrain")
    assert re.search(r"tokens per sample: shortest \d+, median \d+, 95% \d+, 99% \d+, longest \d+; \d+ in all", run.log)
    assert f"steps: {per_epoch} per epoch, of 4 samples x 1 accumulated x 1 processes = 4" in run.log
    assert "input_ids [4, " in run.log
    trained, total = (
        int(each.replace(",", "")) for each in re.search(r"parameters: (\S+) of (\S+) are trained", run.log).groups()
    )
    sizes = {name: float(size) for name, size in re.findall(r"  (\w+) +([\d.e-]+) GB", run.log)}
    assert sizes["weights"] == pytest.approx(4 * total / 1e9, rel=1e-3)
    assert sizes["gradients"] == pytest.approx(4 * trained / 1e9, rel=1e-3)
    assert sizes["optimizer"] == pytest.approx(8 * trained / 1e9, rel=1e-3)
    assert run.log.rstrip().endswith("nothing was trained or written")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_of_activations_is_near_what_a_forward_pass_keeps(checkpointing, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=64, num_hidden_layers=6, attn_implementation="sdpa")
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=checkpointing)
    model = LlamaForCausalLM(config).model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    embeds = torch.randn(4, 64, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(inputs_embeds=embeds, use_cache=False)
    estimate = activation_bytes(args, config, 4 * 64)
    if checkpointing:  # the hooks see the layers' inputs; one layer's inside comes in the backward pass
        args.gradient_checkpointing, config.num_hidden_layers = False, 1
        estimate -= activation_bytes(args, config, 4 * 64) - 4 * 64 * 128 * 8
    assert sum(kept.values()) == pytest.approx(estimate, rel=0.3)


# Trackers


def test_a_tracker_that_is_not_installed_is_one_sentence():
    with pytest.raises(InputError, match=r"report_to: 'nonsense' is not installed"):
        check_trackers(["nonsense"])
    check_trackers([])


def test_losses_reach_tensorboard(whole):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = whole["pretrain"].output_dir.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in log.Scalars("train/loss")] == list(range(1, 21))


# Quantised weights


def test_qlora_trains_over_weights_of_four_bits(recipe, whole, tmp_path):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    arguments = {"load_in_4bit": "true", "use_bnb_nested_quant": "true", "max_steps": 12, "save_steps": 12}
    run = recipe("lora", tmp_path / "output", arguments=arguments)
    if run.status != [0] and "NotImplementedError" in run.log:
        pytest.skip("bitsandbytes has no kernel of four bits for this device")
    assert run.status == [0], run.log[-3000:]
    curve = losses(run.output_dir)
    assert curve[12] < 0.7 * curve[1]
