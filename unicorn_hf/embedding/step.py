"""`embed`: add a column of vectors to a dataset with a text or an image column."""

import warnings
from pathlib import Path

import datasets

from unicorn_hf.data.sources import Source, read_dataset
from unicorn_hf.embedding.config import EmbedConfig
from unicorn_hf.embedding.job import EmbeddingJob
from unicorn_hf.errors import InputError


def embed(
    data: Source, output: str | Path | None = None, *, config: EmbedConfig | None = None, **options
) -> datasets.Dataset | datasets.DatasetDict | None:
    """Add `text_embeds` or `image_embeds` to a dataset.

    A run that writes a folder can be resumed: run it again with the same arguments.

    Args:
        data: a `datasets.Dataset`, a dataset folder, a file (Parquet, JSON lines, CSV, text), a folder of images,
            WebDataset tars (one, or a folder of them), the id of a dataset on the Hub, or a ReVision data file
            (`{"images": [{"id", "image"}], "texts": [{"id", "text"}]}`). Both sides of a ReVision file are embedded,
            into the folders `texts` and `images` of the output.
        output: the folder to write; None writes nothing.
        config: the options; `options` replace single fields of it. `encoder` is required: a name (see `load_encoder`)
            or, for one task, an `Encoder`.

    Returns:
        the embedded rows with one more column: `List(float16, length=embed_dim)`, unit length. The failed rows are in
        `failed.jsonl` in the output folder. For a ReVision file, a `DatasetDict` of both sides. None if `executor` is
        `slurm`, which only submits the jobs.

    Raises:
        InputError: the data, an option or the output cannot be used; the settings or the source have changed since the
            resumed run started; the disk is full.
        MissingExtraError: a library that the encoder or the executor needs is not installed.
    """
    job = EmbeddingJob.of(config, options, data=data, output=output)
    if sides := job.sides():
        embedded = {side: _embedded(each) for side, each in sides.items()}
        return None if None in embedded.values() else datasets.DatasetDict(embedded)
    return _embedded(job)


def _embedded(job: EmbeddingJob) -> datasets.Dataset | None:
    if job.output is not None:
        return None if job.run() is None else read_dataset(job.output)
    if job.tasks > 1 or job.executor != "local":
        raise InputError("several tasks need an output folder; name one")
    dataset, failures = job.embed_in_memory()
    if failures:
        warnings.warn(f"{len(failures)} rows have no vector and are left out; the first: {failures[0]}", stacklevel=3)
    return dataset
