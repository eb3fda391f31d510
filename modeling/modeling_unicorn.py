"""PyTorch Unicorn model: a language model that reads each image as one vector of a contrastive image-text space."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, ModelCardData
from torch import nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModelWithProjection,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, find_adapter_config_file, logging
from transformers.utils.generic import can_return_tuple

from .configuration_unicorn import UnicornConfig

IMAGE_TOKEN = "<image>"
# The inputs of a batch that describe images: one row per image, in the order of the placeholders across the prompts.
IMAGE_INPUTS = ("image_embeds", "pixel_values", "pixel_attention_mask", "spatial_shapes")

_PUSH_KWARGS = ("repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description")
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")

# The language models whose logits are compared with those of transformers' own models (tests/modeling).
LANGUAGE_MODELS = frozenset(
    """
    arcee bitnet bloom cohere cohere2 ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 gpt2
    gpt_bigcode gpt_neox gpt_oss granite granitemoe helium lfm2 llama llama4_text ministral
    ministral3 mistral mixtral nemotron olmo olmo2 olmo3 olmoe opt phi phi3 qwen2 qwen2_moe qwen3
    qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3 stablelm starcoder2
    """.split()  # noqa: SIM905
)


@dataclass
class UnicornModelOutputWithPast(BaseModelOutputWithPast):
    """`image_hidden_states`: the projected images, `[num_images, num_image_tokens, hidden_size]`."""

    image_hidden_states: torch.FloatTensor | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None  # of a mixture of experts


@dataclass
class UnicornCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`logits`: `[batch_size, sequence_length, vocab_size]`; `image_hidden_states`: as `UnicornModelOutputWithPast`."""

    image_hidden_states: torch.FloatTensor | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None


class UnicornImageConditioner(nn.Module):
    """Condition image vectors, synthetic or real, before the projector: `[num_images, embed_dim]` to the same shape.

    A vector is normalized (if configured), then centred and scaled by fixed statistics.
    """

    image_embeds_mean: torch.Tensor
    image_embeds_scale: torch.Tensor

    def __init__(self, config: UnicornConfig):
        super().__init__()
        self.normalize = config.normalize_image_embeds
        self.register_buffer("image_embeds_mean", torch.zeros(config.embed_dim, dtype=torch.float32))
        self.register_buffer("image_embeds_scale", torch.ones(config.embed_dim, dtype=torch.float32))

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        # Always float32: half precision would lose the small differences between vectors and their mean.
        image_embeds = image_embeds.to(self.image_embeds_mean.device, torch.float32)  # [num_images, embed_dim]
        _check(torch.isfinite(image_embeds).all(), lambda: _non_finite_message(image_embeds))
        if self.normalize:
            image_embeds = F.normalize(image_embeds, dim=-1)
        return (image_embeds - self.image_embeds_mean.float()) * self.image_embeds_scale.float()


