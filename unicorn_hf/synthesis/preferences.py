"""Preference data, for the third stage of training: captions -> a question with a right and a wrong answer."""

from pathlib import Path

from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import Source
from unicorn_hf.data.staging import check_new_folder
from unicorn_hf.errors import require
from unicorn_hf.progress import progress_bar
from unicorn_hf.synthesis.config import PreferenceConfig
from unicorn_hf.synthesis.grammar import FAULTS
from unicorn_hf.synthesis.instructions import read_captions, verifies
from unicorn_hf.synthesis.tasks import check_mix, draw_fault


def write_preferences(
    captions: Source, output: str | Path | None = None, *, config: PreferenceConfig | None = None, **options
):
    """Ask one question about every caption, with an answer that the caption supports and one that it contradicts.

    The wrong answer is wrong about an object, a color, the count or a relation. Questions about objects are those of
    POPE (Li et al. 2023, arXiv 2305.10355): yes or no, and half of them about an object that is not there.

    Args:
        captions: a dataset, dataset folder or file with the columns `id` and `caption`.
        output: the folder to write; None only returns the dataset (grammar writer).
        config: the options; `options` are fields of `PreferenceConfig` that replace those of it. `writer`, the name of
            a writer or a writer object, is required. `summary.json` has the cost of the option `verify` under
            `checking`.

    Returns:
        A `datasets.Dataset` with the columns `id`, `caption`, `prompt`, `chosen` and `rejected`, each of the latter
        three a list of {role, content} as TRL's `DPOTrainer` reads it; the prompt begins with the image placeholder
        `<image>`. None if it is not written yet (Slurm, batch files).

    Raises:
        InputError: unusable captions, an invalid option, or a non-empty output folder.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    config = PreferenceConfig.of(config, options)
    writer = config.make_writer()
    if output is not None:
        check_new_folder(output)
    source = read_captions(captions)
    if hasattr(writer, "preference"):
        return _write_in_process(source, output, writer, check_mix(config.mix, FAULTS), config.seed)

    from unicorn_hf.synthesis.job import run_job

    return run_job(preference_stage(config, writer), source, output, writer, config, finish={})


def preview_preferences(captions, config: PreferenceConfig) -> dict:
    """The requests and the cost of `write_preferences` (see `job.preview`), estimated without a call.

    Raises:
        InputError: as in `write_preferences`; also for the grammar writer, which sends no requests.
    """
    from unicorn_hf.synthesis.job import preview

    writer = config.make_asked_writer()
    return preview(preference_stage(config, writer), read_captions(captions), writer)


def preference_stage(config: PreferenceConfig, writer):
    """The stage for a language model, its prompts checked.

    Raises:
        InputError: a prompt or a setting that cannot be used.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    require("pydantic", "synthesis")
    from unicorn_hf.synthesis.preference_stage import PreferenceStage

    verify = verifies(writer, config.verify)
    prompt_dir = None if config.prompt_dir is None else str(config.prompt_dir)
    mix = check_mix(config.mix, FAULTS)
    stage = PreferenceStage(mix=mix, seed=config.seed, verify=verify, prompt_dir=prompt_dir)
    stage.prompts.messages("preference", caption="a dog", fault="object")  # finds a broken prompt before the first call
    if verify:
        stage.prompts.messages("verify", caption="a dog", questions=["What is it?"])
    return stage


def _write_in_process(captions, output, writer, mix: dict[str, float], seed: int):
    import datasets

    rows = []
    for row in progress_bar(captions, desc="preferences", unit="caption"):
        fault, rng = draw_fault(row["caption"], mix, seed)
        pair = writer.preference(row["caption"], fault, rng)
        rows.append({"id": row["id"], "caption": row["caption"], **pair})
    dataset = datasets.Dataset.from_list(rows)
    if output is not None:
        write_dataset(dataset, output, title="Preferences")
    return dataset
