import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.request_options import OptionSearch, RequestOptions, check_options, first_options

ALL = [
    RequestOptions(*chosen)
    for chosen in itertools.product(
        ("max_tokens", "max_completion_tokens", None),
        ("json_schema", "json_object", None),
        (True, False),
        (True, False),
    )
]
NAMES = ("token_limit", "response_format", "temperature", "seed")
FIELDS = {
    "token_limit": "max_tokens",
    "response_format": "response_format",
    "temperature": "temperature",
    "seed": "seed",
}


def search(takes, words, fixed=None, most=36):
    """(what went through or None, number of tries) of a search against a server."""
    looking = OptionSearch(first_options(fixed or {}), fixed or {}, most)
    for tries in range(1, 100):
        if takes(looking.options):
            return looking.options, tries
        if not looking.refused(words(looking.options)):
            return None, tries


@settings(max_examples=150, deadline=None)
@given(st.sets(st.sampled_from(ALL)), st.sampled_from(["", "Bad request", "seed", "max_tokens temperature schema"]))
def test_a_search_ends_with_what_the_server_takes_whatever_it_says(taken, words):
    found, tries = search(lambda options: options in taken, lambda options: words)
    assert (found in taken) if taken else (found is None)
    assert tries <= 36


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({name: st.booleans() for name in NAMES}), st.booleans())
def test_what_a_refusal_names_is_changed_first_and_the_rest_is_kept(refused, all_at_once):
    usual = RequestOptions()

    def culprits(options):
        return [name for name in NAMES if refused[name] and getattr(options, name) == getattr(usual, name)]

    def words(options):
        named = culprits(options) if all_at_once else culprits(options)[:1]
        return " and ".join(FIELDS[name] for name in named) + " not supported"

    found, tries = search(lambda options: not culprits(options), words)
    for name in NAMES:
        assert (getattr(found, name) != getattr(usual, name)) == refused[name]
    assert tries <= 2 + 2 * sum(refused.values())


def test_what_the_user_has_set_is_never_changed():
    fixed = check_options("max_tokens", "none", None, True)
    found, _ = search(lambda options: not options.temperature, lambda options: "seed max_tokens", fixed)
    assert (found.token_limit, found.response_format, found.seed, found.temperature) == (
        "max_tokens",
        None,
        True,
        False,
    )


def test_an_option_that_is_none_is_named_with_those_that_are():
    with pytest.raises(InputError, match="response_format is 'yaml'; expected auto, json_schema, json_object, none"):
        check_options("auto", "yaml", None, None)


@pytest.mark.parametrize(
    "words",
    [
        "System role not supported",
        '{"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/..."}}',
        "This model does not support system messages",
    ],
)
def test_a_server_whose_template_has_no_system_turn_gets_its_words_with_the_question(words):
    found, tries = search(lambda options: not options.system_role, lambda options: words)
    assert found == RequestOptions(system_role=False)
    assert tries == 2
