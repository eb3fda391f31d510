"""System turns for chat templates without a system role, such as Gemma's."""

from collections.abc import Callable


def has_system_role(render: Callable[[list[dict]], str]) -> bool:
    """Whether a chat template, applied by `render`, writes the content of a system turn.

    Gemma's template raises an error; others leave the content out.
    """
    from jinja2 import TemplateError

    rules = "Be brief."
    try:
        return rules in render([{"role": "system", "content": rules}, {"role": "user", "content": "?"}])
    except TemplateError:
        return False


def system_to_user(messages: list[dict]) -> list[dict]:
    """Move the content of a leading system turn to the front of the user's first turn, as Gemma 3's template does."""
    if [turn["role"] for turn in messages[:2]] != ["system", "user"]:
        return messages
    system, user, *others = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]
