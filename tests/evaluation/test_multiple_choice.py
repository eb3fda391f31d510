import datasets
import numpy as np
import pytest

from unicorn_hf import InputError
from unicorn_hf.evaluation.multiple_choice import MultipleChoice, chosen_option

OPTIONS = ["red", "blue", "dark green"]


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C)", 2),
        ("C) dark green", 2),
        ("red (A)", 0),
        ("The answer is B", 1),
        ("Answer: B because it is", 1),
        ("Blue.", 1),
        ("It is dark green, I think", 2),
        ("A blue circle", 1),  # an article, not a letter
        ("blue (A)", None),  # two options
        ("A. dark green", None),
        ("E", None),
        ("(A) or (B)", None),
        ("red or blue", None),
        ("bluebird", None),
        ("", None),
    ],
)
def test_an_answer_names_an_option_by_letter_or_word_for_word(answer, option):
    assert chosen_option(answer, OPTIONS) == option


def test_a_letter_is_a_letter_also_where_the_options_are_letters():
    assert chosen_option("A", ["B", "A"]) == 0


class SameLetter:
    """Always writes "A", and finds "blue" the likeliest of the options."""

    def answer(self, questions, rows):
        return ["A"] * len(questions)

    def log_likelihoods(self, questions, rows, options):
        return [np.array([-0.1 if option == "blue" else -2.0 for option in choices]) for choices in options]


@pytest.fixture
def data():
    return datasets.Dataset.from_dict(
        {"question": ["color?"] * 3, "options": [OPTIONS, OPTIONS, ["blue", "red"]], "answer": ["A", "B", "A"]}
    )


def test_always_the_same_letter_is_right_in_one_order_and_wrong_in_the_circle(data):
    answers, metrics = MultipleChoice(data, "data").score(SameLetter())
    assert answers == ["A"] * 3
    assert {name: metric.each().tolist() for name, metric in metrics.items()} == {
        "letter": [1, 0, 1],
        "letter_circular": [0, 0, 0],
        "likelihood": [0, 1, 1],
        "likelihood_circular": [0, 1, 1],
        "no_letter": [0, 0, 0],
    }


def test_every_rotation_is_asked_once_and_none_but_the_first_without_the_circle(data):
    asked = []

    class Listener(SameLetter):
        def answer(self, questions, rows):
            asked.append((list(rows), list(questions)))
            return ["A"] * len(questions)

    MultipleChoice(data, "data").score(Listener())
    MultipleChoice(data, "data", circular=False).score(Listener())
    assert [rows for rows, _ in asked] == [[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 2]]
    assert asked[0][1][:3] == [
        "color?\n(A) red\n(B) blue\n(C) dark green",
        "color?\n(A) blue\n(B) dark green\n(C) red",
        "color?\n(A) dark green\n(B) red\n(C) blue",
    ]


@pytest.mark.parametrize(
    ("answers", "right"),
    [(["A", "c"], [0, 2]), ([1, 2], [1, 2]), (["red", "dark green"], [0, 2]), (["(B)", "A."], [1, 0])],
)
def test_the_right_answer_is_a_letter_an_index_or_the_text(answers, right):
    data = datasets.Dataset.from_dict({"question": ["?"] * 2, "options": [OPTIONS] * 2, "answer": answers})
    assert MultipleChoice(data, "data").right == right


@pytest.mark.parametrize("answer", ["D", "purple", "", None, 3, -1])
def test_an_answer_that_is_no_option_is_refused_by_row(answer):
    data = datasets.Dataset.from_dict({"question": ["?"], "options": [OPTIONS], "answer": [answer]})
    with pytest.raises(InputError, match=r"data: row 0: the answer .* is none of the options"):
        MultipleChoice(data, "data")


def test_options_that_differ_in_a_capital_alone_are_told_apart():
    options = ["BB", "Bb", "bb"]
    assert [chosen_option(answer, options) for answer in ("Bb", "bb.", "BB (A)")] == [1, 2, 0]
    assert chosen_option("bB", options) is None


@pytest.mark.parametrize("options", [["red"], ["red", ""], None, ["red", "blue", "red "], ["an image", "an <image>"]])
def test_options_that_are_no_choice_are_refused(options):
    data = datasets.Dataset.from_dict({"question": ["?"], "options": [options], "answer": ["A"]})
    with pytest.raises(InputError, match=r"row 0: .*the options"):
        MultipleChoice(data, "data")
