"""Makes text from seeds and language models harmless: it is data, never part of a prompt's format."""

import re
import unicodedata

# What chat templates, image processors and tokenizers of the common model families read as markup.
_PROMPT_TOKENS = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|\[/?INST\]|</?SYS>"
    r"|</?(?:image|img|video|audio|s|bos|eos|pad|unk|mask|think|system|user|assistant|tool_call|tool_response"
    r"|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|im_start|im_end|fim_[a-z]+)>",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[<>|｜\[\]/]")
# Controls but the line feed, invisible marks that reorder or hide text, and halves of surrogate pairs.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def neutralise(text: str, max_chars: int) -> str:
    """`text` in NFC, without control characters and prompt-format tokens, of at most `max_chars` characters.

    A token such as `<|im_start|>` or `<image>` keeps its word and loses its brackets.
    """
    text = unicodedata.normalize("NFC", _CONTROLS.sub(" ", text[:max_chars]))[:max_chars]
    while True:  # taking one token out may leave another behind: <|<image>im_start|>
        text, found = _PROMPT_TOKENS.subn(lambda match: _MARKUP.sub("", match[0]), text)
        if not found:
            return text.strip()


def one_line(text: str, max_chars: int) -> str:
    """`neutralise`, and white space folded to single spaces."""
    return " ".join(neutralise(text, max_chars).split())
