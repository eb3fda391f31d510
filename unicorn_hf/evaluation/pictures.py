"""Pictures as the vectors that a model reads: through its own image tower, or through the encoder it was trained on."""

from pathlib import Path

import numpy as np
from PIL import Image

from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.device import find_device
from unicorn_hf.errors import InputError

IMAGE_TOKEN = "<image>"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def encode_pictures(model, processor, pictures, *, encoder=None, transfer=None, batch_size: int = 64) -> np.ndarray:
    """The image vectors of pictures, ready to be given to the model as `image_embeds`.

    Args:
        model: a `UnicornForConditionalGeneration`.
        processor: the model's.
        pictures: PIL images, paths, URLs, the bytes of image files, or the `{"bytes": …, "path": …}` of `datasets`.
        encoder: for a model without an image tower, `picture_encoder(model)` by default; whoever calls this again and
            again loads it once.
        transfer: the `ModalityTransfer` of the training data, whose `condition_image` the vectors go through.
        batch_size: pictures that go through the tower at a time.

    Returns:
        float32 `[len(pictures), embed_dim]`.

    Raises:
        InputError: there is no such picture, or it cannot be read; the model has no tower and does not say its encoder.
    """
    import torch

    pictures = [open_picture(picture) for picture in pictures]
    if not pictures:
        return np.zeros((0, model.config.embed_dim), np.float32)
    if model.config.vision_config is not None:
        vectors = []
        for start in range(0, len(pictures), batch_size):
            inputs = processor.image_processor(pictures[start : start + batch_size], return_tensors="pt")
            with torch.inference_mode():
                vectors.append(model.get_image_embeds(**inputs.to(model.device)).float().cpu())
        vectors = torch.cat(vectors).numpy()
    else:
        vectors = (encoder or picture_encoder(model)).encode_images(pictures)
    return transfer.condition_image(vectors) if transfer is not None else vectors


def picture_encoder(model, name: str | None = None):
    """The encoder of pictures for `model`, on its device; `None` for a model that has an image tower.

    Args:
        name: another name of the encoder than the one in the model's configuration, for instance a local folder's.

    Raises:
        InputError: nobody says the encoder's name; it cannot be loaded, or gives vectors of another dimension.
    """
    from unicorn_hf.embedding import load_encoder

    config = model.config
    if config.vision_config is not None:
        return None
    if name is None and config.image_encoder is None:
        raise InputError(
            f"{config.name_or_path}: has no image tower, and its config.json does not say whose vectors it reads"
            f" (image_encoder), so pictures cannot be encoded for it; name the encoder of its {config.embed_dim}"
            " dimensions (--encoder)"
        )
    encoder = load_encoder(name or config.image_encoder, device=model.device)
    if encoder.embed_dim != config.embed_dim:
        raise InputError(
            f"The encoder {encoder.name!r} gives vectors of {encoder.embed_dim} dimensions, but {config.name_or_path}"
            f" reads vectors of {config.embed_dim} (of the encoder {config.image_encoder!r})"
        )
    return encoder