class UnicornMultiModalProjector(nn.Module):
    """Project image vectors `[num_images, embed_dim]` to tokens `[num_images, num_image_tokens, hidden_size]`."""

    def __init__(self, config: UnicornConfig):
        super().__init__()
        self.num_image_tokens = config.num_image_tokens
        self.expand = config.projector_expand
        hidden_size = config.text_config.hidden_size
        sizes = [config.embed_dim] + [hidden_size] * config.num_projector_layers
        if self.expand == "split":  # the last layer writes all tokens of an image side by side
            sizes[-1] *= config.num_image_tokens
        layers = []
        for in_features, out_features in itertools.pairwise(sizes):
            layers += [nn.Linear(in_features, out_features), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        # "copy": [num_images, hidden_size]; "split": [num_images, num_image_tokens * hidden_size]
        projected = self.layers(image_embeds.to(self.layers[0].weight.dtype))
        if self.expand == "copy":
            return projected[:, None].expand(-1, self.num_image_tokens, -1)
        return projected.unflatten(-1, (self.num_image_tokens, -1))


class UnicornPreTrainedModel(PreTrainedModel):
    config: UnicornConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["UnicornImageConditioner", "UnicornMultiModalProjector"]  # noqa: RUF012, the base class declares it
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The projector is trained from scratch and small. This entry also protects it from quantisation.
    _keep_in_fp32_modules = ["multi_modal_projector", "model.multi_modal_projector"]  # noqa: RUF012
    # These few statistics stay float32 even in half precision: rounding them would shift every image vector.
    _keep_in_fp32_modules_strict = ["image_conditioner"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, UnicornImageConditioner):
            init.zeros_(module.image_embeds_mean)
            init.ones_(module.image_embeds_scale)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if (tower := model.base_model.vision_tower) is not None:
            tower.requires_grad_(False)  # loading creates new parameters, which are trainable by default
        return loaded

    def load_adapter(self, peft_model_id=None, adapter_name=None, *args, adapter_kwargs=None, **kwargs):
        """As `PreTrainedModel.load_adapter`, but loads all weights of the adapter, and its generation config."""
        if adapter_kwargs is not None:
            kwargs["adapter_kwargs"] = adapter_kwargs
        loaded = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        if peft_model_id is not None:
            hub_kwargs = {key: value for key, value in (adapter_kwargs or {}).items() if key in _HUB_KWARGS}
            _load_whole_adapter(self, peft_model_id, adapter_name or "default", hub_kwargs)
            if self.can_generate():
                with contextlib.suppress(OSError):  # it has none
                    self.generation_config = GenerationConfig.from_pretrained(peft_model_id, **hub_kwargs)
        return loaded

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As `PreTrainedModel.save_pretrained`; also writes a model card if the folder has none."""
        # transformers by itself would write only the entry of the saved class.
        self.config.auto_map = {
            "AutoConfig": "configuration_unicorn.UnicornConfig",
            "AutoModel": "modeling_unicorn.UnicornModel",
            "AutoModelForImageTextToText": "modeling_unicorn.UnicornForConditionalGeneration",
        }
        hub_kwargs = {name: kwargs.pop(name) for name in _PUSH_KWARGS if name in kwargs} if push_to_hub else {}
        # Save weights under their names in this model, not under those of the language model's original checkpoint.
        super().save_pretrained(save_directory, *args, **{"save_original_format": False} | kwargs)
        folder = Path(save_directory)
        if not (folder / "config.json").exists():
            return  # in distributed training another rank saves
        if not (folder / "README.md").exists():
            (folder / "README.md").write_text(model_card(self.config, self.model_tags or []), encoding="utf-8")
        if push_to_hub:
            _upload(folder, hub_kwargs.pop("repo_id", folder.resolve().name), **hub_kwargs)

    def push_to_hub(self, repo_id: str, *, max_shard_size="50GB", tags=None, **kwargs):
        """As `PreTrainedModel.push_to_hub`; also uploads a model card if the repository has none."""
        self.add_model_tags([tags] if isinstance(tags, str) else tags or [])
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            return _upload(Path(folder), repo_id, **kwargs)

    def set_image_embeds_statistics(self, mean=None, scale=None) -> None:
        """Set the statistics that turn every image vector v into `(v - mean) * scale`.

        With `normalize_image_embeds`, v is normalized first.

        Args:
            mean: `[embed_dim]`, or a number; `None` keeps the current one.
            scale: `[embed_dim]`, or a number, such as one over the standard deviation; `None` keeps the current one.
        """
        for name, value in (("image_embeds_mean", mean), ("image_embeds_scale", scale)):
            if value is None:
                continue
            value, buffer = torch.as_tensor(value), getattr(self.base_model.image_conditioner, name)
            if value.dim() > 0 and value.shape != buffer.shape:
                raise ValueError(
                    f"{name} has shape {list(value.shape)}; expected [{self.config.embed_dim}] (embed_dim)"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite values")
            buffer.copy_(value)

    def get_image_embeds(
        self, pixel_values: torch.Tensor, pixel_attention_mask=None, spatial_shapes=None
    ) -> torch.Tensor:
        """The image tower's unnormalized vectors of images: `[num_images, embed_dim]`."""
        vision_tower: PreTrainedModel | None = self.base_model.vision_tower
        if vision_tower is None:
            raise ValueError(
                "This model has no image tower (vision_config is None), so it cannot read pixel_values: pass"
                f" image_embeds of the encoder {self.config.image_encoder!r}, or add a tower with `set_vision_tower`"
            )
        inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        outputs = vision_tower(pixel_values.to(vision_tower.device, vision_tower.dtype), **inputs)
        return outputs.image_embeds if hasattr(outputs, "image_embeds") else outputs.pooler_output

    def set_vision_tower(self, vision_tower: PreTrainedModel) -> None:
        """Add a frozen image tower, so that the model takes `pixel_values`.

        Args:
            vision_tower: `CLIPVisionModelWithProjection`, `SiglipVisionModel` or `Siglip2VisionModel`, from the encoder
                whose vectors the model was trained on.

        Raises:
            ValueError: its vectors do not have `embed_dim` dimensions.
        """
        self.config.check_vision_config(vision_tower.config)
        self.config.vision_config = vision_tower.config
        self.base_model.vision_tower = vision_tower.requires_grad_(False).to(self.device, self.dtype).eval()


class UnicornModel(UnicornPreTrainedModel):
    """Projector, language model without its head, and optionally an image tower."""

    def __init__(self, config: UnicornConfig):
        super().__init__(config)
        if config.text_config.model_type not in LANGUAGE_MODELS:
            raise ValueError(
                f"A {config.text_config.model_type} model cannot be the language model; expected a tested one:"
                f" {', '.join(sorted(LANGUAGE_MODELS))}"
            )
        self.vision_tower = None
        if config.vision_config is not None:
            # For CLIP, AutoModel would leave out the projection into the space shared with its text tower.
            is_clip = config.vision_config.model_type == "clip_vision_model"
            new_tower = CLIPVisionModelWithProjection if is_clip else AutoModel.from_config
            self.vision_tower = new_tower(config.vision_config).requires_grad_(False)
        self.image_conditioner = UnicornImageConditioner(config)
        self.multi_modal_projector = UnicornMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Images as tokens of the language model.

        Args:
            pixel_values: `[num_images, channels, height, width]`, for a model with an image tower.
            image_embeds: `[num_images, embed_dim]`, instead of `pixel_values`.

        Returns:
            `pooler_output`: `[num_images, num_image_tokens, hidden_size]`.
        """
        if image_embeds is None:
            image_embeds = self.get_image_embeds(pixel_values, pixel_attention_mask, spatial_shapes)
        if image_embeds.dim() != 2 or image_embeds.shape[-1] != self.config.embed_dim:
            raise ValueError(
                f"image_embeds has shape {list(image_embeds.shape)}; expected [num_images, {self.config.embed_dim}]"
                f" (this model reads vectors of the encoder {self.config.image_encoder!r})"
            )
        image_features = self.multi_modal_projector(self.image_conditioner(image_embeds))
        return BaseModelOutputWithPooling(pooler_output=image_features)

    def get_placeholder_mask(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """The positions of image placeholders in the prompts: bool `[batch_size, sequence_length]`."""
        if input_ids is not None:
            return input_ids.eq(self.config.image_token_id)
        # Without ids, a placeholder is recognised by its embedding.
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | UnicornModelOutputWithPast:
        """
        Args:
            input_ids: `[batch_size, sequence_length]`, with `num_image_tokens` placeholders per image.
            image_embeds: `[num_images, embed_dim]`, any float type, in the order of the placeholders across the batch.
            pixel_values: `[num_images, channels, height, width]`, instead of `image_embeds`, for the image tower.
            pixel_attention_mask, spatial_shapes: further inputs of SigLIP 2 (NaFlex).

        All other arguments are the language model's own. Raises `ValueError` if placeholders and images do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds")
        if image_embeds is not None and pixel_values is not None:
            raise ValueError("Got both image_embeds and pixel_values for the images: pass one of them")

        # [batch_size, sequence_length, hidden_size]
        text_embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        image_features = None  # [num_images, num_image_tokens, hidden_size]
        if image_embeds is not None or pixel_values is not None:
            image_features = self.get_image_features(
                pixel_values, image_embeds, pixel_attention_mask, spatial_shapes
            ).pooler_output.to(text_embeds.device, text_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds)
            _check_placeholders(mask, len(image_features), self.config.num_image_tokens)
            # Image tokens replace the placeholders one by one, in reading order.
            text_embeds = text_embeds.masked_scatter(mask[..., None], image_features)
        elif input_ids is not None and not torch.compiler.is_compiling() and not _has_past(kwargs):
            # A prompt without images must have no placeholders. Later generation steps have no images to compare with.
            _check_placeholders(self.get_placeholder_mask(input_ids, None), 0, self.config.num_image_tokens)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=text_embeds,
            **kwargs,
        )
        return UnicornModelOutputWithPast(**outputs, image_hidden_states=image_features)


