"""Which captions are kept, and why the others are not."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unicorn_hf.errors import InputError, require
from unicorn_hf.synthesis.answers import BadAnswer, is_refusal
from unicorn_hf.synthesis.caption_length import count_tokens

_CHATTER = re.compile(
    r"^\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|great|yes)\b[^\w\s]"
    r"|here(?:['’]s| is| are)\b.{0,40}\b(?:caption|description|sentence)"
    r"|(?:the |a |my )?(?:caption|description|answer|output)\s*:)"
    r"|\b(?:hope (?:this|that) helps|let me know|feel free to|would you like|as requested|based on your seed)\b",
    re.IGNORECASE,
)
_MARKDOWN = re.compile(
    r"^\s*(?:#{1,6} |[-*+] |\d+[.)] |> )|\*\*|__\w|`|\[[^\]]*\]\(|^\s*\||<[a-z/][^>]*>|\n\s*\n", re.MULTILINE
)
_NON_VISUAL = re.compile(
    # senses, thoughts and stories
    r"\b(?:i|we) (?:think|feel|believe|imagine|hear)\b|\byou (?:can|could|will|feel|hear|smell)\b|\bimagine\b"
    r"|\b(?:sounds?|scents?|smells?|aromas?|noises?|melody|tastes?) of\b|\bsymboli[sz]|\brepresents? the\b"
    r"|\bevok(?:es|ing)\b|\bmetaphor|\bonce upon a time\b|\b(?:this|the) (?:caption|seed|prompt|description)\b"
    r"|https?://|\bwww\.|@\w+"
    # history: years of it, and what happened then
    r"|\b(?:year|decade|century)s?[- ](?:of )?(?:long )?(?:history|experience|tradition|heritage|service|career)\b"
    r"|\b(?:years|decades|centuries) of (?:history|experience|tradition|heritage|service|practice|use|work)\b"
    r"|\b(?:long|rich|storied|proud|its|his|her|their) (?:history|heritage|legacy|tradition)\b"
    r"|\bhas (?:a|an) (?:[\w-]+ ){0,3}(?:history|legacy|tradition|reputation)\b"
    r"|\b(?:years?|decades?|centuries|months?|weeks?) ago\b|\bdat(?:es|ing) (?:back|from)\b"
    r"|\b(?:since|until|as of) (?:the )?(?:early |late |mid-?)?(?:1[0-9]|20)\d\ds?\b"
    r"|\b(?:built|founded|established|opened|constructed|launched|released|introduced|invented|discovered|completed"
    r"|restored|renovated|designed|published|born|acquired|erected|inaugurated)\b[^.;,]{0,40}\b(?:1[0-9]|20)\d\d\b"
    r"|\b(?:was|were|is|are|been) (?:first |originally |recently )?(?:founded|established|invented|born)\b"
    r"|\b(?:for|over|in) (?:the )?(?:many|several|past|last|more than|over) (?:\w+ )?(?:years|decades|centuries)\b"
    r"|\b(?:last|next) (?:year|month|week)\b|\b(?:yesterday|tomorrow)\b"
    r"|\bon (?:mon|tues|wednes|thurs|fri|satur|sun)day\b"
    r"|\b(?:in|of|since|during) (?:january|february|march|april|may|june|july|august|september|october|november"
    r"|december) \d{1,4}\b|\bwill (?:soon |later |also )?(?:be|become|have|open|host|help)\b"
    # how the image or its subject was made, and from what data
    r"|\b(?:created|made|produced|generated|obtained|captured|taken|mapped|compiled|recorded|photographed|edited)"
    r" (?:by )?(?:using|by means of|with the help of|through)\b"
    r"|\b(?:aerial|satellite|geological|field|land|census|market|online) surveys?\b|\bsurvey data\b|\bdata ?sets?\b"
    r"|\b(?:created|generated|made|produced|edited) (?:by|with|in) (?:an? )?(?:software|artificial intelligence|ai"
    r"|photoshop|computer program|algorithm)\b|\b(?:all rights reserved|copyright|stock (?:photo|image)s?)\b"
    # fame, opinion and hearsay
    r"|\b(?:known|famous|famed|renowned|notable|noted|popular|celebrated) (?:for|as|among|by|worldwide)\b"
    r"|\b(?:is|are|was|were|been) (?:widely |often |generally )?(?:considered|believed|said|thought|regarded|reported"
    r"|rumou?red|estimated|expected|scheduled|supposed) (?:to|as|by|one|the|an?)\b|\baccording to\b"
    r"|\b(?:award-winning|best-?selling|world-(?:famous|renowned|class)|internationally acclaimed|must-see)\b"
    r"|\bone of the (?:\w+ )?(?:largest|oldest|most|best|first|biggest|finest|leading) [\w-]+ (?:\w+ )?in the"
    r" (?:world|country|region|city|state|industry)\b"
    r"|\bplays? an? (?:\w+ )?role\b|\bis (?:essential|crucial|vital|important) (?:for|to|in)\b"
    # trade and statistics
    r"|\b(?:affordable|cost-effective|free shipping|money-back|warranty|customer satisfaction|user-friendly)\b"
    r"|\bavailable (?:for|in) (?:purchase|stores|sale|rent|order|download|an? (?:range|variety)|various|several|many)\b"
    r"|\b(?:annual|total|gross|net) (?:revenue|sales|income|profit|turnover)\b|\bmarket share\b|\bper capita\b"
    r"|\bpopulation of\b|\b(?:per ?cent|\d ?%) of (?:the|all)\b"
    r"|\b(?:helps?|aims?|serves) to (?:improve|reduce|prevent|protect|promote|provide|raise|maintain|support)\b"
    r"|\b(?:provides?|offers?) (?:\w+ )?(?:services|solutions|courses|training|information|support)\b",
    re.IGNORECASE,
)
# Words that do not describe the content of a seed.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about above all an and are around as at back background be behind below between beside by during each for
        from has have her his image in inside into is it its near next of off on one onto or other out outside over
        photo photograph picture scene seen several some that the their there these this those through to toward two
        under up very view while who with""",
    )
)
# Languages written in Latin letters.
_LATIN = frozenset(
    re.findall(
        r"\w+", "en de fr es pt it nl da sv no nb nn fi pl cs sk hu ro tr id ms vi et lv lt sl hr bs ca eu gl is"
    )
)


