"""Captions and conversations -> token ids and labels, once, before training.

The loss counts what the model has to say and nothing else: in stage 1 the caption, in stage 2 the assistant's turns.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_columns

IGNORE_INDEX = -100
# Where a sample's images may be: vectors, or pictures for the model's own tower. The first that is there is taken.
IMAGE_COLUMNS = ("image_embeds", "images", "image")
OVERLONG = ("cut", "drop")
WHOLE, CUT, TOO_LONG, NOTHING_TO_LEARN = range(4)  # what becomes of a sample; the latter two are left out
STREAM_REPORT = 10_000  # rows of a stream between two reports of these
_ONE_AT_A_TIME = threading.Lock()

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
    from datasets import IterableDataset

    if overlong not in OVERLONG:
        raise InputError(f"overlong is {overlong!r}; expected {' or '.join(OVERLONG)}")
    images = image_column(dataset)
    if images in ("image", "images") and processor.image_processor is None:
        raise InputError(
            f"The data have pictures (column {images!r}) and no vectors, and the model has no image tower: make vectors"
            f" of the encoder {processor.image_encoder!r} first, by `unicorn-hf embed DATA --output EMBEDDED`"
        )

    def tokenize(batch, rows):
        ids, labels, num_images, fates = (list(values) for values in zip(*encode(batch[column]), strict=True))
        return {
            "input_ids": ids,
            "labels": labels,
            "length": [len(row) for row in ids],
            "id": [str(name) for name in batch["id"]] if "id" in batch else [f"row {row}" for row in rows],
            "num_images": num_images,
            "fate": fates,
        }

    run = _tokenize_stream if isinstance(dataset, IterableDataset) else _tokenize_table
    return run(dataset, tokenize, column, images, max_length, num_proc)


def _tokenize_table(dataset, tokenize: Callable, column: str, images: str | None, max_length, num_proc):
    from datasets import Features, Value, concatenate_datasets

    texts = dataset.select_columns([name for name in (column, "id") if name in dataset.column_names])
    tokens = texts.map(
        tokenize,
        with_indices=True,
        batched=True,
        remove_columns=texts.column_names,
        features=Features({**_token_features(), "num_images": Value("int32"), "fate": Value("int8")}),
        num_proc=num_proc,
        desc=f"tokenizing {column}",
    )
    given = np.zeros(len(tokens), int)
    if images is not None:
        # Beside the tokens, and not through the map: gigabytes of vectors are neither decoded nor copied.
        tokens = concatenate_datasets([tokens, dataset.select_columns([images])], axis=1)
        given = np.concatenate(list(_image_counts(dataset, images)))
    _check_images(tokens["num_images"][:], given, tokens["id"], images)
    fates = np.asarray(tokens["fate"][:])
    _report(np.bincount(fates, minlength=4), max_length)
    kept = np.flatnonzero(fates <= CUT)
    if len(kept) == 0:
        raise InputError(f"None of {len(tokens):,} samples fits into max_length {max_length} with something to learn")
    tokens = tokens if len(kept) == len(tokens) else tokens.select(kept)
    return tokens.remove_columns(["fate", "num_images"])


def _tokenize_stream(dataset, tokenize: Callable, column: str, images: str | None, max_length, num_proc):
    from datasets import Features, List, Value

    features = _token_features()
    if images is not None:
        feature = dataset.features[images]
        is_list_of_vectors = images == "image_embeds" and isinstance(feature.feature, List)
        vector = List(Value("float32"))
        features[images] = feature if images != "image_embeds" else List(vector) if is_list_of_vectors else vector
    counts = np.zeros(4, np.int64)

    def tokenize_and_drop(batch, rows):
        tokens = tokenize(batch, rows)
        given = [0] * len(rows)
        if images is not None:
            tokens[images] = batch[images]
            one = not (images == "images" or (images == "image_embeds" and is_list_of_vectors))
            given = [0 if value is None else 1 if one else len(value) for value in batch[images]]
        _check_images(tokens["num_images"], given, tokens["id"], images)
        reported = counts.sum() // STREAM_REPORT
        counts[:] += np.bincount(tokens["fate"], minlength=4)
        if counts.sum() // STREAM_REPORT > reported:
            _report(counts, max_length)
        kept = [row for row, fate in enumerate(tokens["fate"]) if fate <= CUT]
        return {name: [tokens[name][row] for row in kept] for name in features}

    return dataset.map(
        tokenize_and_drop,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
    )


def _token_features() -> dict:
    from datasets import List, Value

    tokens = List(Value("int32"))
    return {"input_ids": tokens, "labels": tokens, "length": Value("int32"), "id": Value("string")}


def _image_counts(dataset, column: str) -> Iterator[np.ndarray]:
    """How many images each row has, from the Arrow table: nothing is decoded."""
    import pyarrow.compute as pc
    from datasets import List

    feature = dataset.features[column]
    is_list = isinstance(feature, List) and (column == "images" or isinstance(feature.feature, List))
    for table in dataset.select_columns([column]).with_format("arrow").iter(4096):
        values = table.column(0)
        counts = pc.fill_null(pc.list_value_length(values), 0) if is_list else values.is_valid().cast("int32")
        yield counts.to_numpy()


def _check_images(wanted: Iterable[int], given: Iterable[int], ids, column: str | None) -> None:
    wrong = np.flatnonzero(np.asarray(wanted) != np.asarray(given))
    if len(wrong) == 0:
        return
    row = int(wrong[0])
    where = "no image column (image_embeds, images or image)" if column is None else f"{given[row]} in {column!r}"
    raise InputError(
        f"Sample {ids[row]!r} needs {wanted[row]} images (its <image> placeholders), and there are {where};"
        f" {len(wrong):,} such samples are among these"
    )


def _report(counts, max_length: int | None) -> None:
    _, cut, too_long, nothing = counts
    if cut or too_long:
        logger.warning(f"max_length {max_length}: {cut:,} of {sum(counts):,} samples cut short, {too_long:,} left out")
    if nothing:
        logger.warning(f"{nothing:,} of {sum(counts):,} samples left out: the assistant says nothing in them")


def _num_images(messages, processor) -> int:
    return sum(_text(turn, processor).count(processor.image_token) for turn in messages)


def _text(turn: dict, processor) -> str:
    """A turn's content as text; its image parts, where it is a list of parts, as placeholders."""
    if isinstance(turn["content"], str):
        return turn["content"]
    return processor.apply_chat_template([turn], chat_template="{{ messages[0].content }}", tokenize=False)


