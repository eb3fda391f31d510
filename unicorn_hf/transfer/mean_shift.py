"""Mean shift (Unicorn, arXiv 2503.22655) with optional noise ("Connect, Collapse, Corrupt", arXiv 2401.08567)."""

import zlib

import numpy as np

from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.errors import InputError
from unicorn_hf.transfer.modality_transfer import ModalityTransfer


class MeanShift(ModalityTransfer):
    """e - mu_text + mu_image; in the centred space of the released Unicorn only e - mu_text.

    Without image statistics only the centred space is possible. A model trained in it expects real images without
    their mean too: `condition_image` subtracts the image mean. If `fit` got no images, `condition_image` asks for that
    mean (`statistics["mu_image"]`).
    """

    method = "mean_shift"
    needs_image = False

    @classmethod
    def _learn(
        cls,
        text,
        image,
        measure_text,
        sigma: float = 0.0,
        seed: int = 0,
        centred: bool | None = None,
        keep_lengths: bool = False,
    ):
        """Options of `fit`.

        sigma: standard deviation of Gaussian noise added to every coordinate ("corrupt" in the paper); 0 adds none.
        seed: of the noise. The same vector always gets the same noise, whatever its order or block.
        centred: stay in the centred space although image vectors are given.
        keep_lengths: in the centred space, subtract the mean of the text rows before normalization, and normalize only
            afterwards, as the released Unicorn does. For rows of unit length nothing changes.
        """
        if sigma < 0:
            raise InputError(f"sigma is {sigma}; expected 0 or more")
        if image is None and centred is False:
            raise InputError("mean_shift with centred=False needs image vectors: it shifts the text to their mean")
        if keep_lengths and centred is False:
            raise InputError("mean_shift with keep_lengths stays in the centred space; leave out centred=False")
        if keep_lengths and measure_text is None:
            raise InputError("mean_shift with keep_lengths needs the text vectors: their moments are of unit rows")
        centred = keep_lengths or image is None if centred is None else centred
        statistics = {"mu_text": text.mean} | ({} if image is None else {"mu_image": image.mean})
        space = "centred" if centred else "image"
        config = {"space": space, "sigma": float(sigma), "seed": seed, "trace_text": text.trace}
        transfer = cls(statistics, config | {"keep_lengths": keep_lengths})
        if keep_lengths:
            transfer.statistics["mu_text"] = measure_text(transfer, lambda rows, _: _unnormalized(rows)).mean
        return transfer

    @property
    def moves_images(self) -> bool:
        return self.config["space"] == "centred"

    @property
    def gain(self) -> float:
        if self.config.get("keep_lengths"):
            return float("inf")  # unknown, because the spread of the raw rows is not measured
        return 2 / max(self.config["trace_text"], 1e-12) if self.moves_images else 1.0

    def _map(self, rows, statistics):
        if self.config.get("keep_lengths"):
            return UnitRows.normalized(self._map_dense(_unnormalized(rows).dense(), statistics))
        return super()._map(rows, statistics) if self.config["sigma"] else rows.moved(1, self._shift(statistics))

    def _map_dense(self, unit, statistics):
        noise = self._noise(unit)
        unit += self._shift(statistics)
        unit += noise
        return unit

    def _shift(self, statistics):
        return -statistics["mu_text"] if self.moves_images else statistics["mu_image"] - statistics["mu_text"]

    def _map_image(self, rows, statistics):
        if self.moves_images:
            if "mu_image" not in statistics:
                raise InputError(
                    "This mean shift was fitted without images, but in its centred space the image mean must be "
                    "subtracted: set transfer.statistics['mu_image'] to the mean of the unit vectors of real images"
                )
            return rows.moved(1, -statistics["mu_image"])
        return rows

    def _noise(self, unit: np.ndarray) -> np.ndarray:
        """Noise [n, D], seeded by each row's own numbers, so that blocks, shards and order do not matter."""
        rows = np.ascontiguousarray(unit, np.float32)
        noise = np.empty_like(rows)
        for row, out in zip(rows, noise, strict=True):
            key = self.config["seed"] << 64 | zlib.crc32(row) << 32 | zlib.adler32(row)
            np.random.Generator(np.random.Philox(key=key)).standard_normal(out=out, dtype=np.float32)
        noise *= np.float32(self.config["sigma"])
        return noise


def _unnormalized(rows: UnitRows) -> UnitRows:
    """Rows at their original length; rows without a direction stay NaN."""
    return UnitRows(rows.x, rows.scale / rows.scale)
