"""Makes text from seeds and language models harmless: it is data, never part of a prompt's format."""

import re
import unicodedata

from unicorn_hf.data.markup import without_marks

# Controls but the line feed, invisible marks that reorder or hide text, and halves of surrogate pairs.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def neutralise(text: str, max_chars: int) -> str:
    """`text` in NFC, without control characters and the marks of prompts, of at most `max_chars` characters."""
    text = unicodedata.normalize("NFC", _CONTROLS.sub(" ", text[:max_chars]))[:max_chars]
    return without_marks(text).strip()


def one_line(text: str, max_chars: int) -> str:
    """`neutralise`, and white space folded to single spaces."""
    return " ".join(neutralise(text, max_chars).split())
