"""A question about an image, its right answer and a wrong one, as the chat messages that TRL's `DPOTrainer` reads."""

IMAGE_PLACEHOLDER = "<image>\n"


def make_pair(question: str, chosen: str, rejected: str) -> dict[str, list[dict[str, str]]]:
    """`{"prompt", "chosen", "rejected"}`, each a list of one message."""
    return {
        "prompt": [{"role": "user", "content": IMAGE_PLACEHOLDER + question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def split_pair(pair: dict[str, list[dict[str, str]]]) -> tuple[str, str, str]:
    """The question, the right answer and the wrong one of what `make_pair` made."""
    question, chosen, rejected = (pair[name][0]["content"] for name in ("prompt", "chosen", "rejected"))
    return question.removeprefix(IMAGE_PLACEHOLDER), chosen, rejected