class UnicornForConditionalGeneration(UnicornPreTrainedModel, GenerationMixin):
    """`UnicornModel` with the language model's head: reads images and text, writes text."""

    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: UnicornConfig):
        super().__init__(config)
        self.model = UnicornModel(config)
        text_config = config.text_config
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=config.lm_head_bias)
        # The path of the input embeddings depends on the language model, so it is looked up.
        embeddings = _name_of(self.get_input_embeddings(), self)
        self._tied_weights_keys = {"lm_head.weight": f"{embeddings}.weight"}
        self.generation_config.suppress_tokens = [config.image_token_id]
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls, pretrained_model_name_or_path, embed_dim: int, tokenizer=None, text_config=None, **kwargs
    ) -> "UnicornForConditionalGeneration":
        """A model with the weights of a pretrained language model and a new projector.

        Args:
            pretrained_model_name_or_path: a causal language model: a folder or an id on the Hub.
            embed_dim: dimension of the image vectors.
            tokenizer: its tokenizer, by default read from the same place. `<image>` is added if it is missing. If the
                vocabulary has no spare row, the embeddings then grow to the next multiple of 64.
            text_config: its configuration, by default read from the same place.
            kwargs: fields of `UnicornConfig`, and arguments of `from_pretrained` (`dtype`, `device_map`,
                `quantization_config`, `attn_implementation`, `revision`, ...).

        Raises:
            ValueError: weights are missing or of another shape, or the model type is not one of `LANGUAGE_MODELS`.
        """
        if "vision_config" in kwargs:
            raise ValueError(
                "A vision_config alone would make a tower with random weights: load a tower and call `set_vision_tower`"
            )
        name = pretrained_model_name_or_path
        hub_kwargs = {key: kwargs[key] for key in _HUB_KWARGS if key in kwargs}
        config_kwargs = {key: kwargs.pop(key) for key in UnicornConfig.__annotations__ if key in kwargs}
        adapter_kwargs = {key: value for key, value in hub_kwargs.items() if key != "trust_remote_code"}
        if find_adapter_config_file(name, **adapter_kwargs) is not None:
            raise ValueError(f"{name} is an adapter: merge it into its model first (peft's merge_and_unload)")
        tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs) if tokenizer is None else tokenizer
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, normalized=False, special=True), special_tokens=True)
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

        if text_config is None:
            text_config = AutoConfig.from_pretrained(name, **hub_kwargs).get_text_config(decoder=True)
        text_config.name_or_path = name
        with torch.device("meta"):
            causal_lm, decoder = (auto.from_config(text_config) for auto in (AutoModelForCausalLM, AutoModel))
        config = UnicornConfig(
            text_config=text_config,
            embed_dim=embed_dim,
            image_token_id=image_token_id,
            **{"lm_head_bias": causal_lm.get_output_embeddings().bias is not None} | config_kwargs,
        )
        with torch.device("meta"):
            new_projector = UnicornMultiModalProjector(config)
        num_new, num_old = sum(map(torch.numel, new_projector.parameters())), causal_lm.num_parameters()
        if num_new > max(num_old / 4, 1e8):
            raise ValueError(
                f"{config.num_image_tokens} different image tokens make a projector of {num_new / 1e9:.1f} billion"
                f" parameters for a language model of {num_old / 1e9:.1f} billion; ask for fewer (num_image_tokens), or"
                " for copies of one (projector_expand 'copy')"
            )
        # The names of decoder and head differ between the files of a causal LM, of a bare decoder, and of a multimodal
        # model (GPT-NeoX calls the head `embed_out`). Other parts of a multimodal model are left out.
        prefix = rf"(?:language_model\.|model\.|{causal_lm.base_model_prefix}\.)"
        parts = "|".join(name for name, _ in decoder.named_children())
        key_mapping = {
            rf"^{prefix}*(?=(?:{parts})\.)": "model.language_model.",
            r"^(?:language_model\.)?(?:lm_head|embed_out)\.": "lm_head.",
        }
        kwargs |= {"key_mapping": key_mapping, "output_loading_info": True, "ignore_mismatched_sizes": True}
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # otherwise transformers reports the new projector as missing weights
        try:
            model, info = cls.from_pretrained(name, config=config, **kwargs)
        finally:
            logging.set_verbosity(verbosity)
        if info["mismatched_keys"]:
            key, found, expected = min(info["mismatched_keys"])
            raise ValueError(f"{name}: the weight {key} has the shape {[*found]}; its config.json says {[*expected]}")
        missing = [key for key in info["missing_keys"] if key.startswith(("model.language_model.", "lm_head."))]
        if missing:
            raise ValueError(
                f"{name} lacks {len(missing)} weights of a {text_config.model_type} model, one is {missing[0]}"
            )
        if image_token_id >= text_config.vocab_size:
            model.resize_token_embeddings(image_token_id + 1, pad_to_multiple_of=64, mean_resizing=False)
        model.generation_config.suppress_tokens = [
            image_token_id,
            *range(len(tokenizer), model.config.text_config.vocab_size),
        ]
        return model

    def get_image_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | UnicornCausalLMOutputWithPast:
        """
        Args:
            labels: `[batch_size, sequence_length]`, token ids; the shift by one happens here. Positions with -100, with
                the image placeholder or masked by a two-dimensional `attention_mask` are not in the loss.
            logits_to_keep: compute logits only for this many last positions; 0 means all.

        All other arguments are those of `UnicornModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # [batch_size, kept positions, vocab_size]
        logits = _scale_logits(logits, self.config.text_config)
        loss = None
        if labels is not None:
            labels = labels.masked_fill(labels.eq(self.config.image_token_id), -100)
            if attention_mask is not None and attention_mask.shape == labels.shape:
                # Padding is not a target. The first token after left padding is not one either: it would be predicted
                # from padding.
                is_text = attention_mask.bool()
                labels = labels.masked_fill(~(is_text & F.pad(is_text[:, :-1], (1, 0), value=True)), -100)
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return UnicornCausalLMOutputWithPast(loss=loss, logits=logits, **others)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        cache=None,
        past_key_values=None,
        inputs_embeds=None,
        is_first_iteration=False,
        **kwargs,
    ):
        # `generate` passes a cache only if this signature has one of its two names (`cache` since transformers 5.24).
        caches = {"cache": cache, "past_key_values": past_key_values}
        kwargs |= {name: value for name, value in caches.items() if value is not None}
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if kwargs.get(name) is not None}
        # In assisted generation the assistant's prefill is not a first iteration, but its cache has no images yet.
        if is_first_iteration or not kwargs.get("use_cache", True) or not _has_past(kwargs):
            mask = self.model.get_placeholder_mask(None if inputs_embeds is not None else input_ids, inputs_embeds)
            images = _images_not_in_cache(images, mask, next_sequence_length, self.config.num_image_tokens)
            if not images and inputs_embeds is None:
                new = slice(-next_sequence_length if next_sequence_length is not None else None, None)
                _check_placeholders(mask[:, new], 0, self.config.num_image_tokens)
        else:
            images = {}
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return model_inputs | images

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if model_kwargs.get(name) is not None}
        if images and expand_size > 1:
            # Repeat the images of each prompt as a group, so that they keep the order of the placeholders.
            inputs_embeds = model_kwargs.get("inputs_embeds")
            mask = self.model.get_placeholder_mask(None if inputs_embeds is not None else input_ids, inputs_embeds)
            num_images = len(next(iter(images.values())))
            _check_placeholders(mask, num_images, self.config.num_image_tokens)
            per_prompt = (mask.sum(-1) // self.config.num_image_tokens).tolist()
            order = torch.cat([rows.repeat(expand_size) for rows in torch.arange(num_images).split(per_prompt)])
            images = {name: value[order.to(value.device)] for name, value in images.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}


def model_card(config: UnicornConfig, tags: Sequence[str] = ()) -> str:
    """The text of `README.md` with its metadata, filled from the configuration."""
    language_model = config.text_config.name_or_path
    is_hub_id = language_model.count("/") == 1 and not Path(language_model).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["unicorn", *tags],
        base_model=language_model if is_hub_id else None,
    )
    encoder, transfer = config.image_encoder or "not recorded", config.transfer or "not recorded"
    tokens = "1 token" if config.num_image_tokens == 1 else f"{config.num_image_tokens} tokens"
    tower = config.vision_config.model_type if config.vision_config is not None else "none: it takes `image_embeds`"
    return f"""---
{data.to_yaml()}
---

