"""Processor of Unicorn: prompts with `<image>` placeholders, and images as vectors or pictures, to model inputs."""

import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AddedToken, AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

IMAGE_TOKEN = "<image>"


class UnicornProcessor(ProcessorMixin):
    """The language model's tokenizer, and the image tower's image processor where the model has a tower.

    Args:
        tokenizer: the language model's; `<image>` is added to it where it has none, and padding uses the end token
            where it has no padding token.
        image_processor: the image tower's; `None` for a model that takes vectors only.
        num_image_tokens: how many tokens of the language model one image becomes (as in the model's configuration).
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
        if image_processor is not None:
            self.check_argument_for_proper_class("image_processor", image_processor)
        self.image_processor = image_processor
        self.num_image_tokens = num_image_tokens
        self.embed_dim = embed_dim
        self.image_encoder = image_encoder
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens(AddedToken(IMAGE_TOKEN, normalized=False, special=True), special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(self, images=None, text=None, videos=None, audio=None, image_embeds=None, **kwargs) -> BatchFeature:
        """Prompts and images to the model's inputs.

        Args:
            images: pictures (`PIL.Image.Image`, path, URL, data URL, array `[height, width]`,
                `[height, width, channels]` or `[channels, height, width]`), or vectors (`[embed_dim]` each), which are
                then `image_embeds`.
            text: a prompt, or a list of prompts, with one `<image>` for each image.
            image_embeds: vectors of `image_encoder`: one `[embed_dim]`, all of the batch `[num_images, embed_dim]` in
                the order of the placeholders, or a list that holds each prompt's (`None` or `[]` for a prompt with
                none). Arrays, tensors or lists of any float type.
            kwargs: the tokenizer's and the image processor's (`padding`, `padding_side`, `return_tensors`, ...).

        Returns:
            `input_ids`, `attention_mask`, and `image_embeds` `[num_images, embed_dim]` float32 or `pixel_values`.

        Raises:
            ValueError: images and placeholders do not match, a vector has another dimension or is not finite, a picture
                cannot be read.
        """
        if videos is not None or audio is not None:
            raise ValueError("Unicorn reads images and text; got videos or audio")
        if text is None and images is None and image_embeds is None:
            raise ValueError("Pass text, images or image_embeds")
        if images is not None and image_embeds is not None:
            raise ValueError("Got both images and image_embeds: pass one of them")
        kwargs = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_kwargs = kwargs["text_kwargs"]
        return_tensors = text_kwargs.get("return_tensors")

        images, per_prompt = _flatten(
            images if image_embeds is None else image_embeds, vectors=image_embeds is not None
        )
        data = self._process_images(images, kwargs["images_kwargs"])
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
            self._check_placeholders(text, len(images), per_prompt)
            text, offsets = self.get_text_with_replacements(text, [IMAGE_TOKEN * self.num_image_tokens] * len(images))
            return_offsets = text_kwargs.pop("return_text_replacement_offsets", False)
            return_token_types = text_kwargs.pop("return_mm_token_type_ids", False)
            encoded = self.tokenizer(text, **text_kwargs)
            self._check_special_mm_tokens(text, encoded, modalities=["image"])
            data = {**encoded, **data}
            if return_offsets:
                data["text_replacement_offsets"] = offsets
            if return_token_types:
                data["mm_token_type_ids"] = self.create_mm_token_type_ids(encoded["input_ids"])
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def apply_chat_template(self, conversation, chat_template=None, image_embeds=None, processor_kwargs=None, **kwargs):
        """As `ProcessorMixin.apply_chat_template`, over a template for text: an image becomes `<image>` in the text.

        Args:
            conversation: messages, or a list of conversations. A content is a string with `<image>` in it, or a list of
                `{"type": "image"}` and `{"type": "text", "text": …}` parts. An image part may hold its picture or its
                vector (`{"type": "image", "image": …}`, `"url"`, `"path"`, `"base64"`).
            image_embeds: the vectors for image parts that hold none (as in `__call__`).
        """
        conversations, is_batched = self._normalize_conversations(conversation)
        images = [[image for message in messages for image in _images_of(message)] for messages in conversations]
        conversations = [
            [
                {**message, "content": _as_text(message["content"])} if "content" in message else message
                for message in messages
            ]
            for messages in conversations
        ]
        processor_kwargs = dict(processor_kwargs or {})
        if any(images):
            processor_kwargs["images"] = images if is_batched else images[0]
        if image_embeds is not None:
            processor_kwargs["image_embeds"] = image_embeds
        return super().apply_chat_template(
            conversations if is_batched else conversations[0],
            chat_template,
            processor_kwargs=processor_kwargs,
            **kwargs,
        )

    def get_vocab(self) -> dict[str, int]:
        """The tokenizer's vocabulary, which `generate` reads for `stop_strings`."""
        return self.tokenizer.get_vocab()

    @property
    def model_input_names(self) -> list[str]:
        image_names = self.image_processor.model_input_names if self.image_processor is not None else []
        return [*self.tokenizer.model_input_names, *image_names, "image_embeds"]

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["tokenizer"]  # the base class takes each of these as required, which image_processor is not

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        arguments = super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        if processor_dict is not None and processor_dict.pop("image_processor", None) is not None:
            arguments.append(AutoImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs))
        return arguments

    def _process_images(self, images: list, images_kwargs: dict) -> dict:
        are_vectors = [_is_vector(image) for image in images]
        if not images:
            return {}
        if all(are_vectors):
            return {"image_embeds": np.stack([self._check_vector(i, image) for i, image in enumerate(images)])}
        if any(are_vectors):
            raise ValueError("images mixes pictures and vectors: pass one kind in one call")
        if self.image_processor is None:
            raise ValueError(
                "This processor has no image_processor, because its model has no image tower: pass image_embeds,"
                f" vectors of the encoder {self.image_encoder!r}, in place of pictures"
            )
        return dict(self.image_processor([_load_picture(image) for image in images], **images_kwargs))

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

    def _check_placeholders(self, text: list[str], num_images: int, per_prompt: list[int] | None) -> None:
        # By the method that will expand them, which passes over those that stand for themselves in a user's text.
        same = [IMAGE_TOKEN] * sum(prompt.count(IMAGE_TOKEN) for prompt in text)
        placeholders = [len(found) for found in self.get_text_with_replacements(list(text), same)[1]]
        if per_prompt is not None:
            if len(per_prompt) != len(text):
                raise ValueError(f"Got images for {len(per_prompt)} prompts, but {len(text)} prompts")
            for prompt, (wanted, given) in enumerate(zip(placeholders, per_prompt, strict=True)):
                if wanted != given:
                    raise ValueError(f"Prompt {prompt} has {wanted} {IMAGE_TOKEN} placeholders, but {given} images")
        elif sum(placeholders) != num_images:
            message = (
                f"The prompts have {sum(placeholders)} {IMAGE_TOKEN} placeholders, but {num_images} images were passed"
            )
            if sum(placeholders) > num_images:
                message += (
                    f": the first without an image is in prompt {np.argmax(np.cumsum(placeholders) > num_images)}"
                )
            raise ValueError(message)


