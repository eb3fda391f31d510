"""Stage 2, instruction-tuning data: captions -> conversations (Unicorn, arXiv 2503.22655, section 3.2)."""

import random

from tqdm.auto import tqdm

from unicorn_hf.errors import InputError
from unicorn_hf.storage import check_columns, check_new_folder, read_dataset, write_dataset
from unicorn_hf.synthesis.captions import load_writer
from unicorn_hf.synthesis.grammar import TASKS


def write_instructions(captions, output=None, *, writer="grammar", mix: dict[str, float] | None = None, seed: int = 0):
    """Turn every caption into a multi-turn conversation of one of the three tasks.

    Args:
        captions: a dataset, dataset folder or file with the columns `id` and `caption`.
        output: the folder to write; None only returns the dataset.
        writer: "grammar", or a writer object.
        mix: task -> share, e.g. `{"multiple_choice": 1, "complex_reasoning": 2}`; all three alike by default.
        seed: of the random choices. A conversation depends on it and on its own caption only.

    Returns:
        A `datasets.Dataset` with the columns `id`, `caption`, `task` and `messages` (chat format; the first user turn
        begins with the image placeholder `<image>`).

    Raises:
        InputError: unusable captions, an unknown writer or task, or a non-empty output folder.
    """
    import datasets

    writer = load_writer(writer)
    mix = mix or dict.fromkeys(TASKS, 1.0)
    for task, share in mix.items():
        if task not in TASKS or share < 0 or sum(mix.values()) <= 0:
            raise InputError(f"mix {task}={share}: expected shares of 0 or more for tasks among {', '.join(TASKS)}")
    if output is not None:
        check_new_folder(output)
    source = read_dataset(captions)
    name = "the captions" if isinstance(captions, datasets.Dataset) else captions
    check_columns(source, "id", "caption", source=name)
    rows = []
    for row in tqdm(source.select_columns(["id", "caption"]), desc="instructions", unit="caption"):
        rng = random.Random(f"instructions {seed} {row['caption']}")
        (task,) = rng.choices(list(mix), weights=list(mix.values()))
        messages = writer.conversation(row["caption"], task, rng)
        rows.append({"id": row["id"], "caption": row["caption"], "task": task, "messages": messages})
    dataset = datasets.Dataset.from_list(rows)
    if output is not None:
        write_dataset(dataset, output, title="Instructions")
    return dataset