@dataclass(frozen=True)
class CaptionFilters:
    """The requirements for a caption.

    Args:
        max_tokens: CLIP tokens, start and end included; 77 is what CLIP's text encoder reads. Long captions can hurt
            ("long-caption paradox", ReVision), so try shorter limits.
        min_words: fewest words.
        language: code of the language, or None for any. py3langid detects other languages.
        seed_share: the share of the seed's content words that the caption must take up, by their first letters.
        forbidden_words: words that no caption may hold, whole and in any case.
    """

    max_tokens: int = 77
    min_words: int = 4
    language: str | None = "en"
    seed_share: float = 0.3
    forbidden_words: Sequence[str] = ()

    def check(self, caption: str, seed: str) -> None:
        """Raise `BadAnswer` with a reason if a caption is rejected."""
        if is_refusal(caption):
            raise BadAnswer("refusal", "the caption is a refusal")
        if _CHATTER.search(caption):
            raise BadAnswer("chatter", "the caption speaks to a reader; give the caption alone")
        if _MARKDOWN.search(caption):
            raise BadAnswer("markdown", "the caption holds markdown; give plain text")
        num_words = len(caption.split())
        # Languages without spaces between words are judged by their characters.
        if num_words < self.min_words and len(caption) < 4 * self.min_words:
            raise BadAnswer("too_short", f"the caption has {num_words} words; expected at least {self.min_words}")
        num_tokens = count_tokens(caption)
        if num_tokens > self.max_tokens:
            raise BadAnswer("too_long", f"the caption has {num_tokens} tokens; expected at most {self.max_tokens}")
        if _NON_VISUAL.search(caption):
            raise BadAnswer("non_visual", "the caption says more than a camera sees")
        if self.forbidden_words and (found := self._forbidden.search(caption)):
            raise BadAnswer("forbidden_word", f"the caption holds the word {found[0]!r}")
        if self.language and not _in_language(caption, self.language):
            raise BadAnswer("wrong_language", f"the caption is not in the language {self.language!r}")
        if repeats_seed(caption, seed):
            raise BadAnswer("repeats_seed", "the caption adds nothing to the seed; say more of what a camera would see")
        share = seed_share(caption, seed)
        if share < self.seed_share:
            raise BadAnswer("seed_not_reflected", "the caption leaves out what the seed names")

    @functools.cached_property
    def _forbidden(self) -> re.Pattern:
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, self.forbidden_words))})\b", re.IGNORECASE)


def read_word_list(path) -> tuple[str, ...]:
    """The words of a text file, one a line; lines that begin with # are comments.

    Raises:
        InputError: the file cannot be read, or holds no word.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a text file with one word a line") from error
    words = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not words:
        raise InputError(f"{path}: holds no word; expected one a line")
    return words


def seed_share(caption: str, seed: str) -> float:
    """The share of a seed's content words that a caption holds in some form; 1 if the seed has none."""
    named = {word for word in _words(seed) if word not in _STOP_WORDS}
    if not named:
        return 1.0
    held = set(_words(caption))
    text = caption.lower()
    # In languages without spaces between words, look for the text itself.
    return sum(
        word in held or (not word.isascii() and word in text) or any(_alike(word, other) for other in held)
        for word in named
    ) / len(named)


def repeats_seed(caption: str, seed: str) -> bool:
    """Whether a caption only repeats its seed, apart from order, punctuation, articles and word endings."""
    said, named = _words(caption), _words(seed)
    if sorted("".join(said)) == sorted("".join(named)) or set(said) <= set(named):
        return True
    telling, asked = set(said) - _STOP_WORDS, set(named) - _STOP_WORDS
    return bool(asked) and _all_alike(telling, asked) and _all_alike(asked, telling)


def _all_alike(words: set[str], others: set[str]) -> bool:
    return all(word in others or any(_alike(word, other) for other in others) for word in words)


def check_language(language: str | None) -> None:
    """Raise if a language cannot be detected."""
    if language is not None:
        require("py3langid", "synthesis")
        if language not in _identifier().labels:
            raise InputError(f"language {language!r}: py3langid does not know it; name another, or turn it off")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def _alike(word: str, other: str) -> bool:
    """Whether two words differ only in their ending: dog and dogs, runs and running."""
    length = max(3, min(len(word), len(other)) - 1)
    return len(word) >= length <= len(other) and word[:length] == other[:length]


def _in_language(text: str, language: str) -> bool:
    found, confidence = _identifier().classify(text)
    # The detection is weak for short texts, so only a sure result counts. Another script is always sure.
    return found == language or (confidence < 0.9 and (language not in _LATIN or _is_latin(text)))


def _is_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return sum(character < "\u0250" or "\u1e00" <= character < "\u1f00" for character in letters) > len(letters) / 2


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
