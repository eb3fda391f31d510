"""Correct the spread in only a few leading directions, by a bounded amount.

This is our reading of AnisoAlign (arXiv 2605.07825): after the mean shift, the rest of the gap lies in a few dominant
directions; correct those by a bounded amount and keep the text's semantic structure. The authors' code was not public.
This is not their code, and we do not claim their figures.
"""

import math

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.transfer.covariance import check_rank, principal_directions
from unicorn_hf.transfer.modality_transfer import ModalityTransfer


class AnisotropicTransfer(ModalityTransfer):
    """The mean shift, plus a bounded gain along each of the leading r principal directions of both sets together.

    Along direction v_k, gain_k = sqrt(v_k^T S_image v_k / v_k^T S_text v_k), clipped to [1 / bound, bound]. Outside
    their span the map is the mean shift alone.
    """

    method = "anisotropic"
    needs_covariance = True

    @classmethod
    def _learn(cls, text, image, measure_text, rank: int | None = None, bound: float | None = None):
        """Options of `fit`.

        rank: r; by default the effective number of directions of the pooled spectrum, its participation ratio
            (sum of variances)^2 / (sum of squared variances), rounded up.
        bound: the largest gain; by default exp(2 m), where m is the root mean square of ln gain_k, weighted by the
            pooled variance. So no direction is corrected by more than twice the typical (log) gain.
        """
        check_rank(rank, len(text.mean))
        if bound is not None and not bound >= 1:
            raise InputError(f"bound is {bound}; expected 1 (no correction) or more")
        variances, directions = principal_directions((text.covariance + image.covariance) / 2)
        if rank is None:
            rank = math.ceil(variances.sum() ** 2 / (variances**2).sum())
        directions, variances = directions[:, :rank], variances[:rank]
        text_variances = np.einsum("dk,de,ek->k", directions, text.covariance, directions, optimize=True)
        image_variances = np.einsum("dk,de,ek->k", directions, image.covariance, directions, optimize=True)
        floor = 1e-12 * variances[0]
        log_gains = 0.5 * np.log((image_variances + floor) / (text_variances + floor))
        if bound is None:
            bound = math.exp(2 * math.sqrt(np.average(log_gains**2, weights=variances)))
        gains = np.exp(log_gains.clip(-math.log(bound), math.log(bound)))
        config = {
            "rank": rank,
            "bound": float(bound),
            "variance_share": float(variances.sum() / (np.trace(text.covariance + image.covariance) / 2)),
            "bounded_directions": int((np.abs(log_gains) > math.log(bound)).sum()),
            "largest_gain": float(max(1.0, gains.max())),
        }
        statistics = {
            "mu_text": text.mean,
            "mu_image": image.mean,
            "directions": directions,
            "corrections": (directions * (gains - 1)).T,
        }
        return cls(statistics, config)

    def _map_dense(self, unit, statistics):
        unit -= statistics["mu_text"]
        unit += (unit @ statistics["directions"]) @ statistics["corrections"]
        unit += statistics["mu_image"]
        return unit

    @property
    def gain(self) -> float:
        return self.config["largest_gain"]
