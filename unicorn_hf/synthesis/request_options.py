"""Finds the optional fields of a chat completion that a server accepts, from its error messages.

Servers refuse requests in many wordings and with many statuses, and most name one field at a time. So a refused request
is sent again with one field after another changed or left out, named fields first, until the server accepts one.
"""

import dataclasses
import itertools
import re
from dataclasses import dataclass

from unicorn_hf.errors import InputError
from unicorn_hf.system_turn import system_to_user


@dataclass(frozen=True)
class RequestOptions:
    """The name of the token limit, the form of the schema, and whether temperature and seed are sent; None: not sent.

    Without `system_role`, the system turn's text is put in front of the user's text, as for Gemma.
    """

    token_limit: str | None = "max_tokens"
    response_format: str | None = "json_schema"
    temperature: bool = True
    seed: bool = True
    system_role: bool = True

    def messages(self, prompt) -> list[dict]:
        return prompt.messages if self.system_role else system_to_user(prompt.messages)

    def body(self, prompt, temperature: float) -> dict:
        """The fields of a request."""
        fields = {self.token_limit: prompt.max_tokens} if self.token_limit else {}
        if self.response_format == "json_schema":
            fields["response_format"] = {"type": "json_schema", "json_schema": prompt.schema}
        elif self.response_format:
            fields["response_format"] = {"type": self.response_format}
        return (
            fields
            | ({"temperature": temperature} if self.temperature else {})
            | ({"seed": prompt.seed} if self.seed else {})
        )

    def named_in(self, words: str) -> list[str]:
        """The sent options that the message of a server names."""
        return [name for name in _VALUES if getattr(self, name) and _NAMES[name].search(words)]

    def __str__(self):
        switches = [f"{'' if getattr(self, name) else 'no '}{name}" for name in ("temperature", "seed")]
        switches += [] if self.system_role else ["no system turn"]
        return ", ".join(
            [self.token_limit or "no limit of tokens", f"response_format {self.response_format or 'none'}", *switches]
        )


# Every value of an option, and its cost: the cheapest change is tried first.
_VALUES: dict[str, dict] = {
    "token_limit": {"max_tokens": 0, "max_completion_tokens": 1, None: 6},
    "response_format": {"json_schema": 0, "json_object": 2, None: 4},
    "temperature": {True: 0, False: 2.5},
    "seed": {True: 0, False: 1.5},
    "system_role": {True: 0, False: 0.5},
}
_NAMES = {
    "token_limit": re.compile(r"\bmax_(?:completion_|new_|output_)?tokens\b", re.IGNORECASE),
    "response_format": re.compile(
        r"response[_ -]?format|json[_ -]?(?:schema|object|mode)|schema|structured|guided|grammar|\bjson\b",
        re.IGNORECASE,
    ),
    "temperature": re.compile(r"temperature|sampling", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b", re.IGNORECASE),
    "system_role": re.compile(r"system[ _-]?(?:role|message|prompt|turn)|\broles? must\b", re.IGNORECASE),
}


class OptionSearch:
    """The search from a refused set of options to an accepted one.

    Args:
        first: what is tried first.
        fixed: option -> value that the user has set; the search does not change it.
        most: the most tries.
    """

    def __init__(self, first: RequestOptions, fixed: dict, most: int):
        self.options, self._fixed, self._left = first, fixed, most - 1
        self._refused: list[tuple[RequestOptions, list[str]]] = []  # with the ones that the refusal named

    def refused(self, words: str) -> bool:
        """Note a refusal; False if nothing is left to try. `options` is what to send next.

        Args:
            words: the server's whole message, such as the body of its answer.
        """
        named = [name for name in self.options.named_in(words) if name not in self._fixed]
        self._refused.append((self.options, named))
        tried = {options for options, _ in self._refused}
        # The system turn is only left out if the server has named it.
        roles = [True, False] if any("system_role" in named for _, named in self._refused) else [True]
        left = [options for options in _all_options(self._fixed, roles) if options not in tried]
        if not left or self._left < 1:
            return False
        self._left -= 1
        # First all named options are changed, then some: a misleading message must not end the search.
        changed = [[_num_changed(options, *refusal) for refusal in self._refused] for options in left]
        for enough in (lambda count, named: count == len(named), lambda count, named: count > 0 or not named):
            likely = [
                options
                for options, counts in zip(left, changed, strict=True)
                if all(enough(count, named) for count, (_, named) in zip(counts, self._refused, strict=True))
            ]
            if likely:
                break
        self.options = min(likely or left, key=_loss)
        return True


def first_options(fixed: dict) -> RequestOptions:
    return dataclasses.replace(RequestOptions(), **fixed)


def check_options(
    token_limit: str, response_format: str, send_temperature: bool | None, send_seed: bool | None
) -> dict:
    """The options that a user has set, by name; "auto" and None leave an option open.

    Raises:
        InputError: an unknown value.
    """
    fixed = {}
    for name, value in (("token_limit", token_limit), ("response_format", response_format)):
        values = {"none" if known is None else known: known for known in _VALUES[name]}
        if value != "auto":
            if value not in values:
                raise InputError(f"{name} is {value!r}; expected auto, {', '.join(values)}")
            fixed[name] = values[value]
    switches = {"temperature": send_temperature, "seed": send_seed}
    return fixed | {name: value for name, value in switches.items() if value is not None}


def _all_options(fixed: dict, system_roles: list[bool]) -> list[RequestOptions]:
    known = {name: list(values) for name, values in _VALUES.items()} | {"system_role": system_roles}
    values = ([fixed[name]] if name in fixed else known[name] for name in known)
    return [RequestOptions(*chosen) for chosen in itertools.product(*values)]


def _num_changed(options: RequestOptions, refused: RequestOptions, named: list[str]) -> int:
    return sum(getattr(options, name) != getattr(refused, name) for name in named)


def _loss(options: RequestOptions) -> float:
    return sum(values[getattr(options, name)] for name, values in _VALUES.items())
