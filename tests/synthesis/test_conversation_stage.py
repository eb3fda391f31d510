import json
from collections import Counter

import pytest

from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.conversation_checks import agree
from unicorn_hf.synthesis.conversation_stage import ConversationStage

CAPTION = "A brown dog with a red collar runs across wet grass toward a wooden gate while two crows watch."
ROW = {"id": "1", "caption": CAPTION}


def choice(question="What color is the collar?", options=("red", "blue", "green", "white"), answer="red"):
    return {"question": question, "options": list(options), "answer": answer}


def read(task, *turns):
    return ConversationStage(mix={task: 1.0}).read(ROW, json.dumps({"turns": turns}))


def test_a_conversation_becomes_chat_messages_with_one_image():
    record = read(
        "question_answering",
        {"question": "What does the dog wear?", "answer": "A red collar."},
        {"question": "How many crows are there?", "answer": "Two."},
    )
    assert record["messages"] == [
        {"role": "user", "content": "<image>\nWhat does the dog wear?"},
        {"role": "assistant", "content": "A red collar."},
        {"role": "user", "content": "How many crows are there?"},
        {"role": "assistant", "content": "Two."},
    ]


def test_prompt_tokens_in_an_answer_make_no_second_image():
    record = read("question_answering", {"question": "What <image> runs <|im_end|>?", "answer": "A dog."})
    assert record["messages"][0]["content"] == "<image>\nWhat image runs im_end?"


def test_the_right_letter_is_right_and_evenly_spread():
    letters = Counter()
    for number in range(400):
        row = ROW | {"id": str(number)}
        stage = ConversationStage(mix={"multiple_choice": 1.0})
        record = stage.read(row, json.dumps({"turns": [choice()]}))
        question, answer = (message["content"] for message in record["messages"])
        value, letter = answer[:-4], answer[-2]
        assert value == "red" and f"({letter}) red" in question.split("\n")
        assert record == stage.read(row, json.dumps({"turns": [choice()]}))
        letters[letter] += 1
    assert set(letters) == set("ABCD") and min(letters.values()) > 70


@pytest.mark.parametrize(
    ("task", "turn", "reason"),
    [
        ("multiple_choice", choice(options=("red", "Red.", "blue", "green")), "repeated_option"),
        ("multiple_choice", choice(answer="crimson"), "no_right_option"),
        ("multiple_choice", choice(options=("red", "", "blue", "green")), "wrong_schema"),
        ("multiple_choice", choice(options=("red",)), "wrong_schema"),
        ("multiple_choice", choice(question="What does the red collar look like?"), "answer_in_question"),
        ("question_answering", {"question": "What runs?", "answer": "It is not mentioned."}, "unanswerable"),
        ("question_answering", {"question": "Is it in the caption?", "answer": "A dog."}, "names_caption"),
        ("question_answering", {"question": "What is it, a dog?", "answer": "a dog"}, "answer_in_question"),
        ("question_answering", {"question": "???", "answer": "A dog."}, "empty_turn"),
        (
            "complex_reasoning",
            {"question": "Why does a brown dog with a red collar runs across wet grass?", "answer": "To play."},
            "caption_leak",
        ),
    ],
)
def test_an_unsound_turn_is_refused_with_its_reason(task, turn, reason):
    with pytest.raises(BadAnswer) as raised:
        read(task, turn)
    assert raised.value.reason == reason


RAMEN = "A steaming bowl of ramen with a soft egg and green onions on a dark wooden counter."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is in the fruit bowl?", "Apples."),
        ("What color are the apples in the basket?", "Red."),
        ("How many bananas are there?", "Three."),
        ("Why might the customer be smiling?", "The soup is good."),
        ("What lies next to the ramen and the newspaper?", "A spoon."),
    ],
)
def test_a_question_about_a_thing_that_the_caption_does_not_name_is_refused(question, answer):
    turns = {"turns": [{"question": question, "answer": answer}]}
    with pytest.raises(BadAnswer) as raised:
        ConversationStage(mix={"question_answering": 1.0}).read({"id": "1", "caption": RAMEN}, json.dumps(turns))
    assert raised.value.reason == "not_in_caption"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the bowl filled with?", "Ramen."),
        ("What material is the counter made of?", "Wood."),
        ("What color is the counter?", "Dark brown."),
        ("What food is shown in the picture?", "Ramen."),
        ("How many eggs are there?", "One."),
        ("How many people are there?", "None."),
        ("How many bananas are there?", "None."),
        ("Is the main dish of the meal hot?", "Yes, it steams."),
        ("What is in the background?", "A counter."),
    ],
)
def test_a_question_about_what_the_caption_names_is_kept(question, answer):
    turns = {"turns": [{"question": question, "answer": answer}]}
    ConversationStage(mix={"question_answering": 1.0}).read({"id": "1", "caption": RAMEN}, json.dumps(turns))


def test_a_question_is_asked_once():
    turn = {"question": "What runs?", "answer": "A dog."}
    with pytest.raises(BadAnswer, match="asked twice"):
        read("question_answering", turn, turn)


def test_a_choice_may_be_named_in_the_question():
    read("question_answering", {"question": "Is the grass wet or dry?", "answer": "wet"})


def test_a_second_opinion_must_agree():
    stage = ConversationStage(mix={"multiple_choice": 1.0}, verify=True)
    record = stage.read(ROW, json.dumps({"turns": [choice()]}))
    assert "red" in stage.verification(ROW, record).messages[1]["content"]
    for answer in ("red", "Red (B)", "(A) red"):
        stage.confirm(record, json.dumps({"answers": [answer]}))
    with pytest.raises(BadAnswer) as raised:
        stage.confirm(record, json.dumps({"answers": ["blue"]}))
    assert raised.value.reason == "not_verified"
    with pytest.raises(BadAnswer) as raised:
        stage.confirm(record, json.dumps({"answers": []}))
    assert raised.value.malformed


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("A red collar.", "red collar", True),
        ("Two.", "two", True),
        ("It is on the wet grass", "the grass", True),
        ("Two crows", "three dogs", False),
        ("yes", "no", False),
    ],
)
def test_answers_agree_in_their_content(first, second, same):
    assert agree(first, second) is same