# Unicorn over {language_model if is_hub_id else config.text_config.model_type}

A vision-language model that reads an image as one vector of a contrastive image-text space. Each vector becomes
{tokens} of the language model (arXiv [2503.22655](https://arxiv.org/abs/2503.22655),
[2602.07026](https://arxiv.org/abs/2602.07026)).

| | |
| --- | --- |
| language model | {config.text_config.model_type}, hidden size {config.text_config.hidden_size} |
| image vectors | {config.embed_dim} dimensions; encoder: {encoder} |
| transfer of text vectors to image vectors | {transfer} |
| projector | {config.projector_type}, {config.projector_expand} |
| image tower | {tower} |

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]}}]
options = {{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}}
inputs = processor.apply_chat_template(messages, image_embeds=image_embeds, **options)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

With the package unicorn-hf installed, `import unicorn_hf.modeling` replaces `trust_remote_code`. `image_embeds` are
vectors of the encoder above with {config.embed_dim} dimensions; this model does not understand vectors of another one.
"""


def _load_whole_adapter(model: PreTrainedModel, peft_model_id: str, adapter_name: str, hub_kwargs: dict) -> None:
    """Read an adapter's weights a second time, with peft.

    transformers 5.10 gives whole modules (`modules_to_save`) new random weights, and 5.24 does so for DoRA's
    magnitudes; both only print a table. Remove this when transformers reads all weights (2026-11).
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(peft_model_id, device="cpu", **hub_kwargs)
    weights = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    set_peft_model_state_dict(model, weights, adapter_name)


