"""The moments of a set of vectors: count, mean and, for some methods, covariance.

One pass over the data; memory does not depend on the number of rows; sets measured separately merge exactly
(Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances").
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unicorn_hf.data.provenance import Origin
from unicorn_hf.data.staging import new_file
from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.data.usable_vectors import what_is_wrong
from unicorn_hf.data.vector_sets import BLOCK_ROWS, Vectors
from unicorn_hf.data.vectors import VectorSource, open_vectors
from unicorn_hf.errors import InputError

# Below this trace, rounding in float32 affects the result 1 - |mean|^2, so the set is measured again in float64.
_SMALL_TRACE = 0.02


class Moments:
    """Count, mean [D] and, optionally, scatter [D, D] (the sum of the centred outer products) of unit rows, in float64.

    `skipped` names the rows that were left out because they have no direction; `info` holds extra entries of `save`.
    """

    def __init__(self, count: int, mean, scatter=None, *, encoder: str | None = None, skipped: list[str] | None = None):
        self.info: dict = {}
        self.count = count
        self.mean = np.asarray(mean, np.float64)
        self.scatter = scatter
        self.encoder = encoder
        self.skipped = skipped or []

    @classmethod
    def measure(
        cls,
        source: VectorSource,
        column: str | None = None,
        *,
        covariance: bool = False,
        encoder: str | None = None,
        skip_non_finite: bool = False,
        allow_pickle: bool = False,
        through: Callable[[UnitRows], UnitRows] | None = None,
        dtype=np.float32,
        block_rows: int | None = None,
    ) -> "Moments":
        """Normalize and measure the vectors of `source` (see `open_vectors`).

        Args:
            covariance: measure the scatter too; needs D^2 numbers of memory and about ten times the time.
            encoder: the encoder's name, if the source does not say it.
            skip_non_finite: leave out rows that are NaN, Inf or zero, and name them in `skipped`.
            through: a function from a block's unit rows to the unit rows to measure.
            dtype: of the arithmetic within a block; sums over blocks are always float64. float64 input is never
                narrowed, and a set with very little spread is measured again in float64.
            block_rows: rows read at once; the result does not depend on it.

        Raises:
            InputError: the source cannot be read, or a row is NaN, Inf or zero and `skip_non_finite` is not set.
        """
        vectors = open_vectors(source, column, allow_pickle=allow_pickle)
        if differ := Origin(vectors.encoder).difference(Origin(encoder)):
            raise InputError(f"{vectors.name}: was made by {differ[0]}, not by {differ[1]}")
        options = (covariance, skip_non_finite, through, block_rows or (4096 if covariance else 2 * BLOCK_ROWS))
        moments = cls._measure(vectors, dtype, *options)
        if dtype != np.float64 and through is None and moments.trace < _SMALL_TRACE:
            moments = cls._measure(vectors, np.float64, *options)
        moments.encoder = encoder or vectors.encoder
        return moments

    @classmethod
    def _measure(cls, vectors: Vectors, dtype, covariance, skip_non_finite, through, block_rows) -> "Moments":
        def of_block(block):
            rows, bad = UnitRows.of_block(block, np.float64 if block.dtype == np.float64 else dtype)
            if len(bad):
                if not skip_non_finite:
                    return block, bad, None
                rows = rows.without(bad)
            if through is not None:
                rows = through(rows)
            count = len(block) - len(bad)
            mean = rows.sum() / max(count, 1)
            scatter = None
            if covariance:
                centred = rows.dense()
                centred -= mean.astype(centred.dtype)
                scatter = (centred.T @ centred).astype(np.float64)
            return block, bad, cls(count, mean, scatter)

        total = cls(0, np.zeros(vectors.embed_dim), np.zeros((vectors.embed_dim,) * 2) if covariance else None)
        first_row = 0
        # Matrix products bring their own threads.
        for block, bad, moments in vectors.map_blocks(of_block, block_rows, 1 if covariance else None):
            if moments is None:
                raise no_direction(vectors, block[bad[0]], first_row + int(bad[0]))
            moments.skipped = [vectors.row_name(first_row + int(row)) for row in bad]
            total = total.merge(moments)
            first_row += len(block)
        if not total.count:
            raise no_vectors(vectors)
        return total

    @property
    def origin(self) -> Origin:
        return Origin(self.encoder, embed_dim=len(self.mean))

    @property
    def trace(self) -> float:
        """The mean squared distance to the mean; for unit rows exactly 1 - |mean|^2 (ReVision, "trace")."""
        return max(0.0, 1.0 - float(self.mean @ self.mean))

    @property
    def covariance(self) -> np.ndarray:
        """The covariance [D, D], divided by the count."""
        if self.scatter is None:
            raise InputError("These moments have no covariance: measure them with covariance=True (--covariance)")
        return self.scatter / self.count

    def merge(self, *others: "Moments") -> "Moments":
        """The moments of the union of two or more sets.

        Raises:
            InputError: the sets differ in dimension or encoder, or only one has a covariance.
        """
        total = self
        for other in others:
            total = total._merge(other)
        return total

    def _merge(self, other: "Moments") -> "Moments":
        if differ := self.origin.difference(other.origin):
            raise InputError(f"Moments of {differ[0]} and {differ[1]} cannot be merged")
        if (self.scatter is None) != (other.scatter is None):
            raise InputError("Moments with and without a covariance cannot be merged: measure all with --covariance")
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / max(count, 1))
        scatter = None
        if self.scatter is not None:
            scatter = self.scatter + other.scatter
            scatter += np.outer(step, step * (self.count * other.count / max(count, 1)))
        return Moments(
            count,
            mean,
            scatter,
            encoder=self.encoder or other.encoder,
            skipped=self.skipped + other.skipped,
        )

    def save(self, path: str | Path, *, overwrite: bool = False, **info) -> None:
        """Write a `.safetensors` file; `info` (JSON values) is stored in it too.

        Raises:
            InputError: `path` exists, and `overwrite` is not given.
        """
        from safetensors.numpy import save

        tensors = {"mean": self.mean} | ({} if self.scatter is None else {"scatter": self.scatter})
        about = {"count": self.count, "encoder": self.encoder, "skipped": self.skipped, **info}
        with new_file(path, overwrite=overwrite) as file:
            file.write_bytes(save(tensors, metadata={"moments": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> "Moments":
        """Read a file written by `save`."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                about = json.loads(file.metadata()["moments"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: is not a file of moments ({error}); write one with `unicorn-hf transfer moments`"
            ) from error
        moments = cls(
            about.pop("count"),
            tensors["mean"],
            tensors.get("scatter"),
            encoder=about.pop("encoder"),
            skipped=about.pop("skipped"),
        )
        moments.info = about
        return moments


