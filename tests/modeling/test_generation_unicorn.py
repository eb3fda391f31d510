"""`generate` with images: every cache, beams, sampling, assistants, and prompts that continue a cache."""

import pytest
import torch
from tiny_models import CACHE, EMBED_DIM, IMAGE_TOKEN_ID, batch_of, new_model, prompt, random_prompts
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


def generate(model, batch, image_embeds=None, **options) -> torch.Tensor:
    """The new tokens only."""
    out = model.generate(**batch, image_embeds=image_embeds, **GREEDY | options)
    return out[:, batch["input_ids"].shape[1] :] if "input_ids" in batch else out


def greedy_by_hand(model, ids: list[int], image_embeds) -> list[int]:
    """Greedy decoding without a cache and without `generate`."""
    new = []
    for _ in range(GREEDY["max_new_tokens"]):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new]), image_embeds=image_embeds if len(image_embeds) else None).logits
        logits = logits[0, -1]
        logits[[IMAGE_TOKEN_ID, model.config.text_config.eos_token_id]] = -torch.inf
        new.append(int(logits.argmax()))
    return new


def test_batched_generation_equals_greedy_decoding_by_hand(family):
    model = new_model(family, num_image_tokens=2)
    prompts, image_embeds = random_prompts(2)
    together = generate(model, batch_of(prompts), image_embeds)
    for row, ids, rows in zip(together, prompts, image_embeds.split([1, 0, 2]), strict=True):
        assert row.tolist() == greedy_by_hand(model, ids, rows)


def test_the_image_is_read_in_every_step():
    """The same prompt with another vector is continued otherwise, with the cache and without."""
    model = new_model()
    batch = batch_of([prompt("i", 5, k=1)] * 2)
    same, other = torch.randn(2, EMBED_DIM)
    for use_cache in (True, False):
        rows = generate(model, batch, torch.stack([same, same]), use_cache=use_cache)
        assert torch.equal(rows[0], rows[1])
        rows = generate(model, batch, torch.stack([same, other]), use_cache=use_cache)
        assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
    ],
    ids=lambda options: next(iter(map(str, options.values()))),
)
def test_caches_agree(family, options):
    """Gemma's static and dynamic caches slide where its layers do."""
    model = new_model(family, num_image_tokens=2)
    prompts, image_embeds = random_prompts(2)
    batch = batch_of(prompts)
    assert torch.equal(generate(model, batch, image_embeds, **options), generate(model, batch, image_embeds))


