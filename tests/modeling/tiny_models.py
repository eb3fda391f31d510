"""Tiny language models of five families, Unicorn models over them, and batches for them."""

import torch
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config
from unicorn_hf.modeling import UnicornConfig, UnicornForConditionalGeneration

VOCAB_SIZE = 280
IMAGE_TOKEN_ID = 279
PAD, END = 2, 1
EMBED_DIM = 12

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


def new_model(family: str = "llama", sizes: dict | None = None, **config) -> UnicornForConditionalGeneration:
    """A Unicorn model of random weights, large enough that nothing rounds to the same logits."""
    text_config = FAMILIES[family](**sizes or {})
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
