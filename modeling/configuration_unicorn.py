"""Unicorn model configuration."""

import copy
import re
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


@strict
class UnicornConfig(PreTrainedConfig):
    """A language model that reads images as vectors of a contrastive image-text space (arXiv 2503.22655, 2602.07026).

    Args:
        text_config: the language model's configuration; any causal LM that `AutoModel` knows.
        vision_config: the image tower's configuration (CLIP, SigLIP, SigLIP 2), for a model that takes `pixel_values`.
            Its output must have `embed_dim` dimensions. `None` means that the model only takes `image_embeds`.
        embed_dim: dimension of an image vector.
        num_image_tokens: the number of language model tokens per image.
        projector_type: `linear`, or `mlp{n}x_gelu`: n linear layers with GELU between them.
        projector_expand: `split` projects one vector to `num_image_tokens` different tokens; `copy` projects it once
            and repeats the result (the released Unicorn's layout, with 576 copies).
        normalize_image_embeds: first scale every image vector to unit length, so that the raw output of a tower and
            stored unit vectors are treated the same.
        image_token_id: the id of the placeholder `<image>`, which occurs `num_image_tokens` times per image.
        image_encoder: the name of the encoder whose vectors the model was trained on.
        transfer: the transfer that made those vectors from text vectors (`realign`, `mean_shift`, ...).
        lm_head_bias: whether the language model's head has a bias (Phi-1 and Phi-2, GPT-J).
        tie_word_embeddings: whether `lm_head` is the input embedding; the language model's own setting by default.
    """

    model_type = "unicorn"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}  # noqa: RUF012, the base class declares it

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    embed_dim: int = 1280
    num_image_tokens: int = 1
    projector_type: str = "mlp2x_gelu"
    projector_expand: Literal["split", "copy"] = "split"
    normalize_image_embeds: bool = True
    image_token_id: int | None = None
    image_encoder: str | None = None
    transfer: str | None = None
    lm_head_bias: bool = False
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config({} if self.text_config is None else self.text_config, "llama")
        if self.vision_config is not None:
            self.vision_config = _sub_config(self.vision_config, "clip_vision_model")
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size - 1

    def validate_architecture(self):
        """Part of the validation that `@strict` runs."""
        if self.embed_dim < 1 or self.num_image_tokens < 1:
            raise ValueError(
                f"embed_dim and num_image_tokens must be at least 1, got {self.embed_dim} and {self.num_image_tokens}"
            )
        if self.projector_type != "linear" and not re.fullmatch(r"mlp[1-9]\d*x_gelu", self.projector_type):
            raise ValueError(
                f"projector_type is {self.projector_type!r}; expected 'linear' or 'mlp2x_gelu', 'mlp3x_gelu', …"
            )
        if self.vision_config is not None:
            self.check_vision_config(self.vision_config)

    def check_vision_config(self, vision_config: PreTrainedConfig) -> None:
        """Raise `ValueError` unless this image tower's vectors have `embed_dim` dimensions."""
        # CLIP towers project their hidden size to `projection_dim`; the other towers have no projection.
        dim = getattr(vision_config, "projection_dim", None) or vision_config.hidden_size
        if dim != self.embed_dim:
            raise ValueError(
                f"The image tower {vision_config.name_or_path!r} gives vectors of {dim} dimensions, but embed_dim is"
                f" {self.embed_dim} (vectors of the encoder {self.image_encoder!r})"
            )

    @property
    def num_projector_layers(self) -> int:
        return 1 if self.projector_type == "linear" else int(re.findall(r"\d+", self.projector_type)[0])

    @classmethod
    def from_text_config(
        cls, text_config, embed_dim: int, image_token_id: int | None = None, **kwargs
    ) -> "UnicornConfig":
        """The configuration of a model over the language model `text_config`, which is copied.

        If `image_token_id` is missing or lies just after the vocabulary, the vocabulary grows by that token.
        """
        text_config = _sub_config(copy.deepcopy(text_config), "llama")
        if image_token_id is None:
            image_token_id = text_config.vocab_size
        text_config.vocab_size = max(text_config.vocab_size, image_token_id + 1)
        return cls(text_config=text_config, embed_dim=embed_dim, image_token_id=image_token_id, **kwargs)


def _sub_config(config: dict | PreTrainedConfig, default_type: str) -> PreTrainedConfig:
    return AutoConfig.for_model(**{"model_type": default_type} | config) if isinstance(config, dict) else config


UnicornConfig.register_for_auto_class()

__all__ = ["UnicornConfig"]
