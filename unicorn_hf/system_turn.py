"""A system turn for a chat template that has none, such as Gemma's."""

from collections.abc import Callable


def has_system_role(render: Callable[[list[dict]], str]) -> bool:
    """Whether a chat template, which `render` applies, writes what a system turn says.

    Gemma's raises, and others leave it out.
    """
    from jinja2 import TemplateError

    rules = "Be brief."
    try:
        return rules in render([{"role": "system", "content": rules}, {"role": "user", "content": "?"}])
    except TemplateError:
        return False


def system_to_user(messages: list[dict]) -> list[dict]:
    """A leading system turn in front of the user's first words, where Gemma 3's own template puts it."""
    if [turn["role"] for turn in messages[:2]] != ["system", "user"]:
        return messages
    system, user, *others = messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]
