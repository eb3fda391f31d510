"""Convert an image tower of open_clip to transformers, so that a Unicorn model can carry it and take `pixel_values`."""

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from unicorn_hf.data.staging import new_folder
from unicorn_hf.embedding.encoders import canonical_name, find_library
from unicorn_hf.embedding.open_clip_towers import create_open_clip
from unicorn_hf.errors import InputError

# What open_clip calls a part of its VisionTransformer -> what transformers calls it.
RENAMED = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.": "vision_model.embeddings.patch_embedding.",
    "ln_pre.": "vision_model.pre_layrnorm.",
    "transformer.resblocks.": "vision_model.encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
    "ln_post.": "vision_model.post_layernorm.",
}


def convert_open_clip_tower(name: str, output) -> None:
    """Write the image tower of an open_clip encoder as a `CLIPVisionModelWithProjection` with its image processor.

    Args:
        name: the encoder, by the name that `load_encoder` takes.
        output: the folder to write, float32.

    Raises:
        InputError: it is no encoder of open_clip, cannot be loaded, or has a tower that CLIP's classes cannot express;
            `output` exists and is not an empty folder.
    """
    library, spec = find_library(canonical_name(name))
    if library != "open_clip":
        raise InputError(f"encoder {name!r} is one of {library}; expected open_clip/<architecture>/<pretrained tag>")
    tower, image_processor = load_open_clip_tower(name, spec)
    with new_folder(output) as folder:
        tower.save_pretrained(folder)
        image_processor.save_pretrained(folder)


def load_open_clip_tower(name: str, spec: str) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """The image tower of an open_clip encoder in transformers' classes; errors as of `convert_open_clip_tower`."""
    visual = create_open_clip(name, spec)[0].eval().visual
    return _clip_tower(name, visual), _image_processor(name, visual.preprocess_cfg)


@torch.no_grad()
def _clip_tower(name: str, visual) -> CLIPVisionModelWithProjection:
    from open_clip.transformer import QuickGELU, VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise _not_clip(name, f"it is a {type(visual).__name__}")
    if len(set(visual.image_size)) > 1 or len(set(visual.patch_size)) > 1:
        raise _not_clip(name, f"its pictures are {visual.image_size}, its patches {visual.patch_size}, not square")
    weights = _rename(visual.state_dict())
    block = visual.transformer.resblocks[0]
    config = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        projection_dim=visual.output_dim,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        hidden_act="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        layer_norm_eps=visual.ln_post.eps,
    )
    tower = CLIPVisionModelWithProjection(config).eval()
    if differing := sorted(weights.keys() ^ tower.state_dict().keys()):
        raise _not_clip(name, f"{differing[0]} is among {len(differing)} weights that only one of them has")
    tower.load_state_dict(weights)
    # Pooling and the like leave no trace in the weights.
    pixel_values = torch.randn(2, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))
    vectors, expected = tower(pixel_values).image_embeds, visual(pixel_values)
    if not torch.nn.functional.cosine_similarity(vectors, expected).min() > 0.9999:
        raise _not_clip(name, "its vectors differ, so it pools or activates in another way")
    return tower


def _rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name == "proj":
            renamed["visual_projection.weight"] = tensor.T.contiguous()
        elif "in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{part}_proj.")] = rows.clone()
        else:
            renamed[name] = tensor
    return renamed


def _image_processor(name: str, preprocess: dict) -> CLIPImageProcessor:
    """The picture's way into the tower, as open_clip's `image_transform` has it.

    With `backend="pil"` it is the same to the bit; by torchvision, pixels round to the next of 256 values now and then.
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if preprocess["resize_mode"] == "longest":
        raise _not_clip(name, "it fills pictures up to a square (resize_mode 'longest')")
    squash = preprocess["resize_mode"] == "squash"
    return CLIPImageProcessor(
        size={"height": height, "width": width} if squash else {"shortest_edge": height},
        do_center_crop=not squash,
        crop_size={"height": height, "width": width},
        resample=2 if preprocess["interpolation"] == "bilinear" else 3,
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )


def _not_clip(name: str, reason: str) -> InputError:
    return InputError(
        f"encoder {name!r}: CLIP's classes in transformers cannot express its image tower: {reason}; embed images "
        "with it (unicorn-hf embed), and give the model image_embeds"
    )
