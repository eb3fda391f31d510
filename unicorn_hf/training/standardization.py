"""Input conditioning that is learnt from the training vectors and saved with the model."""

import math

from unicorn_hf.transfer import Moments


def standardize_image_embeds(model, dataset) -> None:
    """Have the model subtract the training vectors' mean and scale them to a mean variance of 1. In place.

    Vectors of a contrastive space lie in a narrow cone: unit length, D dimensions, a variance far below 1 / D in each.
    One scale for all dimensions keeps the geometry of the space.

    Args:
        model: a `UnicornForConditionalGeneration`.
        dataset: the training data, with the column `image_embeds` of D dimensions.
    """
    moments = Moments.measure(dataset, "image_embeds")
    scale = math.sqrt(len(moments.mean) / moments.trace)
    model.model.set_image_embeds_statistics(mean=moments.mean, scale=scale)
