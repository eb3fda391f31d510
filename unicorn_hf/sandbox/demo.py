"""All steps on one CPU, from text to a model that answers about pictures. `make demo`, or `unicorn-hf demo`.

Every step calls the package's public functions, as a user would, and leaves a folder under the demo's output. A step
whose folder exists is skipped, so a stopped demo resumes where it stopped.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.data.staging import check_new_folder, new_folder, write_json
from unicorn_hf.errors import InputError, require
from unicorn_hf.progress import progress_bar
from unicorn_hf.sandbox.training_runs import TrainingRun, train_all

# The kinds of training vectors, in the order of the table.
CONDITIONS = {
    "blind": "no picture",
    "none": "no transfer",
    "mean_shift": "mean shift",
    "realign": "ReAlign",
    "paired": "real pictures",
}


# Further rows of the table.
VALUE, LETTER = "option: value", "option: letter"


@dataclass(frozen=True)
class Size:
    """The sizes of the demo's data and models."""

    num_seeds: int
    num_pictures: int
    num_test: int
    hidden_size: int
    num_layers: int
    language_model_steps: int
    max_steps: int  # of each stage; -1 means the epochs of the YAML
    conditions: list[str]  # the CONDITIONS to train a model for, in their order


FULL = Size(
    num_seeds=3400,
    num_pictures=4000,
    num_test=1000,
    hidden_size=64,
    num_layers=2,
    language_model_steps=900,
    max_steps=-1,
    conditions=list(CONDITIONS),
)
FAST = Size(
    num_seeds=100,
    num_pictures=200,
    num_test=40,
    hidden_size=64,
    num_layers=1,
    language_model_steps=8,
    max_steps=4,
    conditions=["blind", "none", "realign"],
)
CAPTIONS_PER_SEED = 4
_RIGHT, _WRONG = "#00795a", "#b3261e"  # the sheet's answers
_LEGEND = (
    "In color: what the model answers. Of lettered options, both the word and the letter in brackets have to be right."
)


def demo(output, *, fast: bool = False, seed: int = 0) -> dict:
    """Run the demo, or resume a stopped one.

    Args:
        output: the folder for all outputs.
        fast: the same steps on a fraction of the data, with three of the five models; its accuracy means nothing.
        seed: of the world, the writers and the training.

    Returns:
        The table: condition -> kind of question (and "all") -> accuracy.

    Raises:
        InputError: `output` holds anything but a demo of this size and seed.
    """
    for package, extra in (("trl", "train"), ("accelerate", "train"), ("open_clip", "clip")):
        require(package, extra)
    output, size = Path(output), FAST if fast else FULL
    _claim(output, {"seed": seed, **asdict(size)})
    start = time.monotonic()
    _step(output / "1-world", lambda folder: draw_world(folder, size, seed))
    _step(output / "2-captions", lambda folder: make_captions(folder, output, seed))
    _step(output / "3-instructions", lambda folder: make_instructions(folder, output, seed))
    _step(output / "4-embeddings", lambda folder: make_embeddings(folder, output, size.conditions, seed))
    _step(output / "5-transfers", lambda folder: fit_transfers(folder, output))
    _step(output / "6-datasets", lambda folder: publish_datasets(folder, output, size.conditions))
    _step(output / "7-language-model", lambda folder: make_language_model(folder, output, size, seed))
    train_models(output / "8-models", output, size, seed)
    _step(output / "9-evaluation", lambda folder: evaluate_models(folder, output, size.conditions))
    _step(output / "10-loading", lambda folder: load_without_package(folder, output))
    table = json.loads((output / "9-evaluation" / "table.json").read_text())
    print((output / "9-evaluation" / "report.txt").read_text())
    if fast:
        print("--fast only checks that every step runs: its models learn almost nothing, so the table says nothing.")
    sheet = output / "9-evaluation" / "answers.png"
    print(f"{time.monotonic() - start:.0f} s in all. Four pictures, their questions and the model's answers: {sheet}")
    return table


