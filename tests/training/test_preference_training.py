"""Stage 3: pairs of answers, their reference, and what is saved."""

import math

import pytest
import torch
import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from datasets import Dataset, load_dataset
from run_settings import PREFER_LORA, SETTINGS
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from unicorn_hf import InputError
from unicorn_hf.training import PairCollator, PreferArguments, check_options, option_classes, tokenize_pairs

peft = pytest.importorskip("peft", reason="adapters need the extra 'train'")
trl = pytest.importorskip("trl", reason="the recipes need the extra 'train'")

BETA = 0.3
WAYS = {"full": {"learning_rate": 2e-3}, "lora": {"learning_rate": 2e-2, **PREFER_LORA}}


@pytest.fixture(scope="module")
def prefer(tiny, whole):
    """Run stage 3 here; its trainer, as it was when it had trained."""
    from unicorn_hf.recipes import prefer as recipe

    def run(way, model, output_dir, **options):
        arguments = SETTINGS | {"max_steps": 3, "save_strategy": "no", "beta": BETA} | WAYS[way] | options
        arguments |= {"model_name_or_path": model, "output_dir": output_dir}
        arguments = {"dataset": tiny.preferences} | arguments
        words = [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
        trainers = []

        class Trainer(recipe.PreferenceTrainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                trainers.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "PreferenceTrainer", Trainer)
            parser = trl.TrlParser(option_classes(PreferArguments))
            recipe.main(*parser.parse_args_and_config(words))
        return trainers[0]

    return run


def batch_of(trainer, rows=4):
    return trainer.data_collator([trainer.train_dataset[row] for row in range(rows)])


def loss_of(trainer, batch):
    """What the trainer computes, without dropout."""
    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(batch)).item()


