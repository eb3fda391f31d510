"""ReAlign: anchor, trace and centroid alignment from unpaired statistics (ReVision, arXiv 2602.07026)."""

from unicorn_hf.errors import InputError
from unicorn_hf.transfer.modality_transfer import ModalityTransfer


class ReAlign(ModalityTransfer):
    """Shift the mean, scale the spread, normalize, then shift again, because normalization moves the mean.

    anchor and trace: e2 = mu_image + s (e - mu_text), s = sqrt(trace_image / trace_text); projection: e' = e2 / |e2|;
    centroid: out = normalize(e' - mu_aligned + mu_image), where mu_aligned is the mean of e' over the text set.
    """

    method = "realign"

    @classmethod
    def _learn(cls, text, image, measure_text):
        if measure_text is None:
            raise InputError(
                "ReAlign's centroid step reads the text a second time: fit on the text vectors (--text), not on moments"
            )
        if text.trace < 1e-12:
            raise InputError("The text vectors are all the same (their trace is 0): ReAlign cannot scale their spread")
        config = {
            "scale": (image.trace / text.trace) ** 0.5,
            "trace_text": text.trace,
            "trace_image": image.trace,
        }
        transfer = cls({"mu_text": text.mean, "mu_image": image.mean}, config)
        transfer.statistics["mu_aligned"] = measure_text(transfer, transfer._trace_align).mean
        return transfer

    def _trace_align(self, rows, statistics):
        """e' for a block of unit rows."""
        scale = self.config["scale"]
        return rows.moved(scale, statistics["mu_image"] - scale * statistics["mu_text"])

    def _map(self, rows, statistics):
        return self._trace_align(rows, statistics).moved(1, statistics["mu_image"] - statistics["mu_aligned"])

    @property
    def gain(self) -> float:
        # e2 has a mean length of 1, and is the sum of a vector of length `scale` and this shift.
        scale = self.config["scale"]
        shift = self.statistics["mu_image"] - scale * self.statistics["mu_text"]
        return scale**2 + float(shift @ shift)
