"""Encoders of open_clip: `open_clip/ViT-B-32/laion2b_s34b_b79k`, `open_clip/hf-hub:org/name`, a local folder."""

from pathlib import Path

import torch

from unicorn_hf import errors
from unicorn_hf.data.markup import Marks, any_of, without_marks
from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.token_windows import TokenWindows, content_encoder, special_tokens
from unicorn_hf.embedding.transformers_towers import loading
from unicorn_hf.errors import InputError

# "pure" also casts the layer norms; it is as close to float32 as mixed precision, and faster.
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "pure_bf16", torch.float16: "pure_fp16"}


def load_open_clip(name: str, spec: str, *, device: torch.device, dtype: torch.dtype, compile: bool) -> Encoder:
    """An open_clip model with its tokenizer and its transform.

    Args:
        name: the name by which the encoder was asked for.
        spec: a folder with `open_clip_config.json`, `hf-hub:<org>/<name>`, or `<architecture>/<pretrained tag>`.

    Raises:
        InputError: no such architecture, tag, repository or folder, or it has no weights.
        MissingExtraError: open_clip is not installed.
    """
    model, preprocess, tokenizer = create_open_clip(name, spec, precision=PRECISIONS[dtype], device=device)
    model.eval()
    return Encoder(
        name,
        tokenizer=_token_windows(name, tokenizer, model),
        transform=lambda image: {"pixel_values": preprocess(image)},
        text_tower=_text_tower(model),
        image_tower=lambda inputs: model.encode_image(inputs["pixel_values"].to(dtype)),
        device=device,
        dtype=dtype,
        compile=compile,
    )


def create_open_clip(name: str, spec: str, *, precision: str = "fp32", device="cpu") -> tuple:
    """open_clip's model, transform and tokenizer; arguments and errors as of `load_open_clip`."""
    errors.require("open_clip", "clip")
    import open_clip

    pretrained = None
    if Path(spec).is_dir():
        model_name = f"local-dir:{spec}"
    elif spec.startswith("hf-hub:"):
        model_name = spec
    else:
        model_name, _, pretrained = spec.partition("/")
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        if model_name not in open_clip.list_models():
            raise InputError(
                f"encoder {name!r}: open_clip has no architecture {model_name!r} (see open_clip.list_models())"
            )
        if pretrained not in tags and not Path(pretrained).is_file():
            raise InputError(
                f"encoder {name!r}: open_clip has no weights {pretrained!r} for {model_name}; expected one of "
                f"{', '.join(tags) or '(none)'}, or the path of a checkpoint"
            )
    with loading(name):
        model, preprocess = open_clip.create_model_from_pretrained(
            model_name,
            pretrained,
            precision=precision,
            device=device,
            force_quick_gelu=bool(pretrained) and needs_quick_gelu(model_name, pretrained),
        )
        return model, preprocess, open_clip.get_tokenizer(model_name)


def needs_quick_gelu(model_name: str, pretrained: str) -> bool:
    """Whether weights were trained with QuickGELU although the architecture of this name uses GELU.

    open_clip stores the activation with the tag, but ignores it when it builds the model, and only warns.
    """
    import open_clip

    return bool((open_clip.get_pretrained_cfg(model_name, pretrained) or {}).get("quick_gelu"))


def _token_windows(name, tokenizer, model) -> TokenWindows:
    import open_clip

    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        encode, pad_id = _simple_encoder(tokenizer), 0
        prefix, suffix = [tokenizer.sot_token_id], [tokenizer.eot_token_id]
    elif getattr(tokenizer, "tokenizer_mode", "") or getattr(tokenizer, "strip_sep_token", False):
        raise InputError(
            f"encoder {name!r}: its tokenizer mode is not supported; take a model without `tokenizer_mode`"
        )
    else:
        from open_clip.tokenizer import basic_clean, canonicalize_text

        # open_clip has two wrappers of transformers tokenizers; each cleans the text in its own way.
        clean = getattr(tokenizer, "clean_fn", lambda text: canonicalize_text(basic_clean(text)))
        inner = tokenizer.tokenizer
        encode_cleaned = content_encoder(inner)

        def encode(texts):
            return encode_cleaned([clean(text) for text in texts])

        prefix, suffix = special_tokens(inner)
        pad_id = inner.pad_token_id
    return TokenWindows(
        encode, prefix, suffix, tokenizer.context_length, pad_id, pad_to_max=not _ignores_padding(model)
    )


def _simple_encoder(tokenizer):
    """As `content_encoder`, for open_clip's own tokenizer, which unescapes HTML and changes case before it looks."""
    special = frozenset(tokenizer.all_special_ids)
    marks = Marks(any_of(tokenizer.decoder[id_] for id_ in special), special)

    def encode(text):
        while not special.isdisjoint(ids := tokenizer.encode(text)):
            text = without_marks(tokenizer.clean_fn(text), marks)
        return ids

    return lambda texts: [encode(text) for text in texts]


def _ignores_padding(model) -> bool:
    """Whether a caption's vector does not depend on the padding on its right."""
    from open_clip.hf_model import HFTextEncoder

    return isinstance(getattr(model, "text", None), HFTextEncoder) or _is_causal(model)  # the first masks its padding


def _is_causal(model) -> bool:
    tower = getattr(model, "text", model)
    pool_type = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    masked = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    return masked and pool_type in ("argmax", "eos", "first")


def _text_tower(model):
    if not _is_causal(model):
        return lambda inputs: model.encode_text(inputs["input_ids"])
    prefix, tower = ("text.", model.text) if hasattr(model, "text") else ("", model)

    def encode_text(inputs):
        # open_clip accepts only rows of the full context length. If the two tensors of that length in the tower are
        # cut, its own forward pass accepts shorter rows, which halves the time (or better) on ordinary captions.
        ids = inputs["input_ids"]
        length = ids.shape[1]
        shorter = {
            f"{prefix}positional_embedding": tower.positional_embedding[:length],
            f"{prefix}attn_mask": tower.attn_mask[:length, :length],
        }
        outputs = torch.func.functional_call(model, shorter, kwargs={"text": ids})
        return outputs["text_features"] if isinstance(outputs, dict) else outputs[1]

    return encode_text
