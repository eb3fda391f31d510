"""`unicorn-hf generate`: ask a trained model one question about images."""

from collections.abc import Callable, Sequence

from unicorn_hf.evaluation.config import GenerateConfig, TrainedModelOptions
from unicorn_hf.evaluation.images import answer, encode_images, find_image_encoder, load_model, read_image
from unicorn_hf.evaluation.reader import check_chat_template


def ask(
    model,
    question: str,
    images: Sequence = (),
    *,
    config: GenerateConfig | None = None,
    show: Callable | None = None,
    **options,
) -> str:
    """A trained model's answer to a question, with or without images.

    Args:
        model: folder or Hub id of a trained model.
        question: in the user's words; the model's chat template is applied.
        images: files or URLs of images (see `encode_images`).
        config: the options; `options` replace single fields of it.
        show: called repeatedly with the answer so far, while the model writes it.

    Raises:
        InputError: an image, the model or an option cannot be used, or the question cannot be asked.
    """
    config = GenerateConfig.of(config, options)
    images = [read_image(image, allow_private_addresses=config.allow_private_addresses) for image in images]
    transfer = load_transfer(config.transfer)
    model, processor = load_trained_model(model, config)
    encoder = find_image_encoder(model, config.encoder) if images else None
    vectors = encode_images(model, processor, images, encoder=encoder, transfer=transfer)
    sampling = {"temperature": config.temperature, "top_p": config.top_p} if config.temperature else {}
    return answer(model, processor, question, vectors, max_new_tokens=config.max_new_tokens, show=show, **sampling)


def load_trained_model(name, options: TrainedModelOptions):
    """A trained model and its processor, with a working chat template.

    Raises:
        InputError: as in `load_model`, or the chat template cannot write a question.
    """
    loading = {"device": options.device, "dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    model, processor = load_model(name, **loading)
    check_chat_template(processor, name)
    return model, processor


def load_transfer(transfer):
    """A `ModalityTransfer`, loaded if a folder or Hub id is given; None stays None."""
    from unicorn_hf.transfer import ModalityTransfer

    return ModalityTransfer.from_pretrained(transfer) if isinstance(transfer, str) else transfer
