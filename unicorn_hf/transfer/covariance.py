"""Match full covariances: the closed-form optimal-transport map between two Gaussians.

The map is affine, e -> mu_image + A (e - mu_text), with A = S_t^-1/2 (S_t^1/2 S_i S_t^1/2)^1/2 S_t^-1/2
(Peyré and Cuturi 2019, "Computational Optimal Transport", remark 2.31).
"""

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.transfer.modality_transfer import ModalityTransfer
from unicorn_hf.transfer.moments import Moments


class CovarianceTransfer(ModalityTransfer):
    """Match the mean and the whole covariance: the text vectors get the spread and correlations of the images."""

    method = "covariance"
    needs_covariance = True

    @classmethod
    def _learn(
        cls,
        text,
        image,
        measure_text,
        shrinkage: float | str = "ledoit_wolf",
        rank: int | None = None,
        ridge: float = 0.0,
    ):
        """Options of `fit`.

        shrinkage: the share of each covariance that is replaced by a sphere of the same trace, 0 to 1, or
            "ledoit_wolf": each set's optimum (Ledoit and Wolf 2004), which goes to 0 as the set grows.
        rank: match only the leading directions of both sets together; the others get the mean shift alone. None
            matches all directions.
        ridge: added to every direction's variance, as a share of the mean variance.
        """
        embed_dim = len(text.mean)
        check_rank(rank, embed_dim)
        text_cov, text_shrinkage = shrunk_covariance(text, shrinkage, ridge)
        image_cov, image_shrinkage = shrunk_covariance(image, shrinkage, ridge)
        if rank is None:
            transport = gaussian_transport(text_cov, image_cov)
        else:
            _, basis = principal_directions(text_cov + image_cov, rank)
            inner = gaussian_transport(basis.T @ text_cov @ basis, basis.T @ image_cov @ basis)
            transport = np.eye(embed_dim) + basis @ (inner - np.eye(rank)) @ basis.T
        config = {
            "rank": rank,
            "ridge": float(ridge),
            "shrinkage_text": text_shrinkage,
            "shrinkage_image": image_shrinkage,
            "largest_gain": float(np.linalg.eigvalsh(transport)[-1]),
        }
        return cls({"mu_text": text.mean, "mu_image": image.mean, "transport": transport}, config)

    def _map_dense(self, unit, statistics):
        unit -= statistics["mu_text"]
        unit = unit @ statistics["transport"]
        unit += statistics["mu_image"]
        return unit

    @property
    def gain(self) -> float:
        return self.config["largest_gain"]


def gaussian_transport(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The symmetric matrix A with A source A = target, for covariances [D, D].

    Raises:
        InputError: `source` has a direction without variance, and no linear map can create variance there.
    """
    values, vectors = np.linalg.eigh(source)
    if values[0] <= 1e-10 * values[-1]:
        raise InputError(
            f"The text covariance has directions without variance ({int((values <= 1e-10 * values[-1]).sum())} of "
            f"{len(values)}): give more rows, or choose shrinkage above 0, a smaller rank or a ridge"
        )
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse_root = (vectors / np.sqrt(values)) @ vectors.T
    inner_values, inner_vectors = np.linalg.eigh(root @ target @ root)
    inner_root = (inner_vectors * np.sqrt(inner_values.clip(0))) @ inner_vectors.T
    return inverse_root @ inner_root @ inverse_root


def shrunk_covariance(moments: Moments, shrinkage: float | str, ridge: float = 0.0) -> tuple[np.ndarray, float]:
    """The covariance mixed with a sphere of the same trace, and the sphere's share."""
    if shrinkage == "ledoit_wolf":
        shrinkage = ledoit_wolf_shrinkage(moments)
    elif isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage is {shrinkage!r}; expected a number from 0 to 1, or 'ledoit_wolf'")
    if ridge < 0:
        raise InputError(f"ridge is {ridge}; expected 0 or more")
    covariance = (1 - shrinkage) * moments.covariance
    sphere = np.trace(moments.covariance) / len(covariance)
    covariance[np.diag_indices_from(covariance)] += (shrinkage + ridge) * sphere
    return covariance, float(shrinkage)


def ledoit_wolf_shrinkage(moments: Moments) -> float:
    """Ledoit and Wolf's optimal shrinkage (2004, "A well-conditioned estimator", section 3.3), from moments alone.

    It needs the mean of |x - mu|^4. For unit rows this is trace^2 + 4 mu^T S mu, so no second pass is needed.
    """
    covariance, embed_dim = moments.covariance, len(moments.mean)
    trace, square = np.trace(covariance), (covariance**2).sum()
    fourth = trace**2 + 4 * moments.mean @ covariance @ moments.mean
    noise = (fourth - square) / moments.count
    spread = square - trace**2 / embed_dim
    return float(np.clip(noise / spread, 0, 1)) if spread > 0 else 1.0


def principal_directions(covariance: np.ndarray, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Variances [r], in descending order, and directions [D, r] of the leading `rank` principal components."""
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1][:rank].clip(0), vectors[:, ::-1][:, :rank]


def check_rank(rank: int | None, embed_dim: int) -> None:
    if rank is not None and not 1 <= rank <= embed_dim:
        raise InputError(f"rank is {rank}; expected 1 to {embed_dim}, the vectors' dimension")
