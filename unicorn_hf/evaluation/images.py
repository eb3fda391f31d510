"""Load a trained model, encode images for it (with its own tower or its encoder), and ask it questions."""

from pathlib import Path

import numpy as np
from PIL import Image

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.device import find_device
from unicorn_hf.errors import InputError

IMAGE_TOKEN = "<image>"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def encode_images(model, processor, images, *, encoder=None, transfer=None, batch_size: int = 64) -> np.ndarray:
    """The vectors of images, ready for the model as `image_embeds`.

    Args:
        model: a `UnicornForConditionalGeneration`.
        processor: the model's.
        images: PIL images, paths, URLs, the bytes of image files, or the `{"bytes": …, "path": …}` of `datasets`.
        encoder: for a model without an image tower; `find_image_encoder(model)` by default. For repeated calls, load it
            once and pass it.
        transfer: the `ModalityTransfer` of the training data; its `condition_image` is applied to the vectors.
        batch_size: images per batch of the tower.

    Returns:
        float32 `[len(images), embed_dim]`.

    Raises:
        InputError: an image is missing or cannot be read, or the model has neither a tower nor a known encoder.
    """
    import torch

    images = [read_image(image) for image in images]
    if not images:
        return np.zeros((0, model.config.embed_dim), np.float32)
    if model.config.vision_config is not None:
        vectors = []
        for start in range(0, len(images), batch_size):
            inputs = processor.image_processor(images[start : start + batch_size], return_tensors="pt")
            with torch.inference_mode():
                vectors.append(model.get_image_embeds(**inputs.to(model.device)).float().cpu())
        vectors = torch.cat(vectors).numpy()
    else:
        vectors = (encoder or find_image_encoder(model)).encode_images(images)
    return transfer.condition_image(vectors) if transfer is not None else vectors


def find_image_encoder(model, name: str | None = None):
    """The encoder of images for `model`, on its device; None for a model with an image tower.

    Args:
        name: replaces the encoder named in the model's configuration, for instance by a local folder.

    Raises:
        InputError: the encoder is unknown, cannot be loaded, or gives vectors of another dimension.
    """
    from unicorn_hf.embedding import load_encoder

    config = model.config
    if config.vision_config is not None:
        return None
    if name is None and config.image_encoder is None:
        raise InputError(
            f"{config.name_or_path}: has no image tower, and its config.json does not say whose vectors it reads"
            f" (image_encoder), so images cannot be encoded for it; name the encoder of its {config.embed_dim}"
            " dimensions (--encoder)"
        )
    encoder = load_encoder(name or config.image_encoder, device=model.device)
    if encoder.embed_dim != config.embed_dim:
        raise InputError(
            f"The encoder {encoder.name!r} gives vectors of {encoder.embed_dim} dimensions, but {config.name_or_path}"
            f" reads vectors of {config.embed_dim} (of the encoder {config.image_encoder!r})"
        )
    return encoder


def read_image(source, *, allow_private_addresses: bool = False) -> Image.Image:
    """An upright RGB image from anything that `encode_images` takes.

    Args:
        allow_private_addresses: also read URLs of this machine and of private networks (see `download`).

    Raises:
        InputError: the file does not exist, or is not an image.
    """
    from transformers.image_utils import load_image

    from unicorn_hf.data.download import download
    from unicorn_hf.data.images import open_image

    if isinstance(source, str) and source.startswith("data:"):
        name, read = source[:100], load_image
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        name, read = source[:100], open_image
        source = download(source, allow_private=allow_private_addresses)
    else:
        name, read = source if isinstance(source, str | Path) else "The image", open_image
        if isinstance(source, str | Path) and not Path(source).is_file():
            raise InputError(f"{source}: no such image; expected a file or a URL")
    try:
        return read(source)
    except Exception as error:  # Pillow's plug-ins and httpx raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: cannot be read as an image ({reason})") from error