def draw_world(folder: Path, size: Size, seed: int) -> str:
    """Write seeds as a text file, pictures of other scenes for the statistics and for the test, and questions."""
    from datasets import Dataset, concatenate_datasets

    from unicorn_hf.sandbox.world import draw_all, held_out_pairs, split_scenes

    scenes = split_scenes(seed, size.num_seeds, size.num_pictures, size.num_test)
    (folder / "seeds.txt").write_text("".join(f"{scene.seed()}\n" for scene in scenes.captions))
    sets = {"pictures": (scenes.pictures, 3 * seed), "test": (scenes.test, 3 * seed + 2)}
    for name, (subset, picture_seed) in progress_bar(sets.items(), desc="drawing", unit="set"):
        rows = {"seed": [scene.seed() for scene in subset], "image": draw_all(subset, picture_seed)}
        write_dataset(Dataset.from_dict(rows), folder / name, title=f"Pictures: {name}")
    questions = ask(scenes.test, seed)
    asked = read_dataset(folder / "test").select(questions["picture"]).select_columns(["image"])
    questions = concatenate_datasets([questions, asked], axis=1)
    write_dataset(questions, folder / "questions", title="Questions about the test pictures")
    return (
        f"{len(scenes.captions):,} seeds; {len(scenes.pictures):,} unpaired and {len(scenes.test):,} test pictures; "
        f"{len(held_out_pairs())} of 276 color-shape pairs held out"
    )


def ask(scenes, seed: int):
    """One question of each task about every scene, as a dataset; `picture` is the row of its picture."""
    from datasets import Dataset

    from unicorn_hf.synthesis.grammar import TASKS, scene_questions

    rng = random.Random(f"questions {seed}")
    rows = []
    for picture, scene in enumerate(scenes):
        for task in TASKS:
            kind, question, answer = rng.choice(scene_questions(scene, task, rng))
            rows.append({"picture": picture, "task": task, "kind": kind, "question": question, "answer": answer})
    return Dataset.from_list(rows)


def make_captions(folder: Path, output: Path, seed: int) -> str:
    from unicorn_hf import write_captions

    seeds = output / "1-world" / "seeds.txt"
    captions = write_captions(
        seeds, folder / "captions", writer="grammar", captions_per_seed=CAPTIONS_PER_SEED, seed=seed
    )
    return f"{len(captions):,} captions, for example {captions[0]['caption']!r}"


def make_instructions(folder: Path, output: Path, seed: int) -> str:
    from unicorn_hf import write_instructions

    captions = output / "2-captions" / "captions"
    instructions = write_instructions(captions, folder / "instructions", writer="grammar", seed=seed)
    turns = sum(len(messages) for messages in instructions["messages"]) // 2
    return f"{len(instructions):,} conversations of {turns / len(instructions):.1f} questions on average"


def make_embeddings(folder: Path, output: Path, conditions: Sequence[str], seed: int) -> str:
    from unicorn_hf import embed, load_encoder

    encoder = load_encoder("sandbox")
    captions = embed(output / "2-captions" / "captions", folder / "captions", encoder=encoder)
    for name in ("pictures", "test"):
        embed(output / "1-world" / name, folder / name, encoder=encoder)
    if "paired" in conditions:
        embed_pictures_of(captions, folder / "paired", encoder, seed)
    return f"{len(captions):,} captions and the pictures as vectors of {encoder.embed_dim} dimensions"


def embed_pictures_of(captions, folder: Path, encoder, seed: int) -> None:
    """The captions with the vector of a picture each, its own, that shows their scene: text-only training has none."""
    from datasets import Dataset, Features, List, Value

    from unicorn_hf.sandbox.world import draw_all
    from unicorn_hf.synthesis.scene import parse_seed

    # Kept nowhere: `embed` would write every picture as a PNG and read it again.
    pictures = draw_all([parse_seed(text) for text in captions["seed"]], seed=3 * seed + 1)
    vectors = encoder.encode_images(pictures)
    features = {"id": Value("string"), "caption": Value("string")}
    features["image_embeds"] = List(Value("float16"), length=encoder.embed_dim)
    rows = {"id": captions["id"][:], "caption": captions["caption"][:], "image_embeds": list(vectors)}
    provenance = {"image_embeds": {"encoder": "sandbox", "embed_dim": encoder.embed_dim}}
    dataset = Dataset.from_dict(rows, Features(features))
    write_dataset(dataset, folder, title="The captions' scenes as pictures", provenance=provenance)


