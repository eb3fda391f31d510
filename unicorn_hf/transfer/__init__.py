"""Stage 3: text vectors moved into image space, and the gap between the two measured.

Reading order: `vectors` (where vectors come from), `unit_rows` (how a block of them is measured and moved), `moments`
(what is known of a set), `modality_transfer` (fit, apply, condition_image, save, load), then one file a method, then
`gap` and `gap_report`.
"""

from unicorn_hf.transfer.anisotropic import AnisotropicTransfer
from unicorn_hf.transfer.covariance import CovarianceTransfer
from unicorn_hf.transfer.gap import Gap, measure_gap
from unicorn_hf.transfer.mean_shift import MeanShift
from unicorn_hf.transfer.modality_transfer import ModalityTransfer, NoTransfer
from unicorn_hf.transfer.moments import Moments
from unicorn_hf.transfer.realign import ReAlign

__all__ = [
    "AnisotropicTransfer",
    "CovarianceTransfer",
    "Gap",
    "MeanShift",
    "ModalityTransfer",
    "Moments",
    "NoTransfer",
    "ReAlign",
    "measure_gap",
]
