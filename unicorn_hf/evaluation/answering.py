"""`unicorn-hf generate`: one question about pictures, answered as it is written."""

from collections.abc import Callable, Sequence

from unicorn_hf.evaluation.config import GenerateConfig, TrainedModelOptions
from unicorn_hf.evaluation.pictures import answer, encode_pictures, load_model, open_picture, picture_encoder
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
    """What a trained model says to a question about pictures, or about none.

    Args:
        model: folder or Hub id of a trained model.
        question: in the user's words; the model's chat template is applied.
        images: files or URLs of pictures (see `encode_pictures`).
        config: the options; `options` are fields of `GenerateConfig` that replace those of it.
        show: is given the answer so far, again and again while it is written.

    Raises:
        InputError: a picture, the model or an option cannot be used; the question cannot be asked.
    """
    config = GenerateConfig.of(config, options)
    pictures = [open_picture(image, allow_private_addresses=config.allow_private_addresses) for image in images]
    transfer = load_transfer(config.transfer)
    model, processor = load_trained_model(model, config)
    encoder = picture_encoder(model, config.encoder) if pictures else None
    vectors = encode_pictures(model, processor, pictures, encoder=encoder, transfer=transfer)
    sampling = {"temperature": config.temperature, "top_p": config.top_p} if config.temperature else {}
    return answer(model, processor, question, vectors, max_new_tokens=config.max_new_tokens, show=show, **sampling)


def load_trained_model(name, options: TrainedModelOptions):
    """A trained model and its processor, whose chat template can ask.

    Raises:
        InputError: see `load_model`; or the chat template cannot write a question.
    """
    loading = {"device": options.device, "dtype": options.dtype, "trust_remote_code": options.trust_remote_code}
    model, processor = load_model(name, **loading)
    check_chat_template(processor, name)
    return model, processor


def load_transfer(transfer):
    """A `ModalityTransfer`, read where it is a folder or a Hub id; None for none."""
    from unicorn_hf.transfer import ModalityTransfer

    return ModalityTransfer.from_pretrained(transfer) if isinstance(transfer, str) else transfer
