"""Stage 2, instruction-tuning data: captions -> conversations (Unicorn, arXiv 2503.22655, section 3.2)."""

from pathlib import Path

from unicorn_hf.data.dataset_folder import write_rows
from unicorn_hf.data.sources import Source, check_columns, read_dataset
from unicorn_hf.data.staging import check_new_folder, new_folder
from unicorn_hf.errors import InputError, require
from unicorn_hf.progress import progress_bar
from unicorn_hf.synthesis.config import InstructionConfig
from unicorn_hf.synthesis.llava import write_llava
from unicorn_hf.synthesis.tasks import check_mix, draw_task


def write_instructions(
    captions: Source, output: str | Path | None = None, *, config: InstructionConfig | None = None, **options
):
    """Turn every caption into a multi-turn conversation of one of the three tasks.

    Args:
        captions: a dataset, dataset folder or file with the columns `id` and `caption`.
        output: the folder to write; None only returns the dataset (grammar writer).
        config: the options; `options` are fields of `InstructionConfig` that replace those of it. `writer`, the name
            of a writer or a writer object, is required. `summary.json` has the cost of the option `verify` under
            `checking`.

    Returns:
        A `datasets.Dataset` with the columns `id`, `caption`, `task` and `messages` (chat format; the first user turn
        begins with the image placeholder `<image>`). None if it is not written yet (Slurm, batch files).

    Raises:
        InputError: unusable captions, an invalid option, or a non-empty output folder.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    config = InstructionConfig.of(config, options)
    writer = config.make_writer()
    if output is not None:
        check_new_folder(output)
    source = read_captions(captions)
    llava = config.format == "llava"
    if hasattr(writer, "conversation"):
        return _write_in_process(source, output, writer, check_mix(config.mix), config.seed, llava)

    from unicorn_hf.synthesis.job import run_job

    return run_job(conversation_stage(config, writer), source, output, writer, config, finish={"llava": llava})


def preview_instructions(captions, config: InstructionConfig) -> dict:
    """The requests and the cost of `write_instructions` (see `job.preview`), estimated without a call.

    Raises:
        InputError: as in `write_instructions`; also for the grammar writer, which sends no requests.
    """
    from unicorn_hf.synthesis.job import preview

    writer = config.make_asked_writer()
    return preview(conversation_stage(config, writer), read_captions(captions), writer)


def verifies(writer, verify: bool | None) -> bool:
    """Whether conversations are checked by a second request. By default, they are checked if the writer can do it."""
    return writer.name != "batch" if verify is None else verify


def read_captions(captions):
    """The columns `id` and `caption` of a source, both as texts.

    Raises:
        InputError: the source cannot be read, lacks a column, or holds a caption that is not a text.
    """
    import datasets

    name = "the captions" if isinstance(captions, datasets.Dataset) else captions
    source = read_dataset(captions)
    check_columns(source, "id", "caption", source=name)
    source = source.select_columns(["id", "caption"])
    if source.features["caption"].dtype not in ("string", "large_string"):
        raise InputError(f"{name}: the column 'caption' holds {source.features['caption']}; expected texts")
    nulls = source.data.column("caption").null_count
    if nulls:
        raise InputError(f"{name}: {nulls} rows have no caption; leave them out")
    return source.cast_column("id", datasets.Value("string"))


def conversation_stage(config: InstructionConfig, writer):
    """Stage 2 for a language model, its prompts checked.

    Raises:
        InputError: a prompt or a setting that cannot be used.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    require("pydantic", "synthesis")
    from unicorn_hf.synthesis.conversation_stage import ConversationStage

    verify = verifies(writer, config.verify)
    prompt_dir = None if config.prompt_dir is None else str(config.prompt_dir)
    stage = ConversationStage(mix=check_mix(config.mix), seed=config.seed, verify=verify, prompt_dir=prompt_dir)
    for task in stage.mix:  # finds a broken prompt before the first call
        stage.prompts.messages(task, caption="a dog", num_turns=2)
    if verify:
        stage.prompts.messages("verify", caption="a dog", questions=["What is it?"])
    return stage


def _write_in_process(captions, output, writer, mix: dict[str, float], seed: int, llava: bool):
    import datasets

    rows = []
    for row in progress_bar(captions, desc="instructions", unit="caption"):
        task, rng = draw_task(row["caption"], mix, seed)
        messages = writer.conversation(row["caption"], task, rng)
        rows.append({"id": row["id"], "caption": row["caption"], "task": task, "messages": messages})
    dataset = datasets.Dataset.from_list(rows)
    if output is not None:
        with new_folder(output) as folder:
            write_rows(dataset, folder, title="Instructions")
            if llava:
                write_llava(folder)
    return dataset
