"""Choose the chat template so that a model is asked in the same way as it was trained.

With some templates, the text before an answer in training differs from the generation prompt. Qwen3's template puts an
empty thought before the last answer, but into the generation prompt only with `enable_thinking=False`.
"""

import logging

from unicorn_hf.errors import InputError

# A prefix for templates: the model thinks only if asked to.
WITHOUT_THINKING = "{%- set enable_thinking = enable_thinking | default(false) %}"
_CHAT = [
    {"role": "user", "content": "what comes first"},
    {"role": "assistant", "content": "one comes first"},
    {"role": "user", "content": "what comes second"},
    {"role": "assistant", "content": "two comes second"},
]

logger = logging.getLogger(__name__)


def settle_chat_template(processor) -> tuple[str, bool]:
    """Give a processor a chat template whose generation prompts equal the text before the answers in training.

    The candidates are its own template, TRL's training version of it, and both without thinking. The one with the least
    text between prompt and answer, over all turns, is chosen. The processor is changed in place, so saving it saves the
    choice, and everything that uses it asks in the trained way.

    Returns:
        the template of the training data, and whether it marks the assistant's tokens with {% generation %}.

    Raises:
        InputError: there is no template; it fails on a question; it leaves out text; or its generation prompt does not
            occur in the training text.
    """
    tokenizer = processor.tokenizer
    if tokenizer.chat_template is None:
        raise InputError("The tokenizer has no chat template; set `tokenizer.chat_template` and save it")
    given = tokenizer.get_chat_template()  # the default one, if there are several
    own = given.removeprefix(WITHOUT_THINKING)
    try:
        training, is_marked = _training_version(tokenizer, own)
        pairs = [(own, training), (training, training)]
        if "enable_thinking" in own:
            quiet = [(WITHOUT_THINKING + asking, WITHOUT_THINKING + learnt) for asking, learnt in pairs]
            pairs = [pairs[0], quiet[0], pairs[1], quiet[1]]
        between = [_written_between(tokenizer, *pair) for pair in pairs]
    except Exception as error:  # a template is a program and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"The tokenizer's chat template cannot write a question ({reason}); correct it") from error
    fitting = [(len(texts), pair) for texts, pair in zip(between, pairs, strict=True) if texts is not None]
    if not fitting:
        raise InputError(_reason(tokenizer, own, training))
    _, (asking, learnt) = min(fitting, key=lambda each: each[0])
    if asking != given:
        logger.warning(
            "The chat template is saved in the trained version"
            + (": without thinking, unless enable_thinking=True" if asking.startswith(WITHOUT_THINKING) else "")
        )
        several = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
        processor.chat_template = tokenizer.chat_template = {**several, "default": asking} if several else asking
    return learnt, is_marked


def stop_at_the_end_of_a_turn(model, processor) -> None:
    """Let `generate` stop at the token that ends an answer in the training text. In place.

    A base model stops at the end of a text, such as `<|endoftext|>`, but learns to end its answers with another token,
    such as `<|im_end|>`. The template itself may leave that out after the last answer, as GLM-4's does.
    """
    tokenizer = processor.tokenizer
    try:
        learnt, _ = _training_version(tokenizer, tokenizer.get_chat_template().removeprefix(WITHOUT_THINKING))
        text = tokenizer.apply_chat_template(_CHAT, chat_template=learnt, tokenize=False)
    except Exception:  # there is no template, or it fails; stage 1 does not need one
        return
    _, said, behind = text.rpartition(_CHAT[-1]["content"])
    tokens = tokenizer(behind.strip(), add_special_tokens=False)["input_ids"] if said else []
    if not tokens or tokens[0] not in tokenizer.added_tokens_decoder:
        logger.warning("The chat template ends an answer without a token of its own: the model may not stop by itself")
        return
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if tokens[0] not in ends:
        config.eos_token_id = [tokens[0], *(end for end in ends if end is not None)]


def _training_version(tokenizer, template: str) -> tuple[str, bool]:
    """TRL's training version of a template, or the template itself, and whether it has {% generation %} marks."""
    from trl.chat_template_utils import get_training_chat_template

    kept = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        return get_training_chat_template(processing_class=tokenizer) or template, True
    except ValueError:
        return template, False
    finally:
        tokenizer.chat_template = kept


def _written_between(tokenizer, asking: str, learnt: str) -> str | None:
    """The training text between the generation prompts and the answers; None if a prompt does not occur in it."""
    text = tokenizer.apply_chat_template(_CHAT, chat_template=learnt, tokenize=False)
    between = ""
    for index, turn in enumerate(_CHAT):
        if turn["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(
            _CHAT[:index], chat_template=asking, tokenize=False, add_generation_prompt=True
        )
        if not text.startswith(prompt) or _CHAT[index - 1]["content"] not in prompt:
            return None
        lead, said, _ = text[len(prompt) :].partition(turn["content"])
        if not said:
            return None
        between += lead
    return between


def _reason(tokenizer, own: str, training: str) -> str:
    text = tokenizer.apply_chat_template(_CHAT, chat_template=training, tokenize=False)
    if any(turn["content"] not in text for turn in _CHAT):
        return (
            "The tokenizer's chat template does not write the content of a plain text turn; set one that does"
            " (`tokenizer.chat_template`, or --chat_template_path)"
        )
    prompt = tokenizer.apply_chat_template(_CHAT[:1], chat_template=own, tokenize=False, add_generation_prompt=True)
    return (
        f"The generation prompt of the tokenizer's chat template, {prompt[-60:]!r}, does not occur before the answers"
        " in the training text, or the template writes a turn differently once another follows and has no {% generation"
        " %} marks: the model would be asked in a way it has not learnt. Set a template whose generation prompt equals"
        " the text before its answers (`tokenizer.chat_template`, or --chat_template_path)"
    )
