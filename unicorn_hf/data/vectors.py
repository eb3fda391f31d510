"""Open any source of vectors as a `Vectors`, which reads in blocks: memory does not grow with the number of rows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from unicorn_hf.data.provenance import read_provenance
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.vector_sets import ArrayVectors, FileVectors, TableVectors, Vectors

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

# A source of vectors: an array [N, D] in memory, or a column of a folder, file or Hub id.
VectorSource = Union[str, Path, np.ndarray, "Dataset", "Tensor", "Vectors"]


def open_vectors(source, column: str | None = None, *, allow_pickle: bool = False) -> "Vectors":
    """The vectors of `source`, not read yet.

    Args:
        source: an array or tensor [N, D], a `datasets.Dataset`, a dataset folder or Hub id, a data file (Arrow,
            Parquet, JSON lines), a `.npy` or `.safetensors` file, or, with `allow_pickle`, a `.pkl` file of the
            released code or a folder of them. A `Vectors` is returned as it is.
        column: the column of a dataset, or the tensor of a `.safetensors` file.

    Raises:
        InputError: the source cannot be read, has no such column, or the column holds no vectors.
    """
    if isinstance(source, Vectors):
        return source
    if is_tensor(source):
        source = source.detach().cpu()
        return ArrayVectors((source.float() if str(source.dtype) == "torch.bfloat16" else source).numpy(), "the tensor")
    if isinstance(source, np.ndarray | list):
        return ArrayVectors(np.asarray(source), "the array")
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_file() and path.suffix == ".npy":
            return FileVectors.from_npy(path)
        if path.is_file() and path.suffix == ".safetensors":
            return FileVectors.from_safetensors(path, column)
        path = path.expanduser()
        if path.suffix in (".pkl", ".pickle") or (path.is_dir() and any(path.glob("*.pkl"))):
            from unicorn_hf.data.pickles import PickleVectors

            return PickleVectors(path, allow_pickle=allow_pickle)
        from unicorn_hf.data.tables import open_tables, table_files

        if files := table_files(path):
            return TableVectors(open_tables(files, str(source)), column, read_provenance(source))
    from unicorn_hf.data.tables import DatasetTables

    name = str(source) if isinstance(source, str | Path) else "the dataset"
    return TableVectors(DatasetTables(read_dataset(source), name), column, read_provenance(source))


def is_tensor(value) -> bool:
    """Whether `value` is a `torch.Tensor`; does not import torch if nobody has yet."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)
