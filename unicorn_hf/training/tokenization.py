"""Captions, conversations and preference pairs -> token ids and labels, once, before training.

The loss counts what the model has to say and nothing else: in stage 1 the caption, in stage 2 the assistant's turns, in
stage 3 the answers of a pair.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jinja2 import TemplateError

from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.data.sources import check_columns
from unicorn_hf.errors import InputError
from unicorn_hf.reasoning import THOUGHT_FIRST
from unicorn_hf.system_turn import has_system_role, system_to_user
from unicorn_hf.training.chat_templates import settle_chat_template
from unicorn_hf.training.images import count_images, image_column, is_nested, vectors_dim

IGNORE_INDEX = -100
PAIR = ("prompt", "chosen", "rejected")
# The columns of tokens: of a sample, and of a pair. TRL's `DPOTrainer` tokenizes data by itself unless they have
# pictures, so those of a pair have a column of that name, which may hold nothing.
SAMPLE_TOKENS = ("input_ids", "labels")
PAIR_TOKENS = ("chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels")
OVERLONG = ("cut", "drop")
WHOLE, CUT, TOO_LONG, NOTHING_TO_LEARN = range(4)  # the status of a sample; the last two are left out
STREAM_REPORT = 10_000  # rows of a stream between two reports of these counts, after the first that says something
_ONE_AT_A_TIME = threading.Lock()

logger = logging.getLogger(__name__)


def tokenize_captions(
    dataset,
    processor,
    *,
    max_length: int | None = None,
    overlong: str = "cut",
    num_proc: int | None = None,
    learn: str = "caption",
    source: str = "the pretraining data",
):
    """Stage 1 (ReVision's pretraining): the image, then its caption, which alone is learnt.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset` with `caption` (or `text`) and one image a row:
            `image_embeds` (a vector) or `image` (a picture, for a model with an image tower).
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, the image's included.
        overlong: `cut` a longer caption (it is then learnt without an end token), or `drop` it. Both are counted in
            the log.
        num_proc: processes that tokenize (not for a stream).
        learn: `caption`, which ends with the end token; or `answer`, that of `messages` with one question, which ends
            with a line feed, as the released code has it.
        source: what errors call the dataset.

    Returns:
        The same kind of dataset with `input_ids`, `labels`, `length`, `id` and the image column.

    Raises:
        InputError: a column is missing, a row has no image, or no caption fits.
    """
    column = {"caption": "caption", "answer": "messages"}[learn]
    if learn == "caption" and "caption" not in dataset.column_names and "text" in dataset.column_names:
        column = "text"  # as ReVision's data file has it
    check_columns(dataset, column, source=source)
    if image_column(dataset) is None:
        check_columns(dataset, "image_embeds", source=source)
    tokenizer = processor.tokenizer
    prompt = tokenizer(processor.image_token * processor.num_image_tokens)["input_ids"]
    # Remove an end token that the tokenizer adds to every text: it must not stand between the image and its caption.
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    if max_length is not None and max_length <= len(prompt):
        raise InputError(f"max_length {max_length} leaves no room for a caption: the image takes {len(prompt)} tokens")

    end, marks = [tokenizer.eos_token_id] if learn == "caption" else [], marks_of(tokenizer)

    def encode(captions):
        captions = captions if learn == "caption" else list(map(_answer_line, captions))
        as_text = {"add_special_tokens": False, "split_special_tokens": True}
        for caption, body in zip(captions, tokenizer(captions, **as_text)["input_ids"], strict=True):
            if not marks.ids.isdisjoint(body):  # an added token that is not special is not split
                body = tokenizer(without_marks(caption, marks), **as_text)["input_ids"]
            body = [*body, *end]
            fate = WHOLE
            if max_length is not None and len(prompt) + len(body) > max_length:
                body, fate = body[: max_length - len(prompt)], CUT if overlong == "cut" else TOO_LONG
            yield {"input_ids": prompt + body, "labels": [IGNORE_INDEX] * len(prompt) + body}, 1, fate

    _check_overlong(overlong)
    return _tokenize(dataset, source, processor, [column], SAMPLE_TOKENS, encode, max_length, num_proc)


def _answer_line(messages) -> str:
    roles = [turn["role"] for turn in messages]
    if roles != ["user", "assistant"]:
        raise InputError(
            f"To learn the answer, every row needs one question and its answer; one row has {', '.join(roles)}"
        )
    return f"{messages[1]['content']}\n"


def tokenize_conversations(
    dataset,
    processor,
    *,
    max_length: int | None = None,
    overlong: str = "cut",
    num_proc: int | None = None,
    source: str = "the instruction data",
):
    """Stage 2: chat messages, rendered by the tokenizer's chat template; only the assistant's tokens are in the loss.

    These are the tokens after the template's generation prompt, up to and including the token that ends the turn. The
    processor gets a template that asks in the trained way (`settle_chat_template`); save it with the model. Of the
    tokenizer's marks in messages, only placeholders and the marks of a thought at the beginning of an answer keep their
    function; all others become plain words.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset` with `messages` and, unless it is text only, the images of
            their placeholders in order: `image_embeds` (a vector, or a list of vectors), `images` (a list of images)
            or `image` (one image).
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, including the images'.
        overlong: `cut` the last turns of a longer conversation if that keeps all images and at least one answer (else
            it is left out), or `drop` it. Both are counted in the log.
        num_proc: processes that tokenize (not for a stream).
        source: the dataset's name in messages.

    Returns:
        The same kind of dataset with `input_ids`, `labels`, `length`, `id` and the image column, if there is one.

    Raises:
        InputError: a column is missing, a row's images and placeholders do not match, no sample fits, or the
            assistant's tokens cannot be identified with this chat template.
    """
    check_columns(dataset, "messages", source=source)
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
            yield {"input_ids": ids, "labels": labels}, num_images, fate

    _check_overlong(overlong)
    return _tokenize(dataset, source, processor, ["messages"], SAMPLE_TOKENS, encode, max_length, num_proc)


def tokenize_pairs(
    dataset,
    processor,
    *,
    max_length: int | None = None,
    num_proc: int | None = None,
    source: str = "the preference data",
):
    """Stage 3: a prompt with a right and a wrong answer, each as a chat of its own; of both the answer is learnt.

    The prompt is no part of what is compared, the assistant's earlier turns in it included.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset` with `prompt`, `chosen` and `rejected`, lists of chat
            messages (the first ends with the user's turn, the others are the assistant's), and the images of the
            prompt's placeholders as in `tokenize_conversations`.
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, the images' included. A pair of which one side is longer is left out, and counted in the
            log: cut answers would be compared by where they were cut.
        num_proc: processes that tokenize (not for a stream).
        source: what errors call the dataset.

    Returns:
        The same kind of dataset with `chosen_ids`, `chosen_labels`, `rejected_ids`, `rejected_labels`, `length` (of the
        longer side), `id` and the image column, if there is one.

    Raises:
        InputError: a column is missing, an answer has an image, a row's images and placeholders do not match, nothing
            fits, or the assistant's tokens cannot be told from the others under this chat template.
    """
    check_columns(dataset, *PAIR, source=source)
    encode_chat = _chat_encoder(processor)

    def encode(*columns):
        pairs = list(zip(*columns, strict=True))
        prompts = [ids for ids, _ in encode_chat([prompt for prompt, _, _ in pairs])]
        sides = [encode_chat([pair[0] + pair[side] for pair in pairs]) for side in (1, 2)]
        for (prompt, *_), prompt_ids, *encoded in zip(pairs, prompts, *sides, strict=True):
            tokens = {}
            for name, (ids, labels) in zip(("chosen", "rejected"), encoded, strict=True):
                start = _common_length(prompt_ids, ids)
                tokens[f"{name}_ids"] = ids
                tokens[f"{name}_labels"] = [IGNORE_INDEX] * start + labels[start:]
            fate = WHOLE
            if max_length is not None and any(len(ids) > max_length for ids, _ in encoded):
                fate = TOO_LONG
            elif any(all(label == IGNORE_INDEX for label in tokens[f"{name}_labels"]) for name in PAIR[1:]):
                fate = NOTHING_TO_LEARN
            yield tokens, _num_images(prompt, processor), fate

    return _tokenize(dataset, source, processor, PAIR, PAIR_TOKENS, encode, max_length, num_proc)


def _check_overlong(overlong: str) -> None:
    if overlong not in OVERLONG:
        raise InputError(f"overlong is {overlong!r}; expected {' or '.join(OVERLONG)}")


def _common_length(first: list[int], second: list[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _tokenize(
    dataset,
    source: str,
    processor,
    columns: Sequence[str],
    token_columns: Sequence[str],
    encode: Callable,
    max_length,
    num_proc,
):
    """Run `encode` over a dataset or a stream.

    Args:
        columns: what `encode` reads, a list of values each.
        token_columns: what it makes; it yields ({token column: numbers}, number of images, fate) a row.
    """
    from datasets import IterableDataset, Value

    images = image_column(dataset)
    if images in ("image", "images") and processor.image_processor is None:
        raise InputError(
            f"{source}: has images (column {images!r}) and no vectors, but the model has no image tower: embed them"
            f" first with the encoder {processor.image_encoder!r} (`unicorn-hf embed DATA --output EMBEDDED`)"
        )

    def tokenize(batch, rows):
        names = [str(name) for name in batch["id"]] if "id" in batch else [f"row {row}" for row in rows]
        texts = [batch[column] for column in columns]
        for column, values in zip(columns, texts, strict=True):
            for value, name, row in zip(values, names, rows, strict=True):
                wrong = _wrong_caption(value) if column in ("caption", "text") else _wrong_messages(value, column)
                if wrong is None and column in PAIR[1:] and _num_images(value, processor):
                    wrong = f"its {column} answer holds an image; expected images in the prompt alone"
                if wrong is not None:
                    raise InputError(f"{source}: sample {name!r} (row {row}): {wrong}")
        try:
            encoded = list(encode(*texts))
        except TemplateError:
            _raise_by_name(encode, texts, source, names, rows)
            raise
        tokens, num_images, fates = (list(values) for values in zip(*encoded, strict=True))
        return {
            **{name: [row[name] for row in tokens] for name in token_columns},
            **({"images": [None] * len(names)} if "images" in features else {}),
            "length": [max(map(len, row.values())) for row in tokens],
            "id": names,
            "num_images": num_images,
            "fate": fates,
        }

    features = _token_features(token_columns)
    if token_columns is PAIR_TOKENS and images not in ("image", "images"):
        features["images"] = Value("null")
    embed_dim = vectors_dim(dataset) if images == "image_embeds" else None
    if isinstance(dataset, IterableDataset):
        return _tokenize_stream(dataset, source, tokenize, features, images, embed_dim, max_length)
    return _tokenize_table(dataset, source, tokenize, columns, features, images, embed_dim, max_length, num_proc)


def _wrong_caption(value) -> str | None:
    return None if isinstance(value, str) else f"its caption is {value!r:.60}; expected text"


def _wrong_messages(value, column: str) -> str | None:
    """Why a conversation, or a part of a pair, cannot be read; None where it can."""
    if not isinstance(value, list) or not value:
        verb = "are" if column == "messages" else "is"
        return f"its {column} {verb} {value!r:.60}; expected a list of {{'role', 'content'}}"
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str) or "content" not in turn:
            return f"one of its messages is {turn!r:.60}; expected {{'role', 'content'}}"
        content = turn["content"]
        if isinstance(content, list):
            kinds = [part.get("type") if isinstance(part, dict) else part for part in content]
            other = next((kind for kind in kinds if kind not in ("text", "image")), None)
            if other is not None or None in kinds:
                return f"a part of its content is of the type {other!r}; expected 'text' or 'image'"
            empty = [part for part in content if part["type"] == "text" and not isinstance(part.get("text"), str)]
            if empty:
                return f"a part of its content is {empty[0]!r:.60}; expected a text in it"
        elif not isinstance(content, str):
            return f"the content of a message is {content!r:.60}; expected text, or a list of parts"
    roles = [turn["role"] for turn in value]
    if "assistant" not in roles and not {"system", "developer", "user", "tool"}.issuperset(roles):
        return f"its roles are {', '.join(roles)}; expected user and assistant, whose words are learnt"
    return None


def _raise_by_name(encode: Callable, texts: list, source: str, names, rows) -> None:
    for chats, name, row in zip(zip(*texts, strict=True), names, rows, strict=True):
        try:
            list(encode(*([chat] for chat in chats)))
        except TemplateError as error:
            raise InputError(
                f"{source}: sample {name!r} (row {row}): the tokenizer's chat template does not take its messages"
                f" ({error}); its roles are {', '.join(str(turn['role']) for chat in chats for turn in chat)}"
            ) from error


def _tokenize_table(
    dataset,
    source: str,
    tokenize: Callable,
    columns,
    features: dict,
    images: str | None,
    embed_dim,
    max_length,
    num_proc,
):
    from datasets import Features, Value, concatenate_datasets

    texts = dataset.select_columns([name for name in (*columns, "id") if name in dataset.column_names])
    tokens = texts.map(
        tokenize,
        with_indices=True,
        batched=True,
        remove_columns=texts.column_names,
        features=Features({**features, "num_images": Value("int32"), "fate": Value("int8")}),
        num_proc=num_proc,
        desc=f"tokenizing {', '.join(columns)}",
    )
    given, wrong = np.zeros(len(tokens), int), None
    if images is not None:
        # Join the vectors after `map`, so that gigabytes of them are neither decoded nor copied.
        tokens = concatenate_datasets([tokens, dataset.select_columns([images])], axis=1)
        given, wrong = _count_images_of_table(dataset, images, embed_dim)
    _check_images(source, tokens["num_images"][:], given, wrong, tokens["id"], images, range(len(tokens)))
    fates = np.asarray(tokens["fate"][:])
    _report(np.bincount(fates, minlength=4), max_length)
    kept = np.flatnonzero(fates <= CUT)
    if len(kept) == 0:
        raise InputError(_nothing_fits(source, len(tokens), max_length))
    tokens = tokens if len(kept) == len(tokens) else tokens.select(kept)
    return tokens.remove_columns(["fate", "num_images"])


def _tokenize_stream(
    dataset, source: str, tokenize: Callable, features: dict, images: str | None, embed_dim, max_length
):
    from datasets import Features, List, Value

    one_vector = False
    if images is not None:
        feature = dataset.features[images]
        one_vector = isinstance(feature, List) and not is_nested(feature)
        vector = List(Value("float32"))
        features = features | {images: feature if images != "image_embeds" else vector if one_vector else List(vector)}
    counts, is_told = np.zeros(4, np.int64), np.zeros((), bool)

    def tokenize_and_drop(batch, rows):
        tokens = tokenize(batch, rows)
        given, wrong = np.zeros(len(rows), int), None
        if images is not None:
            given, wrong = _count_images_of_batch(batch[images], images, embed_dim)
        _check_images(source, tokens["num_images"], given, wrong, tokens["id"], images, rows)
        if images is not None:
            as_it_is = images != "image_embeds" or one_vector
            tokens[images] = batch[images] if as_it_is else [_vectors(value) for value in batch[images]]
        reported = counts.sum() // STREAM_REPORT
        counts[:] += np.bincount(tokens["fate"], minlength=4)
        if (counts[CUT:].any() and not is_told) or counts.sum() // STREAM_REPORT > reported:
            is_told[...] = True
            _report(counts, max_length)
        kept = [row for row, fate in enumerate(tokens["fate"]) if fate <= CUT]
        return {name: [tokens[name][row] for row in kept] for name in features}

    tokens = dataset.map(
        tokenize_and_drop,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        features=Features(features),
    )
    if next(iter(tokens), None) is None:
        raise InputError(_nothing_fits(source, sum(counts), max_length))
    counts[:] = 0
    return tokens


def _vectors(value):
    """A row's vectors as a list. A single vector occurs if nulls came first, so the depth of the type was unknown."""
    if value is None or len(value) == 0:
        return value
    return value if isinstance(value[0], list | np.ndarray) else [value]


def _token_features(token_columns: Sequence[str]) -> dict:
    from datasets import List, Value

    tokens = dict.fromkeys(token_columns, List(Value("int32")))
    return {**tokens, "length": Value("int32"), "id": Value("string")}


def _count_images_of_table(dataset, column: str, embed_dim) -> tuple[np.ndarray, tuple[int, str] | None]:
    counts, wrong, start = [], None, 0
    for table in dataset.select_columns([column]).with_format("arrow").iter(4096):
        part, found = count_images(table.column(0), column, embed_dim)
        if wrong is None and found is not None:
            wrong = start + found[0], found[1]
        counts.append(part)
        start += len(part)
    return np.concatenate(counts), wrong


def _count_images_of_batch(values: list, column: str, embed_dim) -> tuple[np.ndarray, tuple[int, str] | None]:
    import pyarrow as pa

    counts, wrong = np.zeros(len(values), np.int64), None
    for row, value in enumerate(values):  # one by one: if the type was known late, lists may have two depths
        if column == "image_embeds":
            value = value.tolist() if isinstance(value, np.ndarray) else value
        else:  # decoded images, which Arrow cannot hold
            value = [None if each is None else 0 for each in value] if isinstance(value, list) else value and 0
        (counts[row],), found = count_images(pa.array([value]), column, embed_dim)
        if wrong is None and found is not None:
            wrong = row, found[1]
    return counts, wrong


def _check_images(source: str, wanted, given, wrong: tuple[int, str] | None, ids, column: str | None, rows) -> None:
    """Raise for the first sample whose images do not match its placeholders or are unusable (`wrong`)."""
    different = np.flatnonzero(np.asarray(wanted) != np.asarray(given))
    if wrong is not None and not (len(different) and different[0] < wrong[0]):
        row, what = wrong
        name = f"{source}: sample {ids[row]!r} (row {rows[row]})"
        raise InputError(f"{name}: {column!r} {what}; correct the row, or leave it out")
    if len(different) == 0:
        return
    row = int(different[0])
    where = "no image column (image_embeds, images or image)" if column is None else f"{given[row]} in {column!r}"
    raise InputError(
        f"{source}: sample {ids[row]!r} needs {wanted[row]} images (its <image> placeholders), but there are {where};"
        f" it is row {rows[row]}, and there are {len(different):,} such samples"
    )


def _nothing_fits(source: str, num_samples: int, max_length: int | None) -> str:
    return f"{source}: none of {num_samples:,} samples fits into max_length {max_length} with something to learn"


def _report(counts, max_length: int | None) -> None:
    _, cut, too_long, nothing = counts
    if cut or too_long:
        logger.warning(f"max_length {max_length}: {cut:,} of {sum(counts):,} samples truncated, {too_long:,} left out")
    if nothing:
        logger.warning(f"{nothing:,} of {sum(counts):,} samples left out: the assistant says nothing in them")


def _num_images(messages, processor) -> int:
    return sum(_text(turn, processor).count(processor.image_token) for turn in messages)


def _text(turn: dict, processor) -> str:
    """A turn's content as text; image parts of a list become placeholders."""
    if isinstance(turn["content"], str):
        return turn["content"]
    return processor.apply_chat_template([turn], chat_template="{{ messages[0].content }}", tokenize=False)


def _pieces(turn: dict, processor, marks: Marks) -> list[str]:
    """The texts between a turn's images, without marks; a thought at the beginning of an answer keeps its marks."""
    first, *others = _text(turn, processor).split(processor.image_token)
    thought = THOUGHT_FIRST.match(first) if turn["role"] == "assistant" else None
    if thought is None:
        return [without_marks(piece, marks) for piece in (first, *others)]
    opening, reasoning, closing = thought.groups()
    first = opening + without_marks(reasoning, marks) + closing + without_marks(first[thought.end() :], marks)
    return [first, *(without_marks(piece, marks) for piece in others)]


def _cuts(messages) -> Iterator[int]:
    """The possible numbers of turns after cutting the last ones so that an answer ends them, in descending order."""
    for turns in range(len(messages) - 1, 1, -1):
        if messages[turns - 1]["role"] == "assistant":
            yield turns


def _chat_encoder(processor) -> Callable:
    """A function from conversations to a list of (token ids, labels).

    The assistant's turns are found by the {% generation %} marks of the tokenizer's chat template or of TRL's version
    of it. Without marks, the conversation is rendered up to each turn, with its generation prompt.
    """
    tokenizer = processor.tokenizer
    template, is_marked = settle_chat_template(processor)
    marks, image = marks_of(tokenizer), processor.image_token * processor.num_image_tokens
    render = _render(tokenizer, template)
    has_system = has_system_role(render)

    def encode(conversations) -> list[tuple[list[int], list[int]]]:
        expanded = [
            [{**turn, "content": image.join(_pieces(turn, processor, marks))} for turn in messages]
            for messages in conversations
        ]
        if not has_system:
            expanded = list(map(system_to_user, expanded))
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

    # An answer with a thought follows the prompt that asks for a thought.
    prompts = [_generation_prompt(tokenizer, render), _generation_prompt(tokenizer, render, enable_thinking=True)]
    is_space = {}

    def label(ids, mask) -> list[int]:
        labels = [
            i if said and i != processor.image_token_id else IGNORE_INDEX for i, said in zip(ids, mask, strict=True)
        ]
        for start, end in _runs(mask):
            # Some templates mark more than the answer: the end of the header before it, and the line break after it.
            said = next(filter(None, (_end_of_prompt(ids, start, prompt) for prompt in prompts)), start)
            labels[start:said] = [IGNORE_INDEX] * (said - start)
            while end > start and is_space.setdefault(ids[end - 1], tokenizer.decode([ids[end - 1]]).isspace()):
                end -= 1
                labels[end] = IGNORE_INDEX
        return labels

    _check_learnt_from_the_prompt_on(tokenizer, render, encode)
    return encode


def _check_learnt_from_the_prompt_on(tokenizer, render: Callable, encode: Callable) -> None:
    """Raise `InputError` if the first token after the generation prompt is not in the loss."""
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "red"}
    prompt = tokenizer(render([question], add_generation_prompt=True), add_special_tokens=False)["input_ids"]
    ((ids, labels),) = encode([[question, answer]])
    end = len(prompt)
    if ids[:end] == prompt and labels[end] == IGNORE_INDEX:
        start = next((i for i in range(end, len(ids)) if labels[i] != IGNORE_INDEX), len(ids))
        between = tokenizer.decode(ids[end:start])
        raise InputError(
            f"The tokenizer's chat template writes {between!r} before an answer, but neither in its generation prompt"
            " (add_generation_prompt) nor inside its {% generation %} marks: the model would be asked without it; add"
            " it to the generation prompt"
        )


