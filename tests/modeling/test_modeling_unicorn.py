"""The forward pass: against a Llama written here in plain torch, over five families, and on bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from tiny_models import EMBED_DIM, FAMILIES, IMAGE_TOKEN_ID, batch_of, new_model, prompt, random_prompts
from transformers import AutoModelForCausalLM
from unicorn_hf.modeling import UnicornConfig


def reference_projection(weights: dict, config: UnicornConfig, vector: torch.Tensor) -> torch.Tensor:
    """One vector to `[num_image_tokens, hidden_size]`."""
    if config.normalize_image_embeds:
        vector = vector / vector.norm()
    value = (vector - weights["model.image_conditioner.image_embeds_mean"]) * weights[
        "model.image_conditioner.image_embeds_scale"
    ]
    layer = 0
    while f"model.multi_modal_projector.layers.{layer}.weight" in weights:
        if layer:
            value = 0.5 * value * (1 + torch.erf(value / math.sqrt(2)))
        prefix = f"model.multi_modal_projector.layers.{layer}"
        value = weights[f"{prefix}.weight"] @ value + weights[f"{prefix}.bias"]
        layer += 2
    if config.projector_expand == "copy":
        return torch.stack([value] * config.num_image_tokens)
    return value.reshape(config.num_image_tokens, -1)


def reference_embeds(
    weights: dict, config: UnicornConfig, table: torch.Tensor, input_ids, image_embeds
) -> torch.Tensor:
    """The language model's input for one prompt, token by token."""
    vectors = iter(image_embeds)
    rows, tokens_left = [], iter(())
    for token in input_ids.tolist():
        if token != IMAGE_TOKEN_ID:
            rows.append(table[token])
            continue
        row = next(tokens_left, None)
        if row is None:
            tokens_left = iter(reference_projection(weights, config, next(vectors)))
            row = next(tokens_left)
        rows.append(row)
    return torch.stack(rows)


