"""Unicorn as a model of lmms-eval, registered by this package's entry point `lmms_eval.models`.

lmms-eval eval --model unicorn --model_args pretrained=MODEL --tasks mme --batch_size 16
"""

import itertools
import logging
from functools import cached_property

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.utils import Collator
from tqdm import tqdm

from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.images import (
    encode_images,
    find_image_encoder,
    load_model,
    prompt_inputs,
    read_image,
    render_prompt,
    user_message,
)
from unicorn_hf.evaluation.reader import check_chat_template, reply_context, reply_log_likelihoods
from unicorn_hf.evaluation.replies import read_reply, until
from unicorn_hf.transfer import ModalityTransfer

MANIFEST = ModelManifest("unicorn", simple_class_path=f"{__name__}.Unicorn")

logger = logging.getLogger(__name__)

_GENERATION_KWARGS = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")


class Unicorn(lmms):
    """A trained model; the arguments are those of `--model_args`.

    Args:
        pretrained: folder or Hub id of a trained model.
        encoder: replaces the encoder named in the model's configuration (see `find_image_encoder`).
        transfer: folder or Hub id of the training data's transfer; only needed in the centred space of the mean shift.
        device: a torch device; by default a GPU if there is one.
        dtype: of the weights: `auto`, `float32`, `bfloat16`, `float16`.
        batch_size: questions per batch.
        trust_remote_code: run code from the model's folder.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        encoder: str | None = None,
        transfer: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
    ):
        super().__init__()
        self.model, self.processor = load_model(
            pretrained, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        check_chat_template(self.processor, pretrained)
        self.encoder = find_image_encoder(self.model, encoder)
        self.transfer = ModalityTransfer.from_pretrained(transfer) if transfer is not None else None
        self.device = self.model.device
        self.batch_size = int(batch_size)

    def generate_until(self, requests) -> list[str]:
        """The answers, each cut at the task's stop strings (`until`); "" if the reply was cut off inside a thought."""
        collator = Collator([request.args for request in requests], _longest_first, grouping=True)
        answers, num_unfinished = [], 0
        for batch in self._batches(collator.get_batched(n=self.batch_size), len(requests)):
            contexts, (options, *_), to_visual, *documents = zip(*batch, strict=True)
            chats, vectors = self._chats(contexts, to_visual, documents)
            prompts = [render_prompt(self.processor, chat) for chat in chats]
            inputs = prompt_inputs(self.processor, prompts, vectors).to(self.device)
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, **_generation_kwargs(options))
            new = tokens[:, inputs["input_ids"].shape[1] :]
            for prompt, token_ids in zip(prompts, new, strict=True):
                reply = read_reply(self.processor.tokenizer, token_ids, prompt)
                num_unfinished += reply.is_unfinished
                answers.append(until(reply.answer, options.get("until")))
        if num_unfinished:
            logger.warning(f"{num_unfinished:,} of {len(requests):,} replies ended inside a thought: no answers")
        return collator.get_original(answers)

    def loglikelihood(self, requests) -> list[GenerationResult]:
        """For each continuation: its loss, and whether greedy decoding gives it.

        The loss is the mean negative log-likelihood per token, as in lmms-eval's own models; lmms-eval then chooses the
        option with the smallest loss.
        """
        results = []
        batches = [requests[start : start + self.batch_size] for start in range(0, len(requests), self.batch_size)]
        for batch in self._batches(batches, len(requests)):
            contexts, targets, to_visual, *documents = zip(*(request.args for request in batch), strict=True)
            chats, vectors = self._chats(contexts, to_visual, documents)
            texts, before = [], []
            for chat, target, *document in zip(chats, targets, *documents, strict=True):
                target = target if isinstance(target, str) else target(self._document(*document))
                target = without_marks(target, self.marks).strip()
                context, space = reply_context(self.processor, chat)
                texts.append(context + space + target)
                before.append(context)
            means, greedy = reply_log_likelihoods(self.model, self.processor, texts, before, vectors)
            results += zip((-mean for mean in means), greedy, strict=True)
        # lmms-eval 0.7.3 turns plain pairs into strings (`unwrap_generation_output`), so wrap them.
        return [GenerationResult(result) for result in results]

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("Unicorn answers tasks of one round; choose tasks of generate_until or loglikelihood")

    @cached_property
    def marks(self) -> Marks:
        return marks_of(self.processor.tokenizer)

    def _chats(self, contexts, to_visual, documents) -> tuple[list[list[dict]], np.ndarray]:
        """One chat (a single question) per document, and the vectors of all their images.

        Raises:
            InputError: the image of a document cannot be read.
        """
        images = list(itertools.starmap(self._images, zip(to_visual, *documents, strict=True)))
        chats = [
            [user_message(context, len(group), self.marks)] for context, group in zip(contexts, images, strict=True)
        ]
        images = list(itertools.chain(*images))
        options = {"encoder": self.encoder, "transfer": self.transfer}
        return chats, encode_images(self.model, self.processor, images, **options)

    def _images(self, to_visual, doc_id: int, task: str, split: str) -> list:
        try:
            return [read_image(image) for image in to_visual(self._document(doc_id, task, split)) or []]
        except Exception as error:  # what decodes images, in `datasets` or the task, raises dozens of types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"Task {task}, split {split}, document {doc_id}: its images cannot be read ({reason}); mend or"
                " remove the document"
            ) from error

    def _document(self, doc_id: int, task: str, split: str) -> dict:
        return self.task_dict[task][split][doc_id]

    def _batches(self, batches, num_requests: int):
        with tqdm(total=num_requests, desc="answering", unit="question", disable=self.rank != 0) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))


def _longest_first(arguments: tuple) -> tuple:
    return -len(arguments[0]), arguments[0]


def _generation_kwargs(options: dict) -> dict:
    """The task options that `generate` understands; in lmms-eval a temperature of 0 means greedy decoding."""
    kwargs = {"max_new_tokens": 1024} | {name: options[name] for name in _GENERATION_KWARGS if name in options}
    if not kwargs.get("temperature"):
        kwargs |= {"do_sample": False, "temperature": None, "top_p": None}
    return kwargs
