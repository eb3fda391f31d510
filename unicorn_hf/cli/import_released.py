"""`unicorn-hf import`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Argument, Output, command, print_next
from unicorn_hf.dataset_scripts.config import ImportConfig


@command(
    app,
    "import",
    examples=[
        "unicorn-hf import Yu2020/Unicorn -o unicorn",
        "unicorn-hf import SNAPSHOT -o unicorn --embeddings FOLDER --allow-pickle --encoder LLM2CLIP",
    ],
)
def import_released(
    source: Annotated[str, Argument("A Hub id (Yu2020/Unicorn), a folder, or a released JSON file.")],
    output: Output,
    config: ImportConfig,
):
    """Convert the papers' released JSON and vectors to this package's schema."""
    from unicorn_hf.dataset_scripts.publishing import import_released

    folder = import_released(source, output, config=config)
    print((folder / "summary.json").read_text(encoding="utf-8"), end="")
    if config.embeddings is None:
        print_next(f"unicorn-hf embed {folder} -o caption-vectors --encoder …")
    else:
        config_file = "released/pretrain.yaml"
        print_next(f"unicorn-hf train pretrain --config {config_file} --dataset {folder} --output_dir stage-1")
