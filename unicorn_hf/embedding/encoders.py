"""Load an encoder by its name: find the library, then call its loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unicorn_hf.device import find_device
from unicorn_hf.embedding.encoder import DTYPES, Encoder
from unicorn_hf.errors import InputError

# File -> the library whose folders have it. The order matters: sentence-transformers folders have the last two files.
FOLDER_LIBRARIES = {
    "open_clip_config.json": "open_clip",
    "modules.json": "sentence-transformers",
    "config.json": "transformers",
}
KNOWN_NAMES = (
    "sandbox, open_clip/<architecture>/<pretrained tag>, open_clip/hf-hub:<org>/<name>, transformers/<org>/<name>, "
    "llm2clip/<clip repository>+<language model repository>, sentence-transformers/<name>, or the path of a folder of "
    "open_clip, transformers or sentence-transformers"
)


def load_encoder(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    compile: bool = False,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a contrastive image-text encoder: towers, tokenizer and image transform.

    Args:
        name: one of the forms in `KNOWN_NAMES`; a local folder can stand in for a repository on the Hub.
        device: a torch device; by default the first CUDA device, or the CPU if there is none.
        dtype: of the towers: `float32`, `bfloat16`, `float16`, or `auto` (bfloat16 on CUDA, float32 elsewhere). The
            vectors are always float32.
        compile: run the towers through `torch.compile`.
        trust_remote_code: run model code that comes with a `transformers/` or `sentence-transformers/` repository.

    Raises:
        InputError: the name has no known form, or the encoder cannot be loaded.
        MissingExtraError: the library that the encoder needs is not installed.
    """
    name = canonical_name(name)
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; expected auto, {', '.join(DTYPES)}")
    options: dict[str, Any] = {"device": find_device(device), "compile": compile}
    fastest = "bfloat16" if options["device"].type == "cuda" else "float32"
    options["dtype"] = DTYPES[fastest if dtype == "auto" else dtype]

    library, spec = find_library(name)
    if library == "open_clip":
        from unicorn_hf.embedding.open_clip_towers import load_open_clip

        return load_open_clip(name, spec, **options)
    if library == "llm2clip":
        from unicorn_hf.embedding.llm2clip_towers import load_llm2clip

        return load_llm2clip(name, spec, **options)
    if library == "sentence-transformers":
        from unicorn_hf.embedding.sentence_transformers_towers import load_sentence_transformers

        return load_sentence_transformers(name, spec, trust_remote_code=trust_remote_code, **options)
    from unicorn_hf.embedding.transformers_towers import load_transformers

    return load_transformers(name, spec, trust_remote_code=trust_remote_code, **options)


def canonical_name(name: str | Path) -> str:
    """The name to record with an encoder's vectors: for a folder, its absolute path."""
    is_folder = str(name) != "sandbox" and any((Path(name) / file).is_file() for file in FOLDER_LIBRARIES)
    return str(Path(name).absolute() if is_folder else name)


def find_library(name: str) -> tuple[str, str]:
    """The library of an encoder's name, and the encoder's name or path within that library.

    Raises:
        InputError: the name has none of the known forms.
    """
    if name == "sandbox":
        return "open_clip", str(Path(__file__).parent.parent / "sandbox" / "clip")
    library, _, spec = name.partition("/")
    if spec and library in ("open_clip", "transformers", "llm2clip"):
        return library, spec
    if spec and library == "sentence-transformers":
        # Without a folder it is a repository on the Hub, in the organisation called sentence-transformers.
        return library, spec if Path(spec).is_dir() else name
    for file, library in FOLDER_LIBRARIES.items():
        if (Path(name) / file).is_file():
            return library, name
    raise InputError(f"encoder {name!r} is not known; expected {KNOWN_NAMES}")
