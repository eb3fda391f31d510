"""The interface of every method: `fit` on two unpaired sets, `apply` to text vectors, `condition_image` at inference.

A method is one subclass in its own file, with two short functions: `_learn` turns the moments of both sets into
statistics, and `_map` transfers a block of unit rows. Everything else is here: reading vectors, normalization before
and after, unusable rows, threads, saving and loading.
"""

import functools
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.data.float16 import float32_to_float16
from unicorn_hf.data.provenance import Origin
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.staging import new_file, write_json, write_text
from unicorn_hf.data.unit_rows import LARGEST_CANCELLATION, UnitRows
from unicorn_hf.data.usable_vectors import find_unusable
from unicorn_hf.data.vector_sets import ArrayVectors, TableVectors, Vectors
from unicorn_hf.data.vectors import VectorSource, is_tensor, open_vectors
from unicorn_hf.errors import InputError
from unicorn_hf.transfer.moments import Moments, no_direction

# Name of a method -> module and class.
METHODS = {
    "none": "unicorn_hf.transfer.modality_transfer:NoTransfer",
    "mean_shift": "unicorn_hf.transfer.mean_shift:MeanShift",
    "realign": "unicorn_hf.transfer.realign:ReAlign",
    "covariance": "unicorn_hf.transfer.covariance:CovarianceTransfer",
    "anisotropic": "unicorn_hf.transfer.anisotropic:AnisotropicTransfer",
}

CACHED_ROWS = 512  # 512 x 1280 float32 is 2.6 MB, which stays in a core's cache
CONFIG_FILE = "transfer_config.json"
STATISTICS_FILE = "transfer.safetensors"


