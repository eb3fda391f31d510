"""Yes-or-no questions, scored as in POPE (Li et al. 2023, arXiv 2305.10355)."""

import re

import numpy as np

from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.questions import read_questions
from unicorn_hf.evaluation.scores import Metric, mean_of, share


class YesNo:
    """The task `yes-no`: columns `question` and `answer` (yes or no, as a string or a boolean)."""

    max_new_tokens = 32

    def __init__(self, dataset, source):
        self.questions = read_questions(dataset, source)
        check_columns(dataset, "answer", source=source)
        self.yes = np.array([_is_yes(value, row, source) for row, value in enumerate(dataset["answer"][:])])
        self.expected = ["yes" if yes else "no" for yes in self.yes]

    def score(self, reader) -> tuple[list[str], dict[str, Metric]]:
        answers = reader.answer(self.questions, range(len(self.questions)))
        said = [says_yes(answer) for answer in answers]
        # An empty answer (from a thought that was cut off) is always wrong.
        empty = np.array([not answer for answer in answers])
        yes = np.where(empty, ~self.yes, [each is not False for each in said])
        # [num_questions, 5]: true and false positives, false negatives, the questions, the right answers.
        columns = (yes & self.yes, yes & ~self.yes, ~yes & self.yes, np.ones_like(yes), yes == self.yes)
        counts = np.stack(columns, axis=1).astype(np.float64)

        def metric(value) -> Metric:
            return Metric(counts, lambda sums: value(*np.moveaxis(sums, -1, 0)))

        return answers, {
            "accuracy": metric(lambda tp, fp, fn, total, right: share(right, total)),
            "precision": metric(lambda tp, fp, fn, total, right: share(tp, tp + fp)),
            "recall": metric(lambda tp, fp, fn, total, right: share(tp, tp + fn)),
            "f1": metric(lambda tp, fp, fn, total, right: share(2 * tp, 2 * tp + fp + fn)),
            "yes_ratio": metric(lambda tp, fp, fn, total, right: share(tp + fp, total)),
            "neither": mean_of([each is None for each in said]),
        }


def says_yes(answer: str) -> bool | None:
    """Whether the first sentence says yes; None if it says neither yes nor no, which POPE counts as yes."""
    words = re.findall(r"[\w']+", answer.split(".")[0].lower())
    if "no" in words or "not" in words:
        return False
    return True if "yes" in words else None


def _is_yes(value, row: int, source) -> bool:
    word = value.strip(" .").lower() if isinstance(value, str) else value
    if word in ("yes", "no"):
        return word == "yes"
    if isinstance(value, bool):
        return value
    raise InputError(f"{source}: row {row}: the answer is {value!r}; expected yes or no")