def load_model(name, *, device=None, dtype="auto", trust_remote_code: bool = False):
    """A trained model in evaluation mode, and its processor.

    Args:
        name: folder or Hub id.
        device: a torch device; by default a GPU if there is one.
        dtype: of the weights: `auto` (as saved), `float32`, `bfloat16`, `float16`.
        trust_remote_code: run code from the model's folder.

    Raises:
        InputError: the device or dtype is unknown, or the model cannot be loaded or is not a Unicorn model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import is_peft_available

    import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
    from unicorn_hf.training.adapters import read_adapter

    if not Path(name).is_dir() and not is_hub_id(name):
        raise InputError(f"{name}: cannot be loaded as a model (no such folder, and not a repository name org/name)")
    if dtype not in DTYPES:
        raise InputError(f"The dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    device = find_device(device)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files, and the code of models, raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        adapter = read_adapter(str(name)) if is_peft_available() else None
        if "trust_remote_code" in str(error):
            reason = "it has its own code; to run that code, if you trust it, add --trust-remote-code"
        elif adapter is not None and not Path(base := adapter.base_model_name_or_path).exists():
            reason = (
                f"its base model {base} is neither a folder nor on the Hub: {reason}; move the base model there, or"
                " correct base_model_name_or_path in adapter_config.json"
            )
        raise InputError(f"{name}: cannot be loaded as a model ({reason})") from error
    if model.config.model_type != "unicorn":
        raise InputError(f"{name}: is a {model.config.model_type} model; expected one made by `unicorn-hf train`")
    # transformers counts an adapter's weights as missing from the base; the model's `load_adapter` has read them.
    of_adapter = (".modules_to_save.", ".lora_")
    if missing := sorted(key for key in info["missing_keys"] if not any(part in key for part in of_adapter)):
        raise InputError(f"{name}: lacks {len(missing)} of the model's weights, such as {missing[0]}; save it again")
    for weight, value in model.named_parameters():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{name}: the weight {weight} holds NaN or infinite values; take an earlier checkpoint")
    return model.to(device).eval(), processor


def answer(
    model, processor, question: str, image_embeds=(), *, temperature: float = 0.0, show=None, **generate_kwargs
) -> str:
    """The model's answer to a question, with or without images; its thought is left out.

    Args:
        image_embeds: the images' vectors, `[num_images, embed_dim]` (`encode_images`).
        temperature: of the sampling; 0 means greedy decoding.
        show: called repeatedly with the answer so far, while the model writes it.
        generate_kwargs: further arguments of `generate` (`max_new_tokens`, `top_p`, ...).

    Raises:
        InputError: the reply was cut off inside a thought, or the question cannot be asked.
    """
    chat = [user_message(question, len(image_embeds), marks_of(processor.tokenizer))]
    reply, _, num_tokens = write_reply(
        model, processor, chat, image_embeds, temperature=temperature, show=show, **generate_kwargs
    )
    return answer_of(reply, num_tokens)


def write_reply(
    model, processor, chat: list[dict], image_embeds=(), *, temperature: float = 0.0, show=None, **generate_kwargs
):
    """The model's reply to a chat of any number of turns; arguments and errors as in `answer`.

    Returns:
        the `Reply`, the number of tokens in the prompt, and the number of tokens in the reply.
    """
    import torch

    from unicorn_hf.evaluation.replies import ReplyStreamer, read_reply

    prompt = render_prompt(processor, chat)
    inputs = prompt_inputs(processor, [prompt], image_embeds).to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = ReplyStreamer(processor.tokenizer, prompt, show) if show is not None else None
    with torch.inference_mode():
        tokens = model.generate(**inputs, **sampling, streamer=streamer, **generate_kwargs)
    num_read = inputs["input_ids"].shape[1]
    new = tokens[0, num_read:]
    return read_reply(processor.tokenizer, new, prompt), num_read, len(new)


def answer_of(reply, num_tokens: int) -> str:
    """The answer in a `Reply` of `num_tokens` tokens.

    Raises:
        InputError: the reply was cut off inside a thought.
    """
    if reply.is_unfinished:
        raise InputError(
            f"The model was still thinking after {num_tokens} tokens, so there is no answer; allow more tokens"
            " (max_new_tokens)"
        )
    return reply.answer


def user_message(question: str, num_images: int, marks: Marks | None = None) -> dict:
    """A chat message with images and a question.

    If the question holds one `<image>` per image, the images stand there; otherwise all of them come first. Other marks
    of the model's tokenizer (`marks`) in the question become plain words.
    """
    pieces = question.split(IMAGE_TOKEN)
    if len(pieces) != num_images + 1:
        pieces = ["".join(pieces)]
    question = IMAGE_TOKEN.join(without_marks(piece, marks) for piece in pieces)
    if num_images and len(pieces) == 1:
        question = f"{IMAGE_TOKEN * num_images}\n{question}"
    return {"role": "user", "content": question}


def render_prompt(processor, chat: list[dict]) -> str:
    """A chat rendered by the chat template, up to the place of the model's reply.

    Raises:
        InputError: the chat template fails.
    """
    try:
        return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"The model's chat template cannot write a question ({reason}); correct it") from error


def prompt_inputs(processor, prompts: list[str], image_embeds):
    """The model's inputs for a batch of rendered chats; `image_embeds` has their images' vectors, chat by chat."""
    return processor(
        text=prompts,
        image_embeds=image_embeds if len(image_embeds) else None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the chat template has already added them
        return_tensors="pt",
    )
