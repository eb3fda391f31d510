"""What the model is asked, in whatever batches, is what it would be asked alone."""

import numpy as np
import pytest
import torch

from unicorn_hf.evaluation.reader import Reader

VECTORS = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
QUESTIONS = ["red ?", "what color is the image ?", "a b c", "what is the image of the blue image ?", "red ?"]
ROWS = [0, 1, 2, 1, 2]


@pytest.fixture
def reader(model_and_processor):
    model, processor = model_and_processor

    def make(batch_size=64, vectors=VECTORS, **options):
        return Reader(model, processor, vectors, np.arange(3), batch_size=batch_size, max_new_tokens=6, **options)

    return make


def test_answers_are_in_the_order_asked_whatever_the_batches(reader):
    alone = [reader().answer([question], [row])[0] for question, row in zip(QUESTIONS, ROWS, strict=True)]
    assert len(set(alone)) > 2
    for batch_size in (1, 2, 64):
        assert reader(batch_size).answer(QUESTIONS, ROWS) == alone


def test_the_image_makes_a_difference_and_the_mean_of_all_makes_none(reader):
    asked = ["what is the image ?"] * 3
    assert len(set(reader().answer(asked, [0, 1, 2]))) > 1
    assert len(set(reader().with_mean_image().answer(asked, [0, 1, 2]))) == 1


def test_the_same_question_about_the_same_image_is_put_once(reader, monkeypatch):
    seen = []
    model = reader().model
    generate = model.generate

    def listen(**inputs):
        seen.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", listen)
    reader().answer(["red ?"] * 10, [0] * 5 + [1] * 5)
    reader().with_mean_image().answer(["red ?"] * 10, [0] * 5 + [1] * 5)
    assert seen == [2, 1]


def test_a_likelihood_is_the_mean_log_probability_of_the_options_tokens(reader):
    options = ["red", "the blue image", "yes no yes"]
    values = reader().log_likelihoods(["what color ?"], [1], [options])[0]
    model, processor = reader().model, reader().processor
    for option, value in zip(options, values, strict=True):
        before, reply = "<|user|><image>\nwhat color ?<|assistant|>", f" {option}"
        inputs = processor(
            text=before + reply, image_embeds=VECTORS[1:2], add_special_tokens=False, return_tensors="pt"
        )
        length = len(processor.tokenizer(reply)["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -length - 1 : -1].log_softmax(-1)
        expected = logits[torch.arange(length), inputs["input_ids"][0, -length:]].mean()
        assert value == pytest.approx(float(expected), abs=1e-4)


def test_likelihoods_do_not_depend_on_the_batches(reader):
    options = [["red", "a blue image"], ["yes", "no", "the image"], ["b"], ["red"], ["green white"]]
    together = reader().log_likelihoods(QUESTIONS, ROWS, options)
    one_by_one = reader(batch_size=1).log_likelihoods(QUESTIONS, ROWS, options)
    assert [len(values) for values in together] == [2, 3, 1, 1, 1]
    for a, b in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_placeholder_in_a_question_is_not_a_second_image_and_the_suffix_stands_behind_it(reader):
    reading = reader(suffix="yes or no?")
    assert reading._prompt("<image>\nred ?") == "<|user|><image>\nred ?\nyes or no?<|assistant|>"
    assert reader(vectors=None)._prompt("<image>red ?") == "<|user|>red ?<|assistant|>"