def _images_of(message: dict) -> list:
    content = message.get("content")
    if not isinstance(content, list):
        return []
    parts = [part for part in content if part["type"] == "image"]
    return [part[key] for part in parts for key in ("image", "url", "path", "base64") if part.get(key) is not None]


def _as_text(content) -> str:
    """A message's content as the text that a template of a text-only model expects."""
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if part["type"] == "text"]
    num_images = sum(part["type"] == "image" for part in content)
    if num_images and sum(text.count(IMAGE_TOKEN) for text in texts) == num_images:
        return "".join(texts)  # the parts are the images of the placeholders that the text has already
    pieces = []
    for part, following in zip(content, [*content[1:], None], strict=True):
        if part["type"] == "image":
            pieces.append(IMAGE_TOKEN)
            if following is not None and following["type"] == "text" and not following["text"].startswith("\n"):
                pieces.append("\n")
        elif part["type"] == "text":
            pieces.append(part["text"])
        else:
            raise ValueError(f"Unicorn reads images and text; got a content part of type {part['type']!r}")
    return "".join(pieces)


def _is_vector(image) -> bool:
    if isinstance(image, np.ndarray | torch.Tensor):
        return image.ndim == 1
    return isinstance(image, list | tuple) and len(image) > 0 and isinstance(image[0], int | float | np.number)


def _flatten(images, vectors: bool) -> tuple[list, list[int] | None]:
    """All images of a batch in order, and how many of them each prompt has, where the nesting says it."""
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


def _load_picture(image) -> Image.Image:
    """A picture as upright RGB: EXIF rotation applied, transparency over white, 16 bits scaled to 8."""
    if isinstance(image, np.ndarray | torch.Tensor):
        return _picture_of_array(image)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else "The picture"
    name = f"{name[:40]}…" if name.startswith("data:") else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, str | os.PathLike):
                image = Image.open(image) if os.path.isfile(image) else load_image(os.fspath(image))
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} is larger than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow takes for safe"
        ) from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({str(error)[:200]})") from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _picture_of_array(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _picture_of_array(array) -> Image.Image:
    array = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8:
        top = array.max(initial=0)
        full = 1 if array.dtype.kind in "fb" and top <= 1 else 255 if top <= 255 else 65535
        array = (np.clip(array / full, 0, 1) * 255).round().astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return _load_picture(Image.fromarray(array))


UnicornProcessor.register_for_auto_class()

__all__ = ["UnicornProcessor"]
