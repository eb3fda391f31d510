"""`evaluate`: score a model's answers about images, beside its answers without the images."""

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
    """The answers of one model, in the order of the data, and their scores; the first score is the task's main one.

    Attributes:
        scores: metric -> score over all questions.
        kind_scores: kind of question -> metric -> score.
        answers: the model's answers without its reasoning (multiple choice: for the original order of the options).
        correct: the main metric of each single question, 0 to 1 (CIDEr of a caption can be more).
        expected, kinds: the right answer and the kind of every question.
        blind_answers: the answers of the mean-image baseline (all questions asked with the mean vector of all images);
            None if it was not measured.
        num_unfinished: replies that reached their limit of tokens inside a thought; they count as no answer.
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
    """Ask a model questions about images and score its answers, over all questions and by kind.

    Args:
        model: a `UnicornForConditionalGeneration`, or the folder or Hub id of one.
        data: a dataset, or a folder, file or Hub id of one, with a column of images or of their vectors
            (`image_embeds`, as written by `embed`), and the task's columns (docs/evaluation.md). The values of a column
            `kind` or `category` are scored separately.
        output: a folder to write: `evaluation.json`, `answers.jsonl` and `report.html`.
        config: the options; `options` replace single fields of it. `transfer` (the `ModalityTransfer` of the training
            data, or its folder) is needed only for a mean shift in the centred space.
        processor: the model's processor; by default read from the same folder.
        description: the label of the progress bar.

    Raises:
        InputError: an option is not allowed; a column is missing, or a cell is invalid; there are no images, or vectors
            of another encoder; the model cannot be loaded; the output folder is not empty.
        MissingExtraError: scoring captions needs the extra `eval`.
    """
    from unicorn_hf.evaluation.reader import check_chat_template

    config = EvaluateConfig.of(config, options)
    if output is not None:
        check_new_folder(output)
    dataset = read_dataset(data, name=config.dataset_config, split=config.split)
    source = "the dataset" if dataset is data else data
    questions = _task(config.task, dataset, source, config.circular)
    model_name = getattr(model, "name_or_path", model)
    model, processor = _load(model, processor, config)
    check_chat_template(processor, model_name)
    reader = _make_reader(model, processor, dataset, source, config, questions, description)
    image_of = _image_groups(dataset, reader)
    evaluation = _score(questions, reader, dataset, image_of, with_baseline=config.baseline and not config.blind)
    if output is not None:
        from unicorn_hf.evaluation.report import write_report

        about = {
            "model": str(model_name),
            "data": str(source),
            "task": config.task,
            "questions": len(dataset),
            "images": 0 if config.blind else len(set(image_of.tolist())),
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


def _load(model, processor, config: EvaluateConfig):
    """The model and its processor, loaded if `model` is a folder or Hub id."""
    from unicorn_hf.evaluation.images import load_model

    if hasattr(model, "generate"):
        if processor is None:
            raise InputError("evaluate: a model object needs its processor as well; expected processor=...")
        return model, processor
    model, own_processor = load_model(
        model, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    return model, processor or own_processor


def _make_reader(model, processor, dataset, source, config: EvaluateConfig, questions, description: str):
    """A `Reader` of the dataset's images; of no images with `config.blind`."""
    import numpy as np

    from unicorn_hf.evaluation.question_images import read_vectors
    from unicorn_hf.evaluation.reader import Reader

    transfer = _check_transfer(config.transfer, model)
    vectors, image_of = None, np.arange(len(dataset))
    if not config.blind:
        vectors, image_of = read_vectors(dataset, source, model, processor, config.encoder, transfer)
    return Reader(
        model=model.eval(),
        processor=processor,
        vectors=vectors,
        image_of=image_of,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens or questions.max_new_tokens,
        suffix=config.suffix,
        description=description,
    )


def _image_groups(dataset, reader):
    """The image of each question, `[num_questions]`: the column `image_id`, or the distinct images of the reader."""
    import numpy as np

    if "image_id" in dataset.column_names:
        return np.array([str(value) for value in dataset["image_id"][:]])
    return reader.image_of


def _score(questions, reader, dataset, image_of, *, with_baseline: bool) -> Evaluation:
    """Ask all questions, with the images and (for the baseline) with their mean, and score the answers."""
    import numpy as np

    answers, metrics = questions.score(reader)
    blind_answers, blind_metrics = questions.score(reader.with_mean_image()) if with_baseline else (None, {})
    column = next((name for name in ("kind", "category") if name in dataset.column_names), None)
    kinds = [str(kind) for kind in dataset[column][:]] if column else ["all"] * len(dataset)

    def scores(rows) -> dict[str, Score]:
        return {name: measure(metric, blind_metrics.get(name), image_of, rows) for name, metric in metrics.items()}

    return Evaluation(
        scores=scores(slice(None)),
        kind_scores={kind: scores(np.flatnonzero(np.array(kinds) == kind)) for kind in dict.fromkeys(kinds)},
        answers=answers,
        correct=next(iter(metrics.values())).each().tolist(),
        expected=questions.expected,
        kinds=kinds,
        blind_answers=blind_answers,
        num_unfinished=len(reader.unfinished),
    )


def _check_transfer(transfer, model):
    """The transfer, loaded if it is a folder, and checked against the transfer of the model's training data."""
    from unicorn_hf.transfer import ModalityTransfer

    trained_on = model.config.transfer
    if transfer is None:
        if trained_on == "mean_shift":
            warnings.warn(
                "the model was trained on vectors of a mean_shift transfer; if that was in the centred space (fitted "
                "without images, as in the released Unicorn), pass the transfer, or vectors of real images will be off",
                stacklevel=4,
            )
        return None
    if not isinstance(transfer, ModalityTransfer):
        transfer = ModalityTransfer.from_pretrained(transfer)
    if trained_on and transfer.method != trained_on:
        raise InputError(
            f"the transfer is {transfer.method!r}, but the model was trained on vectors of the transfer "
            f"{trained_on!r}; pass that one"
        )
    if differ := Origin(transfer.config.get("image_encoder")).difference(Origin(model.config.image_encoder)):
        raise InputError(
            f"the transfer was fitted on vectors of {differ[0]}, but the model reads vectors of {differ[1]}; pass the "
            "transfer of the model's training data"
        )
    return transfer
