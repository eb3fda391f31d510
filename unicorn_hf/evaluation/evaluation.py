"""`evaluate`: what a model answers about pictures, scored beside what it scores without seeing them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from unicorn_hf.data.provenance import Origin
from unicorn_hf.data.sources import Source, read_dataset
from unicorn_hf.data.staging import check_new_folder
from unicorn_hf.errors import InputError
from unicorn_hf.evaluation.config import EvaluateConfig
from unicorn_hf.evaluation.scores import Score, measure


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model in the order of the data, and their scores; the first score is the task's main one.

    Attributes:
        scores: metric -> score over all questions.
        kind_scores: kind of question -> metric -> score.
        answers: what the model said, its thought left out (in a multiple choice: with the options as they stand).
        correct: the main metric of every question alone, 0 to 1 (a caption's CIDEr may be more).
        expected, kinds: the right answer and the kind of every question.
        blind_answers: what it wrote before the mean of all pictures' vectors; None where it was not asked.
        num_unfinished: replies that ended inside a thought, at their limit of tokens, and count as no answer.
    """

    scores: dict[str, Score]
    kind_scores: dict[str, dict[str, Score]]
    answers: list[str]
    correct: list[float]
    expected: list[str]
    kinds: list[str]
    blind_answers: list[str] | None = None
    num_unfinished: int = 0

    @property
    def overall(self) -> Score:
        return next(iter(self.scores.values()))

    def by_kind(self) -> dict[str, Score]:
        """The main score of each kind of question."""
        return {kind: next(iter(scores.values())) for kind, scores in self.kind_scores.items()}

    def __str__(self) -> str:
        kinds = self.by_kind() if len(self.kind_scores) > 1 else {}
        lines = [f"{name:20} {score}" for name, score in {**self.scores, **kinds}.items()]
        if self.num_unfinished:
            lines.append(f"{'no answer':20} {self.num_unfinished:,} replies ended inside a thought (max_new_tokens)")
        return "\n".join(lines)


