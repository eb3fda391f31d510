"""Train the tiny CLIP that ships with the sandbox: `python -m unicorn_hf.sandbox.train_clip --output DIR`.

It uses open_clip's model, tokenizer class and loss, on captioned pictures of the toy world. A batch consists of groups
of four scenes that differ in only one attribute. Without such near misses, color and background alone would minimise
the contrastive loss, and the vectors would not encode shape, size and relation. The temperature is fixed and low, which
keeps the modality gap as wide as in a real CLIP (cf. Liang et al. 2022, arXiv 2203.02053, section 4).
"""

import argparse
import dataclasses
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from unicorn_hf.data.staging import new_folder, write_json
from unicorn_hf.errors import one_sentence_errors, require
from unicorn_hf.sandbox.world import IMAGE_SIZE, color_shape_pair, draw, held_out_pairs
from unicorn_hf.synthesis.grammar import GrammarWriter
from unicorn_hf.synthesis.scene import BACKGROUNDS, COLORS, POSITIONS, RELATIONS, SHAPES, SIZES, Scene, Thing

GROUP = 4
CAPTIONS_PER_SCENE = 3
LOGIT_SCALE = 200.0
MEAN, STD = 0.5, 0.3


def train_clip(
    output,
    *,
    steps: int = 1500,
    batch_size: int = 128,
    num_groups: int = 16000,
    lr: float = 1e-3,
    num_probed: int = 10000,
    seed: int = 0,
) -> dict:
    """Train, probe and save the tiny CLIP.

    Args:
        output: the folder to write: `open_clip_config.json`, `open_clip_model.safetensors` (float16), the tokenizer
            and a card; `open_clip.create_model_and_transforms("local-dir:...")` loads it.
        steps: steps of AdamW, each on `batch_size` pictures with one caption each.
        num_groups: groups of four scenes, each drawn once.
        lr: the highest learning rate; 100 steps of warm-up, then a cosine to zero.
        num_probed: scenes drawn for the probes.
        seed: the same arguments give the same weights on the same machine with the same number of threads.

    Returns:
        The numbers of the card: accuracy of linear probes by attribute, retrieval, modality gap.
    """
    require("open_clip", "clip")
    require("sklearn", "gap")
    import open_clip
    from safetensors.torch import save_file

    with new_folder(output) as folder:
        torch.manual_seed(seed)
        groups = make_groups(num_groups, seed)
        writer, rng = GrammarWriter(), random.Random(f"captions {seed}")
        captions = [writer.captions(scene.seed(), CAPTIONS_PER_SCENE, rng) for group in groups for scene in group]
        save_tokenizer({word for texts in captions for text in texts for word in text.lower().split()}, folder)
        config = model_config(vocab_size=len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]))
        write_json(config, folder / "open_clip_config.json")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model = open_clip.CLIP(**json.loads(json.dumps(config["model_cfg"])))
        tokens = torch.stack([tokenizer(texts) for texts in captions]).view(num_groups, GROUP, CAPTIONS_PER_SCENE, -1)
        pictures = draw_pictures([scene for group in groups for scene in group], seed)
        fit(model, pictures.view(num_groups, GROUP, *pictures.shape[1:]), tokens, steps, batch_size, lr, seed)
        # Probe the saved weights, which are rounded to float16.
        weights = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        save_file(weights, folder / "open_clip_model.safetensors")
        report = {
            "num_parameters": sum(tensor.numel() for tensor in weights.values()),
            "steps": steps,
            "seed": seed,
            **probe(model.eval(), tokenizer, num_probed),
        }
        write_json(report, folder / "report.json")
        (folder / "README.md").write_text(card(report))
    return report


