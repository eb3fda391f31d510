"""Ask a model about images, in batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from unicorn_hf.data.markup import Marks, marks_of, without_marks
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.images import prompt_inputs, render_prompt, user_message
from unicorn_hf.evaluation.replies import read_reply
from unicorn_hf.progress import progress_bar

_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"  # a placeholder for the answer when a chat template is rendered


@dataclass(frozen=True)
class Reader:
    """Answers questions in order; the model gets the same question about the same image only once.

    Attributes:
        model, processor: a `UnicornForConditionalGeneration` and its `UnicornProcessor`.
        vectors: float32 `[num_images, embed_dim]`; None asks the questions without images.
        image_of: the image of each row, int `[num_rows]`.
        batch_size: prompts per batch.
        max_new_tokens: the longest answer, in tokens.
        suffix: added after every question, on its own line.
        description: the label of the progress bar.
        unfinished: the prompts whose replies were cut off inside a thought, so have no answer.
    """

    model: object
    processor: object
    vectors: np.ndarray | None
    image_of: np.ndarray
    batch_size: int
    max_new_tokens: int
    suffix: str = ""
    description: str = "answering"
    unfinished: list[tuple] = field(default_factory=list)

    def with_mean_image(self) -> "Reader":
        """The mean-image baseline: the same model, but every question gets the mean vector of all images."""
        return replace(
            self,
            vectors=self.vectors.mean(axis=0, keepdims=True),
            image_of=np.zeros_like(self.image_of),
            description=f"{self.description}, blind",
            unfinished=[],
        )

    def answer(self, questions: Sequence[str], rows: Sequence[int]) -> list[str]:
        """The model's greedy answer to each question about the image of its row; "" if there is only a thought."""
        import torch

        asked = [(self._prompt(question), self._image(row)) for question, row in zip(questions, rows, strict=True)]
        answers = {}
        for batch in self._batches(list(dict.fromkeys(asked)), self.description):
            prompts, images = zip(*batch, strict=True)
            inputs = prompt_inputs(self.processor, list(prompts), self._vectors(images)).to(self.model.device)
            with torch.inference_mode():
                tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            for each, token_ids in zip(batch, new, strict=True):
                answers[each] = read_reply(self.processor.tokenizer, token_ids, each[0])
        self.unfinished.extend(each for each in asked if answers[each].is_unfinished)
        return [answers[each].answer for each in asked]

    def log_likelihoods(
        self, questions: Sequence[str], rows: Sequence[int], options: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """The mean log-probability per token of each option as a reply: one array `[num_options]` per question."""
        asked = []
        for question, row, choices in zip(questions, rows, options, strict=True):
            context, space = reply_context(self.processor, self._chat(question))
            texts = [context + space + without_marks(option, self.marks) for option in choices]
            asked.append([(text, self._image(row), context) for text in texts])
        values = {}
        distinct = list(dict.fromkeys(each for group in asked for each in group))
        for batch in self._batches(distinct, f"{self.description}, by likelihood"):
            texts, images, contexts = zip(*batch, strict=True)
            means, _ = reply_log_likelihoods(self.model, self.processor, texts, contexts, self._vectors(images))
            values |= dict(zip(batch, means, strict=True))
        return [np.array([values[each] for each in group]) for group in asked]

    def _chat(self, question: str) -> list[dict]:
        question = f"{question}\n{self.suffix}" if self.suffix else question
        return [user_message(question, 0 if self.vectors is None else 1, self.marks)]

    @cached_property
    def marks(self) -> Marks:
        return marks_of(self.processor.tokenizer)

    def _prompt(self, question: str) -> str:
        return render_prompt(self.processor, self._chat(question))

    def _image(self, row: int) -> int | None:
        return None if self.vectors is None else int(self.image_of[row])

    def _batches(self, asked: list[tuple], description: str) -> Iterator[list[tuple]]:
        """Batches with the longest prompts first, so that a lack of memory shows up at once."""
        lengths = [_num_tokens(self.processor, each[0]) for each in asked]
        order = sorted(range(len(asked)), key=lambda place: -lengths[place])
        for start in progress_bar(range(0, len(order), self.batch_size), desc=description, unit="batch"):
            yield [asked[place] for place in order[start : start + self.batch_size]]

    def _vectors(self, images: Sequence[int | None]):
        return () if self.vectors is None else self.vectors[list(images)]


def reply_context(processor, chat: list[dict]) -> tuple[str, str]:
    """The rendered chat before the reply, and the spaces between the two.

    They are returned separately, because tokenizers join these spaces with the first word of the reply.
    """
    chat = [*chat, {"role": "assistant", "content": _ANSWER}]
    before = processor.apply_chat_template(chat, tokenize=False).rpartition(_ANSWER)[0]
    context = before.rstrip(" ")
    return context, before[len(context) :]


def reply_log_likelihoods(
    model, processor, texts: Sequence[str], contexts: Sequence[str], image_embeds
) -> tuple[list[float], list[bool]]:
    """Score a batch of replies: the mean log-probability of their tokens, and whether greedy decoding gives them.

    Args:
        texts: rendered chats that end with the reply.
        contexts: the part of each chat before its reply (`reply_context`).
        image_embeds: the vectors of all their images, chat by chat, `[num_images, embed_dim]`.
    """
    import torch

    inputs = prompt_inputs(processor, list(texts), image_embeds).to(model.device)
    mask = inputs["attention_mask"]
    lengths = [
        _num_tokens(processor, text) - _num_tokens(processor, context)
        for text, context in zip(texts, contexts, strict=True)
    ]
    lengths = torch.tensor(lengths, device=mask.device).clamp(min=1)
    longest = int(lengths.max())
    with torch.inference_mode():
        logits = model(
            **inputs,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
    # Padding is on the left, so the replies end at the last position of each row. All shapes: [batch, longest].
    targets = inputs["input_ids"][:, -longest:]
    each = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    is_reply = torch.arange(longest, 0, -1, device=mask.device) <= lengths[:, None]
    greedy = ((logits.argmax(-1) == targets) | ~is_reply).all(-1)
    return ((each * is_reply).sum(-1) / lengths).tolist(), greedy.tolist()


def _num_tokens(processor, text: str) -> int:
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def check_chat_template(processor, name) -> None:
    """Raise `InputError` if the tokenizer has no chat template that can write a question."""
    if not processor.chat_template:
        raise InputError(
            f"{name}: its tokenizer has no chat template, so it cannot be asked; use a model of stage 2, or save the "
            "tokenizer with a template"
        )
    try:
        render_prompt(processor, [user_message("?", 0)])
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