def evaluate(
    model,
    data: Source,
    output: str | Path | None = None,
    *,
    config: EvaluateConfig | None = None,
    processor=None,
    description: str = "answering",
    **options,
) -> Evaluation:
    """Ask a model questions about pictures and score its answers, over all questions and by kind.

    Args:
        model: a `UnicornForConditionalGeneration`, or the folder or Hub id of one.
        data: a dataset, or a folder, file or Hub id of one, with pictures (a column of images) or their vectors
            (`image_embeds`, as `embed` writes them), and the task's columns (docs/evaluation.md). Where there is a
            column `kind` or `category`, its values are scored apart.
        output: a folder to write: `evaluation.json`, `answers.jsonl` and `report.html`.
        config: the options; `options` are fields of `EvaluateConfig` that replace those of it. `transfer`, the
            `ModalityTransfer` of the training data or its folder, is needed only for the mean shift's centred space.
        processor: the model's; read from the same folder by default.
        description: of the progress bar.

    Raises:
        InputError: an option that cannot be; a column is missing or a cell holds something else; there are no pictures,
            or vectors of another encoder; the model cannot be found; the output folder holds something.
        MissingExtraError: captions are scored by a package of the extra `eval`.
    """
    import numpy as np

    from unicorn_hf.evaluation.pictures import load_model
    from unicorn_hf.evaluation.question_pictures import read_vectors
    from unicorn_hf.evaluation.reader import Reader, check_chat_template

    config = EvaluateConfig.of(config, options)
    if output is not None:
        check_new_folder(output)
    dataset = read_dataset(data, name=config.dataset_config, split=config.split)
    source = "the dataset" if dataset is data else data
    questions = _task(config.task, dataset, source, config.circular)
    model_name = getattr(model, "name_or_path", model)
    if not hasattr(model, "generate"):
        model, own_processor = load_model(
            model, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code
        )
        processor = processor or own_processor
    elif processor is None:
        raise InputError("evaluate: a model object needs its processor as well; expected processor=...")
    check_chat_template(processor, model_name)
    transfer = _check_transfer(config.transfer, model)
    vectors, picture_of = None, np.arange(len(dataset))
    if not config.blind:
        vectors, picture_of = read_vectors(dataset, source, model, processor, config.encoder, transfer)
    reader = Reader(
        model=model.eval(),
        processor=processor,
        vectors=vectors,
        picture_of=picture_of,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens or questions.max_new_tokens,
        suffix=config.suffix,
        description=description,
    )
    answers, metrics = questions.score(reader)
    blind_answers, blind_metrics = None, {}
    if config.baseline and not config.blind:
        blind_answers, blind_metrics = questions.score(reader.before_the_mean())

    column = next((name for name in ("kind", "category") if name in dataset.column_names), None)
    kinds = [str(kind) for kind in dataset[column][:]] if column else ["all"] * len(dataset)
    if "image_id" in dataset.column_names:
        picture_of = np.array([str(value) for value in dataset["image_id"][:]])

    def scores(rows) -> dict[str, Score]:
        return {name: measure(metric, blind_metrics.get(name), picture_of, rows) for name, metric in metrics.items()}

    evaluation = Evaluation(
        scores=scores(slice(None)),
        kind_scores={kind: scores(np.flatnonzero(np.array(kinds) == kind)) for kind in dict.fromkeys(kinds)},
        answers=answers,
        correct=next(iter(metrics.values())).each().tolist(),
        expected=questions.expected,
        kinds=kinds,
        blind_answers=blind_answers,
        num_unfinished=len(reader.unfinished),
    )
    if output is not None:
        from unicorn_hf.evaluation.report import write_report

        about = {
            "model": str(model_name),
            "data": str(source),
            "task": config.task,
            "questions": len(dataset),
            "pictures": 0 if config.blind else len(np.unique(picture_of)),
            "image_encoder": model.config.image_encoder,
            "transfer": model.config.transfer,
            "suffix": config.suffix,
            "unfinished": evaluation.num_unfinished,
        }
        write_report(evaluation, dataset, questions.questions, about, output)
    return evaluation


def _task(name: str, dataset, source, circular: bool):
    if name == "vqa":
        from unicorn_hf.evaluation.vqa import Vqa

        return Vqa(dataset, source)
    if name == "multiple-choice":
        from unicorn_hf.evaluation.multiple_choice import MultipleChoice

        return MultipleChoice(dataset, source, circular)
    if name == "yes-no":
        from unicorn_hf.evaluation.yes_no import YesNo

        return YesNo(dataset, source)
    from unicorn_hf.evaluation.captioning import Captions

    return Captions(dataset, source)


def _check_transfer(transfer, model):
    """The transfer, read where it is a folder, after a look at whether it is the one of the model's training data."""
    from unicorn_hf.transfer import ModalityTransfer

    trained_on = model.config.transfer
    if transfer is None:
        if trained_on == "mean_shift":
            warnings.warn(
                "the model was trained on vectors moved by mean_shift; where that was the centred space (a fit without "
                "images, the released Unicorn), pass the transfer, or real vectors lie elsewhere than those it knows",
                stacklevel=3,
            )
        return None
    if not isinstance(transfer, ModalityTransfer):
        transfer = ModalityTransfer.from_pretrained(transfer)
    if trained_on and transfer.method != trained_on:
        raise InputError(
            f"the transfer is {transfer.method!r}, but the model was trained on vectors moved by {trained_on!r}; pass "
            "the one of its training data"
        )
    if differ := Origin(transfer.config.get("image_encoder")).difference(Origin(model.config.image_encoder)):
        raise InputError(
            f"the transfer was fitted on vectors of {differ[0]}, but the model reads those of {differ[1]}; pass the "
            "transfer of the model's training data"
        )
    return transfer
