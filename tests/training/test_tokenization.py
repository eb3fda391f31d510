import pytest
from datasets import Dataset

from unicorn_hf import InputError, UnicornProcessor
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import tokenize_captions, tokenize_conversations

IGNORED = -100
MESSAGES = [
    {"role": "user", "content": "<image>\nWhat color is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "What shape?"},
    {"role": "assistant", "content": "a circle"},
]


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer(["What color is it? What shape? red, a circle, blue"] * 50)
    return UnicornProcessor(tokenizer, num_image_tokens=3, embed_dim=2)


def conversations(*messages):
    return Dataset.from_dict({"messages": list(messages), "image_embeds": [[0.0, 1.0]] * len(messages)})


def learnt(row):
    return [token for token in row["labels"] if token != IGNORED]


def test_the_assistants_words_and_end_tokens_are_learnt_and_nothing_else(processor):
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    assert processor.tokenizer.decode(learnt(row)) == " red<|end|> a circle<|end|>"
    assert all(label in (IGNORED, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))


def test_a_placeholder_becomes_as_many_tokens_as_the_image_has(processor):
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    assert row["input_ids"].count(processor.image_token_id) == 3
    assert row["image_embeds"] == [0.0, 1.0]


def test_training_tokens_are_those_the_processor_makes_at_inference(processor):
    (row,) = tokenize_conversations(conversations(MESSAGES), processor)
    text = processor.apply_chat_template(MESSAGES, tokenize=False)
    inputs = processor(text=[text], image_embeds=[[0.0, 1.0]], add_special_tokens=False)
    assert row["input_ids"] == inputs["input_ids"][0]


def test_a_caption_is_learnt_with_its_end_token_and_the_image_is_not(processor):
    data = Dataset.from_dict({"caption": ["red circle"], "image_embeds": [[0.0, 1.0]]})
    (row,) = tokenize_captions(data, processor)
    assert processor.tokenizer.decode(learnt(row)) == "red circle<|end|>"
    assert row["input_ids"][:3] == [processor.image_token_id] * 3
    assert row["labels"][:3] == [IGNORED] * 3


def test_a_long_conversation_loses_its_last_turn_and_never_the_image(processor, caplog):
    (whole,) = tokenize_conversations(conversations(MESSAGES), processor)
    (cut,) = tokenize_conversations(conversations(MESSAGES), processor, max_length=len(whole["input_ids"]) - 1)
    assert processor.tokenizer.decode(learnt(cut)) == " red<|end|>"
    assert cut["input_ids"].count(processor.image_token_id) == 3
    assert "1 of 1 samples cut short, 0 left out" in caplog.text


def test_a_conversation_whose_first_turn_is_too_long_is_left_out_and_counted(processor, caplog):
    long = [{"role": "user", "content": "<image>\n" + "What shape? " * 50}, {"role": "assistant", "content": "red"}]
    rows = tokenize_conversations(conversations(MESSAGES, long), processor, max_length=60)
    assert len(rows) == 1
    assert "1 left out" in caplog.text


def test_nothing_that_fits_is_an_error_that_names_the_length(processor):
    with pytest.raises(InputError, match="max_length 4"):
        tokenize_conversations(conversations(MESSAGES), processor, max_length=4)


def test_a_long_caption_is_cut_and_counted(processor, caplog):
    data = Dataset.from_dict({"caption": ["red circle " * 40], "image_embeds": [[0.0, 1.0]]})
    (row,) = tokenize_captions(data, processor, max_length=10)
    assert len(row["input_ids"]) == 10
    assert row["input_ids"][-1] == processor.tokenizer.eos_token_id
    assert "1 of 1 samples cut short" in caplog.text


def test_a_missing_column_is_named(processor):
    with pytest.raises(InputError, match="has no column 'messages'"):
        tokenize_conversations(Dataset.from_dict({"text": ["a"]}), processor)


def test_a_chat_template_without_marks_is_refused_with_what_to_do(processor):
    import copy

    other = copy.deepcopy(processor)
    other.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(InputError, match=r"generation"):
        tokenize_conversations(conversations(MESSAGES), other)
