"""ReAlign: anchor, trace and centroid alignment from unpaired statistics (ReVision, arXiv 2602.07026)."""

import math

from unicorn_hf.errors import InputError
from unicorn_hf.transfer.modality_transfer import ModalityTransfer
from unicorn_hf.transfer.moments import Moments


class ReAlign(ModalityTransfer):
    """Move the mean, scale the spread, then mend the mean that the projection to the sphere has moved.

    anchor and trace: e2 = mu_image + s (e - mu_text), s = sqrt(trace_image / trace_text); projection: e' = e2 / |e2|;
    centroid: out = normalize(e' - mu_aligned + mu_image), where mu_aligned is the mean of e' over the text set.
    """

    method = "realign"

    @classmethod
    def _learn(cls, text, image, measure_text, aligned: Moments | None = None):
        """Options of `fit`.

        aligned: the moments of e' over the text set (`measure_aligned`), where the text is given as `Moments`.
        """
        transfer = cls._trace_aligned(text, image)
        if aligned is None and measure_text is None:
            raise InputError(
                "ReAlign's centroid step needs the text once more: fit on the vectors, or measure each shard with "
                "`unicorn-hf transfer moments SHARD --modality text --aligned-by FILE` (once for each file) and give "
                "these moments too"
            )
        aligned = aligned or measure_text(transfer, transfer._trace_align)
        if aligned.count != text.count or not math.isclose(
            aligned.info.get("scale", transfer.config["scale"]), transfer.config["scale"], rel_tol=1e-9
        ):
            raise InputError(
                f"The aligned moments ({aligned.count} rows) are not those of this text ({text.count} rows) moved by "
                "these moments: measure every shard again with --aligned-by and all moments of text and image"
            )
        transfer.statistics["mu_aligned"] = aligned.mean
        return transfer

    @classmethod
    def measure_aligned(cls, source, column=None, *, text: Moments, image: Moments, **options) -> Moments:
        """The moments of e' over a shard of the text, for the centroid step, after all shards' moments are known.

        `source`, `column` and `options` are those of `Moments.measure`; aligned moments of all shards merge.
        """
        transfer = cls._trace_aligned(text, image)
        through = transfer.on_units(transfer._trace_align)
        moments = Moments.measure(source, column, through=through, dtype=transfer.dtype, **options)
        moments.info["scale"] = transfer.config["scale"]
        return moments

    @classmethod
    def _trace_aligned(cls, text: Moments, image: Moments) -> "ReAlign":
        """The transfer before its centroid is known; only `_trace_align` can be asked of it."""
        if text.trace < 1e-12:
            raise InputError("The text vectors are all the same (their trace is 0): ReAlign cannot scale their spread")
        config = {
            "scale": (image.trace / text.trace) ** 0.5,
            "trace_text": text.trace,
            "trace_image": image.trace,
        }
        return cls({"mu_text": text.mean, "mu_image": image.mean}, config)

    def _trace_align(self, rows, statistics):
        """e' of a block of unit rows."""
        scale = self.config["scale"]
        return rows.moved(scale, statistics["mu_image"] - scale * statistics["mu_text"])

    def _map(self, rows, statistics):
        return self._trace_align(rows, statistics).moved(1, statistics["mu_image"] - statistics["mu_aligned"])

    @property
    def gain(self) -> float:
        # e2, of length 1 in the mean, is the sum of a vector of the length `scale` and of this shift.
        scale = self.config["scale"]
        shift = self.statistics["mu_image"] - scale * self.statistics["mu_text"]
        return scale**2 + float(shift @ shift)
