"""Mean shift (Unicorn, arXiv 2503.22655) with optional noise (C3, arXiv 2401.08567)."""

import zlib

import numpy as np

from unicorn_hf.data.unit_rows import UnitRows
from unicorn_hf.errors import InputError
from unicorn_hf.transfer.modality_transfer import ModalityTransfer


class MeanShift(ModalityTransfer):
    """e - mu_text + mu_image, or, in the centred space of the released Unicorn, e - mu_text.

    Without image statistics only the centred space can be reached. There a real image's vector has to lose the image
    mean before a model trained on these sees it: `condition_image` does that where images were given to `fit`, and asks
    for the mean (`statistics["mu_image"]`) where they were not.
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

        sigma: standard deviation of Gaussian noise added to every coordinate (C3's "corrupt"); 0 adds none.
        seed: of the noise. The same vector always gets the same noise, in whatever order or block it comes.
        centred: stay in the centred space even though image vectors are given.
        keep_lengths: text rows come to unit length only after they have lost the mean of the rows as they are: the
            order of the released Unicorn, in the centred space. For rows of unit length nothing changes.
        """
        if sigma < 0:
            raise InputError(f"sigma is {sigma}; expected 0 or more")
        if image is None and centred is False:
            raise InputError("mean_shift with centred=False needs image vectors: it moves the text to their mean")
        if keep_lengths and centred is False:
            raise InputError("mean_shift with keep_lengths stays in the centred space; leave out centred=False")
        if keep_lengths and measure_text is None:
            raise InputError("mean_shift with keep_lengths needs the text's vectors: its moments are of unit rows")
        centred = keep_lengths or image is None if centred is None else centred
        statistics = {"mu_text": text.mean} | ({} if image is None else {"mu_image": image.mean})
        space = "centred" if centred else "image"
        config = {"space": space, "sigma": float(sigma), "seed": seed, "trace_text": text.trace}
        transfer = cls(statistics, config | {"keep_lengths": keep_lengths})
        if keep_lengths:
            transfer.statistics["mu_text"] = measure_text(transfer, lambda rows, _: _as_they_are(rows)).mean
        return transfer

    @property
    def moves_images(self) -> bool:
        return self.config["space"] == "centred"

    @property
    def gain(self) -> float:
        if self.config.get("keep_lengths"):
            return float("inf")  # nobody has measured their spread
        return 2 / max(self.config["trace_text"], 1e-12) if self.moves_images else 1.0

    def _map(self, rows, statistics):
        if self.config.get("keep_lengths"):
            return UnitRows.normalized(self._map_dense(_as_they_are(rows).dense(), statistics))
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
                    "This mean shift was fitted without images, and in its centred space a real image's vector must "
                    "lose the image mean: set transfer.statistics['mu_image'] to the mean of real images' unit vectors"
                )
            return rows.moved(1, -statistics["mu_image"])
        return rows

    def _noise(self, unit: np.ndarray) -> np.ndarray:
        """Seeded by each row's own numbers, so that blocks, shards and order do not matter."""
        rows = np.ascontiguousarray(unit, np.float32)
        noise = np.empty_like(rows)
        for row, out in zip(rows, noise, strict=True):
            key = self.config["seed"] << 64 | zlib.crc32(row) << 32 | zlib.adler32(row)
            np.random.Generator(np.random.Philox(key=key)).standard_normal(out=out, dtype=np.float32)
        noise *= np.float32(self.config["sigma"])
        return noise


def _as_they_are(rows: UnitRows) -> UnitRows:
    """Rows at their own length; those that have no direction stay NaN."""
    return UnitRows(rows.x, rows.scale / rows.scale)
