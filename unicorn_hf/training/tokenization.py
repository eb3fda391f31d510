"""Captions and conversations -> token ids and labels, once, before training.

The loss counts what the model has to say and nothing else: in stage 1 the caption, in stage 2 the assistant's turns.
"""

import logging

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_columns

IGNORE_INDEX = -100

logger = logging.getLogger(__name__)


def tokenize_captions(dataset, processor, *, max_length: int | None = None):
    """Stage 1 (ReVision's pretraining): the image, then its caption, which alone is learnt.

    Args:
        dataset: a `datasets.Dataset` with `caption` and `image_embeds`.
        processor: the model's `UnicornProcessor`.
        max_length: in tokens, the image's included; longer captions are cut, and counted in the log.

    Returns:
        A `datasets.Dataset` with `input_ids`, `labels` and `image_embeds`.
    """
    check_columns(dataset, "caption", "image_embeds", source="the pretraining data")
    tokenizer = processor.tokenizer
    prompt = tokenizer(processor.image_token * processor.num_image_tokens)["input_ids"]
    # A tokenizer that closes every text itself must not do so between the image and its caption.
    prompt = prompt[:-1] if prompt[-1] == tokenizer.eos_token_id else prompt
    room = None if max_length is None else max_length - len(prompt) - 1

    def tokenize(batch):
        captions = tokenizer(batch["caption"], add_special_tokens=False)["input_ids"]
        bodies = [[*caption[:room], tokenizer.eos_token_id] for caption in captions]
        return {
            "input_ids": [prompt + body for body in bodies],
            "labels": [[IGNORE_INDEX] * len(prompt) + body for body in bodies],
            "cut": [room is not None and len(caption) > room for caption in captions],
        }

    columns = [name for name in dataset.column_names if name != "image_embeds"]
    tokens = dataset.map(tokenize, batched=True, remove_columns=columns, desc="tokenizing captions")
    _report(cut=sum(tokens["cut"]), dropped=0, total=len(tokens), max_length=max_length)
    return tokens.remove_columns("cut")


def tokenize_conversations(dataset, processor, *, max_length: int | None = None):
    """Stage 2: chat messages through the tokenizer's own chat template; the assistant's tokens are learnt.

    A conversation that is too long loses its last turns; one whose first turn is too long is left out. Both are counted
    in the log.

    Args:
        dataset: a `datasets.Dataset` with `messages` and, unless it is text only, `image_embeds`.
        processor: the model's `UnicornProcessor`.
        max_length: in tokens.

    Returns:
        A `datasets.Dataset` with `input_ids`, `labels` and, where the data has them, `image_embeds`.

    Raises:
        InputError: the chat template does not mark the assistant's tokens and TRL knows no version of it that does.
    """
    from trl.chat_template_utils import get_training_chat_template

    check_columns(dataset, "messages", source="the instruction data")
    tokenizer = processor.tokenizer
    try:
        template = get_training_chat_template(processing_class=tokenizer) or tokenizer.chat_template
    except ValueError as error:
        raise InputError(
            "The tokenizer's chat template does not mark the assistant's tokens with {% generation %}, and TRL has no "
            "training version of it; add the markers to the template, or choose a tokenizer of a family that TRL lists"
        ) from error
    image = processor.image_token * processor.num_image_tokens

    def encode(conversations) -> tuple[list[list[int]], list[list[int]]]:
        expanded = [
            [{**turn, "content": turn["content"].replace(processor.image_token, image)} for turn in messages]
            for messages in conversations
        ]
        encoded = tokenizer.apply_chat_template(
            expanded, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return encoded["input_ids"], encoded["assistant_masks"]

    def tokenize(batch):
        columns = {"input_ids": [], "labels": [], "cut": []}
        for messages, ids, mask in zip(batch["messages"], *encode(batch["messages"]), strict=True):
            turns = len(messages)
            while max_length is not None and len(ids) > max_length and turns > 2:
                turns -= 2
                ((ids,), (mask,)) = encode([messages[:turns]])
            if max_length is not None and len(ids) > max_length:
                ids = []
            columns["input_ids"].append(ids)
            columns["labels"].append([i if said else IGNORE_INDEX for i, said in zip(ids, mask, strict=False)])
            columns["cut"].append(turns < len(messages))
        return columns

    columns = [name for name in dataset.column_names if name != "image_embeds"]
    tokens = dataset.map(tokenize, batched=True, remove_columns=columns, desc="tokenizing conversations")
    kept = tokens.filter(bool, input_columns="input_ids", desc="leaving out what is too long")
    _report(cut=sum(kept["cut"]), dropped=len(tokens) - len(kept), total=len(tokens), max_length=max_length)
    if len(kept) == 0:
        raise InputError(f"No conversation fits into max_length {max_length}; raise it")
    return kept.remove_columns("cut")


def _report(*, cut: int, dropped: int, total: int, max_length: int | None) -> None:
    if cut or dropped:
        logger.warning(f"max_length {max_length}: {cut:,} of {total:,} samples cut short, {dropped:,} left out")
