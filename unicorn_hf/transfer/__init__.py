"""Stage 3: text vectors moved into image space, and the gap between the two measured.

Reading order: `vectors` (where vectors come from), `unit_rows` (how a block of them is measured and moved), `moments`
(what is known of a set), `modality_transfer` (fit, apply, condition_image, save, load), then one file a method, then
`gap` and `gap_report`.
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
