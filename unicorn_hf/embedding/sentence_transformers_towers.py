"""Encoders of sentence-transformers that have an image tower, such as `sentence-transformers/clip-ViT-B-32`."""

import torch

from unicorn_hf import errors
from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.transformers_towers import cast_floats, loading, token_windows
from unicorn_hf.errors import InputError


def load_sentence_transformers(
    name: str, spec: str, *, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, compile: bool
) -> Encoder:
    """A two-tower model of sentence-transformers, all of its modules included.

    Args:
        name: the name by which the encoder was asked for.
        spec: a folder or a repository on the Hub.

    Raises:
        InputError: it cannot be loaded, or has no image tower beside its text tower.
        MissingExtraError: sentence-transformers is not installed.
    """
    errors.require("sentence_transformers", "sentence-transformers")
    from sentence_transformers import SentenceTransformer

    with loading(name):
        model = SentenceTransformer(
            spec, device=str(device), trust_remote_code=trust_remote_code, model_kwargs={"dtype": dtype}
        ).eval()
    methods = {each: config.get("method") for each, config in getattr(model[0], "modality_config", {}).items()}
    if methods.get("text") != "get_text_features" or methods.get("image") != "get_image_features":
        raise InputError(f"encoder {name!r} has no image tower beside its text tower; expected a model like CLIP")

    def tower(modality):
        return lambda inputs: model({**cast_floats(inputs, dtype), "modality": modality})["sentence_embedding"]

    def transform(image):
        inputs = model.preprocess([image])
        return {key: value[0] for key, value in inputs.items() if isinstance(value, torch.Tensor)}

    return Encoder(
        name,
        tokenizer=token_windows(model.tokenizer, model.max_seq_length),
        transform=transform,
        text_tower=tower("text"),
        image_tower=tower("image"),
        device=device,
        dtype=dtype,
        compile=compile,
    )