def _upload(
    folder: Path, repo_id: str, private=None, token=None, revision=None, create_pr=False, commit_message=None, **kwargs
):
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    return hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload model",
        # Never overwrite a card in the repository.
        ignore_patterns=["README.md"] if hub.file_exists(repo_id, "README.md", revision=revision) else None,
        **kwargs,
    )


def _name_of(module: nn.Module, parent: nn.Module) -> str:
    return next(name for name, child in parent.named_modules() if child is module)


def _scale_logits(logits: torch.Tensor, text_config) -> torch.Tensor:
    """Apply the language model's own scaling of logits: Cohere and others multiply, Granite divides, Gemma 2 caps."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(text_config, name, None) is not None:
            logits = logits * getattr(text_config, name)
    if (divisor := getattr(text_config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(text_config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def _has_past(kwargs: dict) -> bool:
    # transformers 5.24 renamed `past_key_values` to `cache`.
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    return cache is not None and bool(cache.get_seq_length() > 0)


def _images_not_in_cache(images: dict, mask: torch.Tensor, num_new: int | None, num_image_tokens: int) -> dict:
    """The images with placeholders among the last `num_new` positions; all of them if they do not match the prompt."""
    if not images or num_new is None:
        return images
    # [batch_size, sequence_length]: at a placeholder, the index of its image among all images of the batch.
    image_of_token = (mask.flatten().cumsum(0).view_as(mask) - 1) // num_image_tokens
    num_images = len(next(iter(images.values())))
    if num_images * num_image_tokens != mask.sum():
        return images
    new = image_of_token[:, -num_new:][mask[:, -num_new:]].unique()
    return {name: value[new.to(value.device)] for name, value in images.items()} if len(new) else {}


def _check_placeholders(mask: torch.Tensor, num_images: int, num_image_tokens: int) -> None:
    counts = mask.sum(-1)  # [batch_size], placeholders per prompt
    matches = (counts.sum() == num_images * num_image_tokens) & (counts % num_image_tokens == 0).all()
    _check(matches, lambda: _mismatch_message(counts.tolist(), num_images, num_image_tokens))


def _check(condition: torch.Tensor, message: Callable[[], str]) -> None:
    # Skipped in a compiled graph, which cannot branch on values.
    if not torch.compiler.is_compiling() and not condition:
        raise ValueError(message())


def _mismatch_message(counts: list[int], num_images: int, num_image_tokens: int) -> str:
    message = (
        f"Image features and image tokens do not match, tokens: {sum(counts)},"
        f" features: {num_images * num_image_tokens} ({num_images} images of {num_image_tokens} tokens each)"
    )
    for prompt, count in enumerate(counts):
        if count % num_image_tokens:
            return f"{message}: prompt {prompt} has {count} image tokens, which is not a multiple of {num_image_tokens}"
    seen = 0
    for prompt, count in enumerate(counts):
        needed = count // num_image_tokens
        if seen + needed > num_images:
            left = num_images - seen
            return f"{message}: prompt {prompt} has placeholders for {needed} images, but {left} are left for it"
        seen += needed
    return f"{message}: the prompts have placeholders for {seen} images, so {num_images - seen} are without one"


def _non_finite_message(image_embeds: torch.Tensor) -> str:
    bad = (~torch.isfinite(image_embeds)).any(-1).nonzero().flatten().tolist()
    return (
        f"image_embeds holds NaN or infinite values in {len(bad)} of {len(image_embeds)} vectors,"
        f" the first in vector {bad[0]}"
    )


UnicornModel.register_for_auto_class("AutoModel")
UnicornForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["UnicornForConditionalGeneration", "UnicornModel", "UnicornPreTrainedModel"]
