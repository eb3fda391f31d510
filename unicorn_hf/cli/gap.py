"""`unicorn-hf gap`."""

from pathlib import Path
from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Flag, command
from unicorn_hf.cli.transfer import VECTORS
from unicorn_hf.transfer.config import GapConfig


@command(
    app,
    "gap",
    examples=[
        "unicorn-hf gap --text caption-vectors --image picture-vectors -o gap.html",
        "unicorn-hf gap --text caption-vectors --image picture-vectors --transfer realign -o gap.html --json gap.json",
    ],
)
def gap(
    text: Annotated[str, Flag(f"Text vectors: {VECTORS}")],
    image: Annotated[str, Flag("Image vectors: as for --text.")],
    output: Annotated[Path, Flag("The HTML report to write.", "--output", "-o")],
    config: GapConfig,
    transfer: Annotated[
        list[str] | None, Flag("A folder of `transfer fit`: also measure the gap after this transfer; may be repeated.")
    ] = None,
    json: Annotated[Path | None, Flag("Also write the numbers to this JSON file.")] = None,
):
    """Measure the modality gap before and after transfers, and check the vectors: writes an HTML report.

    The modality gap is the distance between text vectors and image vectors of the same encoder.
    """
    from unicorn_hf.data.staging import check_new_file
    from unicorn_hf.errors import require
    from unicorn_hf.transfer.gap import measure_gap

    require("matplotlib", "gap")
    options = dict(vars(config))
    overwrite = options.pop("overwrite")
    for path in filter(None, (output, json)):
        check_new_file(path, overwrite=overwrite, inputs=[text, image])
    gap = measure_gap(text, image, transfers=transfer or [], **options)
    from unicorn_hf.transfer.gap_report import write_report

    write_report(gap, output, overwrite=overwrite)
    if json is not None:
        gap.save_json(json, overwrite=overwrite)
    for flag in gap.flags:
        print(f"{flag['set']}: {flag['kind']}: {flag['message']}")
    distances = (f"{state} {values['centroid_distance']:.3g}" for state, values in gap.measures.items())
    print(f"{output}: centroid distance {', '.join(distances)}")