def model_config(vocab_size: int) -> dict:
    """open_clip's configuration: a ModifiedResNet of width 12 and a text transformer of two layers."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "init_logit_scale": math.log(LOGIT_SCALE),
            "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 12},
            "text_cfg": {
                "context_length": 32,
                "vocab_size": vocab_size,
                "width": 64,
                "heads": 4,
                "layers": 2,
                # Any value here makes open_clip load a Hugging Face tokenizer, for a `local-dir:` from its folder.
                "hf_tokenizer_name": "tokenizer",
            },
        },
        "preprocess_cfg": {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }


def make_groups(count: int, seed: int) -> list[list[Scene]]:
    """`count` groups of scenes; each member of a group differs from the first in one attribute."""
    rng = random.Random(f"groups {seed}")
    held_out = held_out_pairs()
    groups = []
    while len(groups) < count:
        group = [random_scene(rng)]
        while len(group) < GROUP:
            scene = _change_one(group[0], rng)
            if scene not in group:
                group.append(scene)
        if not any(color_shape_pair(scene) in held_out for scene in group):
            groups.append(group)
    return groups


def random_scene(rng: random.Random) -> Scene:
    background = rng.choice(BACKGROUNDS)
    if rng.random() < 0.3:
        return Scene((_random_thing(rng),), background=background, position=rng.choice(POSITIONS))
    things = (_random_thing(rng), _random_thing(rng))
    while (things[0].color, things[0].shape) == (things[1].color, things[1].shape):
        things = (things[0], _random_thing(rng))
    return Scene(things, background=background, relation=rng.choice(RELATIONS))


def _random_thing(rng: random.Random) -> Thing:
    return Thing(rng.choice(COLORS), rng.choice(SHAPES), rng.choice(SIZES))


def _change_one(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one attribute drawn again, or with one attribute swapped between its two objects."""
    kind = rng.choice(("color", "shape", "shape", "size", "background", "place", "swap"))
    if kind == "background":
        return dataclasses.replace(scene, background=rng.choice(BACKGROUNDS))
    if len(scene.things) == 1 and kind in ("place", "swap"):
        return dataclasses.replace(scene, position=rng.choice(POSITIONS))
    if kind == "place":
        return dataclasses.replace(scene, relation=rng.choice(RELATIONS))
    if kind == "swap":
        first, second = scene.things
        attribute = rng.choice(("color", "shape", "size"))
        one, other = getattr(first, attribute), getattr(second, attribute)
        things = (dataclasses.replace(first, **{attribute: other}), dataclasses.replace(second, **{attribute: one}))
    else:
        index = rng.randrange(len(scene.things))
        value = rng.choice({"color": COLORS, "shape": SHAPES, "size": SIZES}[kind])
        things = tuple(
            dataclasses.replace(thing, **{kind: value}) if position == index else thing
            for position, thing in enumerate(scene.things)
        )
    if len({(thing.color, thing.shape) for thing in things}) < len(things):
        return scene
    return dataclasses.replace(scene, things=things)


