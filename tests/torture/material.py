"""Small, sound inputs of every step, which the attempts break."""

import random
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from small_datasets import captions, conversations, write_released
from training_run import make_language_model


def make_material(folder: Path) -> Path:
    """Seeds, captions, conversations, vectors of text and images, a transfer, pictures, released files, a model."""
    from unicorn_hf import ModalityTransfer, embed, load_encoder, write_captions
    from unicorn_hf.data.dataset_folder import write_dataset
    from unicorn_hf.transfer import Moments

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 16)).astype(np.float32)
    np.save(folder / "text.npy", rows)
    np.save(folder / "image.npy", rows[:150] + 1)
    (folder / "seeds.txt").write_text("a red circle on a blue background\ntwo green squares\n", encoding="utf-8")
    write_dataset(captions(text_embeds=list(rows[:60].astype(np.float16))), folder / "captions", title="Captions")
    write_dataset(conversations(), folder / "conversations", title="Conversations")
    write_captions(folder / "seeds.txt", folder / "shapes", writer="grammar")
    ModalityTransfer.fit(folder / "text.npy", folder / "image.npy").save_pretrained(folder / "transfer")
    (folder / "photos").mkdir()
    for name in "abc":
        colour = tuple(random.Random(name).randrange(256) for _ in range(3))
        Image.new("RGB", (64, 64), colour).save(folder / "photos" / f"{name}.png")
    write_released(folder / "released")
    lawns = [f"A dog and {number} cats lie on a lawn behind a white fence." for number in range(6)]
    rows = datasets.Dataset.from_dict({"id": [str(number) for number in range(6)], "caption": lawns})
    write_dataset(rows, folder / "lawns", title="Captions")
    for name in ("text-0", "text-1", "image"):
        modality = name.split("-")[0]
        Moments.measure(folder / f"{modality}.npy").save(folder / f"{name}.safetensors", modality=modality)
    make_language_model(folder / "language_model")
    # The attempts are forks of this process: what is imported here is imported once.
    embed(datasets.Dataset.from_dict({"caption": ["a red circle"]}), encoder=load_encoder("sandbox"))
    import unicorn_hf.evaluation
    import unicorn_hf.hub
    import unicorn_hf.training.trainer  # noqa: F401

    return folder