def log_probs(model, batch):
    """Of the answers: [pairs] of the right ones, [pairs] of the wrong ones."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "image_embeds")}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.float()
    each = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (each * batch["completion_mask"][:, 1:]).sum(-1).chunk(2)


def loss_by_hand(model, reference, batch):
    (chosen, rejected), (ref_chosen, ref_rejected) = (log_probs(each, batch) for each in (model, reference))
    margins = BETA * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -torch.nn.functional.logsigmoid(margins).mean().item()


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("before", "way"), [("finetune", "full"), ("finetune", "lora"), ("lora", "lora")])
def test_the_loss_begins_at_ln_2_and_its_reference_is_the_model_that_it_began_with(
    prefer, whole, tmp_path, before, way
):
    start = whole[before].output_dir
    trainer = prefer(way, start, tmp_path / "output", max_steps=6)
    assert losses_of(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)
    reference = AutoModelForImageTextToText.from_pretrained(start)
    batch = batch_of(trainer)
    others = batch | {"image_embeds": batch["image_embeds"].flip(0)}
    right, other = (loss_by_hand(trainer.model, reference, each) for each in (batch, others))
    assert loss_of(trainer, batch) == pytest.approx(right, abs=1e-4)
    assert loss_of(trainer, others) == pytest.approx(other, abs=1e-4)
    assert abs(right - other) > 1e-4


@pytest.mark.parametrize(("before", "way"), [("finetune", "full"), ("finetune", "lora"), ("lora", "lora")])
def test_what_is_saved_gives_the_log_probabilities_that_memory_gave(prefer, whole, tmp_path, before, way):
    start = whole[before].output_dir
    trainer = prefer(way, start, tmp_path / "output", save_strategy="steps")
    batch = batch_of(trainer)
    memory = torch.cat(log_probs(trainer.model, batch))
    for folder in (tmp_path / "output", tmp_path / "output" / "checkpoint-3"):
        saved = torch.cat(log_probs(AutoModelForImageTextToText.from_pretrained(folder), batch))
        torch.testing.assert_close(saved, memory, rtol=1e-4, atol=1e-4)
        assert (folder / "adapter_config.json").exists() == (way == "lora")
        assert not (folder / "ref").exists()
    before = torch.cat(log_probs(AutoModelForImageTextToText.from_pretrained(start), batch))
    assert (before - memory).abs().max() > 1e-2
    AutoProcessor.from_pretrained(tmp_path / "output")


@pytest.mark.parametrize("way", ["prefer", "prefer lora"])
def test_a_run_killed_while_it_saves_ends_with_the_same_weights(recipe, whole, way, tmp_path):
    through = recipe(way, tmp_path / "through")
    assert through.status == [0], through.log[-3000:]
    killed = recipe(way, tmp_path / "killed", fault=("SIGKILL", 16))
    assert killed.status == [-9]
    again = recipe(way, tmp_path / "killed", arguments={"resume_from_checkpoint": "true"})
    assert again.status == [0], again.log[-3000:]
    name = "adapter_model.safetensors" if way == "prefer lora" else "model.safetensors"
    first, second = (load_file(run.output_dir / name) for run in (through, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_answers_alone_are_compared(whole, tiny):
    processor = AutoProcessor.from_pretrained(whole["finetune"].output_dir)
    earlier = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "a scene"},
        {"role": "user", "content": "How many things?"},
    ]
    rows = load_dataset(str(tiny.preferences), split="train[:2]")
    rows = rows.map(lambda row, place: {"prompt": earlier if place else row["prompt"]}, with_indices=True)
    batch = PairCollator(processor)(list(tokenize_pairs(rows, processor)))
    said = [
        processor.decode(ids[mask == 1]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert said == [" 0 of them<|end|>", " 3 of them<|end|>", " 1 of them<|end|>", " 4 of them<|end|>"]
    vectors = torch.tensor(rows["image_embeds"][:])
    torch.testing.assert_close(batch["image_embeds"], torch.cat([vectors, vectors]))
    placeholders = (batch["input_ids"] == processor.image_token_id).sum(-1)
    assert placeholders.tolist() == [processor.num_image_tokens] * 4
    assert batch["ids"] == ["000000", "000003"]


@pytest.mark.parametrize("streamed", [False, True])
def test_pairs_without_an_image_train_too(prefer, whole, tiny, tmp_path, streamed):
    rows = load_dataset(str(tiny.preferences), split="train").remove_columns("image_embeds")
    question = {"role": "user", "content": "How many things?"}
    rows.map(lambda row: {"prompt": [question]}).to_parquet(tmp_path / "text.parquet")
    options = {"dataset": tmp_path / "text.parquet", "streaming": str(streamed).lower()}
    trainer = prefer("full", whole["finetune"].output_dir, tmp_path / "output", **options)
    assert losses_of(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_a_stream_trains_as_the_table_does(prefer, whole, tmp_path):
    trainer = prefer("full", whole["finetune"].output_dir, tmp_path / "output", streaming="true")
    assert losses_of(trainer)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert len(losses_of(trainer)) == 3


def pair(**parts):
    row = {
        "id": "seven",
        "prompt": [{"role": "user", "content": "<image>\nHow many things?"}],
        "chosen": [{"role": "assistant", "content": "two"}],
        "rejected": [{"role": "assistant", "content": "three"}],
        "image_embeds": [0.25] * 16,
    }
    return Dataset.from_list([row | parts])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair().remove_columns("rejected"), "no column 'rejected'"),
        (pair(chosen="two"), "sample 'seven' .* its chosen is 'two'; expected a list"),
        (pair(rejected=[]), "sample 'seven' .* its rejected is \\[\\]; expected a list"),
        (
            pair(rejected=[{"role": "assistant", "content": "<image> three"}]),
            "sample 'seven' .* its rejected answer holds an image; expected images in the prompt alone",
        ),
        (pair(prompt=[{"role": "user", "content": "How many?"}]), "sample 'seven' needs 0 images .* there are 1"),
        (pair(chosen=[{"role": "user", "content": "two"}]), "none of 1 samples"),
        (pair(chosen=[{"role": "assistant", "content": "two " * 500}]), "none of 1 samples fits into max_length 200"),
    ],
)
def test_a_pair_that_cannot_be_used_is_one_sentence(whole, row, message):
    processor = AutoProcessor.from_pretrained(whole["finetune"].output_dir)
    with pytest.raises(InputError, match=message):
        tokenize_pairs(row, processor, max_length=200)


def test_a_pair_above_max_length_is_left_out_and_counted(whole, tiny, caplog):
    processor = AutoProcessor.from_pretrained(whole["finetune"].output_dir)
    rows = load_dataset(str(tiny.preferences), split="train[:3]")
    long = [{"role": "assistant", "content": "one " * 300}]
    rows = rows.map(lambda row, place: {"rejected": long if place == 1 else row["rejected"]}, with_indices=True)
    assert tokenize_pairs(rows, processor, max_length=200)["id"][:] == ["000000", "000006"]
    assert "0 of 3 samples truncated, 1 left out" in caplog.text


def test_a_dry_run_counts_both_answers_and_the_reference(prefer, whole, tmp_path, capsys):
    prefer("full", whole["finetune"].output_dir, tmp_path / "output", max_steps=0)
    printed = capsys.readouterr().out
    assert "data: 40 samples" in printed
    assert "first batch: input_ids [8, " in printed
    assert "reference" in printed
    assert "nothing was trained or written" in printed
    assert not (tmp_path / "output").exists()


def test_the_card_says_how_it_was_trained(prefer, whole, tmp_path):
    prefer("full", whole["finetune"].output_dir, tmp_path / "output", loss_type="sigmoid")
    card = (tmp_path / "output" / "README.md").read_text()
    assert "- dpo\n" in card and "- sft\n" not in card
    assert f"| beta | {BETA} |" in card and "| loss_type | sigmoid |" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs is True, which this stage does not read"),
        ({"beta": -1.0}, "beta is -1.0; expected a number in"),
        ({"truncation_mode": "keep_end"}, "truncation_mode is 'keep_end', which this stage does not read"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"loss_weights": [0.0]}, r"loss_weights is \[0.0\]; expected numbers of 0 or more, and not only 0"),
        ({"loss_weights": [float("nan")]}, "loss_weights is"),
        ({"loss_weights": [-1.0]}, "loss_weights is"),
    ],
)
@pytest.mark.filterwarnings("ignore:The `'keep_end'`:FutureWarning")
def test_an_option_that_pairs_cannot_have_is_refused(tmp_path, options, message):
    training_args = trl.DPOConfig(tmp_path / "output", use_cpu=True, bf16=False, **options)
    with pytest.raises(InputError, match=message):
        check_options(PreferArguments(dataset="d"), training_args, trl.ModelConfig(model_name_or_path="m"))


def test_a_loss_that_trl_does_not_know_is_one_sentence(prefer, whole, tmp_path):
    with pytest.raises(InputError, match="Label smoothing must be greater"):
        prefer("full", whole["finetune"].output_dir, tmp_path / "output", loss_type="exo_pair")
    with pytest.raises(InputError, match="Unknown loss type: guess"):
        prefer("full", whole["finetune"].output_dir, tmp_path / "output", loss_type="guess")
