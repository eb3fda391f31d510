import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig
from trl import SFTConfig
from two_processes import run_in_two_processes

from unicorn_hf import UnicornProcessor
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import DataArguments, UnicornCollator, UnicornTrainer, is_padding_free

sys.path.append(str(Path(__file__).parents[1] / "modeling"))
from tiny_models import EMBED_DIM, FAMILIES, IMAGE_TOKEN_ID, new_model

IGNORED = -100


@pytest.fixture(scope="module")
def processor():
    processor = UnicornProcessor(train_tokenizer(["red circle"] * 9), num_image_tokens=2, embed_dim=EMBED_DIM)
    processor.image_token_id = IMAGE_TOKEN_ID  # the tiny models' own
    return processor


def sample(*ids, vector=None, **columns):
    row = {"input_ids": np.array(ids), "labels": np.array(ids), **columns}
    return row if vector is None else {**row, "image_embeds": np.full(EMBED_DIM, vector, dtype=np.float16)}


def image(*ids, k=2, **columns):
    """A sample that starts with an image, which is not learnt."""
    row = sample(*[IMAGE_TOKEN_ID] * k, *ids, **columns)
    row["labels"][:k] = IGNORED
    return row


def test_short_samples_are_padded_on_the_right_and_their_padding_is_not_learnt(processor):
    pad = processor.tokenizer.pad_token_id
    batch = UnicornCollator(processor)([image(1, 2, 3, vector=1), sample(4)])
    assert batch["input_ids"].tolist() == [[IMAGE_TOKEN_ID] * 2 + [1, 2, 3], [4, pad, pad, pad, pad]]
    assert batch["labels"].tolist() == [[IGNORED] * 2 + [1, 2, 3], [4] + [IGNORED] * 4]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 0, 0, 0, 0]]


def test_vectors_are_stacked_in_float32_in_the_order_of_the_placeholders(processor):
    two = {**sample(2), "image_embeds": [np.full(EMBED_DIM, 2.0), np.full(EMBED_DIM, 3.0)]}
    none = {**sample(2), "image_embeds": None}
    batch = UnicornCollator(processor)([sample(1, vector=1), none, two, sample(3, vector=4)])
    assert batch["image_embeds"].dtype == torch.float32
    assert batch["image_embeds"][:, 0].tolist() == [1, 2, 3, 4]


def test_a_flat_batch_says_where_each_sample_begins(processor):
    batch = UnicornCollator(processor, padding_free=True)([image(1, 2, vector=1, id="a"), sample(4, 5, 6, id="b")])
    assert batch["input_ids"].tolist() == [[IMAGE_TOKEN_ID] * 2 + [1, 2, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED] * 2 + [1, 2, IGNORED, 5, 6]]  # 4 does not follow 2
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 4, 7]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 4
    assert "attention_mask" not in batch
    assert batch["ids"] == ["a", "b"]


@pytest.mark.parametrize(
    ("attention", "batching", "expected"),
    [
        ("sdpa", "auto", False),
        ("eager", "auto", False),
        ("flash_attention_2", "auto", True),
        ("flash_attention_3", "auto", True),
        ("flex_attention", "auto", True),
        ("flash_attention_2", "padded", False),
        ("sdpa", "padding-free", True),
    ],
)
def test_batches_are_flat_by_choice_or_where_the_attention_gains_by_it(attention, batching, expected):
    model = new_model()
    model.config.text_config._attn_implementation = attention
    assert is_padding_free(model, batching) == expected


def loss_and_gradients(model, batch):
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "ids"}
    num_items = (inputs["labels"][..., 1:] != IGNORED).sum()
    loss = model(**inputs, num_items_in_batch=num_items, use_cache=False).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def mixed_samples():
    """Several images in one sample, none in another, and samples of one token to learn."""
    several = image(5, 6, 7, 8, 9, vector=None)
    several["input_ids"][4:6] = IMAGE_TOKEN_ID
    several["labels"][4:6] = IGNORED
    several["image_embeds"] = np.random.default_rng(0).normal(size=(2, EMBED_DIM))
    return [several, sample(11, 12, 13), image(14, vector=-2), image(*range(20, 40), vector=0.5)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flat_batch_has_the_loss_and_the_gradients_of_the_padded_one(processor, family, attention):
    if family == "gemma2" and attention == "sdpa":
        pytest.skip("Gemma 2 caps its attention scores, which sdpa cannot")
    torch.manual_seed(0)
    model = new_model(family, num_image_tokens=2)
    model.set_attn_implementation(attention)
    padded, expected = loss_and_gradients(model, UnicornCollator(processor)(mixed_samples()))
    flat, actual = loss_and_gradients(model, UnicornCollator(processor, padding_free=True)(mixed_samples()))
    torch.testing.assert_close(flat, padded, rtol=1e-5, atol=0)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item() + 1e-8)


@pytest.mark.parametrize("padding_free", [False, True])
def test_a_batch_without_an_image_gives_the_projector_a_gradient_of_zero_and_the_same_loss(processor, padding_free):
    torch.manual_seed(0)
    model = new_model(num_image_tokens=2)
    samples = [sample(11, 12, 13, 14), sample(15, 16)]
    batch = UnicornCollator(processor, padding_free=padding_free)(samples)
    loss, gradients = loss_and_gradients(model, batch)
    alone = torch.tensor([[11, 12, 13, 14], [15, 16, 0, 0]])
    labels = torch.tensor([[11, 12, 13, 14], [15, 16, IGNORED, IGNORED]])
    expected = model(input_ids=alone, attention_mask=(labels != IGNORED).long(), labels=labels).loss
    torch.testing.assert_close(loss, expected)
    projector = [gradient for name, gradient in gradients.items() if "multi_modal_projector" in name]
    assert len(projector) == 4
    assert all((gradient == 0).all() for gradient in projector)