def fit_transfers(folder: Path, output: Path, methods: Sequence[str] = ("none", "mean_shift", "realign")) -> str:
    """Fit transfers on captions and unpaired pictures, save and load them, and apply them to the captions' vectors."""
    from unicorn_hf import ModalityTransfer

    captions, pictures = output / "4-embeddings" / "captions", output / "4-embeddings" / "pictures"
    distances = {}
    for method in methods:
        saved = ModalityTransfer.fit(captions, pictures, method=method).save_pretrained(folder / method)
        transfer = ModalityTransfer.from_pretrained(saved)
        transfer.apply(captions, folder / "moved" / method)
        if method != "none":
            distances[CONDITIONS.get(method, method)] = transfer.config["centroid_distance_after"]
    before = transfer.config["centroid_distance_before"]
    moved = ", ".join(f"{distance:.3f} after {name}" for name, distance in distances.items())
    return f"distance of the centroids {before:.3f}; {moved}"


def publish_datasets(folder: Path, output: Path, conditions: Sequence[str]) -> str:
    """Publish both configurations for every kind of vectors; for the blind model, conversations without images."""
    from datasets import load_dataset

    from unicorn_hf import publish

    instructions = output / "3-instructions" / "instructions"
    for name in progress_bar(conditions[1:], desc="publishing", unit="dataset"):
        moved = output / "5-transfers" / "moved" / name
        publish(output / "4-embeddings" / "paired" if name == "paired" else moved, instructions, folder / name)
    conversations = read_dataset(instructions).map(leave_image_out, desc="blind conversations")
    write_dataset(conversations, folder / "blind", title="Conversations without the image")
    pretrain = load_dataset(str(folder / "realign"), "unicorn-1.2m", split="train")
    instruction = load_dataset(str(folder / "realign"), "unicorn-471k-instruction", split="train")
    return f"unicorn-1.2m: {len(pretrain):,} rows; unicorn-471k-instruction: {len(instruction):,} rows"


def leave_image_out(row: dict) -> dict:
    return {"messages": [{**turn, "content": turn["content"].removeprefix("<image>\n")} for turn in row["messages"]]}


def make_language_model(folder: Path, output: Path, size: Size, seed: int) -> str:
    """Train the language model: it can read, and has never seen an image. (For real data, a user downloads one.)"""
    from unicorn_hf.sandbox.language_model import train_language_model

    captions = read_dataset(output / "2-captions" / "captions")
    rows = read_dataset(output / "3-instructions" / "instructions").map(put_caption_in, desc="reading exercises")
    with_options = [row for row, task in enumerate(rows["task"]) if task == "multiple_choice"]
    unread = read_dataset(output / "6-datasets" / "blind").select(with_options)
    num_parameters, vocab_size = train_language_model(
        unread["messages"][:],
        rows["messages"][:] + rows.select(with_options)["messages"][:],
        paraphrases(captions["seed"][:], captions["caption"][:]),
        folder / "language-model",
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        steps=size.language_model_steps,
        seed=seed,
    )
    return f"a Llama of {num_parameters:,} parameters, a tokenizer of {vocab_size} words, trained on the text alone"


def paraphrases(seeds: list[str], captions: list[str]) -> list[tuple[str, str]]:
    """Pairs of captions of the same scene."""
    rows = range(0, len(captions) - 1, 2)
    return [(captions[row], captions[row + 1]) for row in rows if seeds[row] == seeds[row + 1]]


def put_caption_in(row: dict) -> dict:
    """The conversation with the caption instead of the image."""
    caption = row["caption"]
    return {"messages": [{**turn, "content": turn["content"].replace("<image>", caption)} for turn in row["messages"]]}


def train_models(folder: Path, output: Path, size: Size, seed: int) -> None:
    """Train two stages per condition, each by its recipe.

    The model without pictures has no projector to train, so it only needs stage 2. It starts from another model's stage
    1, which leaves the language model unchanged.
    """
    datasets, chains = output / "6-datasets", []
    for name in size.conditions[1:]:
        chains.append(
            [
                pretraining(output / "7-language-model" / "language-model", datasets / name, folder / name),
                finetuning(folder / name, datasets / name, folder / name),
            ]
        )
    chains[0].append(finetuning(folder / "none", datasets / "blind", folder / "blind", dataset_config=None))
    start = time.monotonic()
    trained = train_all(chains, size.max_steps, seed)
    _say(
        "8-models",
        f"{len(size.conditions)} models; no image and no image vector was seen in training"
        + (f", but for {CONDITIONS['paired']!r}" if "paired" in size.conditions else ""),
        time.monotonic() - start if trained else None,
    )