def reference_llama(weights: dict, config: UnicornConfig, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of a Llama for one prompt: hidden `[length, hidden_size]`, mask `[length]` of what may be attended to."""
    text = config.text_config
    length, heads, groups, size = len(hidden), text.num_attention_heads, text.num_key_value_heads, text.head_dim
    angles = torch.outer(
        torch.arange(length), text.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    ).repeat(1, 2)

    def norm(x, name):
        return weights[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps)

    def rotate(x):
        half = size // 2
        return x * angles.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * angles.sin()

    for index in range(text.num_hidden_layers):
        layer = f"model.language_model.layers.{index}"
        x = norm(hidden, f"{layer}.input_layernorm.weight")
        query, key, value = (
            (x @ weights[f"{layer}.self_attn.{name}_proj.weight"].T).view(length, -1, size).transpose(0, 1)
            for name in "qkv"
        )
        query, key = rotate(query), rotate(key).repeat_interleave(heads // groups, 0)
        scores = query @ key.transpose(1, 2) / math.sqrt(size)
        allowed = torch.ones(length, length).tril().bool() & mask.bool()
        # a padding row attends to nothing; what it gives is not compared
        attention = scores.masked_fill(~allowed, -1e9).softmax(-1) @ value.repeat_interleave(heads // groups, 0)
        hidden = hidden + attention.transpose(0, 1).reshape(length, -1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        x = norm(hidden, f"{layer}.post_attention_layernorm.weight")
        gate, up, down = (weights[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        hidden = hidden + (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    return norm(hidden, "model.language_model.norm.weight") @ weights["lm_head.weight"].T


def reference_logits(model, batch: dict, image_embeds: torch.Tensor) -> list[torch.Tensor]:
    weights, config, results, start = model.state_dict(), model.config, [], 0
    for input_ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        end = start + int((input_ids == IMAGE_TOKEN_ID).sum()) // config.num_image_tokens
        table = weights["model.language_model.embed_tokens.weight"]
        hidden = reference_embeds(weights, config, table, input_ids, image_embeds[start:end])
        results.append(reference_llama(weights, config, hidden, mask))
        start = end
    return results


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("expand", ["split", "copy"])
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("num_images", [(0, 0), (1, 1), (1, 0, 2)], ids=["text only", "one image", "mixed"])
def test_logits_and_loss_equal_a_plain_torch_llama(num_images, k, expand, side):
    model = new_model(num_image_tokens=k, projector_expand=expand)
    model.set_image_embeds_statistics(mean=torch.randn(EMBED_DIM) / 4, scale=torch.rand(EMBED_DIM) + 0.5)
    prompts, image_embeds = random_prompts(k, num_images)
    batch = batch_of(prompts, side)
    with torch.no_grad():
        output = model(
            **batch, image_embeds=image_embeds if len(image_embeds) else None, labels=batch["input_ids"].clone()
        )
    losses = []
    for row, expected in enumerate(reference_logits(model, batch, image_embeds)):
        ids, real = batch["input_ids"][row], batch["attention_mask"][row].bool()
        torch.testing.assert_close(output.logits[row][real], expected[real], rtol=1e-4, atol=1e-4)
        for position in range(len(ids) - 1):
            target = ids[position + 1]
            if real[position] and real[position + 1] and target != IMAGE_TOKEN_ID:
                losses.append(-expected[position].log_softmax(-1)[target])
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projector_type", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_projector_equals_its_formula(projector_type, normalize):
    model = new_model(projector_type=projector_type, num_image_tokens=3, normalize_image_embeds=normalize)
    vectors = torch.randn(4, EMBED_DIM)
    expected = torch.stack([reference_projection(model.state_dict(), model.config, vector) for vector in vectors])
    torch.testing.assert_close(model.get_image_features(image_embeds=vectors).pooler_output, expected)


def test_copies_are_projected_once():
    model = new_model(num_image_tokens=576, projector_expand="copy")
    rows = []
    model.model.multi_modal_projector.layers[0].register_forward_hook(
        lambda module, args, out: rows.append(len(args[0]))
    )
    features = model.get_image_features(image_embeds=torch.randn(2, EMBED_DIM)).pooler_output
    assert rows == [2] and features.shape == (2, 576, 32)
    assert (features == features[:, :1]).all()


def test_family_gives_the_logits_of_its_language_model(family):
    """The image's tokens are merged into the embeddings here, by hand, and given to transformers' own causal model."""
    model = new_model(family, num_image_tokens=2)
    causal_lm = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    causal_lm.base_model.load_state_dict(model.model.language_model.state_dict())
    causal_lm.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    prompts, image_embeds = random_prompts(2, (2,))
    (input_ids,) = batch_of(prompts)["input_ids"]
    with torch.no_grad():
        table = causal_lm.get_input_embeddings()(torch.arange(280))
        embeds = reference_embeds(model.state_dict(), model.config, table, input_ids, image_embeds)
        expected = causal_lm(inputs_embeds=embeds[None], labels=None, output_hidden_states=True)
        output = model(input_ids[None], image_embeds=image_embeds, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.hidden_states[1], expected.hidden_states[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_equals_one_by_one(family, side):
    model = new_model(family, num_image_tokens=2)
    prompts, image_embeds = random_prompts(2)
    batch = batch_of(prompts, side)
    position_ids = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(**batch, image_embeds=image_embeds, position_ids=position_ids).logits
        for row, (ids, rows) in enumerate(zip(prompts, image_embeds.split([1, 0, 2]), strict=True)):
            alone = model(torch.tensor([ids]), image_embeds=rows if len(rows) else None).logits[0]
            torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone, rtol=1e-3, atol=1e-3)


# Flex attention compiles kernels for each family: the plainest and one with windows stand for all.
@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, "sdpa") for family in FAMILIES if family != "gemma2"]  # sdpa cannot cap its logits
    + [("llama", "flex_attention"), ("gemma3", "flex_attention")],
)
# torch 2.9 does so itself where it compiles flex attention.
@pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_attention_implementations_agree(family, implementation):
    model = new_model(family)
    prompts, image_embeds = random_prompts(1)
    batch = batch_of(prompts) | {"image_embeds": image_embeds}
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**batch).logits[real]
        model.set_attn_implementation(implementation)
        assert model.model.language_model.config._attn_implementation == implementation
        torch.testing.assert_close(model(**batch).logits[real], expected, rtol=1e-3, atol=1e-3)


def test_hidden_states_and_attentions_are_returned(family):
    model = new_model(family, num_image_tokens=2)
    model.set_attn_implementation("eager")
    prompts, image_embeds = random_prompts(2, (1, 1))
    batch = batch_of(prompts) | {"image_embeds": image_embeds}
    length = batch["input_ids"].shape[1]
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in output.hidden_states] == [(2, length, 32)] * 3
    assert [attention.shape for attention in output.attentions] == [(2, 4, length, length)] * 2
    assert output.image_hidden_states.shape == (2, 2, 32)
    assert model(**batch).hidden_states is None
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.logits)


def test_logits_to_keep_computes_the_last_positions_only():
    model = new_model()
    prompts, image_embeds = random_prompts(1, (1,))
    batch = batch_of(prompts) | {"image_embeds": image_embeds}
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, model(**batch).logits[:, -2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_float_type_are_taken(dtype):
    model = new_model()
    prompts, image_embeds = random_prompts(1, (1,))
    batch = batch_of(prompts)
    expected = model(**batch, image_embeds=image_embeds.to(dtype).float()).logits
    torch.testing.assert_close(model(**batch, image_embeds=image_embeds.to(dtype)).logits, expected)


def test_inputs_embeds_with_placeholders_take_the_images():
    model = new_model(num_image_tokens=2)
    prompts, image_embeds = random_prompts(2, (2,))
    batch = batch_of(prompts)
    inputs_embeds = model.get_input_embeddings()(batch["input_ids"])
    output = model(inputs_embeds=inputs_embeds, image_embeds=image_embeds)
    assert torch.equal(output.logits, model(batch["input_ids"], image_embeds=image_embeds).logits)


def test_packed_prompts_equal_separate_ones():
    """Padding-free training: the batch is one row, and position ids that start again separate the prompts."""
    model = new_model(num_image_tokens=2)
    prompts, image_embeds = random_prompts(2, (1, 2))
    packed = torch.tensor([[*prompts[0], *prompts[1]]])
    position_ids = torch.cat([torch.arange(len(ids)) for ids in prompts])[None]
    logits = model(packed, position_ids=position_ids, image_embeds=image_embeds, use_cache=False).logits[0]
    for ids, rows, part in zip(
        prompts, image_embeds.split([1, 2]), logits.split([len(ids) for ids in prompts]), strict=True
    ):
        torch.testing.assert_close(part, model(torch.tensor([ids]), image_embeds=rows).logits[0], rtol=1e-4, atol=1e-4)


def test_statistics_are_identity_until_set():
    model = new_model()
    conditioner = model.model.image_conditioner
    assert torch.equal(conditioner.image_embeds_mean, torch.zeros(EMBED_DIM))
    assert torch.equal(conditioner.image_embeds_scale, torch.ones(EMBED_DIM))
    mean = torch.randn(EMBED_DIM)
    model.set_image_embeds_statistics(mean=mean.tolist(), scale=2.0)
    assert torch.equal(conditioner.image_embeds_mean, mean)
    assert torch.equal(conditioner.image_embeds_scale, torch.full((EMBED_DIM,), 2.0))
    with pytest.raises(ValueError, match=r"image_embeds_mean has shape \[3\]; expected \[12\]"):
        model.set_image_embeds_statistics(mean=torch.zeros(3))
    with pytest.raises(ValueError, match="image_embeds_scale holds NaN"):
        model.set_image_embeds_statistics(scale=float("nan"))


BAD_INPUT = {
    "fewer vectors than placeholders": (
        dict(image_embeds=torch.ones(2, EMBED_DIM)),
        r"tokens: 6, features: 4 \(2 images of 2 tokens each\): prompt 2 has placeholders for 2 images, but 1 are left",
    ),
    "more vectors than placeholders": (
        dict(image_embeds=torch.ones(5, EMBED_DIM)),
        r"tokens: 6, features: 10 .*the prompts have placeholders for 3 images, so 2 are without one",
    ),
    "no vectors": ({}, r"tokens: 6, features: 0 .*prompt 0 has placeholders for 1 images, but 0 are left"),
    "another dimension": (
        dict(image_embeds=torch.ones(3, 7)),
        r"shape \[3, 7\]; expected \[num_images, 12\] .*encoder 'tiny-clip'",
    ),
    "one vector too flat": (dict(image_embeds=torch.ones(EMBED_DIM)), r"shape \[12\]; expected \[num_images, 12\]"),
    "NaN": (
        dict(image_embeds=torch.tensor([1.0, torch.nan, 1.0])[:, None].expand(3, EMBED_DIM)),
        "NaN or infinite values in 1 of 3 vectors, the first in vector 1",
    ),
    "infinite": (dict(image_embeds=torch.full((3, EMBED_DIM), torch.inf)), "NaN or infinite values in 3 of 3 vectors"),
    "pictures without a tower": (
        dict(pixel_values=torch.ones(3, 3, 8, 8)),
        "no image tower .* pass image_embeds of the encoder 'tiny-clip'",
    ),
    "both": (
        dict(image_embeds=torch.ones(3, EMBED_DIM), pixel_values=torch.ones(3, 3, 8, 8)),
        "both image_embeds and pixel_values",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_in_one_sentence(case):
    inputs, message = BAD_INPUT[case]
    model = new_model(num_image_tokens=2, image_encoder="tiny-clip")
    prompts, _ = random_prompts(2)
    with pytest.raises(ValueError, match=message):
        model(**batch_of(prompts), **inputs)


def test_vectors_without_a_placeholder_are_told():
    model = new_model()
    with pytest.raises(ValueError, match=r"tokens: 0, features: 1 .*so 1 are without one"):
        model(torch.tensor([[5, 6]]), image_embeds=torch.ones(1, EMBED_DIM))


def test_a_prompt_whose_placeholders_were_cut_is_named():
    model = new_model(num_image_tokens=4)
    cut = [prompt(5, "i", k=4), [*prompt("i", k=4)[:3], 5, 6]]
    with pytest.raises(ValueError, match="prompt 1 has 3 image tokens, which is not a multiple of 4"):
        model(torch.tensor(cut), image_embeds=torch.ones(2, EMBED_DIM))


def test_a_misspelt_keyword_leaves_the_placeholder_without_its_image():
    """The language model takes any keyword, since it passes them on to its attention function."""
    with pytest.raises(ValueError, match="tokens: 1, features: 0"):
        new_model()(torch.tensor([[IMAGE_TOKEN_ID, 5]]), image_embed=torch.ones(1, EMBED_DIM))


def test_forward_takes_either_ids_or_embeddings():
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        new_model()()


def test_bad_configurations_are_refused():
    text_config = new_model().config.text_config
    with pytest.raises(StrictDataclassError, match="projector_type is 'conv'; expected 'linear' or"):
        UnicornConfig.from_text_config(text_config, embed_dim=4, projector_type="conv")
    with pytest.raises(StrictDataclassError, match="must be at least 1, got 4 and 0"):
        UnicornConfig.from_text_config(text_config, embed_dim=4, num_image_tokens=0)
    with pytest.raises(StrictDataclassError, match="projector_expand"):
        UnicornConfig.from_text_config(text_config, embed_dim=4, projector_expand="repeat")
    vision_config = {"model_type": "clip_vision_model", "projection_dim": 8}
    with pytest.raises(StrictDataclassError, match="gives vectors of 8 dimensions, but embed_dim is 4"):
        UnicornConfig.from_text_config(text_config, embed_dim=4, vision_config=vision_config)


def test_configuration_appends_the_placeholder_to_the_vocabulary():
    text_config = new_model().config.text_config
    config = UnicornConfig.from_text_config(text_config, embed_dim=4)
    assert (config.image_token_id, config.text_config.vocab_size, text_config.vocab_size) == (280, 281, 280)
    again = UnicornConfig.from_text_config(text_config.to_dict(), embed_dim=4)
    assert again.text_config.to_diff_dict() == config.text_config.to_diff_dict()