def _cuts(messages) -> Iterator[int]:
    """How many turns are left when the last ones are cut and an answer is the end, from the longest to the shortest."""
    for turns in range(len(messages) - 1, 1, -1):
        if messages[turns - 1]["role"] == "assistant":
            yield turns


def _chat_encoder(processor) -> Callable:
    """A function of conversations that gives a list of (token ids, labels).

    The assistant's turns are found by the {% generation %} marks of the tokenizer's chat template or of TRL's version
    of it, and where there are none by rendering the conversation up to each turn, with its generation prompt.
    """
    from trl.chat_template_utils import get_training_chat_template

    tokenizer = processor.tokenizer
    if tokenizer.chat_template is None:
        raise InputError("The tokenizer has no chat template; set `tokenizer.chat_template` and save it")
    try:
        template, is_marked = get_training_chat_template(processing_class=tokenizer) or tokenizer.chat_template, True
    except ValueError:
        template, is_marked = tokenizer.chat_template, False
    image = processor.image_token * processor.num_image_tokens
    render = _render(tokenizer, template)

    def encode(conversations) -> list[tuple[list[int], list[int]]]:
        expanded = [
            [{**turn, "content": _text(turn, processor).replace(processor.image_token, image)} for turn in messages]
            for messages in conversations
        ]
        if is_marked:
            encoded = _apply_marked_template(tokenizer, expanded, template)
            masks = encoded["assistant_masks"]
        else:
            texts = [render(messages) for messages in expanded]
            encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
            masks = [
                _mask_of_spans(list(_assistant_spans(messages, text, render)), offsets)
                for messages, text, offsets in zip(expanded, texts, encoded["offset_mapping"], strict=True)
            ]
        return [(ids, label(ids, mask)) for ids, mask in zip(encoded["input_ids"], masks, strict=True)]

    prompt = _generation_prompt(tokenizer, render)
    is_space = {}

    def label(ids, mask) -> list[int]:
        labels = [
            i if said and i != processor.image_token_id else IGNORE_INDEX for i, said in zip(ids, mask, strict=True)
        ]
        for start, end in _runs(mask):
            # What a template marks beyond the turn: the end of its header before, its line break behind.
            for known in range(len(prompt) - 1, 0, -1):
                if start >= known and ids[start - known : start - known + len(prompt)] == prompt:
                    labels[start : start - known + len(prompt)] = [IGNORE_INDEX] * (len(prompt) - known)
                    break
            while end > start and is_space.setdefault(ids[end - 1], tokenizer.decode([ids[end - 1]]).isspace()):
                end -= 1
                labels[end] = IGNORE_INDEX
        return labels

    return encode


def _apply_marked_template(tokenizer, conversations, template: str) -> dict:
    # transformers keeps one tracker of the marks a template, and `datasets` reads the streams of a mixture in threads.
    with _ONE_AT_A_TIME:
        return tokenizer.apply_chat_template(
            conversations, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )


def _render(tokenizer, template: str) -> Callable:
    def render(messages, **options) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)

    return render


def _generation_prompt(tokenizer, render: Callable) -> list[int]:
    """The tokens that a chat template puts before the assistant's answer."""
    question = [{"role": "user", "content": "?"}]
    texts = [render(question), render(question, add_generation_prompt=True)]
    without, with_prompt = tokenizer(texts, add_special_tokens=False)["input_ids"]
    same = next(
        (i for i, (a, b) in enumerate(zip(without, with_prompt, strict=False)) if a != b),
        min(len(without), len(with_prompt)),
    )
    return with_prompt[same:]


def _assistant_spans(messages, text: str, render: Callable) -> Iterator[tuple[int, int]]:
    """Where in `text` the assistant speaks, in characters."""
    for index, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = render(messages[:index], add_generation_prompt=True) if index else ""
        behind = render(messages[: index + 1])
        if not (text.startswith(before) and text.startswith(behind)):
            raise InputError(
                "The tokenizer's chat template does not mark the assistant's tokens with {% generation %}, TRL has no"
                " training version of it, and it writes a turn differently once another follows; add the marks to it,"
                " or choose a tokenizer of a family that TRL lists"
            )
        yield len(before), len(behind)


def _mask_of_spans(spans: list[tuple[int, int]], offsets) -> list[int]:
    return [int(any(start <= a and b <= end and a < b for start, end in spans)) for a, b in offsets]


def _runs(mask) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask, np.int8), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
