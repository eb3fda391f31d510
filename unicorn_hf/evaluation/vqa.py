"""Visual question answering: a model's answers to questions over pictures, scored by kind of question."""

import math
import re
from dataclasses import dataclass

from tqdm.auto import tqdm

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_columns, read_dataset


@dataclass(frozen=True)
class Score:
    """`correct` of `total` questions."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over the questions drawn (not over training runs)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, in the order of the data, and whether each is right."""

    answers: list[str]
    correct: list[bool]
    kinds: list[str]

    @property
    def overall(self) -> Score:
        return Score(sum(self.correct), len(self.correct))

    def by_kind(self) -> dict[str, Score]:
        return {
            kind: Score(
                sum(right for right, other in zip(self.correct, self.kinds, strict=True) if other == kind),
                self.kinds.count(kind),
            )
            for kind in dict.fromkeys(self.kinds)
        }


def evaluate(
    model,
    data,
    *,
    processor=None,
    transfer=None,
    blind: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    description: str = "answering",
) -> Evaluation:
    """Ask the model every question and compare its answers, after normalisation, with the right ones.

    Args:
        model: a `UnicornForConditionalGeneration`, or the folder or Hub id of one.
        data: a dataset, or a folder, file or Hub id of one, with `question`, `answer`, if wanted `kind`, and the
            `image_embeds` of real pictures (made by `embed`).
        processor: the model's; read from the same folder by default.
        transfer: the `ModalityTransfer` of the training data, whose `condition_image` the vectors go through.
        blind: leave the picture out and ask the question alone.
        batch_size: questions a batch of `generate`.
        max_new_tokens: the longest answer, in tokens.
        description: of the progress bar.

    Raises:
        InputError: the data lack a column, or the model cannot be found.
    """
    import numpy as np
    import torch

    model, processor = _load(model, processor)
    dataset = read_dataset(data)
    check_columns(dataset, "question", "answer", *([] if blind else ["image_embeds"]), source=data)
    questions, expected = dataset["question"][:], dataset["answer"][:]
    kinds = dataset["kind"][:] if "kind" in dataset.column_names else ["all"] * len(dataset)
    vectors = None
    if not blind:
        vectors = np.asarray(
            dataset.with_format("numpy", columns=["image_embeds"])["image_embeds"][:], dtype=np.float32
        )
        vectors = transfer.condition_image(vectors) if transfer is not None else vectors
    image = "" if blind else f"{processor.image_token}\n"
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": image + question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    ]
    model.eval()
    answers = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=description, unit="batch"):
        batch = slice(start, start + batch_size)
        inputs = processor(
            text=prompts[batch],
            image_embeds=None if blind else vectors[batch],
            padding=True,
            padding_side="left",
            add_special_tokens=False,  # the chat template has put them
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [answer.strip() for answer in processor.batch_decode(new, skip_special_tokens=True)]
    correct = [normalize(answer) == normalize(right) for answer, right in zip(answers, expected, strict=True)]
    return Evaluation(answers, correct, kinds)


def normalize(answer: str) -> str:
    """Lower case, no articles, no punctuation, white space folded (after the VQA evaluation, Antol et al. 2015)."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _load(model, processor):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not isinstance(model, str) and not hasattr(model, "__fspath__"):
        if processor is None:
            raise InputError("evaluate: a model object needs its processor as well; expected processor=...")
        return model, processor
    try:
        return (
            AutoModelForImageTextToText.from_pretrained(model),
            processor or AutoProcessor.from_pretrained(model),
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{model}: cannot be loaded as a model ({reason})") from error
