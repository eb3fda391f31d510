"""LLM2CLIP, the encoder of both papers: a CLIP image tower beside a language model as the text tower.

The text tower is a Llama with bidirectional attention, the mean of its last hidden states over the caption, and a
residual MLP (the CLIP repository's `text_adapter`) into the image tower's space (Huang et al. 2024, arXiv 2411.04997).
Both repositories bring their own code, written for llm2vec and an older transformers. Their weights fit the classes of
transformers itself, so that code is never run.
"""

import torch
from torch import nn

from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.token_windows import TokenWindows
from unicorn_hf.embedding.transformers_towers import (
    cast_floats,
    image_transform,
    load_model,
    loading,
    token_windows,
)
from unicorn_hf.errors import InputError

MAX_TOKENS = 512
# LLM2CLIP's Llama 3 was tuned on captions in this chat turn. The mean leaves out the header, and includes the end.
TURN_START = "<|start_header_id|>user<|end_header_id|>\n\n"
TURN_END = "<|eot_id|>"


def load_llm2clip(name: str, spec: str, *, device: torch.device, dtype: torch.dtype, compile: bool) -> Encoder:
    """An LLM2CLIP pair.

    Args:
        name: the name by which the encoder was asked for.
        spec: `<CLIP repository or folder>+<language model repository or folder>`.

    Raises:
        InputError: one of the two is missing, cannot be loaded, or does not fit the other.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPVisionModelWithProjection

    clip_repo, _, llm_repo = spec.partition("+")
    if not clip_repo or not llm_repo:
        raise InputError(f"encoder {name!r}: expected llm2clip/<clip repository>+<language model repository>")
    with loading(name):
        config = AutoConfig.from_pretrained(llm_repo, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(llm_repo, trust_remote_code=False)
        adapter = load_text_adapter(name, clip_repo).to(device, dtype).eval()
    config.is_causal = False  # transformers then builds a bidirectional mask
    llm = load_model(AutoModel, name, llm_repo, config=config, dtype=dtype, trust_remote_code=False).to(device)
    vision = load_model(CLIPVisionModelWithProjection, name, clip_repo, dtype=dtype).to(device)
    processor = load_image_processor(clip_repo, vision.config.image_size)
    if adapter[0].normalized_shape[0] != llm.config.hidden_size:
        raise InputError(
            f"encoder {name!r}: the text adapter of {clip_repo} takes vectors of {adapter[0].normalized_shape[0]} "
            f"dimensions, {llm_repo} gives {llm.config.hidden_size}; name the language model that it was trained with"
        )
    windows = chat_turn_windows(tokenizer)

    def text_tower(inputs):
        hidden = llm(**inputs, is_causal=False, use_cache=False).last_hidden_state
        pooled = inputs["attention_mask"].clone()
        pooled[:, : len(windows.prefix)] = 0
        pooled = pooled[..., None].float()
        mean = (hidden.float() * pooled).sum(1) / pooled.sum(1)
        return adapter(nn.functional.normalize(mean, dim=-1).to(dtype))

    return Encoder(
        name,
        tokenizer=windows,
        transform=image_transform(processor),
        text_tower=text_tower,
        image_tower=lambda inputs: vision(**cast_floats(inputs, dtype)).image_embeds,
        device=device,
        dtype=dtype,
        compile=compile,
    )


def chat_turn_windows(tokenizer) -> TokenWindows:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # so that the header has the same position in every row
    windows = token_windows(tokenizer, MAX_TOKENS)
    if TURN_END in tokenizer.get_vocab():
        windows.prefix = tokenizer(TURN_START).input_ids
        windows.suffix = tokenizer(TURN_END, add_special_tokens=False).input_ids
        encode = windows.encode
        windows.encode = lambda texts: encode([text.strip() for text in texts])  # as llm2vec does
    return windows


class ResidualBlock(nn.Module):
    """A block of LLM2CLIP's text adapter, [batch, dim] -> [batch, dim]; the attributes are named as in its weights."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fn = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(0), nn.Linear(hidden_dim, dim))
        self.ln = nn.LayerNorm(dim)
        self.normalized_shape = self.ln.normalized_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fn(self.ln(x))


def load_text_adapter(name: str, repo: str) -> nn.Sequential:
    """The adapter, with its layers read from its weights: residual blocks, a layer norm, a linear layer.

    Raises:
        InputError: the repository has no such weights.
    """
    from safetensors import safe_open
    from transformers.utils import cached_file

    prefix = "text_adapter.adaptor."
    with safe_open(cached_file(repo, "model.safetensors"), "pt") as weights:
        state = {key.removeprefix(prefix): weights.get_tensor(key) for key in weights.keys() if key.startswith(prefix)}  # noqa: SIM118
    if not state:
        raise InputError(f"encoder {name!r}: {repo} has no weights named {prefix}*; expected a CLIP model of LLM2CLIP")
    layers = []
    for index in range(1 + max(int(key.split(".")[0]) for key in state)):
        if (first := state.get(f"{index}.fn.0.weight")) is not None:
            layers.append(ResidualBlock(first.shape[1], first.shape[0]))
        elif (weight := state[f"{index}.weight"]).ndim == 1:
            layers.append(nn.LayerNorm(len(weight)))
        else:
            layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=f"{index}.bias" in state))
    adapter = nn.Sequential(*layers)
    adapter.load_state_dict(state)
    return adapter


def load_image_processor(repo: str, size: int):
    """The repository's own image processor, or CLIP's at the tower's size: the released repositories have none."""
    from transformers import AutoImageProcessor, CLIPImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(repo, trust_remote_code=False)
    except OSError:
        return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