def pretraining(language_model: Path, dataset: Path, folder: Path) -> TrainingRun:
    return TrainingRun("pretrain", language_model, dataset, folder / "pretrain", "unicorn-1.2m")


def finetuning(
    pretrained: Path, dataset: Path, folder: Path, dataset_config: str | None = "unicorn-471k-instruction"
) -> TrainingRun:
    return TrainingRun("finetune", pretrained / "pretrain", dataset, folder / "finetune", dataset_config)


def evaluate_models(folder: Path, output: Path, conditions: Sequence[str]) -> str:
    """Ask every model about the test pictures; write a table, a comparison, and a sheet of answers."""
    import numpy as np

    from unicorn_hf import ModalityTransfer, evaluate

    data, pictures = questions_with_vectors(output), read_dataset(output / "4-embeddings" / "test")
    results = {}
    for name in conditions:
        saved = output / "5-transfers" / name
        results[name] = evaluate(
            output / "8-models" / name / "finetune",
            data,
            transfer=ModalityTransfer.from_pretrained(saved) if saved.exists() else None,
            blind=name == "blind",
            batch_size=256,
            description=CONDITIONS[name],
        )
    table = {
        name: {
            "all": result.overall.accuracy,
            **{kind: score.accuracy for kind, score in result.by_kind().items()},
            **score_options(data["question"][:], result.answers, result.expected),
        }
        for name, result in results.items()
    }
    write_json(table, folder / "table.json")
    write_json({name: result.answers for name, result in results.items()}, folder / "answers.json")
    correct = {name: np.array(result.correct) for name, result in results.items()}
    report = f"{_table_text(table, data)}\n\n{_comparisons(correct, np.array(data['picture']))}\n"
    (folder / "report.txt").write_text(report)
    asked = data.select_columns(["picture", "question", "answer"])
    _draw_answers(pictures, asked, results["realign"].answers, folder / "answers.png")
    return f"{len(data):,} questions about {len(pictures):,} pictures that no model has seen"


