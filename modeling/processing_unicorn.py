"""Processor of Unicorn: turns prompts with `<image>` placeholders, and images or their vectors, into model inputs."""

import itertools
import os
import re
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AddedToken, AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image
from transformers.tokenization_utils_base import LARGE_INTEGER, PaddingStrategy, TruncationStrategy

IMAGE_TOKEN = "<image>"
_PADDING = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of")


class UnicornProcessor(ProcessorMixin):
    """The language model's tokenizer and, for a model with an image tower, the tower's image processor.

    Args:
        tokenizer: the language model's. If it lacks `<image>`, the token is added; if it lacks a padding token, the end
            token is used for padding. Padding is on the left unless a call passes `padding_side="right"`.
        image_processor: the image tower's; `None` for a model that only takes vectors. `from_pretrained` replaces a
            `dict` (saved settings) by the image processor itself.
        num_image_tokens: the number of language model tokens per image, as in the model's configuration.
        embed_dim: dimension of an image vector; `None` accepts any.
        image_encoder: the name of the encoder whose vectors the model was trained on.
        chat_template: the tokenizer's own by default.
    """

    def __init__(
        self,
        tokenizer,
        image_processor=None,
        num_image_tokens: int = 1,
        embed_dim: int | None = None,
        image_encoder: str | None = None,
        chat_template: str | None = None,
    ):
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        if not isinstance(image_processor, dict | None):
            self.check_argument_for_proper_class("image_processor", image_processor)
        self.image_processor = image_processor
        self.num_image_tokens = num_image_tokens
        self.embed_dim = embed_dim
        self.image_encoder = image_encoder
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, normalized=False, special=True), special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"  # `generate` continues after the last position of each prompt
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, images=None, text=None, videos=None, audio=None, image_embeds=None, **kwargs) -> BatchFeature:
        """Prompts and images to the model's inputs.

        Args:
            images: images (`PIL.Image.Image`, path, URL, data URL, array `[height, width]`,
                `[height, width, channels]` or `[channels, height, width]`), or vectors `[embed_dim]`, which are treated
                as `image_embeds`.
            text: a prompt, or a list of prompts, with one `<image>` per image.
            image_embeds: vectors of `image_encoder`: one `[embed_dim]`; all of the batch `[num_images, embed_dim]` in
                the order of the placeholders; or a list with the vectors of each prompt (`None` or `[]` for a prompt
                without images). Arrays, tensors or lists of any float type.
            kwargs: arguments of the tokenizer and the image processor (`padding`, `return_tensors`, ...).

        Returns:
            `input_ids`, `attention_mask`, and `image_embeds` `[num_images, embed_dim]` float32 or `pixel_values`.

        Raises:
            ValueError: images and placeholders do not match, a vector has another dimension or is not finite, or an
                image cannot be read.
        """
        if videos is not None or audio is not None:
            raise ValueError("Unicorn reads images and text; got videos or audio")
        if text is None and images is None and image_embeds is None:
            raise ValueError("Pass text, images or image_embeds")
        if images is not None and image_embeds is not None:
            raise ValueError("Got both images and image_embeds: pass one of them")
        kwargs = _flat(kwargs)
        images, per_prompt = _flatten(
            images if image_embeds is None else image_embeds, vectors=image_embeds is not None
        )
        if text is None:
            kwargs = {name: value for name, value in kwargs.items() if name not in _PADDING}
            return_tensors = kwargs.pop("return_tensors", None)
            return BatchFeature(self._image_inputs(images, return_tensors, **kwargs), tensor_type=return_tensors)
        batch_kwargs = self._pop_batch_kwargs(kwargs)
        if kwargs.get("return_overflowing_tokens"):
            raise ValueError("return_overflowing_tokens would separate images from their text: leave it out")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("text holds no prompt: pass at least one")
        encoded = self.tokenizer(texts, **kwargs)
        return self._to_batch(encoded, images, per_prompt, **batch_kwargs)

    def apply_chat_template(  # type: ignore[override]  # each transformers release has other arguments
        self,
        conversation,
        chat_template: str | None = None,
        image_embeds=None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """As `ProcessorMixin.apply_chat_template`, but for a text template: an image becomes `<image>` in the text.

        Args:
            conversation: messages, or a list of conversations. A content is a string with `<image>` in it, or a list of
                `{"type": "image"}` and `{"type": "text", "text": …}` parts. An image part may hold its image or its
                vector (`{"type": "image", "image": …}`, `"url"`, `"path"`, `"base64"`).
            image_embeds: the vectors for image parts without an image (as in `__call__`).
            processor_kwargs: keyword arguments of `__call__` (`padding`, `add_special_tokens`, ...).
            kwargs: arguments of the tokenizer's `apply_chat_template`, and variables of the template.
        """
        if not conversation:
            raise ValueError("The conversation is empty: pass at least one message")
        is_batched = isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages")
        conversations = [getattr(chat, "messages", chat) for chat in (conversation if is_batched else [conversation])]
        images = [[image for message in messages for image in _images_of(message)] for messages in conversations]
        conversations = [[_as_text_message(message) for message in messages] for messages in conversations]
        templates = self.chat_template if isinstance(self.chat_template, dict) else {}
        template = templates.get(chat_template or "default", chat_template or self.chat_template)
        if not tokenize:
            texts = self.tokenizer.apply_chat_template(conversations, chat_template=template, tokenize=False, **kwargs)
            return texts if is_batched else texts[0]

        tokenizer_kwargs = _flat(processor_kwargs or {})
        if return_tensors is not None:
            tokenizer_kwargs["return_tensors"] = return_tensors
        batch_kwargs = self._pop_batch_kwargs(tokenizer_kwargs) | self._pop_batch_kwargs(kwargs)
        add_special_tokens = tokenizer_kwargs.pop("add_special_tokens", kwargs.pop("add_special_tokens", True))
        encoded = self.tokenizer.apply_chat_template(
            conversations,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            tokenizer_kwargs=tokenizer_kwargs,
            **kwargs,
        )
        # As in every processor: add special tokens around the chat, unless the template writes the begin token itself.
        if add_special_tokens and encoded["input_ids"][0][:1] != [self.tokenizer.bos_token_id]:
            self._add_special_tokens(encoded)
        if any(images) and image_embeds is not None:
            raise ValueError("Got both images in the messages and image_embeds: pass one of them")
        images, per_prompt = _flatten(images, False) if any(images) else _flatten(image_embeds, True)
        batch = self._to_batch(encoded, images, per_prompt, **batch_kwargs)
        return batch if return_dict else batch["input_ids"]

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's vocabulary; `generate` needs it for `stop_strings`."""
        return self.tokenizer.get_vocab()

    @property
    def model_input_names(self) -> list[str]:
        image_names = self.image_processor.model_input_names if self.image_processor is not None else []
        text_names = [name for name in self.tokenizer.model_input_names if name != "token_type_ids"]
        return [*text_names, *image_names, "image_embeds"]

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["tokenizer"]  # without image_processor: the base class treats every listed attribute as required

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if isinstance(processor.image_processor, dict):
            processor.image_processor = AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return processor

    def _pop_batch_kwargs(self, kwargs: dict) -> dict:
        """Take the arguments of padding, tensors and images out of `kwargs`; the rest is for the tokenizer."""
        names = [*_PADDING, "images_kwargs", "return_tensors", "return_mm_token_type_ids"]
        if self.image_processor is not None:
            names += self.image_processor.to_dict()
        return {name: kwargs.pop(name) for name in names if name in kwargs}

    def _add_special_tokens(self, encoded) -> None:
        """Add the tokenizer's begin and end tokens around each prompt of a batch that was encoded without them."""
        bare, full = (self.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
        start = next(start for start in range(len(full)) if full[start : start + len(bare)] == bare)
        before, after = full[:start], full[start + len(bare) :]
        for name, rows in encoded.items():
            others = {"attention_mask": 1, "offset_mapping": (0, 0)}.get(name, 0)
            put = (before, after) if name == "input_ids" else ([others] * len(before), [others] * len(after))
            encoded[name] = [[*put[0], *row, *put[1]] for row in rows]

    def _to_batch(
        self,
        encoded,
        images: list,
        per_prompt: list[int] | None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_mm_token_type_ids: bool = False,
        **images_kwargs,
    ) -> BatchFeature:
        """Turn encoded prompts, which have one placeholder per image, and the images into the model's inputs."""
        for strategy, strategies in ((padding, PaddingStrategy), (truncation, TruncationStrategy)):
            if not isinstance(strategy, bool | None):
                strategies(strategy)  # raises a ValueError that lists the strategies
        if padding_side not in (None, "left", "right"):
            raise ValueError(f"padding_side is {padding_side!r}; expected 'left' or 'right'")
        for name, number in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; expected 1 or more")
        prompts = encoded["input_ids"]
        counts = [ids.count(self.image_token_id) for ids in prompts]
        _check_placeholders(counts, len(images), per_prompt)
        # Each placeholder is repeated `num_image_tokens` times, in the ids and in all lists beside them.
        repeats = [[self.num_image_tokens if i == self.image_token_id else 1 for i in ids] for ids in prompts]
        data: dict[str, list] = {
            name: [
                [value for value, times in zip(row, row_repeats, strict=True) for _ in range(times)]
                for row, row_repeats in zip(rows, repeats, strict=True)
            ]
            for name, rows in encoded.items()
            # Some tokenizers return token types, which a language model has no use for; lengths are counted below.
            if name not in ("token_type_ids", "length")
        }
        limit = self.tokenizer.model_max_length if max_length is None else max_length
        if truncation and truncation != "do_not_truncate":
            kept = slice(limit) if self.tokenizer.truncation_side == "right" else slice(-limit, None)
            data = {name: [row[kept] for row in rows] for name, rows in data.items()}
            left = [ids.count(self.image_token_id) for ids in data["input_ids"]]
            whole = [count * self.num_image_tokens for count in counts]
            if left != whole:
                raise ValueError(
                    f"Mismatch in `image` token count between text and `input_ids`: of {whole} image tokens {left} are"
                    f" left after truncation to {limit} tokens: disable truncation or increase `max_length`"
                )
        if padding == "max_length" and limit > LARGE_INTEGER:
            padding = False  # as in transformers' tokenizers, if there is no largest length
        lengths = [len(ids) for ids in data["input_ids"]]
        if padding and padding != "do_not_pad":
            length = limit if padding == "max_length" else max(lengths)
            multiple = pad_to_multiple_of or 1
            length = -(-length // multiple) * multiple
            left_side = (padding_side or self.tokenizer.padding_side) == "left"
            for name, rows in data.items():
                fill = {"input_ids": self.tokenizer.pad_token_id, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
                pads = [[fill.get(name, 0)] * (length - len(row)) for row in rows]
                data[name] = [pad + row if left_side else row + pad for row, pad in zip(rows, pads, strict=True)]
        if "length" in encoded:
            data["length"] = lengths
        if return_mm_token_type_ids:
            data["mm_token_type_ids"] = [[int(i == self.image_token_id) for i in ids] for ids in data["input_ids"]]
        data |= self._image_inputs(images, return_tensors, **images_kwargs)
        return BatchFeature(data, tensor_type=return_tensors)

    def _image_inputs(self, images: list, return_tensors, images_kwargs: dict | None = None, **kwargs) -> dict:
        are_vectors = [_is_vector(image) for image in images]
        if not images:
            return {}
        if all(are_vectors):
            return {"image_embeds": np.stack([self._check_vector(i, image) for i, image in enumerate(images)])}
        if any(are_vectors):
            raise ValueError("images mixes images and vectors: pass only one kind per call")
        if self.image_processor is None:
            raise ValueError(
                "This processor has no image_processor, because its model has no image tower: pass image_embeds,"
                f" vectors of the encoder {self.image_encoder!r}, instead of images"
            )
        images = [_load_image(image) for image in images]
        return dict(self.image_processor(images, return_tensors=return_tensors, **kwargs, **(images_kwargs or {})))

    def _check_vector(self, index: int, vector) -> np.ndarray:
        vector = (
            vector.detach().float().cpu().numpy()
            if isinstance(vector, torch.Tensor)
            else np.asarray(vector, np.float32)
        )
        vector = vector.astype(np.float32, copy=False)
        if self.embed_dim is not None and len(vector) != self.embed_dim:
            raise ValueError(
                f"image vector {index} has {len(vector)} dimensions, but this model reads vectors of {self.embed_dim}"
                f" dimensions of the encoder {self.image_encoder!r}: embed the images with that encoder"
            )
        if not np.isfinite(vector).all():
            raise ValueError(f"image vector {index} holds NaN or infinite values")
        return vector


def _flat(kwargs: dict) -> dict:
    """Keyword arguments of a processor, with those that transformers groups by what they are for."""
    groups = ("text_kwargs", "common_kwargs")
    flat = {name: value for name, value in kwargs.items() if name not in groups}
    return flat | {name: value for group in groups for name, value in kwargs.get(group, {}).items()}


def _check_placeholders(placeholders: list[int], num_images: int, per_prompt: list[int] | None) -> None:
    """Raise `ValueError` unless each prompt has as many placeholders as images."""
    if per_prompt is not None:
        if len(per_prompt) != len(placeholders):
            raise ValueError(f"Got images for {len(per_prompt)} prompts, but {len(placeholders)} prompts")
        for prompt, (wanted, given) in enumerate(zip(placeholders, per_prompt, strict=True)):
            if wanted != given:
                raise ValueError(f"Prompt {prompt} has {wanted} {IMAGE_TOKEN} placeholders, but {given} images")
    elif sum(placeholders) != num_images:
        message = (
            f"The prompts have {sum(placeholders)} {IMAGE_TOKEN} placeholders, but {num_images} images were passed"
        )
        if sum(placeholders) > num_images:
            message += f": the first without an image is in prompt {np.argmax(np.cumsum(placeholders) > num_images)}"
        raise ValueError(message)


def _images_of(message: dict) -> list:
    content = message.get("content")
    parts = [_as_image_part(part) for part in content] if isinstance(content, list) else []
    parts = [part for part in parts if part["type"] == "image"]
    return [part[key] for part in parts for key in ("image", "url", "path", "base64") if part.get(key) is not None]


def _as_image_part(part: dict) -> dict:
    """Turn OpenAI's `{"type": "image_url", "image_url": {"url": …}}` into `{"type": "image", "url": …}`."""
    if part["type"] != "image_url":
        return part
    url = part["image_url"]
    return {"type": "image", "url": url["url"] if isinstance(url, dict) else url}


def _as_text_message(message: dict) -> dict:
    message = {name: value for name, value in message.items() if value is not None}
    return {**message, "content": _as_text(message["content"])} if "content" in message else message


def _as_text(content) -> str:
    """A message's content as a string, as the template of a text-only model expects it."""
    if not isinstance(content, list):
        return content
    content = [_as_image_part(part) for part in content]
    for part in content:
        if part["type"] not in ("image", "text"):
            raise ValueError(f"Unicorn reads images and text; got a content part of type {part['type']!r}")
    whole = "".join(part["text"] for part in content if part["type"] == "text")
    num_images = sum(part["type"] == "image" for part in content)
    if num_images in (0, whole.count(IMAGE_TOKEN)):
        return whole  # the text already has the placeholders of these image parts
    text = ""
    for kind, parts in itertools.groupby(content, key=lambda part: part["type"]):
        if kind == "image":
            text += IMAGE_TOKEN * len(list(parts))
            continue
        # The parts define the number and places of the images, so `<image>` spelled in a text is only a word.
        said = re.sub(r"<+image>+", "image", "".join(part["text"] for part in parts))
        text += f"\n{said}" if text.endswith(IMAGE_TOKEN) and not said.startswith("\n") else said
    return text


def _is_vector(image) -> bool:
    if isinstance(image, np.ndarray | torch.Tensor):
        return image.ndim == 1
    return isinstance(image, list | tuple) and len(image) > 0 and isinstance(image[0], int | float | np.number)


def _flatten(images, vectors: bool) -> tuple[list, list[int] | None]:
    """All images of a batch in order, and the number of images per prompt (None if the list is not nested)."""
    if images is None:
        return [], None
    if _is_one_image(images, vectors):
        return [images], None
    images = list(images)
    if all(_is_one_image(image, vectors) for image in images):
        return images, None
    groups = [[] if group is None else [group] if _is_one_image(group, vectors) else list(group) for group in images]
    return [image for group in groups for image in group], [len(group) for group in groups]


def _is_one_image(image, vectors: bool) -> bool:
    if isinstance(image, np.ndarray | torch.Tensor):
        return image.ndim == 1 if vectors else image.ndim <= 3
    return _is_vector(image) or isinstance(image, str | os.PathLike | Image.Image)


def _load_image(image) -> Image.Image:
    """An image as upright RGB: EXIF rotation applied, transparency over white, 16 bits scaled to 8."""
    if isinstance(image, np.ndarray | torch.Tensor):
        return _image_of_array(image)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "The image"
    name = f"{name[:40]}…" if name.startswith("data:") else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, str | os.PathLike):
                image = _open_file(image) if os.path.isfile(image) else load_image(os.fspath(image))
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} is larger than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow considers safe"
        ) from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an image ({str(error)[:200]})") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # Pillow clips these values at 255, which gives a white image.
        values = np.asarray(image, np.float32)
        full = 65535 if image.mode != "F" else 255 if values.max(initial=0) > 1 else 1
        image = Image.fromarray((values * (255 / full)).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _open_file(path) -> Image.Image:
    # Opened by name, Pillow would map the file, and turn some TIFF files the wrong way.
    with open(path, "rb") as file:
        image = Image.open(file)
        image.load()
    return image


def _image_of_array(array) -> Image.Image:
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        top = 65535 if array.dtype == np.uint16 else array.max(initial=0)
        full = 1 if array.dtype.kind in "fb" and top <= 1 else 255 if top <= 255 else 65535
        array = (np.clip(array / full, 0, 1) * 255).round().astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _load_image(Image.fromarray(array))


UnicornProcessor.register_for_auto_class()

__all__ = ["UnicornProcessor"]