def _apply_marked_template(tokenizer, conversations, template: str) -> dict:
    # transformers keeps one tracker of marks per template, but `datasets` reads the streams of a mixture in threads.
    with _ONE_AT_A_TIME:
        return tokenizer.apply_chat_template(
            conversations, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )


def _render(tokenizer, template: str) -> Callable:
    def render(messages, **options) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)

    return render


def _end_of_prompt(ids: list[int], start: int, prompt: list[int]) -> int | None:
    """The end of a prompt that reaches to `start` or beyond; None if there is none."""
    for known in range(len(prompt), 0, -1):
        if start >= known and ids[start - known : start - known + len(prompt)] == prompt:
            return start - known + len(prompt)
    return None


def _generation_prompt(tokenizer, render: Callable, **options) -> list[int]:
    """The tokens that a chat template puts before the assistant's answer."""
    question = [{"role": "user", "content": "?"}]
    texts = [render(question, **options), render(question, add_generation_prompt=True, **options)]
    without, with_prompt = tokenizer(texts, add_special_tokens=False)["input_ids"]
    same = next(
        (i for i, (a, b) in enumerate(zip(without, with_prompt, strict=False)) if a != b),
        min(len(without), len(with_prompt)),
    )
    return with_prompt[same:]


def _assistant_spans(messages, text: str, render: Callable) -> Iterator[tuple[int, int]]:
    """Start and end of the assistant's turns in `text`, in characters."""
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
    mask = []
    for place, (a, b) in enumerate(offsets):
        if a == b:  # only spaces, if the tokenizer trims offsets: they lie between their neighbours
            a = offsets[place - 1][1] if place else 0
            b = offsets[place + 1][0] if place + 1 < len(offsets) else b
        mask.append(int(any(start <= a and b <= end and a < b for start, end in spans)))
    return mask


def _runs(mask) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask, np.int8), [0]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
