"""The length of a caption in CLIP's tokens: its text encoder reads at most 77."""

import functools
import gzip
import importlib.util
from pathlib import Path


def count_tokens(text: str) -> int:
    """The number of CLIP tokens of `text`, start and end included.

    Exact where open_clip is installed (its vocabulary is read, the package is not imported); else an upper estimate of
    1.5 tokens a word and one a digit or mark.
    """
    tokenizer = _clip_tokenizer()
    if tokenizer is not None:
        return len(tokenizer.encode(text).ids)
    words = text.split()
    return 2 + int(1.5 * len(words)) + sum(not character.isalpha() for word in words for character in word)


@functools.cache
def _clip_tokenizer():
    found = importlib.util.find_spec("open_clip")
    if found is None:
        return None
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.models.clip import CLIPTokenizer

    packed = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    characters = list(bytes_to_unicode().values())
    assert set(characters) == set(ByteLevel.alphabet())
    tokens = [*characters, *(character + "</w>" for character in characters), *("".join(m.split()) for m in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[tuple(merge.split()) for merge in merges]).backend_tokenizer
