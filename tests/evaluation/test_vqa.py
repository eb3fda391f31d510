import pytest

from unicorn_hf.evaluation.vqa import normalize, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The red circle.", "red circle"),
        ("Yes", "yes"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs", "10 dogs"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("it's", "it's"),
        ("its", "its"),  # the possessive is left alone
        ("100,978", "100978"),
        ("3.5 miles.", "3.5 miles"),
        ("black-and-white", "black and white"),
        ("black - and white", "black and white"),
        ("left/right", "left right"),
        ("stop!", "stop"),
        ("10:30", "10:30"),
        ("man's", "man's"),
        ("a\nb", "b"),
    ],
)
def test_answers_are_normalised_as_the_vqa_evaluation_does(answer, normal):
    assert normalize(answer) == normal


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_accuracy_against_ten_annotators_is_that_of_every_nine_of_them(agreeing, accuracy):
    references = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("a red", references) == pytest.approx(accuracy)


def test_one_reference_is_right_or_wrong():
    assert vqa_accuracy("The red circle.", ["red  Circle"]) == 1
    assert vqa_accuracy("red (B)", ["red (A)"]) == 0
    assert vqa_accuracy("left of", ["right of"]) == 0
