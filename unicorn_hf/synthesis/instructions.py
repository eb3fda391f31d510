"""Stage 2, instruction-tuning data: captions -> conversations (Unicorn, arXiv 2503.22655, section 3.2)."""

from tqdm.auto import tqdm

from unicorn_hf.data.dataset_folder import feature_text, write_card, write_shards
from unicorn_hf.data.sources import check_columns, read_dataset
from unicorn_hf.data.staging import check_new_folder, new_folder
from unicorn_hf.errors import InputError, require
from unicorn_hf.synthesis.llava import write_llava
from unicorn_hf.synthesis.tasks import check_mix, draw_task
from unicorn_hf.synthesis.writers import load_writer


def write_instructions(
    captions,
    output=None,
    *,
    writer="grammar",
    mix: dict[str, float] | None = None,
    seed: int = 0,
    verify: bool | None = None,
    prompt_dir=None,
    format: str = "messages",
    budget: float | None = None,
    executor: str = "local",
    tasks: int = 1,
    workers: int = -1,
    executor_options: dict | None = None,
):
    """Turn every caption into a multi-turn conversation of one of the three tasks.

    The options `verify`, `prompt_dir` and from `budget` on are for language models.

    Args:
        captions: a dataset, dataset folder or file with the columns `id` and `caption`.
        output: the folder to write; None only returns the dataset (grammar writer).
        writer: "grammar", or a writer object: `ChatWriter`, `TransformersWriter`, `BatchWriter`.
        mix: task -> share, e.g. `{"multiple_choice": 1, "complex_reasoning": 2}`; all three alike by default.
        seed: of the random choices. A conversation depends on it and on its own caption only.
        verify: let the model answer the questions a second time, from the caption alone, and keep the conversations in
            which the two agree. On by default where the writer can do it (not in batch files); what it cost stands in
            `summary.json` under `checking`.
        prompt_dir: a folder with prompts that replace the package's own (see `Prompts`).
        format: "messages", or "llava" to write `conversations.json` as LLaVA and Bunny read it beside the dataset.
        budget, executor, tasks, workers, executor_options: see `write_captions`.

    Returns:
        A `datasets.Dataset` with the columns `id`, `caption`, `task` and `messages` (chat format; the first user turn
        begins with the image placeholder `<image>`). None where it is not there yet (Slurm, batch files).

    Raises:
        InputError: unusable captions, an unknown writer, task or format, or a non-empty output folder.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    writer = load_writer(writer)
    mix = check_mix(mix)
    if format not in ("messages", "llava"):
        raise InputError(f"unknown format {format!r}; expected messages or llava")
    if output is not None:
        check_new_folder(output)
    source = read_captions(captions)
    if hasattr(writer, "conversation"):
        return _write_in_process(source, output, writer, mix, seed, llava=format == "llava")

    from unicorn_hf.synthesis.job import run_job

    return run_job(
        conversation_stage(mix, seed, verifies(writer, verify), prompt_dir),
        source,
        output,
        writer,
        budget=budget,
        finish={"llava": format == "llava"},
        executor=executor,
        tasks=tasks,
        workers=workers,
        executor_options=executor_options,
    )


def verifies(writer, verify: bool | None) -> bool:
    """Whether conversations get a second opinion: as the user says, or else where the writer can give one."""
    return writer.name != "batch" if verify is None else verify


def read_captions(captions):
    """The columns `id` and `caption` of a source, both as texts.

    Raises:
        InputError: the source cannot be read, lacks a column, or holds a caption that is no text.
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


def conversation_stage(mix: dict[str, float] | None = None, seed: int = 0, verify: bool = False, prompt_dir=None):
    """Stage 2 for a language model, its prompts checked.

    Raises:
        InputError: a prompt or a setting that cannot be used.
        MissingExtraError: a package of the extra `synthesis` is not installed.
    """
    require("pydantic", "synthesis")
    from unicorn_hf.synthesis.conversation_stage import ConversationStage

    prompt_dir = None if prompt_dir is None else str(prompt_dir)
    stage = ConversationStage(mix=check_mix(mix), seed=seed, verify=verify, prompt_dir=prompt_dir)
    for task in stage.mix:  # a broken prompt is better found now
        stage.prompts.messages(task, caption="a dog", num_turns=2)
    if verify:
        stage.prompts.messages("verify", caption="a dog", questions=["What is it?"])
    return stage


def _write_in_process(captions, output, writer, mix: dict[str, float], seed: int, llava: bool):
    import datasets

    rows = []
    for row in tqdm(captions, desc="instructions", unit="caption"):
        task, rng = draw_task(row["caption"], mix, seed)
        messages = writer.conversation(row["caption"], task, rng)
        rows.append({"id": row["id"], "caption": row["caption"], "task": task, "messages": messages})
    dataset = datasets.Dataset.from_list(rows)
    if output is not None:
        with new_folder(output) as folder:
            write_shards(dataset, folder / "data")
            columns = {name: feature_text(dataset.features[name]) for name in dataset.column_names}
            write_card(folder, title="Instructions", num_rows=len(dataset), columns=columns)
            if llava:
                write_llava(folder)
    return dataset
