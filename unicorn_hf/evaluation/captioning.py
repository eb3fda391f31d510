"""Score captions against references: CIDEr-D, BLEU-4 and ROUGE-L by the code of the COCO caption evaluation.

That code's tokenizer needs Java. `tokenize` gives the same tokens for plain English captions.
"""

import re

import numpy as np

from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError, require
from unicorn_hf.evaluation.questions import read_questions
from unicorn_hf.evaluation.scores import Metric, mean_of

QUESTION = "Provide a one-sentence caption for the provided image."
_N = 4


class Captions:
    """The task `caption`: columns `captions` (a list of references) or `caption`; optionally `question`."""

    max_new_tokens = 64

    def __init__(self, dataset, source):
        require("pycocoevalcap", "eval")
        column = "captions" if "captions" in dataset.column_names else "caption"
        check_columns(dataset, column, source=source)
        asked = "question" in dataset.column_names
        self.questions = read_questions(dataset, source) if asked else [QUESTION] * len(dataset)
        self.references = [_references(value, row, source) for row, value in enumerate(dataset[column][:])]
        self.expected = [" / ".join(references) for references in self.references]

    def score(self, reader) -> tuple[list[str], dict[str, Metric]]:
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        answers = reader.answer(self.questions, range(len(self.questions)))
        candidates = {row: [tokenize(answer)] for row, answer in enumerate(answers)}
        references = {row: [tokenize(text) for text in texts] for row, texts in enumerate(self.references)}
        _, cider = Cider().compute_score(references, candidates)
        _, rouge = Rouge().compute_score(references, candidates)
        bleu = [_bleu_statistics(candidates[row][0], references[row]) for row in references]
        return answers, {
            "cider": mean_of(cider),
            "bleu_4": Metric(np.array(bleu, np.float64), _bleu),
            "rouge_l": mean_of(rouge),
        }


def tokenize(caption: str) -> str:
    """Lower case, contractions split ("n't", "'s"), no punctuation; tokens joined by single spaces."""
    text = re.sub(r"n't\b", " n't", caption.lower().replace("’", "'"))
    return " ".join(re.findall(r"n't\b|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,:]\d+)+|\w+(?:-\w+)*", text))


def _bleu_statistics(candidate: str, references: list[str]) -> list[int]:
    """Lengths of candidate and closest reference, the matching n-grams for n = 1..4, and all n-grams for n = 1..4."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    counts = cook_test(candidate, cook_refs(references), eff="closest")
    return [counts["testlen"], counts["reflen"], *counts["correct"], *counts["guess"]]


def _bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 of a corpus (Papineni et al. 2002), with the tiny constants that keep `BleuScorer` from dividing by 0."""
    length, reference_length = sums[..., 0], sums[..., 1]
    precisions = (sums[..., 2 : 2 + _N] + 1e-15) / (sums[..., 2 + _N :] + 1e-9)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity_penalty = np.exp(np.minimum(0, 1 - 1 / ratio))
    return precisions.prod(axis=-1) ** (1 / _N) * brevity_penalty


def _references(value, row: int, source) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and tokenize(text) for text in texts):
        raise InputError(f"{source}: row {row}: the caption is {value!r}; expected a string, or a list of strings")
    return texts
