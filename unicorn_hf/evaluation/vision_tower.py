"""`unicorn-hf attach-tower`: write a trained model with its encoder's image tower, so that it reads images itself."""

import contextlib
from pathlib import Path

from unicorn_hf.data.staging import check_new_folder, new_folder
from unicorn_hf.embedding.encoders import canonical_name, find_library
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.images import load_model


def attach_tower(model: str | Path, output: str | Path, *, encoder: str | None = None, trust_remote_code: bool = False):
    """Write a trained model with the image tower of its encoder, its processor, chat template and generation config.

    An adapter is merged into its base.

    Args:
        model: folder or Hub id of a model trained by stage 2.
        output: the folder to write; it must be missing or empty.
        encoder: replaces the encoder named in the model's configuration, for instance by a local folder.

    Raises:
        InputError: the model already has a tower, does not normalize vectors, or cannot be loaded; or its encoder's
            tower does not fit transformers' classes, or gives vectors of another dimension.
    """
    check_new_folder(output)
    name = model
    model, processor = _load_whole(name, trust_remote_code)
    config = model.config
    if config.vision_config is not None:
        raise InputError(f"{name}: has an image tower already ({config.vision_config.model_type})")
    encoder = encoder or config.image_encoder
    if encoder is None:
        raise InputError(f"{name}: its config.json does not say whose vectors it reads; name the encoder (--encoder)")
    if not config.normalize_image_embeds:
        raise InputError(
            f"{name}: does not normalize vectors (normalize_image_embeds is false), and a tower's vectors have other"
            " lengths than its encoder's; give it image_embeds"
        )
    tower, image_processor = load_vision_tower(encoder)
    try:
        model.set_vision_tower(tower)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    processor.image_processor = image_processor
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def load_vision_tower(encoder: str):
    """The image tower and image processor of an encoder, given by its name (see `load_encoder`).

    Returns:
        `CLIPVisionModelWithProjection`, `SiglipVisionModel` or `Siglip2VisionModel`, float32 on the CPU; and the
        processor of transformers.

    Raises:
        InputError: it cannot be loaded, or does not fit these classes.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        CLIPVisionModelWithProjection,
        Siglip2VisionModel,
        SiglipVisionModel,
    )

    from unicorn_hf.embedding.llm2clip_towers import load_image_processor
    from unicorn_hf.embedding.transformers_towers import load_model as load_tower
    from unicorn_hf.embedding.transformers_towers import loading

    encoder = canonical_name(encoder)
    library, spec = find_library(encoder)
    if library == "open_clip":
        from unicorn_hf.embedding.convert_open_clip_tower_to_hf import load_open_clip_tower

        return load_open_clip_tower(encoder, spec)
    if library == "llm2clip":
        repo = spec.partition("+")[0]
        tower = load_tower(CLIPVisionModelWithProjection, encoder, repo)
        return tower, load_image_processor(repo, tower.config.image_size)
    classes = {"clip": CLIPVisionModelWithProjection, "siglip": SiglipVisionModel, "siglip2": Siglip2VisionModel}
    with loading(encoder):
        config = AutoConfig.from_pretrained(spec) if library == "transformers" else None
        kind = config.model_type if config is not None else f"{library} model"
        if kind not in classes:
            raise InputError(
                f"encoder {encoder!r}: is a {kind}, whose image tower a model cannot carry; expected one of CLIP,"
                " SigLIP or open_clip. Embed images with it (unicorn-hf embed), and give the model image_embeds"
            )
        if kind == "clip":
            config.vision_config.projection_dim = config.projection_dim  # often left at its default in vision_config
        image_processor = AutoImageProcessor.from_pretrained(spec)
    return load_tower(classes[kind], encoder, spec, config=config.vision_config), image_processor


def _load_whole(name, trust_remote_code: bool):
    """A trained model and its processor; an adapter is merged into its base."""
    from transformers import AutoProcessor, GenerationConfig
    from transformers.utils import is_peft_available

    from unicorn_hf.training.adapters import read_adapter

    adapter = read_adapter(str(name)) if is_peft_available() else None
    base = name if adapter is None else adapter.base_model_name_or_path
    model, processor = load_model(base, device="cpu", trust_remote_code=trust_remote_code)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
        with contextlib.suppress(OSError):  # it has none
            model.generation_config = GenerationConfig.from_pretrained(name)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    return model, processor