def save_tokenizer(words: set[str], folder: Path) -> None:
    """A word-level tokenizer; its end token has the highest id, because open_clip's text tower pools there."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word.strip(".,") for word in words} | {".", ","})
    vocab = {word: index for index, word in enumerate(["<pad>", "<unk>", "<start>", *words, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", vocab["<start>"]), ("<end>", vocab["<end>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(folder)


def draw_pictures(scenes: list[Scene], seed: int) -> torch.Tensor:
    """Pictures of scenes, uint8 [N, 3, 64, 64]."""
    pictures = [
        np.asarray(draw(scene, np.random.default_rng((seed, index))))
        for index, scene in enumerate(tqdm(scenes, desc="drawing", unit="picture"))
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """Apply `preprocess_cfg` to pictures of the right size: uint8 [N, 3, H, W] -> float32 [N, 3, H, W]."""
    return ((pictures.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def fit(model, pictures, tokens, steps: int, batch_size: int, lr: float, seed: int) -> None:
    """Train `model` in place on pictures [groups, 4, 3, H, W] and tokens [groups, 4, captions, length]."""
    import open_clip

    generator = torch.Generator().manual_seed(seed)
    loss_function = open_clip.ClipLoss()
    model.logit_scale.requires_grad_(False)
    model.visual.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    bar = tqdm(range(steps), desc="training", unit="step")
    for _ in bar:
        chosen = torch.randint(0, len(pictures), (batch_size // GROUP,), generator=generator)
        captions = torch.randint(0, tokens.shape[2], (len(chosen), GROUP, 1, 1), generator=generator)
        text = tokens[chosen].gather(2, captions.expand(-1, -1, 1, tokens.shape[3])).flatten(0, 2)
        with torch.autocast("cpu", torch.bfloat16):
            image_embeds, text_embeds, logit_scale = model(normalize(pictures[chosen].flatten(0, 1)), text)
        loss = loss_function(image_embeds.float(), text_embeds.float(), logit_scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def probe(model, tokenizer, num_scenes: int) -> dict:
    """Measure a trained CLIP on new pictures.

    The probes are accuracies of logistic regression on the image vectors, trained on 70 % of them; `first` is the left
    or upper object of two. Also measured: how often a picture's own caption is the nearest among its group of four near
    misses, and among 1,000; and the distance between the centroids of unit vectors.
    """
    from sklearn.linear_model import LogisticRegression

    rng = random.Random("probe")
    scenes = [random_scene(rng) for _ in range(num_scenes)]
    one = [scene for scene in scenes if len(scene.things) == 1]
    two = [scene for scene in scenes if len(scene.things) == 2]
    first = [scene.things[0 if scene.relation in ("left of", "above") else 1] for scene in two]

    def encode(subset: list[Scene]) -> np.ndarray:
        pictures = draw_pictures(subset, seed=1)
        with torch.inference_mode():
            return torch.cat([model.encode_image(normalize(x), normalize=True) for x in pictures.split(500)]).numpy()

    def accuracy(vectors: np.ndarray, labels: list) -> float:
        vectors = (vectors - vectors.mean(0)) / vectors.std(0)
        cut = int(0.7 * len(labels))
        fitted = LogisticRegression(max_iter=500, C=10).fit(vectors[:cut], labels[:cut])
        return round(float(fitted.score(vectors[cut:], labels[cut:])), 3)

    vectors_one, vectors_two = encode(one), encode(two)
    probes = {
        "color": accuracy(vectors_one, [scene.things[0].color for scene in one]),
        "shape": accuracy(vectors_one, [scene.things[0].shape for scene in one]),
        "size": accuracy(vectors_one, [scene.things[0].size for scene in one]),
        "position": accuracy(vectors_one, [scene.position for scene in one]),
        "background": accuracy(vectors_two, [scene.background for scene in two]),
        "color of the first": accuracy(vectors_two, [thing.color for thing in first]),
        "shape of the first": accuracy(vectors_two, [thing.shape for thing in first]),
        "size of the first": accuracy(vectors_two, [thing.size for thing in first]),
        "side by side or stacked": accuracy(vectors_two, [scene.relation in ("left of", "right of") for scene in two]),
    }
    writer = GrammarWriter()
    with torch.inference_mode():
        text = model.encode_text(
            tokenizer([writer.captions(scene.seed(), 1, rng)[0] for scene in two]), normalize=True
        ).numpy()
        num_groups = num_scenes // 20
        groups = make_groups(num_groups, seed=1)
        flat = [scene for group in groups for scene in group]
        group_text = model.encode_text(tokenizer([writer.captions(s.seed(), 1, rng)[0] for s in flat]), normalize=True)
    near = encode(flat).reshape(num_groups, GROUP, -1) @ group_text.numpy().reshape(num_groups, GROUP, -1).transpose(
        0, 2, 1
    )
    return {
        "probes": probes,
        "nearest_of_4": round(float((near.argmax(2) == np.arange(GROUP)).mean()), 3),
        "recall_at_1_of_1000": round(
            float(((vectors_two[:1000] @ text[:1000].T).argmax(1) == np.arange(len(text[:1000]))).mean()), 3
        ),
        "centroid_distance": round(float(np.linalg.norm(vectors_two.mean(0) - text.mean(0))), 3),
    }


def card(report: dict) -> str:
    chance = {"color": "1/6", "shape": "1/4", "size": "1/2", "position": "1/5", "background": "1/4"}
    rows = "\n".join(
        f"| {name} | {value:.3f} | {chance.get(name.removesuffix(' of the first'), '1/2')} |"
        for name, value in report["probes"].items()
    )
    return f"""---
library_name: open_clip
license: apache-2.0
tags: [clip, unicorn]
---

# The sandbox's tiny CLIP

An open_clip model of {report["num_parameters"]:,} parameters (float16) for the toy world of unicorn-hf: 64 x 64
pictures of one or two colored shapes. It has never seen the color-shape pairs that the world holds out, and it knows
nothing of real photographs. Made by

    python -m unicorn_hf.sandbox.train_clip --steps {report["steps"]} --seed {report["seed"]} --output DIR

What logistic regression reads from the image vectors of new pictures:

| attribute | accuracy | chance |
| --- | --- | --- |
{rows}

`first` is the left or upper one of two objects. A picture's own caption is the nearest of four near misses in
{report["nearest_of_4"]:.1%} of cases, and of 1,000 captions of two objects in {report["recall_at_1_of_1000"]:.1%}.
The centroids of the unit image and text vectors are {report["centroid_distance"]:.2f} apart: the modality gap.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="the folder to write; must not exist, or be empty")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with one_sentence_errors():
        print(json.dumps(train_clip(arguments.output, steps=arguments.steps, seed=arguments.seed), indent=2))