def score_options(questions: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Scores of questions with options, whose answers look like "red (B)".

    The first is how often the value is right, the second how often the letter is that of the answered value.
    """
    values, letters = [], []
    for question, answer, right in zip(questions, answers, expected, strict=True):
        options = re.findall(r"^(\([A-D]\)) (.+)$", question, re.MULTILINE)
        if options:
            values.append(answer.partition(" (")[0] == right.partition(" (")[0])
            letters.append(answer in [f"{value} {letter}" for letter, value in options])
    return {VALUE: sum(values) / len(values), LETTER: sum(letters) / len(letters)}


def questions_with_vectors(output: Path):
    """The questions about the test pictures, each with its picture and that picture's vector."""
    from datasets import concatenate_datasets

    questions = read_dataset(output / "1-world" / "questions")
    pictures = read_dataset(output / "4-embeddings" / "test")
    vectors = pictures.select(questions["picture"]).select_columns(["image_embeds"])
    return concatenate_datasets([questions, vectors], axis=1)


def load_without_package(folder: Path, output: Path) -> str:
    """Load the ReAlign model in a process that cannot import this package, only from the files in its folder."""
    model = output / "8-models" / "realign" / "finetune"
    program = """
import sys
sys.modules["unicorn_hf"] = None  # any import of the package fails
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
classes = (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor)
print(*(type(auto.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ for auto in classes), sep=", ")
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")},
    )
    if loaded.returncode != 0:
        raise RuntimeError(f"{model} does not load without unicorn_hf:\n{loaded.stderr[-3000:]}")
    return f"{loaded.stdout.strip()} loaded where this package is not installed"


def _step(folder: Path, make) -> None:
    """Make a step's folder unless it exists, and print one line about its content."""
    seconds = None
    if not folder.exists():
        start = time.monotonic()
        with new_folder(folder) as partial:
            (partial / "result.txt").write_text(make(partial))
        seconds = time.monotonic() - start
    _say(folder.name, (folder / "result.txt").read_text(), seconds)


def _say(name: str, result: str, seconds: float | None) -> None:
    print(f"{name}: {result} ({'kept' if seconds is None else f'{seconds:.0f} s'})", flush=True)


def _claim(output: Path, settings: dict) -> None:
    """Mark the output folder as this demo's, or check the mark."""
    mark = output / "demo.json"
    if mark.exists():
        if json.loads(mark.read_text()) != settings:
            raise InputError(f"{output}: holds a demo of another size or seed; name another folder, or remove this one")
        return
    check_new_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(settings, mark)


def _table_text(table: dict, data) -> str:
    kinds = ["all", *sorted(set(table["blind"]) - {"all", VALUE, LETTER}), VALUE, LETTER]
    counts = {"all": len(data), **Counter(data["kind"][:])}
    counts[VALUE] = counts[LETTER] = data["task"][:].count("multiple_choice")
    lines = [f"{'question':14}{'n':>6}  " + "".join(f"{CONDITIONS[name]:>14}" for name in table)]
    for kind in kinds:
        lines.append(f"{kind:14}{counts[kind]:>6}  " + "".join(f"{row[kind]:>14.3f}" for row in table.values()))
    return "\n".join(lines)


def _comparisons(correct: dict, picture) -> str:
    """ReAlign's differences from the other conditions, with their standard errors over the test pictures."""
    import numpy as np

    def difference(name: str, other: str) -> tuple[float, float]:
        by_picture = np.bincount(picture, weights=correct[name].astype(float) - correct[other])
        num_questions = len(picture) / len(by_picture)
        return by_picture.mean() / num_questions, by_picture.std() / np.sqrt(len(by_picture)) / num_questions

    lines = []
    for other in [name for name in correct if name != "realign"]:
        mean, error = difference("realign", other)
        separated = "" if abs(mean) > 2 * error else ": not separated by the noise"
        lines.append(f"ReAlign - {CONDITIONS[other]}: {mean:+.3f} ± {error:.3f}{separated}")
    if "paired" in correct:
        lines.append(compare_with_bound({name: float(values.mean()) for name, values in correct.items()}))
    lines.append(
        "± is one standard error over the test pictures, for one training run each; "
        "benchmarks/sandbox_vqa.py measures how runs differ from seed to seed."
    )
    return "\n".join(lines)


def compare_with_bound(accuracy: dict[str, float]) -> str:
    """ReAlign's share of the upper bound, which is the model trained on real pictures (if no model is above it)."""
    bound = accuracy["paired"]
    above = [CONDITIONS.get(name, name) for name, value in accuracy.items() if value > bound]
    if above:
        return (
            f"{CONDITIONS['paired']}, the upper bound, are below {', '.join(above)}: the models have not converged, "
            "and what a transfer reaches of the bound cannot be told."
        )
    return f"ReAlign reaches {accuracy['realign'] / bound:.1%} of {CONDITIONS['paired']}, the upper bound."


def _draw_answers(pictures, data, answers: list[str], path: Path) -> None:
    """Draw four test pictures (two with one object, two with two) with the ReAlign model's answers about them."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(15)
    two = [";" in seed for seed in pictures["seed"]]
    chosen = [row for row, pair in enumerate(two) if not pair][:2] + [row for row, pair in enumerate(two) if pair][:2]
    sheet = Image.new("RGB", (4 * 300, 720), "white")
    pen = ImageDraw.Draw(sheet)
    lowest = 0
    for column, picture in enumerate(chosen):
        left, top = 300 * column + 20, 290
        sheet.paste(pictures[picture]["image"].resize((256, 256), Image.Resampling.NEAREST), (left, 20))
        for row, answer in zip(data, answers, strict=True):
            if row["picture"] == picture:
                right = answer == row["answer"]
                pen.multiline_text((left, top), row["question"], fill="black", font=font)
                top += 19 * (row["question"].count("\n") + 1)
                said = f"{answer}: right" if right else f"{answer}: wrong, it is {row['answer']}"
                pen.text((left + 12, top), said, fill=_RIGHT if right else _WRONG, font=font)
                top += 36
        lowest = max(lowest, top)
    pen.text((20, lowest), _LEGEND, fill="black", font=font)
    sheet.crop((0, 0, sheet.width, lowest + 36)).save(path)
