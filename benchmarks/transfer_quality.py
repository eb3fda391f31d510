"""The effect of each transfer in the sandbox: readers trained on text alone answer questions about real images.

    python benchmarks/transfer_quality.py             # 3 seeds, some minutes on 2 cores
    python benchmarks/transfer_quality.py --seeds 1 --scenes 300 --pictures 300 --test 100 --steps 100

For each seed, captions of scenes and images of *other* scenes become vectors of the shipped tiny CLIP. Every method is
fitted on the two unpaired sets and moves the captions. A small reader (vector and question in, answer out) is trained
on the moved captions and asked about images of unseen scenes. `blind` gets no vector; `paired` is trained on images.
The seeds differ in scenes, captions, images and the reader's weights. The CLIP is the same, so the results say nothing
about other encoders.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from unicorn_hf import ModalityTransfer, load_encoder, measure_gap
from unicorn_hf.sandbox.world import draw_all, split_scenes
from unicorn_hf.synthesis.grammar import GrammarWriter, parse_caption, scene_questions

METHODS = {
    "none": {"method": "none"},
    "mean_shift": {"method": "mean_shift"},
    "mean_shift, centred": {"method": "mean_shift", "centred": True},
    "mean_shift, sigma 0.03": {"method": "mean_shift", "sigma": 0.03},
    "realign": {"method": "realign"},
    "covariance": {"method": "covariance"},
    "anisotropic": {"method": "anisotropic"},
}
TASKS = ("question_answering", "complex_reasoning")
T_97_5 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}  # Student's t, by degrees of freedom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=3000, help="captioned scenes; two captions each")
    parser.add_argument("--pictures", type=int, default=2000, help="unpaired images, for the image statistics")
    parser.add_argument("--test", type=int, default=800, help="images with questions")
    parser.add_argument("--steps", type=int, default=1200, help="training steps of a reader")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/transfer_quality.json"))
    arguments = parser.parse_args()
    encoder = load_encoder("sandbox")
    runs = [run(seed, encoder, arguments) for seed in range(arguments.seeds)]
    print_table(runs)
    if len(runs) > 1:
        print_differences(runs)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(runs, indent=2) + "\n")
    print(f"\nnumbers: {arguments.output}")


def run(seed: int, encoder, arguments) -> dict[str, dict[str, float]]:
    """Method -> measure -> number."""
    rng = random.Random(f"transfer quality {seed}")
    scenes = split_scenes(seed, arguments.scenes, arguments.pictures, arguments.test)
    writer = GrammarWriter()
    captions, sources = [], []
    for index, scene in enumerate(scenes.captions):
        written = writer.captions(scene.seed(), 2, rng)
        captions += written
        sources += [index] * len(written)
    tests = list(dict.fromkeys(scenes.test))  # each scene once, so that retrieval has one right answer
    test_captions = [writer.captions(scene.seed(), 1, rng)[0] for scene in tests]

    text = encoder.encode_text(captions)
    test_text = encoder.encode_text(test_captions)
    pictures = encoder.encode_images(draw_all(scenes.pictures, seed=10 * seed))
    paired = encoder.encode_images(draw_all(scenes.captions, seed=10 * seed + 1))[sources]
    test = encoder.encode_images(draw_all(tests, seed=10 * seed + 2))

    asked = [ask(parse_caption(caption), 4, rng) for caption in captions]
    rows = np.repeat(np.arange(len(captions)), [len(questions) for questions in asked])
    questions = [question for group in asked for question in group]
    test_asked = [ask(scene, 4, rng) for scene in tests]
    test_rows = np.repeat(np.arange(len(tests)), [len(group) for group in test_asked])
    test_questions = [question for group in test_asked for question in group]

    def read(train, evaluate):
        return accuracy(train[rows], questions, evaluate[test_rows], test_questions, seed, arguments.steps)

    results = {"blind": {"accuracy": read(np.zeros_like(text), np.zeros_like(test))}}
    for name, options in tqdm(METHODS.items(), desc=f"seed {seed}"):
        transfer = ModalityTransfer.fit(text, pictures, **options)
        moved, conditioned = transfer.apply(text), transfer.condition_image(test)
        gap = measure_gap(test_text, test, paired=True, transfers=[transfer], sample_size=len(tests))
        measures = list(gap.measures.values())[1]
        results[name] = {"accuracy": read(moved, conditioned)} | {
            key: measures[key]
            for key in ("paired_cosine", "recall_at_1_text_to_image", "centroid_distance", "distribution_gap")
        }
    results["paired"] = {"accuracy": read(paired, test)}
    return results


def ask(scene, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Up to `count` questions that the scene answers, with their answers."""
    known = [question for task in TASKS for question in scene_questions(scene, task, rng)]
    return [(question, answer) for _, question, answer in rng.sample(known, min(count, len(known)))]


