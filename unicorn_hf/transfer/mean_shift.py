"""Mean shift (Unicorn, arXiv 2503.22655) with optional noise (C3, arXiv 2401.08567)."""

import zlib

import numpy as np

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
    def _learn(cls, text, image, measure_text, sigma: float = 0.0, seed: int = 0, centred: bool | None = None):
        """Options of `fit`.

        sigma: standard deviation of Gaussian noise added to every coordinate (C3's "corrupt"); 0 adds none.
        seed: of the noise. The same vector always gets the same noise, in whatever order or block it comes.
        centred: stay in the centred space even though image vectors are given.
        """
        if sigma < 0:
            raise InputError(f"sigma is {sigma}; expected 0 or more")
        if image is None and centred is False:
            raise InputError("mean_shift with centred=False needs image vectors: it moves the text to their mean")
        centred = image is None if centred is None else centred
        statistics = {"mu_text": text.mean} | ({} if image is None else {"mu_image": image.mean})
        space = "centred" if centred else "image"
        return cls(statistics, {"space": space, "sigma": float(sigma), "seed": seed, "trace_text": text.trace})

    @property
    def moves_images(self) -> bool:
        return self.config["space"] == "centred"

    @property
    def gain(self) -> float:
        return 2 / max(self.config["trace_text"], 1e-12) if self.moves_images else 1.0

    def _map(self, rows, statistics):
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
