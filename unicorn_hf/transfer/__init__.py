"""Stage 3: transfer text vectors into image space, and measure the modality gap between texts and images.

Reading order: `data.vectors` (where vectors come from), `data.unit_rows` (arithmetic on a block of them), `moments`
(mean and covariance of a set), `modality_transfer` (fit, apply, condition_image, save, load), then one file per method,
then `gap` and `gap_report`.
"""

from unicorn_hf.lazy import lazy_names

_MODULES = {
    "AnisotropicTransfer": ".anisotropic",
    "CovarianceTransfer": ".covariance",
    "Gap": ".gap",
    "MeanShift": ".mean_shift",
    "ModalityTransfer": ".modality_transfer",
    "Moments": ".moments",
    "NoTransfer": ".modality_transfer",
    "ReAlign": ".realign",
    "measure_gap": ".gap",
}
__all__ = [*_MODULES]
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
