"""A row that is no caption or no conversation ends a run before it starts, by name."""

import pytest
from datasets import Dataset, IterableDataset
from unicorn_hf.modeling import UnicornProcessor

from unicorn_hf import InputError
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import tokenize_captions, tokenize_conversations

CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}]


@pytest.fixture(scope="module")
def processor():
    return UnicornProcessor(train_tokenizer(["How many? Two. Three dogs run."] * 20), embed_dim=2)


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        (["a dog", None], r"'b' \(row 1\): its caption is None"),
        ([3, 4], r"'a' \(row 0\): its caption is 3"),
        ([["a dog"], ["a cat"]], r"'a' \(row 0\): its caption is \['a dog'\]"),
    ],
)
def test_a_caption_that_is_no_text_is_named(captions, said, processor):
    dataset = Dataset.from_dict({"id": ["a", "b"], "caption": captions, "image_embeds": [[1.0, 2.0]] * 2})
    with pytest.raises(InputError, match=said):
        tokenize_captions(dataset, processor)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "its messages are None"),
        ("[]", "its messages are"),
        ([{"from": "human", "value": "How many?"}], "expected {'role', 'content'}"),
        ([{"role": "user", "content": [{"type": "video"}]}], "of the type 'video'"),
        ([{"role": "user", "content": None}], "the content of a message is None"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_no_conversation_is_named(messages, said, streaming, processor):
    rows = [{"id": "a", "messages": messages}]
    dataset = Dataset.from_list(rows)
    if streaming:
        dataset = IterableDataset.from_generator(lambda: iter(rows), features=dataset.features)
    with pytest.raises(InputError, match=rf"'a' \(row 0\): .*{said}"):
        list(tokenize_conversations(dataset, processor))


def test_a_conversation_of_words_and_one_of_parts_are_read_alike(processor):
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]
    one, other = (
        tokenize_conversations(Dataset.from_list([{"messages": messages}]), processor) for messages in (CHAT, parts)
    )
    assert one["input_ids"][:] == other["input_ids"][:]