class Reader(nn.Module):
    """A vector [n, D] and a bag of a question's words in, the logits of the answers out."""

    def __init__(self, embed_dim: int, num_words: int, num_answers: int, hidden: int = 256):
        super().__init__()
        self.vector = nn.Linear(embed_dim, hidden)
        self.words = nn.Linear(2 * num_words, hidden)
        self.answer = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_answers)
        )

    def forward(self, vector, words):
        # The product lets the question choose what is read from the vector.
        return self.answer(self.vector(vector) * self.words(words))


def accuracy(train, questions, test, test_questions, seed: int, steps: int) -> float:
    """Train a reader on vectors [n, D] with a question each, and score it on others."""
    torch.manual_seed(seed)
    words = sorted({word for question, _ in questions for word in question.split()})
    answers = sorted({answer for _, answer in questions})
    train_words, test_words = bag_of_words(questions, words), bag_of_words(test_questions, words)
    labels = torch.tensor([answers.index(answer) for _, answer in questions])
    mean, scale = train.mean(axis=0), max(float(train.std(axis=0).mean()), 1e-6)
    train, test = (torch.from_numpy((x - mean) / scale) for x in (train, test))

    reader = Reader(train.shape[1], len(words), len(answers))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(train), (256,))
        loss = nn.functional.cross_entropy(reader(train[batch], train_words[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        predicted = reader(test, test_words).argmax(dim=1).tolist()
    right = [answers[index] == answer for index, (_, answer) in zip(predicted, test_questions, strict=True)]
    return float(np.mean(right))


def bag_of_words(questions, words: list[str]) -> torch.Tensor:
    """[n, words]: which words a question has. Order is kept where it matters: before and after "seen from"."""
    index = {word: number for number, word in enumerate(words)}
    bag = torch.zeros(len(questions), 2 * len(words))
    for row, (question, _) in enumerate(questions):
        half = 0
        for word in question.split():
            half = half or int(word == "seen")
            if word in index:
                bag[row, half * len(words) + index[word]] = 1
    return bag


def print_table(runs: list[dict]) -> None:
    columns = {
        "accuracy": "answers right",
        "recall_at_1_text_to_image": "R@1",
        "paired_cosine": "cosine of pairs",
        "centroid_distance": "centroid distance",
        "distribution_gap": "distribution gap",
    }
    print(f"\nMean ± standard deviation over {len(runs)} seeds; answers about real pictures of unseen scenes\n")
    print("| trained on | " + " | ".join(columns.values()) + " |\n| --- |" + " --- |" * len(columns))
    for name in runs[0]:
        cells = []
        for column in columns:
            values = [seed_run[name][column] for seed_run in runs if column in seed_run[name]]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_differences(runs: list[dict]) -> None:
    """Print which differences of accuracy are significant: 95 % intervals of paired differences, by Student's t."""
    pairs = [("none", "blind"), ("mean_shift", "none"), *[(name, "mean_shift") for name in list(METHODS)[2:]]]
    pairs += [("realign", "paired")]
    factor = T_97_5.get(len(runs) - 1, 2.0) / len(runs) ** 0.5
    print("\nDifferences of answers right, the same scenes and questions on both sides\n")
    for first, second in pairs:
        values = np.array([seed_run[first]["accuracy"] - seed_run[second]["accuracy"] for seed_run in runs])
        half = factor * values.std(ddof=1)
        verdict = "separated" if abs(values.mean()) > half else "not separated by these seeds"
        print(f"  {first} - {second}: {values.mean():+.3f} ± {half:.3f}  {verdict}")


if __name__ == "__main__":
    main()
