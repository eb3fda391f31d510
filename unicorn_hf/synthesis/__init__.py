"""Stages 1 and 2: seeds -> captions -> conversations."""

from unicorn_hf.synthesis.captions import write_captions
from unicorn_hf.synthesis.grammar import GrammarWriter
from unicorn_hf.synthesis.instructions import write_instructions
from unicorn_hf.synthesis.seeds import read_seeds

__all__ = ["GrammarWriter", "read_seeds", "write_captions", "write_instructions"]
