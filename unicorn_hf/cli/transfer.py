"""`unicorn-hf transfer fit`, `apply` and `moments`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Flag, Output, command, print_next
from unicorn_hf.errors import InputError
from unicorn_hf.transfer.config import ApplyConfig, FitConfig, MomentsConfig

group = typer.Typer(help="Move text vectors into image space.")
app.add_typer(group, name="transfer")

VECTORS = "a dataset folder, a Hub id, or a file: .parquet, .npy, .safetensors, .pkl."


@command(
    group,
    "fit",
    prefix="transfer",
    examples=[
        "unicorn-hf transfer fit --text caption-vectors --image picture-vectors -o realign",
        "unicorn-hf transfer fit text-0.safetensors text-1.safetensors image.safetensors -o from-moments",
    ],
)
def transfer_fit(
    output: Output,
    config: FitConfig,
    moments: Annotated[list[Path] | None, Argument("Files of `transfer moments`, instead of vectors.")] = None,
    text: Annotated[str | None, Flag(f"Text vectors: {VECTORS}")] = None,
    image: Annotated[str | None, Flag("Image vectors, unpaired: as for --text.")] = None,
):
    """Learn a transfer from two unpaired sets of vectors, or from their moments, measured separately."""
    from unicorn_hf.data.staging import new_folder
    from unicorn_hf.transfer import ModalityTransfer
    from unicorn_hf.transfer.moments import merge_files

    measured = merge_files(moments or [])
    if text is None and "text" not in measured:
        raise InputError("There is no text to fit on: give --text VECTORS, or files with the text's moments")
    with new_folder(output) as folder:
        transfer = ModalityTransfer.fit(
            text or measured["text"],
            image or measured.get("image"),
            method=config.method,
            **config.reading(),
            **config.method_options(),
        )
        transfer.save_pretrained(folder)
    _print_skipped(transfer.config["skipped"])
    before, after = transfer.config["centroid_distance_before"], transfer.config["centroid_distance_after"]
    distance = "" if before is None else f"; centroid distance {before:.3g}"
    distance += "" if after is None else f" -> {after:.3g}"
    counts = f"{transfer.config['text_count']:,} text and {transfer.config['image_count']:,} image vectors"
    print(f"{output}: {config.method} fitted on {counts}{distance}")
    print_next(f"unicorn-hf transfer apply {text or 'TEXT'} --transfer {output} -o aligned-captions")


@command(
    group,
    "apply",
    prefix="transfer",
    examples=[
        "unicorn-hf transfer apply caption-vectors --transfer realign -o aligned-captions",
        "unicorn-hf transfer apply captions.npy --transfer realign -o aligned.npy",
    ],
)
def transfer_apply(
    data: Annotated[str, Argument(f"Text vectors: {VECTORS}")],
    transfer: Annotated[str, Flag("A folder of `transfer fit`, or a Hub id.")],
    output: Annotated[Path, Flag("The dataset folder or .npy file to write.", "--output", "-o")],
    config: ApplyConfig,
):
    """Move text vectors into image space: writes the dataset with one more column, or a .npy file of the vectors."""
    from unicorn_hf.transfer import ModalityTransfer

    ModalityTransfer.from_pretrained(transfer).apply(data, output, **vars(config))
    print(f"{output}: written")
    if output.suffix != ".npy":
        print_next(f"unicorn-hf publish --pretrain {output} --instruction conversations -o dataset")


@command(
    group,
    "moments",
    prefix="transfer",
    examples=[
        "unicorn-hf transfer moments texts-0 --modality text -o texts-0.safetensors",
        "unicorn-hf transfer moments photos --modality image --covariance -o images.safetensors",
    ],
)
def transfer_moments(
    data: Annotated[str, Argument(f"Vectors: {VECTORS}")],
    output: Annotated[Path, Flag("The .safetensors file to write.", "--output", "-o")],
    config: MomentsConfig,
):
    """Measure the moments of one shard; `transfer fit FILE...` combines shards from different machines."""
    from unicorn_hf.data.staging import check_new_file
    from unicorn_hf.transfer import Moments

    check_new_file(output, overwrite=config.overwrite, inputs=[data])
    column = config.column or f"{config.modality}_embeds"
    options = {name: getattr(config, name) for name in ("encoder", "skip_non_finite", "allow_pickle")}
    moments = Moments.measure(data, column, covariance=config.covariance, **options)
    moments.save(output, overwrite=config.overwrite, modality=config.modality)
    _print_skipped(moments.skipped)
    print(f"{output}: {moments.count:,} vectors of {len(moments.mean)} dimensions")
    print_next(f"unicorn-hf transfer fit {output} … --method mean_shift -o from-moments")


def _print_skipped(rows: list[str]) -> None:
    if rows:
        print(f"left out {len(rows)} rows that hold NaN, Inf or zeros: {', '.join(rows)}", file=sys.stderr)
