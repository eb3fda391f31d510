"""Stage 1, diverse caption synthesis: seeds -> captions (Unicorn, arXiv 2503.22655, section 3.1)."""

import random

from tqdm.auto import tqdm

from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.staging import check_new_folder
from unicorn_hf.errors import InputError, require
from unicorn_hf.synthesis.seeds import read_seeds, text_id
from unicorn_hf.synthesis.writers import load_writer


def write_captions(
    seeds,
    output=None,
    *,
    writer="grammar",
    captions_per_seed: int = 3,
    seed: int = 0,
    filters=None,
    prompt_dir=None,
    near_duplicates: float | None = 0.6,
    embed_text=None,
    semantic_duplicates: float = 0.97,
    budget: float | None = None,
    executor: str = "local",
    tasks: int = 1,
    workers: int = -1,
    executor_options: dict | None = None,
):
    """Expand every seed into several different captions.

    The options from `filters` on are for language models; the grammar writer works in this process and takes none.

    Args:
        seeds: a list of texts, one or several files (txt, jsonl, csv, parquet), a dataset or a dataset folder (see
            `read_seeds`).
        output: the folder to write; None only returns the dataset (grammar writer).
        writer: "grammar", or a writer object: `ChatWriter`, `TransformersWriter`, `BatchWriter`.
        captions_per_seed: how many captions a seed is expanded into; a seed with fewer wordings gets fewer.
        seed: of the random choices. A caption depends on it and on its own seed text, not on the other seeds.
        filters: what is asked of a caption (`CaptionFilters`).
        prompt_dir: a folder with prompts that replace the package's own (see `Prompts`).
        near_duplicates: the Jaccard index of word 3-grams from which on a caption repeats another; None keeps all.
        embed_text: texts -> vectors [N, D]; where given, captions that say the same are left out.
        semantic_duplicates: the cosine from which on two captions say the same.
        budget: money that the run may spend; what is not asked any more counts as failed (see `retry_failed`).
        executor: "local", "slurm" or "ray"; `executor_options` go to datatrove's executor.
        tasks: shards of the seeds, each answered by a rank of its own; `workers` of them at a time.

    Returns:
        A `datasets.Dataset` with the columns `id` (hash of the caption), `seed`, `domain`, `caption`; no caption twice.
        None where it is not there yet (Slurm, batch files).

    Raises:
        InputError: unusable seeds, an unknown writer, or a non-empty output folder.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    writer = load_writer(writer)
    if captions_per_seed < 1:
        raise InputError(f"captions_per_seed is {captions_per_seed}; expected 1 or more")
    if output is not None:
        check_new_folder(output)
    rows = read_seeds(seeds)
    if hasattr(writer, "captions"):
        return _write_in_process(rows, output, writer, captions_per_seed, seed)

    from unicorn_hf.synthesis.job import run_job

    return run_job(
        caption_stage(captions_per_seed, seed, filters, prompt_dir),
        rows,
        output,
        writer,
        budget=budget,
        finish={"near_duplicates": near_duplicates, "semantic_threshold": semantic_duplicates},
        embed_text=embed_text,
        executor=executor,
        tasks=tasks,
        workers=workers,
        executor_options=executor_options,
    )


def caption_stage(captions_per_seed: int = 3, seed: int = 0, filters=None, prompt_dir=None):
    """Stage 1 for a language model, its prompts and filters checked.

    Raises:
        InputError: a prompt or a setting that cannot be used.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    require("pydantic", "synthesis")
    from unicorn_hf.synthesis.caption_filters import CaptionFilters, check_language
    from unicorn_hf.synthesis.caption_stage import CaptionStage

    filters = filters or CaptionFilters()
    if filters.max_tokens < 12:
        raise InputError(f"max_tokens is {filters.max_tokens}; expected 12 or more: a caption has some words")
    check_language(filters.language)
    prompt_dir = None if prompt_dir is None else str(prompt_dir)
    stage = CaptionStage(per_row=captions_per_seed, seed=seed, filters=filters, prompt_dir=prompt_dir)
    stage.prompt({"id": "", "seed": "a dog", "domain": "animals"}, 0)  # a broken prompt is better found now
    return stage


def _write_in_process(seeds, output, writer, captions_per_seed: int, seed: int):
    import datasets

    rows = {}
    for row in tqdm(seeds, desc="captions", unit="seed"):
        rng = random.Random(f"captions {seed} {row['seed']}")
        for caption in writer.captions(row["seed"], captions_per_seed, rng):
            key = text_id(caption)
            rows.setdefault(key, {"id": key, "seed": row["seed"], "domain": row["domain"], "caption": caption})
    dataset = datasets.Dataset.from_list(list(rows.values()))
    if output is not None:
        write_dataset(dataset, output, title="Captions")
    return dataset
