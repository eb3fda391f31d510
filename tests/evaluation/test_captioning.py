import math

import datasets
import pytest

from unicorn_hf import InputError
from unicorn_hf.evaluation.captioning import Captions, tokenize

pytest.importorskip("pycocoevalcap", reason="the extra [eval] is not installed")


class Says:
    def __init__(self, *answers):
        self.answers = answers

    def answer(self, questions, rows):
        return list(self.answers)


def values(answers, references) -> dict[str, float]:
    data = datasets.Dataset.from_dict({"captions": references})
    _, metrics = Captions(data, "data").score(Says(*answers))
    return {name: float(metric.value(metric.statistics.sum(axis=0))) for name, metric in metrics.items()}


def test_tokens_are_those_of_the_penn_treebank_without_punctuation():
    # What the evaluation's own Java tokenizer gave for these.
    assert tokenize("A man's dog isn't on the T-shirt.") == "a man 's dog is n't on the t-shirt"
    assert tokenize("a red, white and blue stop sign near 7th street...") == (
        "a red white and blue stop sign near 7th street"
    )
    assert tokenize("they're cooking in a kitchen -- a big one") == "they 're cooking in a kitchen a big one"


def test_bleu_and_rouge_are_those_counted_by_hand():
    scores = values(["A red cat sat down."], [["a red cat sat on the mat", "one cat"]])
    # n-grams that match the first reference: 4 of 5, 3 of 4, 2 of 3, 1 of 2; the closest reference has 7 tokens.
    bleu = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4) * math.exp(1 - 7 / 5)
    assert scores["bleu_4"] == pytest.approx(bleu, abs=1e-6)
    # Longest common subsequence: 4 tokens of 5 (precision) and of 7; with the second reference 1 of 5 and of 2.
    precision, recall, beta = 4 / 5, 4 / 7, 1.2
    rouge = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scores["rouge_l"] == pytest.approx(rouge)


def test_bleu_is_the_corpus_and_not_the_mean_of_its_sentences():
    references = [["a red cat sat on a mat"], ["two big dogs run in the park"]]
    scores = values(["a red cat sat on a mat", "some words else"], references)
    # matches of all: 7, 6, 5, 4 of 10, 8, 6, 4; lengths 10 against 14.
    bleu = (7 / 10 * 6 / 8 * 5 / 6 * 4 / 4) ** (1 / 4) * math.exp(1 - 14 / 10)
    assert scores["bleu_4"] == pytest.approx(bleu, abs=1e-6)


def test_a_caption_equal_to_its_only_reference_has_a_cider_of_ten_and_a_foreign_one_of_zero():
    references = [["a red cat sat on a mat"], ["two big dogs run in the park"], ["one boat at sea all alone"]]
    data = datasets.Dataset.from_dict({"captions": references})
    _, metrics = Captions(data, "data").score(Says(references[0][0], references[0][0], "one boat at sea all alone"))
    assert metrics["cider"].each() == pytest.approx([10, 0, 10], abs=1e-6)


def test_the_captions_may_be_one_text_and_the_question_may_be_given():
    data = datasets.Dataset.from_dict({"caption": ["a cat"], "question": ["What is there?"]})
    captions = Captions(data, "data")
    assert (captions.references, captions.questions) == ([["a cat"]], ["What is there?"])


@pytest.mark.parametrize("references", [[], None, ["a cat", None], ["..."]])
def test_a_row_without_a_caption_is_refused(references):
    with pytest.raises(InputError, match="row 1: the caption is"):
        Captions(datasets.Dataset.from_dict({"captions": [["a cat"], references]}), "data")
