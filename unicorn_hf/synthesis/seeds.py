"""Caption seeds: the sparse texts that stage 1 expands."""

import hashlib
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from unicorn_hf.data.sources import read_dataset
from unicorn_hf.errors import InputError

logger = logging.getLogger(__name__)


def read_seeds(source):
    """The seeds of `source` as a `datasets.Dataset` with the columns `id, seed, domain`.

    Args:
        source: a list of texts, a text file with one seed a line, or whatever `read_dataset` reads, with a
            column `seed` (or `text`) and, if wanted, `id` and `domain`; or a list of `Path`s of such files, whose names
            are the domains of the seeds that have none.

    A seed without an id gets the hash of its text. A seed that occurs twice with the same id is kept once; blank seeds
    are left out. If two seeds have the same id (two files that both count from 1), the first digits of its text's hash
    make the later id unique; a warning gives the number of such seeds.

    Raises:
        InputError: the source cannot be read, lacks the column, or holds no seed.
    """
    import datasets

    seeds = {}
    if isinstance(source, Sequence) and source and all(isinstance(path, Path) for path in source):
        for path in source:
            _collect(seeds, _read_rows(path), str(path), domain=path.stem)
        name = ", ".join(map(str, source))
    elif isinstance(source, Sequence) and not isinstance(source, str):
        name = "the list of seeds"
        _collect(seeds, ({"seed": seed} for seed in source), name)
    else:
        name = "the dataset of seeds" if isinstance(source, datasets.Dataset) else str(source)
        _collect(seeds, _read_rows(source), name)
    if renamed := sum(seed.pop("renamed") for seed in seeds.values()):
        logger.warning(
            "%s: %d seeds have an id that another seed has; theirs are made unique, as ID-%s", name, renamed, "0123abcd"
        )
    if not seeds:
        raise InputError(f"{name}: holds no seed; expected one text a line, such as 'red circle, small, top left'")
    return datasets.Dataset.from_list(list(seeds.values()))


def _read_rows(source):
    rows = read_dataset(source)
    if "seed" not in rows.column_names:
        if "text" not in rows.column_names:
            name = "the dataset of seeds" if hasattr(source, "column_names") else source
            raise InputError(f"{name}: has no column 'seed'; its columns are {', '.join(rows.column_names)}")
        rows = rows.rename_column("text", "seed")
    return rows.select_columns([column for column in ("id", "seed", "domain") if column in rows.column_names])


def _collect(seeds: dict[str, dict], rows, name: str, domain: str = "open") -> None:
    """Add the rows to `seeds`, by id."""
    for index, row in enumerate(rows):
        if not isinstance(row["seed"], str):
            raise InputError(f"{name}, row {index}: the seed is {row['seed']!r}; expected a text")
        text = " ".join(row["seed"].split())
        if text:
            given = "" if row.get("id") is None else str(row["id"])
            key = given or text_id(text)
            renamed = given != "" and key in seeds and seeds[key]["seed"] != text
            if renamed:
                key = f"{given}-{text_id(text)[:8]}"
            seed = {"id": key, "seed": text, "domain": str(row.get("domain") or domain), "renamed": renamed}
            seeds.setdefault(key, seed)


def text_id(text: str) -> str:
    """A stable id: the first 16 hexadecimal digits of the SHA-256 of the text in NFC, white space and case folded."""
    folded = " ".join(unicodedata.normalize("NFC", text).lower().split())
    return hashlib.sha256(folded.encode()).hexdigest()[:16]
