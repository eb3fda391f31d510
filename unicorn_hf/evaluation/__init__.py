"""Visual question answering on real pictures."""

from unicorn_hf.evaluation.vqa import Evaluation, Score, evaluate

__all__ = ["Evaluation", "Score", "evaluate"]
