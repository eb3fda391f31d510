"""What a model answers about pictures, and what those answers are worth."""

from unicorn_hf.evaluation.evaluation import Evaluation, evaluate
from unicorn_hf.evaluation.scores import Score

__all__ = ["Evaluation", "Score", "evaluate"]