class ModalityTransfer:
    """A map from the text vectors of a contrastive encoder to the distribution of its image vectors.

    Attributes:
        method: the method's name.
        statistics: the learned arrays, name -> float64 array (`mu_text` [D], `mu_image` [D], ...).
        config: counts, encoders, the centroid distance before and after, and the method's options; JSON values.
    """

    method: ClassVar[str]
    needs_image: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False

    def __init__(self, statistics: dict[str, np.ndarray], config: dict):
        self.statistics = {name: np.ascontiguousarray(value, np.float64) for name, value in statistics.items()}
        self.config = config

    @classmethod
    def fit(
        cls,
        text: VectorSource | Moments,
        image: VectorSource | Moments | None = None,
        *,
        method: str | None = None,
        text_column: str = "text_embeds",
        image_column: str = "image_embeds",
        encoder: str | None = None,
        skip_non_finite: bool = False,
        allow_pickle: bool = False,
        **options,
    ) -> "ModalityTransfer":
        """Fit on two unpaired sets of vectors, which may differ in size.

        Args:
            text, image: arrays or tensors [N, D], datasets, paths (see `open_vectors`), or `Moments`.
            method: one of `METHODS`, when called on `ModalityTransfer` itself; "realign" by default.
            encoder: the encoder that made both sets, if the data do not say it.
            skip_non_finite: leave out rows that are NaN, Inf or zero; `config["skipped"]` names them.
            options: the method's own options.

        Raises:
            InputError: the method or an option is unknown, the data are unusable, or the sets differ in dimension or
                encoder.
        """
        fitted_class = method_class(method or "realign") if cls is ModalityTransfer else cls
        fitted_class._check_request(method, image, options)

        def measure(source, column):
            if source is None or isinstance(source, Moments):
                return None, source
            vectors = open_vectors(source, column, allow_pickle=allow_pickle)
            reading = {"encoder": encoder, "skip_non_finite": skip_non_finite}
            return vectors, Moments.measure(vectors, covariance=fitted_class.needs_covariance, **reading)

        def measure_mapped(vectors, transfer, function):
            through, dtype = transfer.on_units(function), transfer.dtype
            return Moments.measure(vectors, through=through, dtype=dtype, skip_non_finite=skip_non_finite)

        text_vectors, text_moments = measure(text, text_column)
        image_vectors, image_moments = measure(image, image_column)
        if image_moments is not None and (differ := text_moments.origin.difference(image_moments.origin)):
            raise InputError(
                f"The text vectors have {differ[0]} and the image vectors {differ[1]}; both must come from one encoder"
            )
        measure_text = functools.partial(measure_mapped, text_vectors) if text_vectors is not None else None
        transfer = fitted_class._learn(text_moments, image_moments, measure_text, **options)
        transfer.config = transfer._facts(text_moments, image_moments, encoder) | transfer.config
        if image_moments is not None and measure_text and (image_vectors is not None or not transfer.moves_images):
            image_mean = image_moments.mean
            if transfer.moves_images:
                image_mean = measure_mapped(image_vectors, transfer, transfer._map_image).mean
            text_mean = measure_text(transfer, transfer._map).mean
            transfer.config["centroid_distance_after"] = float(np.linalg.norm(text_mean - image_mean))
        return transfer

    @classmethod
    def _check_request(cls, method: str | None, image, options: dict) -> None:
        """Raise `InputError` unless this class fits `method`, with these options, with or without images."""
        if method not in (None, cls.method):
            raise InputError(f"{cls.__name__} fits {cls.method!r}, not {method!r}; use ModalityTransfer.fit")
        known = [
            name for name in inspect.signature(cls._learn).parameters if name not in ("text", "image", "measure_text")
        ]
        for name in options:
            if name not in known:
                raise InputError(
                    f"The method {cls.method!r} has no option {name!r}; its options: {', '.join(known) or 'none'}"
                )
        if image is None and cls.needs_image:
            raise InputError(f"The method {cls.method!r} needs image vectors too: give an unpaired set of them")

    def _facts(self, text: Moments, image: Moments | None, encoder: str | None) -> dict:
        """The entries of `config` that every method has."""
        return {
            "method": self.method,
            "embed_dim": len(text.mean),
            "text_encoder": encoder or text.encoder,
            "image_encoder": encoder or (image.encoder if image is not None else None) or text.encoder,
            "text_count": text.count,
            "image_count": 0 if image is None else image.count,
            "centroid_distance_before": None if image is None else float(np.linalg.norm(text.mean - image.mean)),
            "centroid_distance_after": None,
            "skipped": text.skipped + ([] if image is None else image.skipped),
        }

    def apply(
        self,
        x: VectorSource,
        output: str | Path | None = None,
        *,
        column: str = "text_embeds",
        out_column: str = "image_embeds",
        encoder: str | None = None,
        skip_non_finite: bool = False,
        allow_pickle: bool = False,
        overwrite: bool | None = None,
    ):
        """Transfer text vectors into image space; every resulting row has unit length.

        Args:
            x: an array or tensor [N, D] or [D], a dataset, or a path (see `open_vectors`).
            output: a `.npy` file or a dataset folder to write; memory then does not grow with the number of rows.
            column: the column of a dataset with the text vectors.
            out_column: the column to add to a dataset.
            encoder: the encoder that made the vectors, if the data do not say it.
            skip_non_finite: with `output`, leave out rows that are NaN, Inf or zero, and name them in a warning.
            overwrite: replace the output of an earlier run.

        Returns:
            A float32 array of x's shape. For a tensor: a float32 tensor on its device. For a dataset or a folder: a
            `datasets.Dataset` with the column `out_column`, List(float16, length=D). With `output`: its `Path`.

        Raises:
            InputError: the dimension or encoder differs from the fitted one, or a row is NaN, Inf or zero.
        """
        if output is None and is_tensor(x):
            return self._map_tensor(x, self._map)
        if output is None and isinstance(x, np.ndarray | list):
            return self._map_array(np.asarray(x), self._map)
        vectors = open_vectors(x, column, allow_pickle=allow_pickle)
        self._check(vectors, encoder)
        if output is None and isinstance(vectors, TableVectors):
            return self._map_dataset(vectors, x, out_column)
        if output is None:
            return np.concatenate([moved for _, _, moved in self.transferred_tables(vectors)])
        from unicorn_hf.transfer.writing import write_transferred

        write_transferred(self, vectors, Path(output), out_column, skip_non_finite=skip_non_finite, overwrite=overwrite)
        return Path(output)

    def condition_image(self, x: VectorSource):
        """Prepare vectors of real images [N, D] or [D] for a model that was trained on the output of `apply`.

        Returns float32 unit rows, an array or tensor like x. Only the centred space of the mean shift does more than
        normalize.
        """
        if is_tensor(x):
            return self._map_tensor(x, self._map_image)
        return self._map_array(np.asarray(x), self._map_image)

    @property
    def provenance(self) -> dict:
        """The entry on a dataset's card for a column made by `apply`."""
        return {
            "encoder": self.config["image_encoder"],
            "embed_dim": self.config["embed_dim"],
            "transfer": self.method,
        }

    @property
    def moves_images(self) -> bool:
        """Whether `condition_image` does more than normalize rows."""
        return False

    @classmethod
    def _learn(cls, *args: Any, **options: Any) -> "ModalityTransfer":
        """Learn the statistics from `text, image, measure_text`: the moments of both sets (`image` may be None).

        `measure_text(transfer, function)` measures the text set after a function of `transfer` is applied to it. It is
        None if only the moments of the text were given.
        """
        raise NotImplementedError

    def _map(self, rows: UnitRows, statistics) -> UnitRows:
        """Transfer a block of rows; `statistics` is `self.statistics` as arrays or tensors of the block's dtype.

        A method that does more than scale and shift overrides `_map_dense` instead.
        """
        return UnitRows.normalized(self._map_dense(rows.dense(), statistics))

    def _map_dense(self, unit, statistics):
        """Transfer an array or tensor of unit rows, in place if that is faster; the result may have any length."""
        raise NotImplementedError

    def _map_image(self, rows: UnitRows, statistics) -> UnitRows:
        return rows

    @property
    def gain(self) -> float:
        """By how much the method magnifies rounding errors of its input."""
        return 1.0

    @property
    def dtype(self):
        """The dtype of the arithmetic that keeps outputs exact to 1e-6."""
        return np.float64 if self.gain > LARGEST_CANCELLATION else np.float32

    def on_units(self, function) -> Callable[[UnitRows], UnitRows]:
        """`function` (`_map` or `_map_image`) with its statistics bound; it repeats a block in float64 if needed."""
        statistics = {
            dtype: {name: value.astype(dtype, copy=False) for name, value in self.statistics.items()}
            for dtype in (np.dtype(np.float32), np.dtype(np.float64))
        }

        def run(rows):
            moved = function(rows, statistics[rows.x.dtype])
            if moved.cancelled and rows.x.dtype != np.float64:
                rows = rows.astype(np.float64)
                moved = function(rows, statistics[rows.x.dtype])
            return moved

        return run

    def transferred_tables(
        self,
        vectors: Vectors,
        *,
        with_tables: bool = False,
        function=None,
        half: bool = False,
        keep_bad: bool = False,
    ) -> Iterator:
        """Yield for every block: its table of rows, the indices of its unusable rows, its transferred rows.

        The transferred rows are float32, or float16 with `half`. The table is None unless `with_tables` is set. With
        `keep_bad` unusable rows are kept, with meaningless values.

        Raises:
            InputError: a row has no direction before or after the transfer, and `keep_bad` is not set.
        """
        function, dtype = self.on_units(function or self._map), self.dtype

        def of_block(block):
            moved, lost = np.empty(block.shape, np.float16 if half else np.float32), []
            for start in range(0, len(block), CACHED_ROWS):
                part = block[start : start + CACHED_ROWS]
                rows, _ = UnitRows.of_block(part, np.float64 if block.dtype == np.float64 else dtype)
                rows = function(rows)
                lost.append(start + np.flatnonzero(np.isnan(rows.scale)))
                dense = rows.dense().astype(np.float32, copy=False)
                moved[start : start + CACHED_ROWS] = float32_to_float16(dense) if half else dense
            return block, moved, np.concatenate(lost)

        first_row = 0
        results = (
            vectors.map_tables(of_block) if with_tables else ((None, each) for each in vectors.map_blocks(of_block))
        )
        for table, (block, moved, lost) in results:
            if len(lost) and not keep_bad:
                row = int(lost[0])
                if len(find_unusable(block[row : row + 1])):
                    raise no_direction(vectors, block[row], first_row + row)
                raise InputError(
                    f"{vectors.name}: {vectors.row_name(first_row + row)} is the mean of the fitted set, so the method "
                    f"{self.method!r} leaves it without a direction; leave the row out"
                )
            first_row += len(block)
            yield table, lost, moved

    def _check(self, vectors: Vectors, encoder: str | None = None) -> None:
        theirs = Origin(encoder or vectors.encoder, embed_dim=vectors.embed_dim)
        ours = Origin(self.config["text_encoder"], embed_dim=self.config["embed_dim"])
        if differ := theirs.difference(ours):
            raise InputError(
                f"{vectors.name}: has vectors of {differ[0]}, but this transfer was fitted on {differ[1]}; embed the "
                "text again, or fit a transfer for its encoder"
            )

    def _map_array(self, array: np.ndarray, function) -> np.ndarray:
        vectors = ArrayVectors(np.atleast_2d(array), "the array")
        self._check(vectors)
        result = np.empty((vectors.num_rows, vectors.embed_dim), np.float32)
        row = 0
        for _, _, moved in self.transferred_tables(vectors, function=function):
            result[row : row + len(moved)] = moved
            row += len(moved)
        return result.reshape(array.shape)

    def _map_tensor(self, tensor, function):
        """Transfer a tensor on its own device, if float32 is exact enough there and no noise is added."""
        import torch

        rows = torch.atleast_2d(tensor.detach())

        def in_numpy():
            array = rows.cpu().to(torch.float64 if rows.dtype == torch.float64 else torch.float32).numpy()
            moved = self._map_array(array, function)
            return torch.from_numpy(moved).to(tensor.device).reshape(tensor.shape)

        if rows.shape[1] != self.config["embed_dim"] or self.dtype == np.float64 or self.config.get("sigma"):
            return in_numpy()
        rows = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        largest = rows.abs().amax(dim=1, keepdim=True)
        bad = torch.nonzero(~(largest.isfinite() & (largest > 0)).squeeze(1))
        if len(bad):
            row = rows[bad[0]].cpu().numpy()
            raise no_direction(ArrayVectors(row, "the tensor"), row, int(bad[0]))
        scaled = rows / largest
        statistics = {name: torch.as_tensor(value).to(rows) for name, value in self.statistics.items()}
        moved = function(UnitRows.normalized(scaled), statistics)
        if moved.cancelled and rows.dtype != torch.float64:
            return in_numpy()
        lost = torch.nonzero(moved.scale.isnan())
        if len(lost):
            raise InputError(f"the tensor: row {int(lost[0])} has no direction after the method {self.method!r}")
        return moved.dense().float().reshape(tensor.shape)

    def _map_dataset(self, vectors, source, out_column: str):
        import datasets

        dataset = read_dataset(source)
        if out_column in dataset.column_names:
            raise InputError(f"{vectors.name}: has a column {out_column!r} already; name another with out_column")
        column = vectors.column
        features = dataset.features.copy()
        features[out_column] = datasets.List(datasets.Value("float16"), length=vectors.embed_dim)

        def add_column(table, indices):
            from unicorn_hf.data.shards import as_lists
            from unicorn_hf.data.tables import DatasetTables

            batch = TableVectors(DatasetTables(datasets.Dataset(table.select([column])), vectors.name), column, {})
            batch.row_name = lambda row: vectors.row_name(indices[row])
            moved = np.concatenate([moved for _, _, moved in self.transferred_tables(batch, half=True)])
            return table.append_column(out_column, as_lists(moved))

        mapped = dataset.with_format("arrow").map(
            add_column,
            with_indices=True,
            batched=True,
            batch_size=2048,
            features=features,
            desc=f"transfer {self.method}",
        )
        return mapped.with_format(None)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `transfer.safetensors`, `transfer_config.json` and a card to `folder`. Returns it."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / STATISTICS_FILE, overwrite=True) as file:
            file.write_bytes(save(self.statistics))
        write_json(self.config, folder / CONFIG_FILE)
        write_text(self.card(), folder / "README.md")
        return folder

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> "ModalityTransfer":
        """Load a transfer from a folder or from the Hub; its config names the method and so the class.

        Raises:
            InputError: there is no transfer, its files are damaged, or its method is not that of the class called.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            if not is_hub_id(name_or_path):
                raise InputError(f"{name_or_path}: is neither a folder nor a repository (org/name)")
            folder = _download(str(name_or_path), revision, token)
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            loaded_class = method_class(config["method"])
            from safetensors.numpy import load_file

            statistics = load_file(folder / STATISTICS_FILE)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{name_or_path}: holds no readable transfer ({type(error).__name__}: {error}); "
                f"expected {CONFIG_FILE} and {STATISTICS_FILE}, as written by save_pretrained"
            ) from error
        if not issubclass(loaded_class, cls):
            raise InputError(f"{name_or_path}: is a transfer by {config['method']!r}, not by {cls.method!r}")
        return loaded_class(statistics, config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Save to a model repository on the Hub, and create it if needed. Returns the address of the commit."""
        from unicorn_hf.hub import push_to_hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            message = commit_message or f"Upload a {self.method} transfer"
            return push_to_hub(folder, repo_id, private=private, token=token, commit_message=message)

    def card(self) -> str:
        """The Markdown card: the method, the fitted sets, and the centroid distance before and after."""
        known = {name: value for name, value in self.config.items() if name != "skipped"}
        rows = "\n".join(f"| `{name}` | {_card_value(value)} |" for name, value in known.items())
        return f"""---
library_name: unicorn-hf
tags:
- modality-gap
- unicorn
- {self.method}
---

# Modality transfer: {self.method}

Transfers text vectors of the encoder {self.config["text_encoder"] or "(not recorded)"} to the distribution of image
vectors of the encoder {self.config["image_encoder"] or "(not recorded)"}, {self.config["embed_dim"]} dimensions.

| | |
| --- | --- |
{rows}

{len(self.config["skipped"])} rows were left out because they were NaN, Inf or zero.

```python
from unicorn_hf import ModalityTransfer

transfer = ModalityTransfer.from_pretrained("...")
image_embeds = transfer.apply(text_embeds)  # [N, {self.config["embed_dim"]}] -> float32, unit rows
real = transfer.condition_image(real_image_embeds)  # prepare the vectors of real images at inference
```
"""


class NoTransfer(ModalityTransfer):
    """Only normalize: the baseline with the whole gap."""

    method = "none"
    needs_image = False

    @classmethod
    def _learn(cls, text, image, measure_text):
        means = {"mu_text": text.mean} | ({} if image is None else {"mu_image": image.mean})
        return cls(means, {})

    def _map(self, rows, statistics):
        return rows


def method_class(method: str) -> type[ModalityTransfer]:
    """The class of a method."""
    if method not in METHODS:
        raise InputError(f"There is no transfer method {method!r}; the methods are {', '.join(METHODS)}")
    module, name = METHODS[method].split(":")
    return getattr(import_module(module), name)


def _card_value(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _download(repo_id: str, revision: str | None, token) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=[CONFIG_FILE, STATISTICS_FILE])
        )
    except Exception as error:  # no such repository, no network, not a valid repository name, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{repo_id}: is neither a folder nor a repository that can be read ({reason})") from error
