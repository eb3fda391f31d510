"""Convert the released checkpoints of Unicorn (Bunny's layout) to this package's model.

They hold the language model under `model.*` and `lm_head.*`, and the projector under `model.mm_projector.*`. The token
id -200 marks an image, which becomes 576 copies of one projected vector. The first training stage writes only the
projector, as `mm_projector.bin`. LoRA writes an adapter, and the projector as `non_lora_trainables.bin`.
"""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoTokenizer

from .modeling_unicorn import UnicornForConditionalGeneration
from .processing_unicorn import UnicornProcessor

# The released prompt, token for token. There is no space after the end of a turn. The template writes the begin token
# itself, because a rendered chat is tokenized without special tokens.
CHAT_TEMPLATE = (
    "{{ BOS }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}"
    '{{ "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,'
    " and polite answers to the user's questions. \" }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content']IMAGE + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# The token that ends a turn in the released code, for each of its prompts; the tokenizer's own end token may differ.
TURN_ENDS = {"bunny": "<|endoftext|>", "phi3": "<|endoftext|>", "llama": "<|end_of_text|>", "minicpm": "</s>"}
ADAPTER_PROJECTOR = "non_lora_trainables.bin"


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
        source: the checkpoint's folder (safetensors or `.bin` shards, read without running pickled code), the folder
            of a LoRA run (its adapter is merged) or of the first stage, or a single `mm_projector.bin`.
        language_model: the language model of the first stage or of LoRA: a folder or an id on the Hub.
        num_image_tokens: copies of the projected vector; the released code has 576.
        image_encoder, transfer: recorded in the configuration.

    Raises:
        ValueError: `source` has another layout, or is incomplete.
    """
    source = Path(source)
    text_config = _read_text_config(source) if source.is_dir() and (source / "config.json").is_file() else None
    file, projector = _read_projector(source)
    weights = sorted((name for name in projector if name.endswith("weight")), key=lambda name: int(name.split(".")[0]))
    is_adapter = file.name == ADAPTER_PROJECTOR
    if is_adapter or file.name == "mm_projector.bin" or source.is_file():
        if language_model is None:
            what = "a LoRA adapter" if is_adapter else "a projector"
            raise ValueError(f"{source} holds only {what}: name its language model (--language-model)")
    elif text_config is None:
        raise ValueError(f"{source}: has no config.json; expected a checkpoint in Bunny's layout")
    elif language_model is not None:
        raise ValueError(f"{source} holds a language model: leave out {language_model} (--language-model)")
    else:
        language_model = source
    has_tokenizer = source.is_dir() and (source / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(source if has_tokenizer else language_model)
    model = UnicornForConditionalGeneration.from_text_pretrained(
        language_model,
        embed_dim=projector[weights[0]].shape[1],
        tokenizer=tokenizer,
        text_config=text_config,
        lm_head_bias=False,  # Bunny's phi leaves out the bias that phi has
        num_image_tokens=num_image_tokens,
        projector_type="linear" if len(weights) == 1 else f"mlp{len(weights)}x_gelu",
        projector_expand="copy",
        normalize_image_embeds=False,  # the released code does not normalize the vectors before the projector
        image_encoder=image_encoder,
        transfer=transfer,
    )
    out_features, hidden_size = len(projector[weights[-1]]), model.config.text_config.hidden_size
    if out_features != hidden_size:
        raise ValueError(
            f"{source}: the projector's output has {out_features} dimensions, but {language_model} has a hidden size of"
            f" {hidden_size}"
        )
    try:
        model.model.multi_modal_projector.layers.load_state_dict(projector)
    except RuntimeError as error:
        raise ValueError(f"{file}: its mm_projector.* is not a {model.config.projector_type} ({error})") from error
    if is_adapter:
        _merge_adapter(source, model.model.language_model)
    turn_end = TURN_ENDS["llama" if model.config.text_config.model_type == "llama" else "bunny"]
    set_prompt(tokenizer, model, turn_end if turn_end in tokenizer.get_vocab() else tokenizer.eos_token)
    model.save_pretrained(output)
    UnicornProcessor(
        tokenizer,
        num_image_tokens=num_image_tokens,
        embed_dim=model.config.embed_dim,
        image_encoder=image_encoder,
    ).save_pretrained(output)


def set_prompt(tokenizer, model, turn_end: str) -> None:
    """Give the tokenizer the released prompt, and end a reply where the released code ends a turn. In place."""
    tokenizer.eos_token = turn_end
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    model.generation_config.eos_token_id = list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
    has_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    # The released code tokenizes the text between images piece by piece. SentencePiece starts each piece with a space;
    # other tokenizers have a space after a special token only if the text has one.
    space, after_image = "", ""
    if _begins_with_space(tokenizer):
        space, after_image = " ", ".replace('<image>', '<image> ').replace('<image>  ', '<image> ')"
    begin = f"{{{{ bos_token + '{space}' }}}}" if has_bos else ""
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ BOS }}", begin).replace("IMAGE", after_image)


def _begins_with_space(tokenizer) -> bool:
    """Whether the tokenizer adds a space before a text, but not to a text after a special token."""
    mark, options = tokenizer.eos_token, {"add_special_tokens": False}
    alone = tokenizer("a", **options)["input_ids"]
    behind, spaced = (tokenizer(f"{mark}{text}", **options)["input_ids"][1:] for text in ("a", " a"))
    return alone != behind and alone == spaced


def _read_text_config(source: Path):
    fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model_type = fields.pop("model_type", "").removeprefix("bunny-")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{source}: model_type {model_type!r} is not known; expected bunny-llama or the like")
    projector_type = fields.get("mm_projector_type", "linear")
    if not re.fullmatch(r"linear|mlp\d+x_gelu", projector_type):
        raise ValueError(
            f"{source}: its projector (mm_projector_type {projector_type!r}) reads the patches of an image; expected"
            " linear or mlp2x_gelu, which read one vector"
        )
    bunnys_own = ("architectures", "auto_map")
    fields = {key: value for key, value in fields.items() if not key.startswith("mm_") and key not in bunnys_own}
    return CONFIG_MAPPING[model_type](**fields)


def _read_projector(source: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The projector's file, and its weights with the names of `nn.Sequential` (`0.weight`, `0.bias`, `2.weight`)."""
    # The trainer writes other .bin files too: pickled arguments, the optimizer's state.
    kinds = (ADAPTER_PROJECTOR, "model*.safetensors", "pytorch_model*.bin", "mm_projector.bin")
    found = (sorted(source.glob(kind)) for kind in kinds)
    files = [source] if source.is_file() else next(filter(None, found), [])
    if not files:
        raise ValueError(
            f"{source}: is not a checkpoint; expected a folder with safetensors or pytorch_model.bin, a folder of a"
            f" LoRA run with {ADAPTER_PROJECTOR}, or mm_projector.bin"
        )
    projector = {}
    for file in files:
        for name, tensor in _read_tensors(file, "mm_projector.", "vision_tower."):
            if "vision_tower." in name:
                raise ValueError(f"{file}: reads patches of an image tower ({name}); Unicorn's models read one vector")
            layer = re.fullmatch(r"(?:(\d+)\.)?(weight|bias)", name.split("mm_projector.")[1])
            if layer is None:
                raise ValueError(f"{file}: has a projector of another kind ({name}); expected linear or mlp2x_gelu")
            projector[f"{layer[1] or 0}.{layer[2]}"] = tensor  # a linear projector has no index
    if not projector:
        raise ValueError(f"{source}: has no weights mm_projector.*; expected a checkpoint in Bunny's layout")
    num_layers = (len(projector) + 1) // 2
    missing = {f"{2 * layer}.{part}" for layer in range(num_layers) for part in ("weight", "bias")} - projector.keys()
    if missing:
        raise ValueError(f"{source}: its projector of {num_layers} layers lacks mm_projector.{min(missing)}")
    return files[0], projector


def _read_tensors(file: Path, *containing: str) -> list[tuple[str, torch.Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if any(part in name for part in containing)]  # noqa: SIM118
            return [(name, tensors.get_tensor(name)) for name in names]
    tensors = _load_bin(file)
    return [(name, tensor) for name, tensor in tensors.items() if any(part in name for part in containing)]


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{file}: holds more than tensors, and other pickles are not read") from error


def _merge_adapter(source: Path, decoder) -> None:
    """Merge the LoRA weights of a folder into the decoder that they were trained on. In place."""
    try:
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    except ImportError as error:
        raise ValueError("Merging a LoRA adapter needs peft: pip install 'unicorn-hf[train]'") from error

    files = [source / name for name in ("adapter_model.safetensors", "adapter_model.bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None or not (source / "adapter_config.json").is_file():
        raise ValueError(f"{source}: has {ADAPTER_PROJECTOR}, but no adapter_model and adapter_config.json beside it")
    weights = load_file(file) if file.suffix == ".safetensors" else _load_bin(file)
    # The names start at the causal language model, but here the adapter goes to its decoder.
    weights = {name.replace("base_model.model.model.", "base_model.model.", 1): weights[name] for name in weights}
    config = PeftConfig.from_pretrained(str(source))
    config.task_type = None
    adapted = get_peft_model(decoder, config)
    wanted = {name for name in adapted.state_dict() if ".lora_" in name}
    result = set_peft_model_state_dict(adapted, weights)
    wrong = sorted(result.unexpected_keys) + sorted(wanted.intersection(result.missing_keys))
    if wrong:
        raise ValueError(f"{file}: {len(wrong)} of its LoRA weights do not fit the language model, one is {wrong[0]}")
    adapted.merge_and_unload()