TWO_PROCESSES = """
import sys
import torch
from datetime import timedelta
from torch.distributed import destroy_process_group, get_rank, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from unicorn_hf.modeling import UnicornForConditionalGeneration

torch.set_num_threads(1)
init_process_group("gloo", timeout=timedelta(seconds=60))
batch = torch.load(f"{sys.argv[1]}/batch-{get_rank()}.pt")
model = UnicornForConditionalGeneration.from_pretrained(sys.argv[1]).train()
model = DistributedDataParallel(model)  # without find_unused_parameters
for _ in range(2):  # the second fails where the first has left a gradient out
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()
gradient = model.module.model.multi_modal_projector.layers[0].weight.grad.norm()
model = UnicornForConditionalGeneration.from_pretrained(sys.argv[1]).train()
for part in (model.model.multi_modal_projector, *model.model.language_model.layers, model):
    fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
model(**batch, use_cache=False).loss.backward()  # waits for ever where only one process runs the projector
sharded = model.model.multi_modal_projector.layers[0].weight.grad.full_tensor().norm()
if get_rank() == 0:
    print("norms", gradient.item(), sharded.item())
destroy_process_group()
"""


def test_one_process_may_have_a_batch_without_images(processor, tmp_path):
    """Under DDP and FSDP2 of two processes: the projector's gradient is half of what the other process has."""
    torch.manual_seed(0)
    model = new_model(num_image_tokens=2)
    collator = UnicornCollator(processor)
    images = collator([image(11, 12, 13, vector=1), image(14, 15, vector=2)])
    texts = collator([sample(16, 17), sample(18, 19)])
    model.save_pretrained(tmp_path)
    torch.save(images, tmp_path / "batch-0.pt")
    torch.save(texts, tmp_path / "batch-1.pt")
    model(**images).loss.backward()
    expected = model.model.multi_modal_projector.layers[0].weight.grad.norm().item() / 2
    printed = run_in_two_processes(TWO_PROCESSES, tmp_path)
    (norms,) = [line.split()[1:] for line in printed if line.startswith("norms")]
    assert [float(norm) for norm in norms] == pytest.approx([expected, expected], rel=1e-4)


def test_pictures_go_through_the_models_tower(processor):
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=EMBED_DIM,
    )  # fmt: skip
    sizes = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}
    seeing = UnicornProcessor(processor.tokenizer, CLIPImageProcessor(**sizes), num_image_tokens=2, embed_dim=EMBED_DIM)
    seeing.image_token_id = IMAGE_TOKEN_ID
    model = new_model(num_image_tokens=2, vision_config=tower)
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    collator = UnicornCollator(seeing)
    batch = collator([image(1, 2, image=red), sample(3, image=None), image(4, image=blue)])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"][0, 0].mean() > batch["pixel_values"][1, 0].mean()
    loss, _ = loss_and_gradients(model, batch)
    with torch.no_grad():
        batch["image_embeds"] = model.get_image_embeds(batch.pop("pixel_values"))
    torch.testing.assert_close(loss, loss_and_gradients(model, batch)[0])
    assert collator([sample(1, image=None)])["pixel_values"].shape == (1, 3, 16, 16)
    assert collator([sample(1, images=[red, blue])])["pixel_values"].shape == (2, 3, 16, 16)


def test_the_trainer_takes_the_same_steps_flat_and_padded(processor, tmp_path):
    """The loss counts the tokens of both accumulated batches, and the logs say how long it waited for them."""
    samples = [image(*range(5, 8 + n), vector=n) if n % 3 else sample(*range(5, 9 + n)) for n in range(8)]
    padded, flat = (train(samples, processor, padding_free, tmp_path) for padding_free in (False, True))
    losses = [entry["loss"] for entry in padded]
    torch.manual_seed(0)
    assert losses[0] == pytest.approx(mean_loss(new_model(num_image_tokens=2), samples[:4]), rel=1e-4)
    assert [entry["loss"] for entry in flat] == pytest.approx(losses, rel=1e-4)
    assert len(set(losses)) == 3
    assert all(0 < entry["data_wait"] < 1 for entry in padded + flat)


def train(samples, processor, padding_free, folder) -> list[dict]:
    """The logs of three steps of two batches of two samples."""
    rows = [{"image_embeds": [], **{name: value.tolist() for name, value in row.items()}} for row in samples]
    torch.manual_seed(0)
    arguments = SFTConfig(
        str(folder), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-3,
        logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, save_strategy="no",
        train_sampling_strategy="sequential", disable_tqdm=True, optim="sgd",
    )  # fmt: skip
    trainer = UnicornTrainer(
        model=new_model(num_image_tokens=2).train(),
        args=arguments,
        data_args=DataArguments(dataset="rows"),
        train_dataset=Dataset.from_list(rows).with_format("numpy"),
        data_collator=UnicornCollator(processor, padding_free=padding_free),
        processing_class=processor,
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def mean_loss(model, samples) -> float:
    total, count = 0.0, 0
    for row in samples:
        ids, labels = torch.tensor(row["input_ids"])[None], torch.tensor(row["labels"])[None]
        vectors = torch.tensor(row["image_embeds"])[None].float() if "image_embeds" in row else None
        items = int((labels[:, 1:] != IGNORED).sum())
        total += model(input_ids=ids, labels=labels, image_embeds=vectors).loss.item() * items
        count += items
    return total / count