def test_quantised_cache_gives_the_same_answer_up_to_its_rounding():
    pytest.importorskip("hqq", reason="a quantised cache needs the package hqq")
    model = new_model(sizes={"head_dim": 64})
    prompts, image_embeds = random_prompts(1)
    batch = batch_of(prompts)
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 3, "min_new_tokens": 3}
    config = {"backend": "hqq", "nbits": 8, "q_group_size": 64, "axis_key": 1, "axis_value": 1}
    quantised = model.generate(
        **batch, image_embeds=image_embeds, cache_implementation="quantized", cache_config=config, **options
    )
    expected = model.generate(**batch, image_embeds=image_embeds, **options)
    assert isinstance(quantised[CACHE], QuantizedCache)
    for logits, exact in zip(quantised.logits, expected.logits, strict=True):
        assert (logits - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("num_beams", [2, 4])
def test_beams_with_several_images_equal_beams_one_by_one(family, num_beams):
    model = new_model(family, num_image_tokens=2)
    prompts, image_embeds = random_prompts(2)
    options = {"num_beams": num_beams, "num_return_sequences": 2}
    together = generate(model, batch_of(prompts), image_embeds, **options).view(3, 2, -1)
    for row, ids, rows in zip(together, prompts, image_embeds.split([1, 0, 2]), strict=True):
        alone = generate(model, batch_of([ids]), rows if len(rows) else None, **options)
        assert torch.equal(row, alone)


def test_sampling_repeats_with_its_seed_and_returns_several_answers():
    model = new_model()
    prompts, image_embeds = random_prompts(1)
    options = {"do_sample": True, "num_return_sequences": 3, "temperature": 2.0}
    torch.manual_seed(7)
    first = generate(model, batch_of(prompts), image_embeds, **options)
    torch.manual_seed(7)
    assert torch.equal(generate(model, batch_of(prompts), image_embeds, **options), first)
    torch.manual_seed(8)
    assert not torch.equal(generate(model, batch_of(prompts), image_embeds, **options), first)
    assert len(first) == 9
    assert not (first == IMAGE_TOKEN_ID).any()


@pytest.mark.parametrize("assistant", ["unicorn", "prompt lookup"])
def test_assisted_decoding_equals_greedy_decoding(assistant):
    model = new_model(num_image_tokens=2)
    prompts, image_embeds = random_prompts(2, (2,))
    batch = batch_of(prompts)
    options = {"prompt_lookup_num_tokens": 2}
    if assistant == "unicorn":
        torch.manual_seed(1)
        options = {"assistant_model": new_model(num_image_tokens=2, sizes={"num_hidden_layers": 1})}
    assert torch.equal(generate(model, batch, image_embeds, **options), generate(model, batch, image_embeds))


def test_continuing_from_a_cache_equals_starting_anew():
    """A second turn with another image; the vectors given are those of the whole conversation, or the new ones."""
    model = new_model(num_image_tokens=2)
    first, second = prompt(5, "i", 6, 7, k=2), prompt(8, "i", 9, k=2)
    vectors = torch.randn(2, EMBED_DIM)
    whole = batch_of([first + second])
    expected = generate(model, whole, vectors)

    def cache_of_first_turn() -> DynamicCache:
        cache = DynamicCache(config=model.config.text_config)
        with torch.no_grad():
            model(torch.tensor([first]), image_embeds=vectors[:1], **{CACHE: cache})
        return cache

    for image_embeds in (vectors, vectors[1:]):
        tokens = generate(model, whole, image_embeds, **{CACHE: cache_of_first_turn()})
        assert torch.equal(tokens, expected)
    # text alone after the image
    whole = batch_of([[*first, 8, 9]])
    tokens = generate(model, whole, vectors[:1], **{CACHE: cache_of_first_turn()})
    assert torch.equal(tokens, generate(model, whole, vectors[:1]))


def test_an_image_forgotten_in_a_second_turn_is_told():
    model = new_model()
    cache = DynamicCache(config=model.config.text_config)
    model(torch.tensor([[5, 6]]), **{CACHE: cache})
    with pytest.raises(ValueError, match=r"tokens: 1, features: 0"):
        generate(model, batch_of([prompt(5, 6, "i", 7, k=1)]), **{CACHE: cache})


def test_inputs_embeds_generate_as_input_ids_do():
    model = new_model(num_image_tokens=2)
    prompts, image_embeds = random_prompts(2, (2, 1))
    batch = batch_of(prompts)
    expected = generate(model, batch, image_embeds)
    embeds = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }
    assert torch.equal(generate(model, embeds, image_embeds), expected)
    assert torch.equal(
        generate(model, embeds, image_embeds, num_beams=2)[0], generate(model, batch, image_embeds, num_beams=2)[0]
    )


def test_text_only_generation_equals_the_language_model():
    model = new_model()
    causal_lm = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    causal_lm.model.load_state_dict(model.model.language_model.state_dict())
    causal_lm.lm_head.load_state_dict(model.lm_head.state_dict())
    batch = batch_of(random_prompts(1, (0, 0))[0])
    expected = causal_lm.generate(**batch, **GREEDY, suppress_tokens=[IMAGE_TOKEN_ID])
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


def test_generate_refuses_a_keyword_that_nothing_reads():
    model = new_model()
    with pytest.raises(ValueError, match=r"not used by the model.*image_embed'"):
        generate(model, batch_of([prompt("i", 5, k=1)]), image_embed=torch.ones(1, EMBED_DIM))
