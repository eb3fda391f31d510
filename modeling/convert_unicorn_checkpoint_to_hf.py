"""Convert the released checkpoints of Unicorn (Bunny's layout) to this package's model.

They hold the language model under `model.*` and `lm_head.*`, the projector under `model.mm_projector.*`, and mark an
image by the index -200 in the token ids, where it becomes 576 copies of one projected vector. The first training stage
writes the projector alone, as `mm_projector.bin`.
"""

import json
import pickle
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoTokenizer

from .modeling_unicorn import UnicornForConditionalGeneration
from .processing_unicorn import UnicornProcessor

# The prompt of the released inference script, as a chat template.
CHAT_TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions."
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def convert_unicorn_checkpoint(
    source,
    output,
    language_model: str | None = None,
    num_image_tokens: int = 576,
    image_encoder: str | None = None,
    transfer: str | None = None,
) -> None:
    """Write the model and the processor of a released checkpoint to the folder `output`.

    Args:
        source: the checkpoint's folder (safetensors or `.bin` shards, read without running pickled code), or a lone
            `mm_projector.bin`.
        language_model: the language model of a lone projector, as a folder or an id on the Hub.
        num_image_tokens: copies of the projected vector; the released code has 576.
        image_encoder, transfer: recorded in the configuration.

    Raises:
        ValueError: `source` has another layout, or is incomplete.
    """
    source = Path(source)
    projector = _read_projector(source)
    weights = sorted((name for name in projector if name.endswith("weight")), key=lambda name: int(name.split(".")[0]))
    text_config = None
    if language_model is None:
        if source.is_file():
            raise ValueError(f"{source} holds a projector alone: name its language model (--language-model)")
        language_model, text_config = source, _read_text_config(source)
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    model = UnicornForConditionalGeneration.from_text_pretrained(
        language_model,
        embed_dim=projector[weights[0]].shape[1],
        tokenizer=tokenizer,
        text_config=text_config,
        num_image_tokens=num_image_tokens,
        projector_type="linear" if len(weights) == 1 else f"mlp{len(weights)}x_gelu",
        projector_expand="copy",
        normalize_image_embeds=False,  # the released code gives its vectors to the projector as they are
        image_encoder=image_encoder,
        transfer=transfer,
    )
    out_features, hidden_size = len(projector[weights[-1]]), model.config.text_config.hidden_size
    if out_features != hidden_size:
        raise ValueError(
            f"{source}: the projector's output has {out_features} dimensions, but {language_model} has a hidden size of"
            f" {hidden_size}"
        )
    model.model.multi_modal_projector.layers.load_state_dict(projector)
    model.save_pretrained(output)
    UnicornProcessor(
        tokenizer,
        num_image_tokens=num_image_tokens,
        embed_dim=model.config.embed_dim,
        image_encoder=image_encoder,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(output)


def _read_projector(source: Path) -> dict[str, torch.Tensor]:
    """The projector's weights, named as in its `nn.Sequential`: `0.weight`, `0.bias`, `2.weight`, ..."""
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors")) or sorted(source.glob("*.bin"))
    if not files:
        raise ValueError(f"{source}: no checkpoint; expected a folder of safetensors or .bin, or mm_projector.bin")
    projector = {}
    for file in files:
        for name, tensor in _read_tensors(file, "mm_projector.", "vision_tower."):
            if "vision_tower." in name:
                raise ValueError(f"{file}: reads an image tower's patches ({name}); Unicorn's models read one vector")
            name = name.split("mm_projector.")[1]
            projector[name if name[0].isdigit() else f"0.{name}"] = tensor  # a linear projector has no index
    if not any(name.endswith("weight") for name in projector):
        raise ValueError(f"{source}: has no weights mm_projector.*; expected a checkpoint in Bunny's layout")
    return projector


def _read_tensors(file: Path, *containing: str) -> list[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if any(part in name for part in containing)]  # noqa: SIM118
            return [(name, tensors.get_tensor(name)) for name in names]
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{file}: cannot be read as tensors alone, and no other pickle is read") from error
    return [(name, tensor) for name, tensor in tensors.items() if any(part in name for part in containing)]


def _read_text_config(source: Path):
    if not (source / "config.json").is_file():
        raise ValueError(f"{source}: has no config.json; expected a checkpoint in Bunny's layout")
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model_type = fields.pop("model_type", "").removeprefix("bunny-")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{source}: model_type {model_type!r} is not known; expected bunny-llama or the like")
    bunnys_own = ("architectures", "auto_map")
    fields = {key: value for key, value in fields.items() if not key.startswith("mm_") and key not in bunnys_own}
    return CONFIG_MAPPING[model_type](**fields)
