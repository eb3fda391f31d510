"""What trainers do to the model: checkpointing, compiling, adapters, quantising, sharding."""

import pytest
import torch
from tiny_models import EMBED_DIM, batch_of, new_model, random_prompts
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from two_processes import run_in_two_processes
from unicorn_hf.modeling import UnicornForConditionalGeneration


def labelled_batch(k: int = 2) -> dict[str, torch.Tensor]:
    prompts, image_embeds = random_prompts(k)
    batch = batch_of(prompts, "right")
    return batch | {"image_embeds": image_embeds, "labels": batch["input_ids"].clone()}


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("trained", ["everything", "projector"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(family, trained, use_reentrant):
    model = new_model(family, num_image_tokens=2).train()
    if trained == "projector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    batch = labelled_batch()
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    calls = []
    layer = model.model.language_model.layers[0]
    layer.self_attn.register_forward_hook(lambda *args: calls.append(1))
    actual = gradients(model, batch)
    assert len(calls) == 2  # forward, and again in backward
    assert actual.keys() == expected.keys()
    assert any("multi_modal_projector" in name for name in actual)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)


def test_projector_learns_to_tell_two_images_apart():
    """End to end: with everything else frozen, each image's token comes to predict its own caption."""
    model = new_model().train().requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    batch = batch_of([[279, 11, 12], [279, 21, 22]])
    batch |= {"image_embeds": torch.randn(2, EMBED_DIM), "labels": batch["input_ids"].clone()}
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.02)
    for _ in range(200):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    new = model.eval().generate(torch.tensor([[279], [279]]), image_embeds=batch["image_embeds"], max_new_tokens=1)
    assert new[:, 1].tolist() == [11, 21]


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # the others take a minute each to compile
def test_compiled_forward_is_one_graph_and_gives_the_same_logits(family):
    model = new_model(family, num_image_tokens=2)
    batch = labelled_batch()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        expected, actual = model(**batch, use_cache=False), compiled(**batch, use_cache=False)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-3, atol=1e-3)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(actual.logits[real], expected.logits[real], rtol=1e-3, atol=1e-3)


def test_exported_forward_gives_the_same_logits():
    model = new_model(num_image_tokens=2)
    batch = {name: value for name, value in labelled_batch().items() if name != "labels"}
    exported = torch.export.export(model, (), batch | {"use_cache": False}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(
            exported.module()(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits
        )


# PEFT

peft = pytest.importorskip("peft", reason="adapters need the extra 'train'")


def adapter(**options):
    return peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "qkv_proj"],
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
        **options,
    )


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_merged_adapter_equals_the_adapted_model_and_keeps_the_projector(family, use_dora, tmp_path):
    model = new_model(family, num_image_tokens=2)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    batch = labelled_batch()
    adapted = peft.get_peft_model(model, adapter(use_dora=use_dora))
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[3] for name in trainable} == {"multi_modal_projector", "language_model"}
    assert all("lora" in name or "modules_to_save" in name for name in trainable)

    adapted.train()
    adapted(**batch).loss.backward()
    assert all(adapted.get_parameter(name).grad is not None for name in trainable)
    with torch.no_grad():
        for name in trainable:
            adapted.get_parameter(name).add_(0.01)
    adapted.eval()
    expected = adapted(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")

    again = new_model(family, num_image_tokens=2)
    again.load_state_dict(base)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**batch).logits, expected, rtol=1e-3, atol=1e-3)

    merged = adapted.merge_and_unload()
    assert type(merged) is UnicornForConditionalGeneration
    merged.save_pretrained(tmp_path / "merged")
    loaded = UnicornForConditionalGeneration.from_pretrained(tmp_path / "merged")
    name = "model.multi_modal_projector.layers.0.weight"
    torch.testing.assert_close(loaded.state_dict()[name], base[name] + 0.01)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(loaded(**batch).logits[real], expected[real], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("use_dora", [False, True], ids=["LoRA", "DoRA"])
def test_the_folder_of_an_adapter_loads_as_the_model_that_was_saved(use_dora, tmp_path):
    new_model(num_image_tokens=2).save_pretrained(tmp_path / "base")
    base = UnicornForConditionalGeneration.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, adapter(use_dora=use_dora))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5).add_(0.01)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter").eval()
    batch = labelled_batch()
    torch.testing.assert_close(loaded(**batch).logits, adapted(**batch).logits, rtol=1e-4, atol=1e-4)


def test_adapted_model_generates_with_images():
    model = peft.get_peft_model(new_model(num_image_tokens=2), adapter()).eval()
    prompts, image_embeds = random_prompts(2)
    options = batch_of(prompts) | {"image_embeds": image_embeds, "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**options), model.generate(**options, use_cache=False))


# Quantising


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_leaves_the_projector_as_it_is(bits, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="quantising needs bitsandbytes")
    model = new_model(sizes={"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    model.save_pretrained(tmp_path)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
    try:
        quantised = UnicornForConditionalGeneration.from_pretrained(
            tmp_path, quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
        )
    except (RuntimeError, ImportError, NotImplementedError) as error:
        pytest.skip(f"bitsandbytes {bitsandbytes.__version__} has no {bits}-bit kernel for this CPU: {error}")
    linear = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    assert isinstance(quantised.model.language_model.layers[0].mlp.up_proj, linear)
    assert not any(isinstance(module, linear) for module in quantised.model.multi_modal_projector.modules())
    batch = labelled_batch(1)
    exact = model(**batch).logits[batch["attention_mask"].bool()]
    rounded = quantised(**batch).logits[batch["attention_mask"].bool()].float()
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=-1).mean() > 0.8

    prepared = peft.prepare_model_for_kbit_training(quantised)
    adapted = peft.get_peft_model(prepared, adapter())
    adapted(**batch).loss.backward()
    assert (
        adapted.base_model.model.model.multi_modal_projector.modules_to_save.default.layers[0].weight.grad is not None
    )


# Sharding

FSDP2 = """
import os, sys, torch
torch.set_num_threads(1)
from torch.distributed import init_process_group, destroy_process_group, get_rank
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from unicorn_hf.modeling import UnicornForConditionalGeneration

init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
model = UnicornForConditionalGeneration.from_pretrained(sys.argv[1]).train()
for layer in model.model.language_model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
batch = torch.load(os.path.join(sys.argv[1], "batch.pt"))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(**batch, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if get_rank() == 0:
        print("loss", loss.item())
assert type(model.lm_head.weight).__name__ == "DTensor"
destroy_process_group()
"""


def test_two_fsdp2_processes_give_the_losses_of_one(tmp_path):
    model = new_model(num_image_tokens=2).train()
    batch = labelled_batch()
    model.save_pretrained(tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(3):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    printed = run_in_two_processes(FSDP2, tmp_path)
    losses = [float(line.split()[1]) for line in printed if line.startswith("loss")]
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(set(losses)) == 3
