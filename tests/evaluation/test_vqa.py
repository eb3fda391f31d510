import pytest

from unicorn_hf import InputError, evaluate
from unicorn_hf.evaluation import Evaluation, Score
from unicorn_hf.evaluation.vqa import normalize


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert normalize("The red circle.") == normalize("red  Circle")
    assert normalize("red (B)") != normalize("red (A)")
    assert normalize("left of") != normalize("right of")


def test_scores_are_counted_by_kind():
    result = Evaluation(["a", "b", "c"], [True, False, True], ["color", "color", "shape"])
    assert result.overall == Score(2, 3)
    assert result.by_kind() == {"color": Score(1, 2), "shape": Score(1, 1)}


def test_the_standard_error_is_that_of_a_proportion():
    assert Score(50, 100).standard_error == pytest.approx(0.05)


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded as a model"):
        evaluate(tmp_path / "nothing", [])
