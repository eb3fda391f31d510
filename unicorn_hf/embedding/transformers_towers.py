"""Encoders of transformers: CLIP, SigLIP, SigLIP 2 and every model with the same two methods; CLAP, of sounds."""

import contextlib
import functools
from string import ascii_lowercase, ascii_uppercase

import torch
from tokenizers.normalizers import Lowercase
from transformers.utils import logging

from unicorn_hf.data.audio import read_audio
from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.token_windows import TokenWindows, content_encoder, special_tokens
from unicorn_hf.errors import InputError, MissingExtraError, require


def load_transformers(
    name: str, spec: str, *, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, compile: bool
) -> Encoder:
    """A two-tower model of transformers with its tokenizer and its image processor.

    Args:
        name: the name by which the encoder was asked for.
        spec: a folder or a repository on the Hub.

    Raises:
        InputError: it cannot be loaded, or has no `get_text_features` and `get_image_features` (or
            `get_audio_features`).
    """
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

    model = load_model(AutoModel, name, spec, dtype=dtype, trust_remote_code=trust_remote_code).to(device)
    hears = hasattr(model, "get_audio_features")
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(spec, trust_remote_code=trust_remote_code)
        auto_processor = AutoFeatureExtractor if hears else AutoImageProcessor
        processor = auto_processor.from_pretrained(spec, trust_remote_code=trust_remote_code)
        image_input = _audio_input(processor) if hears else {"transform": image_transform(processor)}
    get_features = getattr(model, "get_audio_features" if hears else "get_image_features", None)
    if not hasattr(model, "get_text_features") or get_features is None:
        raise InputError(
            f"encoder {name!r}: {type(model).__name__} lacks a text or an image tower; expected a model like CLIP"
        )
    # SigLIP was trained on rows padded to the full length, without a mask, and pools the last position.
    pad_to_max = model.config.model_type.startswith("siglip")
    names = ("input_ids",) if pad_to_max else ("input_ids", "attention_mask")
    max_tokens = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    windows = token_windows(tokenizer, max_tokens, pad_to_max=pad_to_max)
    if pad_to_max and tokenizer(ascii_uppercase).input_ids != tokenizer(ascii_lowercase).input_ids:
        # SigLIP and SigLIP 2 were trained on lower case, and their own tokenizers lower it. The fixed-resolution
        # repositories of SigLIP 2 name Gemma's tokenizer, which does not. Lower it here as `Siglip2Tokenizer` does.
        encode, lower = windows.encode, Lowercase().normalize_str
        windows.encode = lambda texts: encode([lower(text) for text in texts])
    return Encoder(
        name,
        tokenizer=windows,
        text_tower=lambda inputs: features(model.get_text_features(**{key: inputs[key] for key in names})),
        image_tower=lambda inputs: features(get_features(**cast_floats(inputs, dtype))),
        **image_input,
        device=device,
        dtype=dtype,
        compile=compile,
    )


def _audio_input(extractor) -> dict:
    """How sounds are read, and go into the tower of a model like CLAP."""
    require("soundfile", "audio")
    require("soxr", "audio")
    rate = extractor.sampling_rate
    return {
        # Of a longer sound the extractor would take a part drawn at random.
        "read": functools.partial(read_audio, sampling_rate=rate, num_samples=extractor.nb_max_samples),
        "transform": lambda audio: {
            key: torch.as_tensor(value[0])
            for key, value in extractor(audio, sampling_rate=rate, return_tensors="pt").items()
        },
    }


def load_model(model_class, name: str, spec: str, **options):
    """`model_class.from_pretrained(spec)`, with an error if weights are missing or of another shape.

    transformers only warns and fills them with random numbers, which would make plausible but wrong vectors.
    """
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise transformers reports the other tower of CLIP as unexpected weights
    try:
        with loading(name):
            model, info = model_class.from_pretrained(spec, **options)
    finally:
        logging.set_verbosity(verbosity)
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise InputError(
            f"encoder {name!r}: the weight {key} has the shape {[*found]}; its config.json says {[*expected]}"
        )
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"encoder {name!r}: {spec} lacks {len(missing)} of its weights, {missing[0]} the first")
    return model.eval()


@contextlib.contextmanager
def loading(name: str):
    """Turn any error of a library that loads a model into one sentence."""
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"encoder {name!r} cannot be loaded ({reason})") from error


def token_windows(tokenizer, max_tokens: int, *, pad_to_max: bool = False) -> TokenWindows:
    prefix, suffix = special_tokens(tokenizer)
    return TokenWindows(
        content_encoder(tokenizer),
        prefix,
        suffix,
        max_tokens,
        tokenizer.pad_token_id,
        pad_to_max,
        pad_left=tokenizer.padding_side == "left",
    )


def image_transform(processor):
    """An image processor as a function from one image to tensors without a batch axis."""
    return lambda image: {
        key: torch.as_tensor(value[0]) for key, value in processor(images=[image], return_tensors="pt").items()
    }


def features(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def cast_floats(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
