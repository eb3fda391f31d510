"""Stage 1, diverse caption synthesis: seeds -> captions (Unicorn, arXiv 2503.22655, section 3.1)."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import Source
from unicorn_hf.data.staging import check_new_folder
from unicorn_hf.errors import require
from unicorn_hf.progress import progress_bar
from unicorn_hf.synthesis.config import CaptionConfig, text_encoder
from unicorn_hf.synthesis.seeds import read_seeds, text_id


def write_captions(
    seeds: Source | Sequence[str | dict | Path],
    output: str | Path | None = None,
    *,
    config: CaptionConfig | None = None,
    embed_text: Callable | None = None,
    **options,
):
    """Expand every seed into several different captions.

    Args:
        seeds: a list of texts, one or several files (txt, jsonl, csv, parquet), a dataset or a dataset folder (see
            `read_seeds`).
        output: the folder to write; None only returns the dataset (grammar writer).
        config: the options; `options` are fields of `CaptionConfig` that replace those of it. `writer`, the name of a
            writer or a writer object, is required.
        embed_text: texts -> vectors [N, D], in place of the option `encoder`: semantic duplicates are left out.

    Returns:
        A `datasets.Dataset` with the columns `id` (hash of the caption), `seed`, `domain`, `caption`; no caption twice.
        None if it is not written yet (Slurm, batch files).

    Raises:
        InputError: unusable seeds, an invalid option, or a non-empty output folder.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    config = CaptionConfig.of(config, options)
    writer = config.make_writer()
    if output is not None:
        check_new_folder(output)
    rows = read_seeds(seeds)
    if hasattr(writer, "captions"):
        return _write_in_process(rows, output, writer, config)

    from unicorn_hf.synthesis.job import run_job

    return run_job(
        caption_stage(config),
        rows,
        output,
        writer,
        config,
        finish={"near_duplicates": config.near_duplicates or None, "semantic_threshold": config.semantic_duplicates},
        embed_text=embed_text or text_encoder(config.encoder),
    )


def preview_captions(seeds, config: CaptionConfig) -> dict:
    """The requests and the cost of `write_captions` (see `job.preview`), estimated without a call.

    Raises:
        InputError: as in `write_captions`; also for the grammar writer, which sends no requests.
    """
    from unicorn_hf.synthesis.job import preview

    writer = config.make_asked_writer()
    return preview(caption_stage(config), read_seeds(seeds), writer)


def caption_stage(config: CaptionConfig):
    """Stage 1 for a language model, its prompts and filters checked.

    Raises:
        InputError: a prompt or a setting that cannot be used.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    require("pydantic", "synthesis")
    from unicorn_hf.synthesis.caption_filters import CaptionFilters, check_language, read_word_list
    from unicorn_hf.synthesis.caption_stage import CaptionStage

    check_language(config.language)
    filters = CaptionFilters(
        max_tokens=config.max_caption_tokens,
        language=config.language,
        forbidden_words=read_word_list(config.word_list) if config.word_list else (),
    )
    prompt_dir = None if config.prompt_dir is None else str(config.prompt_dir)
    stage = CaptionStage(per_row=config.captions_per_seed, seed=config.seed, filters=filters, prompt_dir=prompt_dir)
    stage.prompt({"id": "", "seed": "a dog", "domain": "animals"}, 0)  # finds a broken prompt before the first call
    return stage


def _write_in_process(seeds, output, writer, config: CaptionConfig):
    import datasets

    rows: dict[str, dict] = {}
    for row in progress_bar(seeds, desc="captions", unit="seed"):
        rng = random.Random(f"captions {config.seed} {row['seed']}")
        for caption in writer.captions(row["seed"], config.captions_per_seed, rng):
            key = text_id(caption)
            rows.setdefault(key, {"id": key, "seed": row["seed"], "domain": row["domain"], "caption": caption})
    dataset = datasets.Dataset.from_list(list(rows.values()))
    if output is not None:
        write_dataset(dataset, output, title="Captions")
    return dataset
