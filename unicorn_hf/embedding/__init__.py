"""The step between text, or pictures, and vectors of one contrastive space."""

from unicorn_hf.embedding.encoder import Encoder
from unicorn_hf.embedding.encoders import load_encoder
from unicorn_hf.embedding.job import EmbeddingJob
from unicorn_hf.embedding.step import embed

__all__ = ["EmbeddingJob", "Encoder", "embed", "load_encoder"]
