"""Unicorn as a model of lmms-eval, which finds it by the entry point `lmms_eval.models` of this package.

lmms-eval eval --model unicorn --model_args pretrained=MODEL --tasks mme --batch_size 16
"""

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.utils import Collator
from tqdm import tqdm

from unicorn_hf.evaluation.pictures import encode_pictures, load_model, picture_encoder, user_message
from unicorn_hf.transfer import ModalityTransfer

MANIFEST = ModelManifest("unicorn", simple_class_path=f"{__name__}.Unicorn")

_GENERATION_KWARGS = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")


class Unicorn(lmms):
    """What `--model_args` can hold.

    Args:
        pretrained: folder or Hub id of a trained model.
        encoder: another name of the encoder than the one in the model's configuration (see `picture_encoder`).
        transfer: folder or Hub id of the training data's transfer, where real images' vectors must go through it.
        device: a torch device; a GPU by default, where there is one.
        dtype: of the model's weights: `auto`, `float32`, `bfloat16`, `float16`.
        batch_size: questions a batch.
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
    ):
        super().__init__()
        self.model, self.processor = load_model(pretrained, device=device, dtype=dtype)
        self.encoder = picture_encoder(self.model, encoder)
        self.transfer = ModalityTransfer.from_pretrained(transfer) if transfer is not None else None
        self.device = self.model.device
        self.batch_size = int(batch_size)

    def generate_until(self, requests) -> list[str]:
        """The answers, each up to the first of the task's `until`."""
        collator = Collator([request.args for request in requests], _longest_first, grouping=True)
        answers = []
        for batch in self._batches(collator.get_batched(n=self.batch_size), len(requests)):
            contexts, (options, *_), to_visual, doc_ids, tasks, splits = zip(*batch, strict=True)
            messages = self._messages(contexts, to_visual, doc_ids, tasks, splits)
            inputs = self._inputs(messages, padding_side="left", add_generation_prompt=True)
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, **_generation_kwargs(options))
            new = tokens[:, inputs["input_ids"].shape[1] :]
            until = options.get("until", [])
            for answer in self.processor.batch_decode(new, skip_special_tokens=True):
                for end in [until] if isinstance(until, str) else until:
                    answer = answer.split(end)[0] if end else answer
                answers.append(answer.strip())
        return collator.get_original(answers)

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """For each continuation its loss, and whether greedy decoding would write it.

        The loss is the mean of the tokens' negative log-likelihoods: lmms-eval takes the smallest for the choice, and
        its own models return the same.
        """
        results = []
        batches = [requests[i : i + self.batch_size] for i in range(0, len(requests), self.batch_size)]
        for batch in self._batches(batches, len(requests)):
            contexts, targets, to_visual, doc_ids, tasks, splits = zip(*(r.args for r in batch), strict=True)
            targets = [
                target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
                for target, doc_id, task, split in zip(targets, doc_ids, tasks, splits, strict=True)
            ]
            asked = self._messages(contexts, to_visual, doc_ids, tasks, splits)
            answered = [
                [*messages, {"role": "assistant", "content": target.strip()}]
                for messages, target in zip(asked, targets, strict=True)
            ]
            prompts = self._inputs(asked, padding_side="right", add_generation_prompt=True)["attention_mask"].sum(-1)
            inputs = self._inputs(answered, padding_side="right")
            with torch.inference_mode():
                logits = self.model(**inputs).logits[:, :-1].float()
            tokens, mask = inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].bool()
            mask &= torch.arange(1, mask.shape[1] + 1, device=mask.device) >= prompts[:, None]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
            losses = (losses * mask).sum(-1) / mask.sum(-1)
            greedy = ((logits.argmax(-1) == tokens) | ~mask).all(-1)
            results += zip(losses.tolist(), greedy.tolist(), strict=True)
        return results

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("Unicorn answers tasks of one round; choose tasks of generate_until or loglikelihood")

    def _messages(self, contexts, to_visual, doc_ids, tasks, splits) -> list[list[dict]]:
        """A conversation of one question for each document, with the vectors of its pictures in it."""
        pictures = [
            function(self.task_dict[task][split][doc_id]) or []
            for function, doc_id, task, split in zip(to_visual, doc_ids, tasks, splits, strict=True)
        ]
        vectors = iter(
            encode_pictures(
                self.model,
                self.processor,
                [picture for group in pictures for picture in group],
                encoder=self.encoder,
                transfer=self.transfer,
            )
        )
        conversations = []
        for context, group in zip(contexts, pictures, strict=True):
            if context.count(self.processor.image_token) != len(group):
                context = context.replace(self.processor.image_token, "")  # the pictures stand in front then
            conversations.append([user_message(context, [next(vectors) for _ in group])])
        return conversations

    def _inputs(self, conversations, *, padding_side: str, add_generation_prompt: bool = False):
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "padding_side": padding_side, "return_tensors": "pt"},
        ).to(self.device)

    def _batches(self, batches, num_requests: int):
        with tqdm(total=num_requests, desc="answering", unit="question", disable=self.rank != 0) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))


def _longest_first(arguments: tuple) -> tuple:
    return -len(arguments[0]), arguments[0]


def _generation_kwargs(options: dict) -> dict:
    """What `generate` takes of a task's options; a temperature of zero is lmms-eval's word for greedy decoding."""
    kwargs = {"max_new_tokens": 1024} | {name: options[name] for name in _GENERATION_KWARGS if name in options}
    if not kwargs.get("temperature"):
        kwargs |= {"do_sample": False, "temperature": None, "top_p": None}
    return kwargs
