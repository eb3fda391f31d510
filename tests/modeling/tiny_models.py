"""Tiny language models of five families, Unicorn models over them, and batches for them."""

import dataclasses

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB_SIZE = 280
IMAGE_TOKEN_ID = 279
PAD, END = 2, 1
EMBED_DIM = 12
# What this version of transformers calls the cache: `cache` from 5.24 on, `past_key_values` before.
CACHE = dataclasses.fields(BaseModelOutputWithPast)[1].name

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
# A window shorter than the prompts, caps low enough to be felt, and tied embeddings, as the real models have them.
SLIDING = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True}
FAMILIES = {
    "llama": lambda **sizes: LlamaConfig(**SIZES | sizes),
    "qwen3": lambda **sizes: Qwen3Config(**SIZES | {"head_dim": 8, "tie_word_embeddings": True} | sizes),
    "phi3": lambda **sizes: Phi3Config(**SIZES | sizes),
    "gemma2": lambda **sizes: Gemma2Config(
        **SIZES
        | SLIDING
        | {
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 0.3,
        }
        | sizes
    ),
    "gemma3": lambda **sizes: Gemma3TextConfig(
        **SIZES | SLIDING | {"sliding_window": 5, "query_pre_attn_scalar": 8} | sizes
    ),
}


# What other families need beyond the common sizes, and so that scaled logits, experts and windows are felt.
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 280,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
OWN_SIZES = {
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "cohere2": {"logit_scale": 0.25},
    "gemma": {"head_dim": 8},
    "gemma2": SLIDING | {"sliding_window": 5, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.3},
    "gemma3_text": SLIDING | {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "granitemoe": {"logits_scaling": 3.0, "num_local_experts": 4},
    "helium": {"head_dim": 8},
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1},
    "ministral": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 16},
}


def text_config_of(name: str, **sizes):
    own = OWN_SIZES.get(name, {})
    return AutoConfig.for_model(name, **(own if own is GPT2 else SIZES | own) | sizes)


def new_model(family: str = "llama", sizes: dict | None = None, **config) -> UnicornForConditionalGeneration:
    """A Unicorn model of random weights, large enough that nothing rounds to the same logits."""
    text_config = FAMILIES[family](**sizes or {}) if family in FAMILIES else text_config_of(family, **sizes or {})
    config = UnicornConfig.from_text_config(
        text_config, **{"embed_dim": EMBED_DIM, "image_token_id": IMAGE_TOKEN_ID} | config
    )
    model = UnicornForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    return model


def prompt(*pieces, k: int) -> list[int]:
    """Token ids: numbers as they are, "i" as the `k` placeholders of an image."""
    return [token for piece in pieces for token in ([IMAGE_TOKEN_ID] * k if piece == "i" else [piece])]


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of fewer than 280 tokens, with a ChatML template."""
    specials = ["<|im_start|>", "<|im_end|>", "<pad>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(vocab_size=270, special_tokens=specials, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<pad>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def batch_of(prompts: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    """Prompts padded to one length, with their mask, and a vector for each image."""
    length = max(map(len, prompts))
    pad = {
        "left": lambda row, fill: [fill] * (length - len(row)) + row,
        "right": lambda row, fill: row + [fill] * (length - len(row)),
    }
    return {
        "input_ids": torch.tensor([pad[side](row, PAD) for row in prompts]),
        "attention_mask": torch.tensor([pad[side]([1] * len(row), 0) for row in prompts]),
    }


def random_prompts(k: int, num_images=(1, 0, 2)) -> tuple[list[list[int]], torch.Tensor]:
    """Prompts of different lengths with so many images each, and the images' vectors."""
    prompts = []
    for index, count in enumerate(num_images):
        text = torch.randint(3, 270, (5 + 2 * index,)).tolist()
        prompts.append(prompt(text[0], *["i"] * min(count, 1), *text[1:4], *["i"] * (count - 1), *text[4:], k=k))
    return prompts, torch.randn(sum(num_images), EMBED_DIM)
