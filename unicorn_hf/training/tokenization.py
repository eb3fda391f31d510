"""Captions and conversations -> token ids and labels, once, before training.

The loss counts what the model has to say and nothing else: in stage 1 the caption, in stage 2 the assistant's turns.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_columns

IGNORE_INDEX = -100
# Where a sample's images may be: vectors, or pictures for the model's own tower. The first that is there is taken.
IMAGE_COLUMNS = ("image_embeds", "images", "image")
OVERLONG = ("cut", "drop")
WHOLE, CUT, TOO_LONG, NOTHING_TO_LEARN = range(4)  # what became of a sample
STREAM_REPORT = 1000

logger = logging.getLogger(__name__)


def tokenize_captions(
    dataset, processor, *, max_length: int | None = None, overlong: str = "cut", num_proc: int | None = None
):
    """Stage 1 (ReVision's pretraining): the image, then its caption, which alone is learnt.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset` with `caption` and one image a row: `image_embeds` (a
            vector) or `image` (a picture, for a model with an image tower).
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, the image's included.
        overlong: `cut` a longer caption (it is then learnt without an end token), or `drop` it. Both are counted in
            the log.
        num_proc: processes that tokenize (not for a stream).

    Returns:
        The same kind of dataset with `input_ids`, `labels`, `length`, `id` and the image column.

    Raises:
        InputError: a column is missing, a row has no image, or no caption fits.
    """
    check_columns(dataset, "caption", source="the pretraining data")
    if image_column(dataset) is None:
        check_columns(dataset, "image_embeds", source="the pretraining data")
    tokenizer = processor.tokenizer
    prompt = tokenizer(processor.image_token * processor.num_image_tokens)["input_ids"]
    # A tokenizer that closes every text itself must not do so between the image and its caption.
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    if max_length is not None and max_length <= len(prompt):
        raise InputError(f"max_length {max_length} has no room for a caption: the image takes {len(prompt)} tokens")

    def encode(captions):
        for caption in tokenizer(captions, add_special_tokens=False)["input_ids"]:
            body = [*caption, tokenizer.eos_token_id]
            fate = WHOLE
            if max_length is not None and len(prompt) + len(body) > max_length:
                body, fate = body[: max_length - len(prompt)], CUT if overlong == "cut" else TOO_LONG
            yield prompt + body, [IGNORE_INDEX] * len(prompt) + body, 1, fate

    return _tokenize(dataset, processor, "caption", encode, max_length, overlong, num_proc)


def tokenize_conversations(
    dataset, processor, *, max_length: int | None = None, overlong: str = "cut", num_proc: int | None = None
):
    """Stage 2: chat messages through the tokenizer's own chat template; the assistant's tokens are learnt.

    These are what follows the template's generation prompt, up to and with the token that ends the turn.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset` with `messages` and, unless it is text only, the images of
            their placeholders in order: `image_embeds` (a vector, or a list of vectors), `images` (a list of pictures)
            or `image` (one picture).
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, the images' included.
        overlong: `cut` the last turns of a longer conversation, as long as that takes no image away and leaves an
            answer, or `drop` it. Both are counted in the log.
        num_proc: processes that tokenize (not for a stream).

    Returns:
        The same kind of dataset with `input_ids`, `labels`, `length`, `id` and the image column, if there is one.

    Raises:
        InputError: a column is missing, a row's images and placeholders do not match, nothing fits, or the assistant's
            tokens cannot be told from the others under this chat template.
    """
    check_columns(dataset, "messages", source="the instruction data")
    encode_chat = _chat_encoder(processor)

    def encode(conversations):
        for messages, (ids, labels) in zip(conversations, encode_chat(conversations), strict=True):
            fate, num_images = WHOLE, _num_images(messages, processor)
            if max_length is not None and len(ids) > max_length:
                fate = TOO_LONG
                for turns in _cuts(messages) if overlong == "cut" else ():
                    if _num_images(messages[:turns], processor) < num_images:
                        break
                    ((shorter, shorter_labels),) = encode_chat([messages[:turns]])
                    if len(shorter) <= max_length:
                        ids, labels, fate = shorter, shorter_labels, CUT
                        break
            if fate != TOO_LONG and all(label == IGNORE_INDEX for label in labels):
                fate = NOTHING_TO_LEARN
            yield ids, labels, num_images, fate

    return _tokenize(dataset, processor, "messages", encode, max_length, overlong, num_proc)


def image_column(dataset) -> str | None:
    """The column that holds the images of `dataset`; vectors go before the pictures that they were made of."""
    return next((column for column in IMAGE_COLUMNS if column in dataset.column_names), None)


def _tokenize(dataset, processor, column: str, encode: Callable, max_length, overlong, num_proc):
    """Run `encode`, which yields (token ids, labels, number of images, fate) a row, over a dataset or a stream."""
    from datasets import Features, IterableDataset, List, Value, concatenate_datasets

    if overlong not in OVERLONG:
        raise InputError(f"overlong is {overlong!r}; expected {' or '.join(OVERLONG)}")
    images = image_column(dataset)
    if images in ("image", "images") and processor.image_processor is None:
        raise InputError(
            f"The data have pictures (column {images!r}) and no vectors, and the model has no image tower: make vectors"
            f" of the encoder {processor.image_encoder!r} first, by `unicorn-hf embed DATA --output EMBEDDED`"
        )
    token_lists = {"input_ids": List(Value("int32")), "labels": List(Value("int32"))}
    features = Features({**token_lists, "length": Value("int32"), "id": Value("string")})

    def tokenize(batch, rows):
        ids, labels, num_images, fates = (list(column) for column in zip(*encode(batch[column]), strict=True))
        names = [str(name) for name in batch["id"]] if "id" in batch else [f"row {row}" for row in rows]
        return {
            "input_ids": ids,
            "labels": labels,
            "length": [len(row) for row in ids],
            "id": names,
            "num_images": num_images,
            "fate": fates,
        }

    if isinstance(dataset, IterableDataset):
        if images is not None:
            features = Features({**features, images: _resolved_features(dataset)[images]})
        counts = np.zeros(4, np.int64)

        def tokenize_stream(batch, rows):
            tokens = tokenize(batch, rows)
            if images is not None:
                tokens[images] = batch[images]
                _check_images(tokens, [_length(value, images) for value in batch[images]], images)
            fates = np.array(tokens["fate"])
            reported = counts.sum() // STREAM_REPORT
            counts[:] += np.bincount(fates, minlength=4)
            if counts.sum() // STREAM_REPORT > reported:
                _report(counts, max_length)
            kept = np.flatnonzero(fates <= CUT)
            return {name: [tokens[name][row] for row in kept] for name in features}

        return dataset.map(
            tokenize_stream, with_indices=True, batched=True, remove_columns=dataset.column_names, features=features
        )

    texts = dataset.select_columns([name for name in (column, "id") if name in dataset.column_names])
    tokens = texts.map(
        tokenize,
        with_indices=True,
        batched=True,
        remove_columns=texts.column_names,
        features=Features({**features, "num_images": Value("int32"), "fate": Value("int8")}),
        num_proc=num_proc,
        desc=f"tokenizing {column}",
    )
    if images is not None:
        # Beside the tokens, not through the map above: gigabytes of vectors are neither decoded nor copied.
        vectors = dataset.select_columns([images])
        _check_images(tokens.with_format("numpy")[:] if False else tokens, list(_image_counts(vectors, images)), images)
        tokens = concatenate_datasets([tokens, vectors], axis=1)
    fates = np.asarray(tokens["fate"][:])
    counts = np.bincount(fates, minlength=4)
    _report(counts, max_length)
    kept = np.flatnonzero(fates <= CUT)
    if len(kept) == 0:
        raise InputError(f"Of {len(tokens):,} samples, none fits into max_length {max_length} with something to learn")
    tokens = tokens if len(kept) == len(tokens) else tokens.select(kept)
    return tokens.remove_columns(["fate", "num_images"])