def merge_files(paths) -> dict[str, Moments]:
    """Modality (text, image) -> the merged moments of the files that `unicorn-hf transfer moments` wrote."""
    merged: dict[str, Moments] = {}
    seen = set()
    for path in paths:
        if (place := Path(path).resolve()) in seen:
            raise InputError(f"{path}: is given twice, so its vectors would count twice; name each file once")
        seen.add(place)
        moments = Moments.load(path)
        modality = moments.info.get("modality")
        if modality not in ("text", "image"):
            raise InputError(f"{path}: does not say whether it holds text or images; measure it with --modality")
        try:
            merged[modality] = merged[modality].merge(moments) if modality in merged else moments
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        merged[modality].info = moments.info
    return merged


def no_vectors(vectors: Vectors) -> InputError:
    """The error for a set of which every row was left out."""
    return InputError(f"{vectors.name}: every row is NaN, Inf or zero; expected vectors")


def no_direction(vectors: Vectors, row: np.ndarray, index: int) -> InputError:
    """The error for a row that cannot be normalized."""
    column = f" of {vectors.column!r}" if vectors.column else ""
    return InputError(
        f"{vectors.name}: {vectors.row_name(index)}{column} holds {what_is_wrong(row)}; expected a finite vector that "
        "is not zero; correct it, or leave such rows out with skip_non_finite (--skip-non-finite)"
    )
