"""How many images a row has is told from its content, whatever the type of the column."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_mixture import chat, mix, write_chats
from transformers import CLIPImageProcessor

from unicorn_hf import InputError, UnicornProcessor
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.sandbox.language_model import train_tokenizer
from unicorn_hf.training import UnicornCollator, standardize_image_embeds, tokenize_captions, tokenize_conversations
from unicorn_hf.training.images import vectors_dim

NUMBER = Value("float16")
VECTOR, VECTOR_OF_2 = List(NUMBER), List(NUMBER, length=2)
ONE = {"list": VECTOR, "fixed": VECTOR_OF_2, "large": LargeList(NUMBER), "float64": List(Value("float64"))}
SEVERAL = {
    "lists": List(VECTOR),
    "fixed": List(VECTOR_OF_2),
    "large": LargeList(LargeList(NUMBER)),
    "large of fixed": LargeList(VECTOR_OF_2),
}


@pytest.fixture(scope="module")
def processor():
    texts = [turn["content"] for number in range(60) for turn in chat(number)]
    tokenizer = train_tokenizer([*texts, "a sign that says <image>", "it is <|end|> 1"])
    return UnicornProcessor(tokenizer, num_image_tokens=2, embed_dim=2)


def messages(num_images):
    question = "<image>" * num_images + "What is it?"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "it is 1"}]


def data(counts, vectors, feature=None):
    """Rows of `counts` placeholders and of `vectors`."""
    table = {"id": [f"id {row}" for row in range(len(counts))], "messages": list(map(messages, counts))}
    made = Dataset.from_dict(table | {"image_embeds": vectors})
    return (
        made
        if feature is None
        else Dataset.from_dict(table | {"image_embeds": vectors}, Features({**made.features, "image_embeds": feature}))
    )


def tokenize(dataset, processor, streaming):
    return list(tokenize_conversations(dataset.to_iterable_dataset() if streaming else dataset, processor))


def vectors_of(processor, rows):
    """What the collator makes of each row by itself; none where it adds an empty image."""
    batches = [UnicornCollator(processor)([row])["image_embeds"].tolist() for row in rows]
    return [[] if batch == [[0.0, 0.0]] else batch for batch in batches]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ONE)
def test_a_vector_is_one_image_and_a_null_is_none(kind, streaming, processor):
    rows = tokenize(data([0, 1, 0, 1], [None, [1.0, 2.0], None, [3.0, 4.0]], ONE[kind]), processor, streaming)
    assert vectors_of(processor, rows) == [[], [[1.0, 2.0]], [], [[3.0, 4.0]]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", SEVERAL)
def test_a_list_of_vectors_is_as_many_images_and_an_empty_one_is_none(kind, streaming, processor):
    vectors = [[], [[1.0, 2.0], [3.0, 4.0]], None, [[5.0, 6.0]]]
    rows = tokenize(data([0, 2, 0, 1], vectors, SEVERAL[kind]), processor, streaming)
    assert vectors_of(processor, rows) == [[], [[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("feature", [Array2D((2, 2), "float32"), List(VECTOR, length=2), List(VECTOR_OF_2, length=2)])
def test_an_array_of_two_vectors_is_two_images(feature, streaming, processor):
    dataset = data([2, 2], [[[1.0, 2.0], [3.0, 4.0]]] * 2, feature)
    assert vectors_dim(dataset) == vectors_dim(dataset.to_iterable_dataset()) == 2
    rows = tokenize(dataset, processor, streaming)
    assert vectors_of(processor, rows) == [[[1.0, 2.0], [3.0, 4.0]]] * 2
    with pytest.raises(InputError, match=r"sample 'id 1' needs 1 images .* there are 2 in 'image_embeds'; it is row 1"):
        tokenize(data([2, 1], [[[1.0, 2.0], [3.0, 4.0]]] * 2, feature), processor, streaming)


WRONG = {
    "empty where there is a placeholder": ([1, 1], [[1.0, 2.0], []], r"needs 1 images .* there are 0"),
    "null where there is a placeholder": ([1, 1], [[1.0, 2.0], None], r"needs 1 images .* there are 0"),
    "a vector where there is no placeholder": ([1, 0], [[1.0, 2.0]] * 2, r"needs 0 images .* there are 1"),
    "another length": ([1, 1], [[1.0, 2.0], [1.0, 2.0, 3.0]], "has a vector of 3 numbers; expected vectors of 2"),
    "another length among several": ([1, 2], [[[1.0, 2.0]], [[1.0, 2.0], [1.0]]], "has a vector of 1 numbers"),
    "an empty vector among several": ([1, 2], [[[1.0, 2.0]], [[1.0, 2.0], []]], "has a vector of 0 numbers"),
    "a null among vectors": ([1, 2], [[[1.0, 2.0]], [[1.0, 2.0], None]], "has a null among its vectors"),
    "a null among numbers": ([1, 1], [[1.0, 2.0], [1.0, None]], "has a null among the numbers"),
    "NaN": ([1, 1], [[1.0, 2.0], [1.0, np.nan]], "holds NaN"),
    "infinity among several": ([1, 1], [[[1.0, 2.0]], [[np.inf, 2.0]]], "holds Inf"),
    "more than float16 holds": ([1, 1], [[1.0, 2.0], [1e300, 2.0]], r"holds numbers up to 1e\+300, which float16"),
    "less than float16 holds": ([1, 1], [[1.0, 2.0], [1e-300, 0.0]], "holds numbers up to 1e-300, which float16"),
    "no direction": ([1, 1], [[1.0, 2.0], [0.0, 0.0]], "holds only zeros"),
    "no numbers in the first": ([0, 1], [None, [[]]], "has a vector of 0 numbers"),
    "lists of lists of lists": ([0, 1], [None, [[[1.0]]]], "is of the type list"),
    "words": ([0, 1], [None, ["a", "b"]], "is of the type list"),
    "a number": ([0, 1], [None, 1.0], "is of the type double"),
    "a word": ([0, 1], [None, "a"], "is of the type string"),
    "booleans": ([0, 1], [None, [True, False]], "is of the type list<.*bool"),
    "a dictionary": ([0, 1], [None, {"vector": [1.0]}], "is of the type struct"),
    "dictionaries": ([0, 1], [None, [{"number": 1.0}]], "is of the type list<.*struct"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_cannot_be_used_ends_the_run_before_it_starts_by_row_and_id(case, streaming, processor):
    counts, vectors, sentence = WRONG[case]
    with pytest.raises(InputError, match=rf"^the instruction data: sample 'id 1'.*{sentence}") as error:
        tokenize(data(counts, vectors), processor, streaming)
    assert "row 1" in str(error.value)


def test_half_precision_vectors_are_checked_to_the_last(processor):
    for value in (np.nan, np.inf, -np.inf):
        vectors = np.full((5000, 2), 65504, np.float16)
        vectors[4999, 1] = value
        dataset = data([1] * 5000, vectors.tolist(), VECTOR_OF_2)
        with pytest.raises(InputError, match=r"sample 'id 4999' \(row 4999\).*(NaN|Inf)"):
            tokenize_conversations(dataset, processor)


number = st.floats(0.125, 8, width=16) | st.floats(-8, -0.125, width=16)
row = st.one_of(st.none(), st.lists(st.lists(number, min_size=2, max_size=2), max_size=3))


@settings(max_examples=25, deadline=None)
@given(st.lists(row, min_size=1, max_size=5), st.sampled_from(sorted(SEVERAL)), st.booleans())
def test_any_rows_keep_their_vectors_in_any_type(processor, vectors, kind, streaming):
    counts = [len(value or []) for value in vectors]
    rows = tokenize(data(counts, vectors, SEVERAL[kind]), processor, streaming)
    images = [image for row in rows for image in np.atleast_2d(row["image_embeds"] or np.zeros((0, 2))).tolist()]
    assert images == [image for value in vectors for image in value or []]
    assert [row["input_ids"].count(processor.image_token_id) for row in rows] == [2 * count for count in counts]


# Pictures


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "images"])
def test_pictures_are_counted_in_either_column(column, streaming, processor):
    picture = Image.new("RGB", (8, 8))
    seeing = UnicornProcessor(processor.tokenizer, CLIPImageProcessor(), num_image_tokens=2, embed_dim=2)
    several = Dataset.from_dict({"messages": [messages(2), messages(0)], column: [[picture, picture], []]})
    rows = tokenize(several, seeing, streaming)
    assert [len(UnicornCollator(seeing)([row])["pixel_values"]) for row in rows] == [2, 1]  # the latter: an empty one
    one = Dataset.from_dict({"messages": [messages(1), messages(0)], column: [picture, None]})
    assert len(tokenize(one, seeing, streaming)) == 2
    with pytest.raises(InputError, match="'row 0' needs 1 images"):
        tokenize(several.select([0]).map(lambda row: {"messages": messages(1)}), seeing, streaming)


# Captions


def test_a_placeholder_in_a_caption_is_a_word_of_it(processor):
    captions = ["a sign that says <image>", "it is <|end|> 1", "it is 1"]
    rows = list(
        tokenize_captions(Dataset.from_dict({"caption": captions, "image_embeds": [[1.0, 2.0]] * 3}), processor)
    )
    assert [row["input_ids"].count(processor.image_token_id) for row in rows] == [2, 2, 2]
    assert [row["input_ids"].count(processor.tokenizer.eos_token_id) for row in rows] == [1, 1, 1]
    for row, caption in zip(rows, captions, strict=True):
        assert processor.tokenizer.decode(row["input_ids"][2:-1]).split() == caption.split()


# Mixtures


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_joins_one_vector_and_several_and_none(streaming, processor, tmp_path):
    one = write_chats(tmp_path / "one", 3)
    lines = [{"messages": messages(2), "image_embeds": [[1, 2], [3, 4]]}, {"messages": messages(0), "image_embeds": []}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "none.jsonl").write_text(json.dumps({"messages": messages(0), "image_embeds": None}) + "\n")
    names = [str(tmp_path / name) for name in ("none.jsonl", "two.jsonl")]
    rows = list(mix(processor, tmp_path, *names, one, streaming=streaming))
    images = [vector for found in vectors_of(processor, rows) for vector in found]
    assert len(rows) == 6
    np.testing.assert_allclose(sorted(images), sorted([[1, 2], [3, 4], [1, 0], [1, 1 / 3], [1, 2 / 3]]), atol=1e-3)


def test_a_row_without_images_may_come_first_and_thousands_of_them(processor, tmp_path):
    vectors = [None] * 5000 + [[1.0, 2.0]]
    dataset = data([0] * 5000 + [1], vectors)
    assert vectors_dim(dataset) == vectors_dim(dataset.to_iterable_dataset()) == 2
    rows = tokenize(dataset, processor, streaming=True)
    assert vectors_of(processor, rows[-2:]) == [[], [[1.0, 2.0]]]
    dataset.to_parquet(tmp_path / "data.parquet")
    batch = mix(processor, tmp_path, str(tmp_path / "data.parquet")).__getitems__([0, 5000, 1])
    assert UnicornCollator(processor)(batch)["image_embeds"].tolist() == [[1.0, 2.0]]
    assert read_dataset(str(tmp_path / "data.parquet")).num_rows == 5001


@pytest.mark.parametrize("streaming", [False, True])
def test_the_training_sets_mean_is_measured_in_any_type(streaming, processor):
    vectors = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float16)
    unit = vectors / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    measured = {}
    model = SimpleNamespace(model=SimpleNamespace(set_image_embeds_statistics=lambda **found: measured.update(found)))
    for feature, rows in (
        (VECTOR, vectors),
        (List(VECTOR), vectors[:, None]),
        (Array2D((1, 2), "float32"), vectors[:, None]),
    ):
        dataset = data([1] * 50, rows.tolist(), feature)
        standardize_image_embeds(model, dataset.to_iterable_dataset() if streaming else dataset)
        np.testing.assert_allclose(measured["mean"], unit.mean(0), atol=1e-3)
