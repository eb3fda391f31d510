"""ReVision's data file of unpaired texts and images: `{"images": [{"id", "image"}], "texts": [{"id", "text"}]}`."""

from pathlib import Path

import datasets
import ijson

from unicorn_hf.data.image_folder import image_cell
from unicorn_hf.data.json_nesting import ShallowFile
from unicorn_hf.errors import InputError

SIDES = {"texts": "text", "images": "image"}


def is_text_image_file(path) -> bool:
    """Whether a file is one JSON object with a list of records under `texts` or `images`."""
    path = Path(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            for prefix, event, _ in ijson.parse(ShallowFile(file, path)):
                if (prefix, event) in (("", "start_array"), ("", "end_map")):
                    return False
                if event == "start_map" and prefix in [f"{side}.item" for side in SIDES]:
                    return True
        except ijson.JSONError:
            pass
    return False


def read_side(path, side: str, image_root=None) -> datasets.Dataset:
    """The records of one side as rows: `id, text` or `id, image`, plus their other keys.

    Args:
        side: `texts` or `images`.
        image_root: the folder that image paths are relative to; by default the file's own folder.

    Raises:
        InputError: the file is damaged or has no such records, or `image_root` does not exist.
    """
    path, column = Path(path), SIDES[side]
    root = Path(path.parent if image_root is None else image_root).expanduser().absolute()
    if side == "images" and not root.is_dir():
        raise InputError(f"{root}: no such folder; expected the folder that the image paths in {path} are relative to")
    rows = []
    try:
        with path.open("rb") as file:
            for row, record in enumerate(ijson.items(ShallowFile(file, path), f"{side}.item", use_float=True)):
                rows.append(_checked(record, column, f"{path}: {side}[{row}]"))
    except ijson.JSONError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is damaged after {len(rows):,} {side} ({reason}); fetch the file again") from error
    if not rows:
        raise InputError(f"{path}: holds no {side}; expected a list of {{'id', '{column}'}} under {side!r}")
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
    if side == "images":
        columns["image"] = [None if name is None else image_cell(root / name) for name in columns["image"]]
    try:
        dataset = datasets.Dataset.from_dict(columns)
    except Exception as error:  # pyarrow raises several types for values that do not fit one column
        raise InputError(
            f"{path}: the {side} cannot be made into columns ({error}); expected one type per key"
        ) from error
    return dataset.cast_column("image", datasets.Image()) if side == "images" else dataset


def _checked(record, column: str, where: str) -> dict:
    if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
        raise InputError(f"{where}: is {str(record)[:80]}; expected an object with id and {column}")
    if column not in record or not isinstance(record[column], str | None):
        raise InputError(f"{where}: has the {column} {str(record.get(column))[:80]!r}; expected a text")
    return {**record, "id": str(record["id"])}
