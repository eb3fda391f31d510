"""Caption seeds: the sparse texts that stage 1 expands."""

import hashlib
from collections.abc import Sequence

from unicorn_hf.errors import InputError
from unicorn_hf.storage import read_dataset


def read_seeds(source):
    """The seeds of `source` as a `datasets.Dataset` with the columns `id, seed, domain`.

    Args:
        source: a list of texts, a text file with one seed a line, or whatever `storage.read_dataset` reads, with a
            column `seed` (or `text`) and, if wanted, `id` and `domain`.

    A seed without an id gets the hash of its text. A seed that occurs twice is kept once, blank ones are left out.

    Raises:
        InputError: the source cannot be read, lacks the column, or holds no seed.
    """
    import datasets

    name = "the list of seeds" if isinstance(source, datasets.Dataset | list | tuple) else str(source)
    if isinstance(source, Sequence) and not isinstance(source, str):
        rows = [{"seed": seed} for seed in source]
    else:
        rows = read_dataset(source)
        column = next((column for column in ("seed", "text") if column in rows.column_names), None)
        if column is None:
            raise InputError(f"{name}: has no column 'seed'; its columns are {', '.join(rows.column_names)}")
        if column == "text":
            rows = rows.rename_column("text", "seed")
    seeds = {}
    for index, row in enumerate(rows):
        if not isinstance(row["seed"], str):
            raise InputError(f"{name}, row {index}: the seed is {row['seed']!r}; expected a text")
        text = " ".join(row["seed"].split())
        if text:
            key = str(row.get("id") or text_id(text))
            seeds.setdefault(key, {"id": key, "seed": text, "domain": row.get("domain") or "open"})
    if not seeds:
        raise InputError(f"{name}: holds no seed; expected one text a line, such as 'red circle, small, top left'")
    return datasets.Dataset.from_list(list(seeds.values()))


def text_id(text: str) -> str:
    """A stable id: the first 16 hexadecimal digits of the SHA-256 of the text, white space and case folded."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:16]
