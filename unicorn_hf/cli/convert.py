"""`unicorn-hf convert-checkpoint`, `convert-tower` and `attach-tower`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, Output, command, print_next
from unicorn_hf.errors import InputError


@command(
    app,
    "convert-checkpoint",
    examples=[
        "unicorn-hf convert-checkpoint CHECKPOINT -o model",
        "unicorn-hf convert-checkpoint mm_projector.bin -o model --language-model meta-llama/Meta-Llama-3-8B-Instruct",
    ],
)
def convert_checkpoint(
    source: Annotated[Path, Argument("A folder of the released training, or a single mm_projector.bin.")],
    output: Output,
    language_model: Annotated[
        str | None,
        Flag("Folder or Hub id of the language model, if the source has only a projector or a LoRA adapter."),
    ] = None,
    num_image_tokens: Annotated[int, Flag("Copies of an image's projected vector.", at_least=1, at_most=10**5)] = 576,
    image_encoder: Annotated[
        str | None, Flag("The encoder of the training vectors; it is recorded in the model.")
    ] = None,
    transfer: Annotated[
        str | None, Flag("The transfer of the training vectors (mean_shift, ...); it is recorded in the model.")
    ] = None,
):
    """Convert a released Unicorn checkpoint (Bunny's layout) to this package's model."""
    from unicorn_hf.data.staging import new_folder
    from unicorn_hf.modeling.convert_unicorn_checkpoint_to_hf import convert_unicorn_checkpoint

    try:
        with new_folder(output) as folder:
            convert_unicorn_checkpoint(
                source,
                folder,
                language_model=language_model,
                num_image_tokens=num_image_tokens,
                image_encoder=image_encoder,
                transfer=transfer,
            )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    print(f"{output}: converted")
    print_next(f'unicorn-hf generate {output} "What is this?" --image IMAGE')


@command(
    app,
    "convert-tower",
    examples=[
        "unicorn-hf convert-tower open_clip/ViT-B-32/laion2b_s34b_b79k -o tower",
        "unicorn-hf convert-tower open_clip/hf-hub:timm/ViT-B-16-SigLIP-512 -o tower",
    ],
)
def convert_tower(
    encoder: Annotated[str, Argument("open_clip/ViT-B-32/laion2b_s34b_b79k, open_clip/hf-hub:…, a folder.")],
    output: Output,
):
    """Convert an image tower of open_clip to transformers, for a model's `set_vision_tower`."""
    from unicorn_hf.embedding.convert_open_clip_tower_to_hf import convert_open_clip_tower

    convert_open_clip_tower(encoder, output)
    print(f"{output}: converted")


@command(
    app,
    "attach-tower",
    examples=[
        "unicorn-hf attach-tower stage-2 -o served",
        "unicorn-hf attach-tower stage-2 -o served --encoder transformers/openai/clip-vit-large-patch14",
    ],
)
def attach(
    model: Annotated[str, Argument("Folder or Hub id of a trained model.")],
    output: Output,
    encoder: Annotated[str | None, Flag("The encoder for images, if the model does not name it.")] = None,
    trust_remote_code: Annotated[bool, Flag("Run code from the model's folder.")] = False,
):
    """Write a model together with its encoder's image tower, so that it reads images itself."""
    from unicorn_hf.evaluation.vision_tower import attach_tower

    attach_tower(model, output, encoder=encoder, trust_remote_code=trust_remote_code)
    print(f"{output}: written")
    print_next(f"unicorn-hf serve {output}")
