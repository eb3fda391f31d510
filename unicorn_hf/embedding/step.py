"""`embed`: a dataset with a text or an image column -> the same plus a column of vectors."""

import warnings
from pathlib import Path

import datasets

from unicorn_hf.data.sources import read_dataset
from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.job import EmbeddingJob
from unicorn_hf.errors import InputError


def embed(
    data,
    output: str | Path | None = None,
    *,
    encoder: str | Encoder = "sandbox",
    text_column: str | None = None,
    image_column: str | None = None,
    remove_columns: list[str] | None = None,
    image_root: str | Path | None = None,
    name: str | None = None,
    split: str = "train",
    batch_size: int | str = "auto",
    overflow: str = "truncate",
    device: str | None = None,
    dtype: str = "auto",
    compile: bool = False,
    trust_remote_code: bool = False,
    shard_rows: int | None = None,
    num_workers: int | None = None,
    executor: str = "local",
    tasks: int = 1,
    executor_options: dict | None = None,
) -> datasets.Dataset | datasets.DatasetDict | None:
    """Add `text_embeds` or `image_embeds` to a dataset.

    A run that writes a folder is resumable: run again with the same arguments, it goes on where it was stopped.

    Args:
        data: a `datasets.Dataset`, a dataset folder, a file (Parquet, JSON lines, CSV, text), a folder of pictures,
            WebDataset tars (one, or a folder of them), the id of a dataset on the Hub, or a data file of ReVision,
            `{"images": [{"id", "image"}], "texts": [{"id", "text"}]}`: both sides are embedded, into the folders
            `texts` and `images` of the output.
        output: the folder to write; nothing is written where it is None.
        encoder: the name of an encoder (see `load_encoder`) or, for one task, an encoder.
        text_column, image_column: the column to embed, one of the two; by default the one with a usual name.
        remove_columns: columns of `data` to leave out of the output, such as the pictures themselves.
        image_root: the folder that paths in a data file of ReVision start from; by default the file's own.
        name, split: of the dataset, where it has several; `texts` or `images` for one side of a file of ReVision.
        batch_size: rows in a batch, or `auto`.
        overflow: what becomes of texts longer than the encoder's context: `truncate`, `error`, or the `mean` of their
            windows' vectors.
        device, dtype, compile, trust_remote_code: of the encoder, where it is given by its name.
        shard_rows: rows in a shard, the unit that is done whole or again; by default chosen from the number of rows.
        num_workers: processes beside each task that tokenise or decode; by default as many as pay off.
        executor: who runs the tasks: `local` processes, `slurm` or `ray`, all through datatrove.
        tasks: how many share the shards, each on a GPU of its own where there are any.
        executor_options: further arguments of datatrove's executor; for Slurm also options of `sbatch`.

    Returns:
        the rows that could be embedded, with one column more: `List(float16, length=embed_dim)`, unit length. The other
        rows are in `failed.jsonl` in the output folder. Of both sides of a file of ReVision, a `DatasetDict`. None
        where `executor` is `slurm`, which only submits the jobs.

    Raises:
        InputError: the data, the column, the encoder or the output cannot be used; the settings or the source changed
            since the run that is resumed; the disk is full.
        MissingExtraError: a library that the encoder or the executor needs is not installed.
    """
    job = EmbeddingJob(
        data=data,
        output=None if output is None else str(output),
        encoder=encoder,
        text_column=text_column,
        image_column=image_column,
        remove_columns=remove_columns,
        image_root=image_root,
        name=name,
        split=split,
        batch_size=batch_size,
        overflow=overflow,
        device=device,
        dtype=dtype,
        compile=compile,
        trust_remote_code=trust_remote_code,
        shard_rows=shard_rows,
        num_workers=num_workers,
        executor=executor,
        tasks=tasks,
        executor_options=executor_options,
    )
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
