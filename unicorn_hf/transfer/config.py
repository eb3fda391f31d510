"""The options of the `transfer` commands and of `gap`."""

from dataclasses import dataclass
from typing import Literal

from unicorn_hf.options import LIMITS, MODEL, Options, option

Method = Literal["none", "mean_shift", "realign", "covariance", "anisotropic"]


@dataclass(kw_only=True)
class VectorsOptions(Options):
    """How sets of vectors are read."""

    encoder: str | None = option(None, "The encoder that made the vectors, if the data do not say it.")
    skip_non_finite: bool = option(False, "Leave out rows that hold NaN, Inf or zeros, and list them.")
    allow_pickle: bool = option(False, "Read .pkl files too, with a reader that accepts only plain data.")


@dataclass(kw_only=True)
class FitConfig(VectorsOptions):
    """The options of `transfer fit`; None keeps a method's default."""

    method: Method = option("realign", "The transfer method (docs/transfer.md).")
    text_column: str = option("text_embeds", "The column of --text.")
    image_column: str = option("image_embeds", "The column of --image.")
    sigma: float | None = option(
        None, "mean_shift: noise added to every coordinate; 0 by default.", panel=MODEL, at_least=0, at_most=10**6
    )
    seed: int | None = option(
        None, "mean_shift: seed of the noise; 0 by default.", panel=MODEL, at_least=0, at_most=2**32 - 1
    )
    centred: bool | None = option(
        None, "mean_shift: only subtract the text mean, and do not add the image mean.", panel=MODEL
    )
    keep_lengths: bool | None = option(
        None, "mean_shift: normalize rows only at the end, as in the released code.", panel=MODEL
    )
    shrinkage: Literal["ledoit_wolf"] | float | None = option(
        None, "covariance: 0 to 1, or ledoit_wolf, the default.", panel=MODEL, at_least=0, at_most=1
    )
    rank: int | None = option(
        None,
        "covariance, anisotropic: number of directions to correct; by default all, or as many as the data need.",
        panel=MODEL,
        at_least=1,
    )
    ridge: float | None = option(
        None,
        "covariance: added to each variance, as a share of the mean variance; 0 by default.",
        panel=MODEL,
        at_least=0,
        at_most=10**6,
    )
    bound: float | None = option(
        None, "anisotropic: the largest gain in a direction; chosen from the data by default.", panel=MODEL, at_least=1
    )

    def method_options(self) -> dict:
        """The method's own options, as far as they are given."""
        names = ("sigma", "seed", "centred", "keep_lengths", "shrinkage", "rank", "ridge", "bound")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def reading(self) -> dict:
        """The options of `ModalityTransfer.fit` for reading the two sets."""
        names = ("text_column", "image_column", "encoder", "skip_non_finite", "allow_pickle")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class ApplyConfig(VectorsOptions):
    """The options of `transfer apply`."""

    column: str = option("text_embeds", "The column with the text vectors.")
    out_column: str = option("image_embeds", "The column to add.")
    overwrite: bool = option(False, "Replace the output of an earlier run.")


@dataclass(kw_only=True)
class MomentsConfig(VectorsOptions):
    """The options of `transfer moments`."""

    modality: Literal["text", "image"] = option(None, "Whether the vectors come from texts or images.", required=True)
    column: str | None = option(None, "The column; text_embeds or image_embeds by default.")
    covariance: bool = option(False, "Measure the covariance too, for the methods covariance and anisotropic.")
    overwrite: bool = option(False, "Replace the output file.")


@dataclass(kw_only=True)
class GapConfig(Options):
    """The options of `gap`."""

    overwrite: bool = option(False, "Replace the output files.")
    paired: bool = option(False, "Row i of the text set belongs to row i of the image set: measure retrieval too.")
    text_column: str = option("text_embeds", "The column of --text.")
    image_column: str = option("image_embeds", "The column of --image.")
    sample_size: int = option(5000, "Rows to sample from each set.", panel=LIMITS, at_least=2, at_most=10**7)
    seed: int = option(0, "Seed of the sample.", at_least=0, at_most=2**32 - 1)
    allow_pickle: bool = option(False, "Read .pkl files too, with a reader that accepts only plain data.")
