"""Write an evaluation as a folder: scores as JSON, every answer, and a page with examples of right and wrong ones."""

import base64
import io
import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np

from unicorn_hf.data.staging import new_folder, write_json
from unicorn_hf.evaluation.images import read_image
from unicorn_hf.evaluation.question_images import image_column, undecoded

_NUM_SHOWN = 12  # of the right answers, and of the wrong ones
_THUMBNAIL = (224, 224)


def write_report(evaluation, dataset, questions: list[str], about: dict, output) -> None:
    """Write `evaluation.json`, `answers.jsonl` and `report.html` to the new folder `output`.

    Args:
        evaluation: an `Evaluation` of `dataset`.
        questions: the question of each row.
        about: model, data, task and settings, as JSON values.
    """
    rows = [
        {
            "row": row,
            "kind": evaluation.kinds[row],
            "question": question,
            "expected": evaluation.expected[row],
            "answer": evaluation.answers[row],
            "score": evaluation.correct[row],
            **({} if evaluation.blind_answers is None else {"blind_answer": evaluation.blind_answers[row]}),
        }
        for row, question in enumerate(questions)
    ]
    scores = {
        "scores": {name: asdict(score) for name, score in evaluation.scores.items()},
        "kinds": {
            kind: {name: asdict(score) for name, score in scores.items()}
            for kind, scores in evaluation.kind_scores.items()
        },
    }
    with new_folder(output) as folder:
        write_json({**about, **scores}, folder / "evaluation.json")
        with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / "report.html").write_text(_page(evaluation, dataset, rows, about), encoding="utf-8")


def _page(evaluation, dataset, rows: list[dict], about: dict) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    values = np.array(evaluation.correct)
    limit = np.median(values) if about["task"] == "caption" else 0.5
    drawn = random.Random(0).sample(rows, len(rows))
    names = ("better captions", "worse captions") if about["task"] == "caption" else ("right answers", "wrong answers")
    sides = ([row for row in drawn if row["score"] >= limit], [row for row in drawn if row["score"] < limit])
    examples = {}
    for name, side in zip(names, sides, strict=True):
        drawn_of = f"{_NUM_SHOWN} of the {len(side):,} {name}, drawn at random"
        examples[drawn_of if len(side) > _NUM_SHOWN else f"All {len(side)} {name}"] = side[:_NUM_SHOWN]
    column = image_column(dataset) if about["images"] else None
    files = undecoded(dataset, column) if column else None
    return environment.get_template("report.html.jinja").render(
        about=about,
        model=short_name(about["model"]),
        evaluation=evaluation,
        kinds=dict(sorted(evaluation.by_kind().items())) if len(evaluation.kind_scores) > 1 else {},
        main=next(iter(evaluation.scores)),
        examples=examples,
        image=lambda row: _thumbnail(files[row["row"]]) if files else None,
    )


def short_name(name: str) -> str:
    """A Hub id, or the last two parts of a folder's path."""
    return "/".join(Path(name).parts[-2:])


def _thumbnail(cell) -> str:
    image = read_image(cell)
    image.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
