"""Stage 1, diverse caption synthesis: seeds -> captions (Unicorn, arXiv 2503.22655, section 3.1)."""

import random

from tqdm.auto import tqdm

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_new_folder, write_dataset
from unicorn_hf.synthesis.grammar import GrammarWriter
from unicorn_hf.synthesis.seeds import read_seeds, text_id

WRITERS = {"grammar": GrammarWriter}


def write_captions(seeds, output=None, *, writer="grammar", captions_per_seed: int = 3, seed: int = 0):
    """Expand every seed into several different captions.

    Args:
        seeds: a list of texts, a file (txt, jsonl, csv, parquet), a dataset or a dataset folder (see `read_seeds`).
        output: the folder to write; None only returns the dataset.
        writer: "grammar", or a writer object.
        captions_per_seed: how many captions a seed is expanded into; a seed with fewer wordings gets fewer.
        seed: of the random choices. A caption depends on it and on its own seed text, not on the other seeds.

    Returns:
        A `datasets.Dataset` with the columns `id` (hash of the caption), `seed`, `domain`, `caption`; no caption twice.

    Raises:
        InputError: unusable seeds, an unknown writer, or a non-empty output folder.
    """
    import datasets

    writer = load_writer(writer)
    if captions_per_seed < 1:
        raise InputError(f"captions_per_seed is {captions_per_seed}; expected 1 or more")
    if output is not None:
        check_new_folder(output)
    rows = {}
    for row in tqdm(read_seeds(seeds), desc="captions", unit="seed"):
        rng = random.Random(f"captions {seed} {row['seed']}")
        for caption in writer.captions(row["seed"], captions_per_seed, rng):
            key = text_id(caption)
            rows.setdefault(key, {"id": key, "seed": row["seed"], "domain": row["domain"], "caption": caption})
    dataset = datasets.Dataset.from_list(list(rows.values()))
    if output is not None:
        write_dataset(dataset, output, title="Captions")
    return dataset


def load_writer(writer):
    """The writer of a name; a writer object is returned as it is."""
    if not isinstance(writer, str):
        return writer
    if writer not in WRITERS:
        raise InputError(f"unknown writer {writer!r}; expected one of {', '.join(WRITERS)}")
    return WRITERS[writer]()