def open_picture(source, *, allow_private_addresses: bool = False) -> Image.Image:
    """An upright RGB picture of whatever `encode_pictures` takes.

    Args:
        allow_private_addresses: read URLs of this machine and of private networks too (see `download`).

    Raises:
        InputError: there is no such file, or it is not a picture.
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
        name, read = source if isinstance(source, str | Path) else "The picture", open_image
        if isinstance(source, str | Path) and not Path(source).is_file():
            raise InputError(f"{source}: there is no such picture; expected a file or a URL")
    try:
        return read(source)
    except Exception as error:  # Pillow's plug-ins and httpx raise dozens of types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: cannot be read as a picture ({reason})") from error


def load_model(name, *, device=None, dtype="auto", trust_remote_code: bool = False):
    """A trained model in evaluation mode, and its processor.

    Args:
        name: folder or Hub id.
        device: a torch device; a GPU by default, where there is one.
        dtype: of the weights: `auto` (as they were saved), `float32`, `bfloat16`, `float16`.
        trust_remote_code: run the code that the model's folder brings.

    Raises:
        InputError: there is no such device or dtype; it cannot be loaded, or is not a Unicorn model.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)

    if not Path(name).is_dir() and not is_hub_id(name):
        raise InputError(f"{name}: cannot be loaded as a model (there is no such folder, and a repository is org/name)")
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
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own; to run that, where you trust it, say --trust-remote-code"
        raise InputError(f"{name}: cannot be loaded as a model ({reason})") from error
    if model.config.model_type != "unicorn":
        raise InputError(f"{name}: is a {model.config.model_type} model; expected one that `unicorn-hf train` has made")
    # What an adapter brings counts as missing from its base; the model's own `load_adapter` has read it.
    of_adapter = (".modules_to_save.", ".lora_")
    if missing := sorted(key for key in info["missing_keys"] if not any(part in key for part in of_adapter)):
        raise InputError(f"{name}: lacks {len(missing)} of the model's weights, one is {missing[0]}; save it again")
    for weight, value in model.named_parameters():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{name}: the weight {weight} holds NaN or infinite values; take an earlier checkpoint")
    return model.to(device).eval(), processor


def answer(
    model, processor, question: str, image_embeds=(), *, temperature: float = 0.0, show=None, **generate_kwargs
) -> str:
    """What the model says to a question about pictures, or about none; the thought before it is left out.

    Args:
        image_embeds: the pictures' vectors, `[num_pictures, embed_dim]` (`encode_pictures`).
        temperature: of the sampling; 0 for greedy decoding.
        show: is given the answer so far, again and again while it is written.
        generate_kwargs: what else `generate` takes (`max_new_tokens`, `top_p`, ...).

    Raises:
        InputError: the model's thought was cut off before an answer; the question cannot be asked.
    """
    chat = [user_message(question, len(image_embeds), marks_of(processor.tokenizer))]
    reply, _, num_tokens = write_reply(
        model, processor, chat, image_embeds, temperature=temperature, show=show, **generate_kwargs
    )
    return answer_of(reply, num_tokens)


def write_reply(
    model, processor, chat: list[dict], image_embeds=(), *, temperature: float = 0.0, show=None, **generate_kwargs
):
    """The model's reply to a chat of any number of turns; arguments and errors as of `answer`.

    Returns:
        `Reply`, the number of tokens that the model read, and of those that it wrote.
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
    """The answer in a `Reply` of so many tokens.

    Raises:
        InputError: the model's thought was cut off before an answer.
    """
    if reply.is_unfinished:
        raise InputError(
            f"The model was still thinking after {num_tokens} tokens, so there is no answer; allow it more"
            " (max_new_tokens)"
        )
    return reply.answer


def user_message(question: str, num_pictures: int, marks: Marks | None = None) -> dict:
    """A chat message that shows pictures and asks a question.

    Where the question holds an `<image>` for each picture they stand there, and otherwise all in front. Other marks in
    it, those of the model's tokenizer (`marks`), become words.
    """
    pieces = question.split(IMAGE_TOKEN)
    if len(pieces) != num_pictures + 1:
        pieces = ["".join(pieces)]
    question = IMAGE_TOKEN.join(without_marks(piece, marks) for piece in pieces)
    if num_pictures and len(pieces) == 1:
        question = f"{IMAGE_TOKEN * num_pictures}\n{question}"
    return {"role": "user", "content": question}


def render_prompt(processor, chat: list[dict]) -> str:
    """A chat as the text that the model replies to.

    Raises:
        InputError: the chat template cannot write it.
    """
    try:
        return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program, which may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"The model's chat template cannot write a question ({reason}); mend it") from error


def prompt_inputs(processor, prompts: list[str], image_embeds):
    """The model's inputs for a batch of rendered chats; `image_embeds` has their pictures' vectors, chat by chat."""
    return processor(
        text=prompts,
        image_embeds=image_embeds if len(image_embeds) else None,
        padding=True,
        padding_side="left",
        add_special_tokens=False,  # the chat template has put them
        return_tensors="pt",
    )
