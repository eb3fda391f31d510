import datasets
import numpy as np
import pytest

from unicorn_hf import InputError
from unicorn_hf.evaluation.scores import measure
from unicorn_hf.evaluation.yes_no import YesNo, says_yes


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("yes, there is no doubt", False),  # as POPE reads it: a "no" anywhere in the first sentence
        ("Yes. No dog is there", True),
        ("No, there is not", False),
        ("There is not any dog", False),
        ("A nose", None),
        ("", None),
    ],
)
def test_the_first_sentence_decides(answer, yes):
    assert says_yes(answer) is yes


def test_precision_recall_f1_and_the_share_of_yes_are_those_of_the_counts():
    # 3 true positives, 1 false positive, 2 true negatives, 2 false negatives (of them none says neither).
    said = ["yes", "Yes.", "it is", "yes", "no", "No", "no", "not there"]
    right = ["yes", "yes", "yes", "no", "no", "no", "yes", "Yes"]

    class Reader:
        def answer(self, questions, rows):
            return said

    data = datasets.Dataset.from_dict({"question": ["?"] * 8, "answer": right})
    _, metrics = YesNo(data, "data").score(Reader())
    values = {name: float(metric.value(metric.statistics.sum(axis=0))) for name, metric in metrics.items()}
    assert values == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 4 / 8, "neither": 1 / 8}
    )


def test_a_model_that_never_says_yes_has_a_precision_of_zero():
    class Reader:
        def answer(self, questions, rows):
            return ["no"] * 2

    data = datasets.Dataset.from_dict({"question": ["?"] * 2, "answer": [True, False]})
    _, metrics = YesNo(data, "data").score(Reader())
    score = measure(metrics["precision"], None, np.arange(2))
    assert (score.value, score.interval) == (0, (0, 0))


def test_an_answer_that_is_neither_yes_nor_no_is_refused_by_row():
    data = datasets.Dataset.from_dict({"question": ["?"] * 2, "answer": ["yes", "maybe"]})
    with pytest.raises(InputError, match="row 1: the answer is 'maybe'; expected yes or no"):
        YesNo(data, "data")
