"""`unicorn-hf`: one command a step, each a thin layer over the function of the same name.

Exit status: 0 done; 2 the input cannot be used (one sentence says why); 3 done but for some rows (a file names them).
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicorn_hf.errors import InputError, one_sentence_errors, require

app = typer.Typer(
    help="Train a vision-language model from text alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write; must not exist, or be empty.")]


def main() -> None:
    with one_sentence_errors():
        app()


# What `captions`, `instructions` and `retry-failed` share: who writes, at what price, and where.
Seed = Annotated[int, typer.Option(help="Of the random choices.")]
Writer = Annotated[
    str,
    typer.Option(help="grammar (the embedded world, no model), chat (a server), transformers (local), batch (files)."),
]
Model = Annotated[str, typer.Option(help="The model's name at the server, or its folder or Hub id.")]
Servers = Annotated[
    str, typer.Option("--servers", "--base-url", help="Base URLs, by commas; the key is read from OPENAI_API_KEY.")
]
Concurrency = Annotated[int, typer.Option(help="The most calls under way at a time.")]
Timeout = Annotated[float, typer.Option(help="Seconds for one try of a call.")]
Deadline = Annotated[float, typer.Option(help="Seconds for a call with all its tries and pauses.")]
Temperature = Annotated[float, typer.Option(help="Of the sampling.")]
MaxTokens = Annotated[
    int,
    typer.Option(
        min=1, help="The most of one answer, thoughts included; one that is cut off is asked again with more."
    ),
]
TokenLimit = Annotated[
    str,
    typer.Option(help="The field that limits an answer: max_tokens, max_completion_tokens or none; auto finds out."),
]
ResponseFormat = Annotated[
    str, typer.Option(help="How JSON is asked for: json_schema, json_object or none; auto finds out.")
]
SendTemperature = Annotated[
    bool | None, typer.Option("--send-temperature/--no-send-temperature", help="By default, where the server takes it.")
]
SendSeed = Annotated[
    bool | None, typer.Option("--send-seed/--no-send-seed", help="By default, where the server takes it.")
]
ExtraBody = Annotated[str, typer.Option(help="Further fields of every request, as a JSON object.")]
PriceIn = Annotated[float, typer.Option(help="Money for a million prompt tokens.")]
PriceOut = Annotated[float, typer.Option(help="Money for a million tokens that are written.")]
Budget = Annotated[float | None, typer.Option(help="Money that may be spent; the rest is left for retry-failed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show ten prompts and what all would cost; call nobody.")]
BatchAnswers = Annotated[list[Path] | None, typer.Option(help="A file of batch answers; may be repeated.")]
DuplicatesEncoder = Annotated[
    str | None, typer.Option("--encoder", help="The text encoder that finds semantic duplicates.")
]
PromptDir = Annotated[Path | None, typer.Option(help="A folder with prompts in place of the package's own.")]
Executor = Annotated[str, typer.Option(help="local, slurm or ray.")]
Tasks = Annotated[int, typer.Option(help="Shards of the input, each answered by a rank of its own.")]
Workers = Annotated[int, typer.Option(help="Ranks at a time; -1 for all.")]
ExecutorOption = Annotated[list[str] | None, typer.Option(help="NAME=VALUE for datatrove's executor; may be repeated.")]


@app.command()
def captions(
    seeds: Annotated[
        list[str],
        typer.Argument(
            help="A file (txt, jsonl, csv, parquet), a dataset folder, a Hub id; or several files, one a domain."
        ),
    ],
    output: Output,
    writer: Writer = "grammar",
    captions_per_seed: Annotated[int, typer.Option(help="Captions a seed is expanded into.")] = 3,
    seed: Seed = 0,
    max_caption_tokens: Annotated[int, typer.Option(help="CLIP tokens; its text encoder reads 77.")] = 77,
    language: Annotated[str, typer.Option(help="The captions' language, or any.")] = "en",
    word_list: Annotated[Path | None, typer.Option(help="Words, one a line, that no caption may hold.")] = None,
    near_duplicates: Annotated[float, typer.Option(help="Jaccard index from which captions repeat; 0 for off.")] = 0.6,
    semantic_duplicates: Annotated[
        float, typer.Option(help="Cosine from which captions repeat; needs --encoder.")
    ] = 0.97,
    encoder: DuplicatesEncoder = None,
    prompt_dir: PromptDir = None,
    model: Model = "",
    servers: Servers = "",
    concurrency: Concurrency = 64,
    timeout: Timeout = 120.0,
    deadline: Deadline = 600.0,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 8192,
    token_limit: TokenLimit = "auto",
    response_format: ResponseFormat = "auto",
    send_temperature: SendTemperature = None,
    send_seed: SendSeed = None,
    extra_body: ExtraBody = "{}",
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    budget: Budget = None,
    dry_run: DryRun = False,
    batch_answers: BatchAnswers = None,
    executor: Executor = "local",
    tasks: Tasks = 1,
    workers: Workers = -1,
    executor_option: ExecutorOption = None,
):
    """Stage 1: expand caption seeds into diverse captions."""
    from unicorn_hf.synthesis import write_captions

    source = seeds[0] if len(seeds) == 1 else [Path(name) for name in seeds]
    if writer == "grammar":
        if dry_run:
            raise InputError("--dry-run: the grammar writer asks nobody, so there are no prompts to show")
        dataset = write_captions(source, output, writer=writer, captions_per_seed=captions_per_seed, seed=seed)
        print(f"{output}: {len(dataset):,} captions")
        return

    from unicorn_hf.synthesis.caption_filters import CaptionFilters, read_word_list
    from unicorn_hf.synthesis.captions import caption_stage
    from unicorn_hf.synthesis.seeds import read_seeds

    filters = CaptionFilters(
        max_tokens=max_caption_tokens,
        language=None if language == "any" else language,
        forbidden_words=read_word_list(word_list) if word_list else (),
    )
    request = {
        "max_tokens": max_tokens,
        "token_limit": token_limit,
        "response_format": response_format,
        "send_temperature": send_temperature,
        "send_seed": send_seed,
    }
    settings = (concurrency, timeout, deadline, temperature, request, extra_body, price_in, price_out, batch_answers)
    made = _language_model_writer(writer, model, servers, *settings)
    if dry_run:
        _print_preview(caption_stage(captions_per_seed, seed, filters, prompt_dir), read_seeds(source), made)
        return
    write_captions(
        source,
        output,
        writer=made,
        captions_per_seed=captions_per_seed,
        seed=seed,
        filters=filters,
        prompt_dir=prompt_dir,
        near_duplicates=near_duplicates or None,
        embed_text=_text_encoder(encoder),
        semantic_duplicates=semantic_duplicates,
        budget=budget,
        executor=executor,
        tasks=tasks,
        workers=workers,
        executor_options=_key_values(executor_option or []),
    )
    _print_summary(output)


@app.command()
def instructions(
    captions: Annotated[str, typer.Argument(help="A dataset with the columns id and caption.")],
    output: Output,
    writer: Writer = "grammar",
    seed: Seed = 0,
    mix: Annotated[
        str,
        typer.Option(help="Shares, such as multiple_choice=2,complex_reasoning=1; all three tasks alike by default."),
    ] = "",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Answer every question twice, and keep what agrees; by default, but in batch files.",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="messages, or llava to write conversations.json too.")] = "messages",
    prompt_dir: PromptDir = None,
    model: Model = "",
    servers: Servers = "",
    concurrency: Concurrency = 64,
    timeout: Timeout = 120.0,
    deadline: Deadline = 600.0,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 8192,
    token_limit: TokenLimit = "auto",
    response_format: ResponseFormat = "auto",
    send_temperature: SendTemperature = None,
    send_seed: SendSeed = None,
    extra_body: ExtraBody = "{}",
    price_in: PriceIn = 0.0,
    price_out: PriceOut = 0.0,
    budget: Budget = None,
    dry_run: DryRun = False,
    batch_answers: BatchAnswers = None,
    executor: Executor = "local",
    tasks: Tasks = 1,
    workers: Workers = -1,
    executor_option: ExecutorOption = None,
):
    """Stage 2: turn captions into multi-turn conversations."""
    from unicorn_hf.synthesis import write_instructions

    shares = _shares(mix) if mix else None
    if writer == "grammar":
        if dry_run:
            raise InputError("--dry-run: the grammar writer asks nobody, so there are no prompts to show")
        dataset = write_instructions(captions, output, writer=writer, seed=seed, mix=shares, format=format)
        print(f"{output}: {len(dataset):,} conversations")
        return

    from unicorn_hf.synthesis.instructions import conversation_stage, read_captions, verifies

    request = {
        "max_tokens": max_tokens,
        "token_limit": token_limit,
        "response_format": response_format,
        "send_temperature": send_temperature,
        "send_seed": send_seed,
    }
    settings = (concurrency, timeout, deadline, temperature, request, extra_body, price_in, price_out, batch_answers)
    made = _language_model_writer(writer, model, servers, *settings)
    if dry_run:
        stage = conversation_stage(shares, seed, verifies(made, verify), prompt_dir)
        _print_preview(stage, read_captions(captions), made)
        return
    write_instructions(
        captions,
        output,
        writer=made,
        mix=shares,
        seed=seed,
        verify=verify,
        prompt_dir=prompt_dir,
        format=format,
        budget=budget,
        executor=executor,
        tasks=tasks,
        workers=workers,
        executor_options=_key_values(executor_option or []),
    )
    _print_summary(output)


@app.command("retry-failed")
def retry_failed(
    output: Annotated[Path, typer.Argument(help="What `captions` or `instructions` wrote, with failures.")],
    servers: Servers = "",
    encoder: DuplicatesEncoder = None,
    budget: Budget = None,
    workers: Workers = -1,
):
    """Ask again for what failed in `captions` or `instructions`, and write the dataset anew."""
    from unicorn_hf.synthesis.job import retry_failed

    servers = tuple(filter(None, servers.split(",")))
    retry_failed(output, servers=servers, budget=budget, workers=workers, embed_text=_text_encoder(encoder))
    _print_summary(output)


report_app = typer.Typer(help="Look at what a step wrote.", no_args_is_help=True)
app.add_typer(report_app, name="report")


@report_app.command("captions")
def report_captions(
    captions: Annotated[str, typer.Argument(help="What `captions` wrote: a dataset with the column caption.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; CAPTIONS.report by default.")
    ] = None,
    sample: Annotated[int, typer.Option(help="Captions that the slow measures look at.")] = 2000,
    encoder: Annotated[
        str | None, typer.Option(help="For the Vendi score, where the dataset has no column text_embeds.")
    ] = None,
):
    """How diverse captions are: JSON and HTML."""
    from unicorn_hf.synthesis.report import report_captions

    print(report_captions(captions, output, sample=sample, embed_text=_text_encoder(encoder)))


@app.command()
def embed(
    data: Annotated[
        str,
        typer.Argument(help="A dataset folder, a file, a folder of pictures, WebDataset tars, or a Hub id."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; an unfinished one is resumed.")],
    encoder: Annotated[str, typer.Option(help="sandbox, open_clip/…, transformers/…, a folder, and more.")] = "sandbox",
    text_column: Annotated[str | None, typer.Option(help="The column with texts; caption, text or txt.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The column with images; image, jpg, png or webp.")] = None,
    remove_column: Annotated[list[str] | None, typer.Option(help="A column to leave out of the output.")] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Where a ReVision file's picture paths start; its own folder by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The dataset's configuration.")] = None,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "train",
    batch_size: Annotated[str, typer.Option(help="Rows in a batch, or auto.")] = "auto",
    overflow: Annotated[str, typer.Option(help="For texts over the context: truncate, error or mean.")] = "truncate",
    device: Annotated[str | None, typer.Option(help="A torch device; a GPU by default, where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: bfloat16 on a GPU.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="Run the towers through torch.compile.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the encoder's own code.")] = False,
    shard_rows: Annotated[int | None, typer.Option(help="Rows in a shard, which is done whole or again.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Processes that tokenise or decode.")] = None,
    executor: Executor = "local",
    tasks: Annotated[int, typer.Option(help="How many tasks share the shards, each on a GPU where there are any.")] = 1,
    executor_option: ExecutorOption = None,
):
    """Embed captions or pictures: the same dataset with one column of vectors more.

    Prints a JSON summary. The exit status is 3 where rows could not be embedded; failed.jsonl in the output names them.
    """
    from unicorn_hf.embedding import EmbeddingJob

    job = EmbeddingJob(
        data=data,
        output=output,
        encoder=encoder,
        text_column=text_column,
        image_column=image_column,
        remove_columns=remove_column,
        image_root=image_root,
        name=name,
        split=split,
        batch_size=batch_size,
        overflow=overflow,
        device=device,
        dtype=dtype,
        compile=compile,
        trust_remote_code=trust_remote_code,
        shard_rows=shard_rows,
        num_workers=num_workers,
        executor=executor,
        tasks=tasks,
        executor_options=_key_values(executor_option or []),
    )
    sides = job.sides()
    jobs = list(sides.values()) or [job]
    summaries = [each.run() for each in jobs]
    if None in summaries:
        print(f"{output}: submitted; it appears when the jobs are done")
        return
    printed = dict(zip(sides, summaries, strict=True)) if sides else summaries[0]
    print(json.dumps(printed, indent=2, ensure_ascii=False))
    for each, summary in zip(jobs, summaries, strict=True):
        if summary["overflowing"] and overflow == "truncate":
            print(f"{summary['overflowing']:,} texts were longer than the encoder's context and cut", file=sys.stderr)
        if summary["failed"]:
            print(f"{summary['failed']:,} rows have no vector; {each.output}/failed.jsonl says why", file=sys.stderr)
    if any(summary["failed"] for summary in summaries):
        raise typer.Exit(3)


# What `publish` and `import` share.
ShardSize = Annotated[str, typer.Option(help="Size of a Parquet shard.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset in the output folder.")]


@app.command()
def publish(
    pretrain: Annotated[str, typer.Option(help="A dataset with the columns id, caption, image_embeds.")],
    output: Output,
    instruction: Annotated[
        str | None, typer.Option(help="A dataset with the columns id, caption, task, messages.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the dataset card.")] = "Unicorn",
    license: Annotated[str, typer.Option(help="One of the Hub's identifiers, such as apache-2.0.")] = "unknown",
    transfer: Annotated[
        str | None, typer.Option(help="The transfer that made the vectors: its gap goes on the card.")
    ] = None,
    step: Annotated[
        list[Path] | None, typer.Option(help="Folder of an earlier step whose record goes on the card; several times.")
    ] = None,
    shard_size: ShardSize = "500MB",
    overwrite: Overwrite = False,
    push_to_hub: Annotated[str | None, typer.Option(help="Also push to this repository, as ORG/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
):
    """Write captions and conversations in the Hub's layout, for `load_dataset`, and push them."""
    from unicorn_hf import hub

    folder = hub.publish(
        pretrain,
        instruction,
        output,
        title=title,
        license=license,
        transfer=transfer,
        steps=step or (),
        shard_size=shard_size,
        overwrite=overwrite,
    )
    print(folder)
    if push_to_hub:
        private_or_default = True if private else None
        print(hub.push_to_hub(folder, push_to_hub, private=private_or_default, revision=revision, create_pr=create_pr))


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A Hub id (Yu2020/Unicorn), a folder, or a released JSON file.")],
    output: Output,
    pretrain: Annotated[str | None, typer.Option(help="Name of the captions' JSON file in the source.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Name of the conversations' JSON file in the source.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="The vectors: .npy, .safetensors, .pkl; looked for beside the JSON.")
    ] = None,
    column: Annotated[str, typer.Option(help="What the vectors are: image_embeds or text_embeds.")] = "image_embeds",
    encoder: Annotated[str | None, typer.Option(help="Name of the encoder that made them, for the card.")] = None,
    transfer: Annotated[str | None, typer.Option(help="Name of the transfer that moved them, for the card.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickles, with a reader that admits plain data only.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Of the Hub repository.")] = None,
    shard_size: ShardSize = "500MB",
    overwrite: Overwrite = False,
):
    """Bring the papers' released JSON and vectors into our schema."""
    from unicorn_hf.hub import import_released

    folder = import_released(
        source,
        output,
        pretrain=pretrain,
        instruction=instruction,
        embeddings=embeddings,
        column=column,
        encoder=encoder,
        transfer=transfer,
        allow_pickle=allow_pickle,
        revision=revision,
        shard_size=shard_size,
        overwrite=overwrite,
    )
    print((folder / "summary.json").read_text(encoding="utf-8"), end="")


transfer_app = typer.Typer(help="Stage 3: move text vectors into image space.", no_args_is_help=True)
app.add_typer(transfer_app, name="transfer")

SkipNonFinite = Annotated[bool, typer.Option(help="Leave out rows that hold NaN, Inf or zeros, and list them.")]
AllowPickle = Annotated[bool, typer.Option(help="Read .pkl files too, with a reader that admits plain data only.")]
VectorsEncoder = Annotated[str | None, typer.Option(help="The encoder, where the data do not say it.")]
TextColumn = Annotated[str, typer.Option(help="The column of --text.")]
ImageColumn = Annotated[str, typer.Option(help="The column of --image.")]
OutColumn = Annotated[str, typer.Option(help="The column to add to the moved text.")]
VECTORS = "a dataset folder, a Hub id, or a file: .parquet, .npy, .safetensors, .pkl."


@transfer_app.command("fit")
def transfer_fit(
    output: Output,
    more_moments: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", hidden=True)] = None,
    text: Annotated[str | None, typer.Option(help=f"Text vectors: {VECTORS}")] = None,
    image: Annotated[str | None, typer.Option(help="Image vectors, unpaired: as for --text.")] = None,
    moved: Annotated[
        Path | None, typer.Option(help="Write the moved text too, as `transfer apply` would, in one pass less.")
    ] = None,
    moments: Annotated[
        list[Path] | None, typer.Option(help="Files of `transfer moments`, in place of vectors.")
    ] = None,
    method: Annotated[str, typer.Option(help="none, mean_shift, realign, covariance or anisotropic.")] = "realign",
    text_column: TextColumn = "text_embeds",
    image_column: ImageColumn = "image_embeds",
    out_column: OutColumn = "image_embeds",
    encoder: VectorsEncoder = None,
    sigma: Annotated[float | None, typer.Option(help="mean_shift: noise added to every coordinate.")] = None,
    seed: Annotated[int | None, typer.Option(help="mean_shift: of the noise.")] = None,
    centred: Annotated[bool | None, typer.Option("--centred", help="mean_shift: stay in the centred space.")] = None,
    shrinkage: Annotated[str | None, typer.Option(help="covariance: 0 to 1, or ledoit_wolf.")] = None,
    rank: Annotated[int | None, typer.Option(help="covariance, anisotropic: how many directions.")] = None,
    ridge: Annotated[float | None, typer.Option(help="covariance: share of the mean variance to add.")] = None,
    bound: Annotated[float | None, typer.Option(help="anisotropic: the largest gain of a direction.")] = None,
    skip_non_finite: SkipNonFinite = False,
    allow_pickle: AllowPickle = False,
):
    """Learn a transfer from two unpaired sets, or from moments measured apart (`--moments a b c`)."""
    from unicorn_hf.data.staging import new_folder
    from unicorn_hf.transfer import ModalityTransfer
    from unicorn_hf.transfer.moments import merge_files

    measured = merge_files([*(moments or []), *(more_moments or [])])
    if "aligned" in measured and text is not None:
        raise InputError("--text and moments measured with --aligned-by exclude each other: give one of them")
    if moved is not None and (output in (moved, *moved.parents) or moved in output.parents):
        raise InputError(f"--moved {moved} and --output {output} lie in one another: name two places")
    if text is None and "text" not in measured:
        raise InputError("There is no text to fit on: give --text VECTORS, or --moments FILES with the text's moments")
    options = {"sigma": sigma, "seed": seed, "centred": centred, "shrinkage": shrinkage, "rank": rank, "ridge": ridge}
    options |= {"bound": bound, "aligned": measured.get("aligned")}
    if shrinkage is not None and shrinkage.replace(".", "", 1).isdigit():
        options["shrinkage"] = float(shrinkage)
    with new_folder(output) as folder:
        transfer = ModalityTransfer.fit(
            text or measured["text"],
            image or measured.get("image"),
            method=method,
            moved=moved,
            text_column=text_column,
            image_column=image_column,
            out_column=out_column,
            encoder=encoder,
            skip_non_finite=skip_non_finite,
            allow_pickle=allow_pickle,
            **{name: value for name, value in options.items() if value is not None},
        )
        transfer.save_pretrained(folder)
    _print_skipped(transfer.config["skipped"])
    before, after = transfer.config["centroid_distance_before"], transfer.config["centroid_distance_after"]
    distance = "" if before is None else f"; centroid distance {before:.3g}"
    distance += "" if after is None else f" -> {after:.3g}"
    counts = f"{transfer.config['text_count']:,} text and {transfer.config['image_count']:,} image vectors"
    print(f"{output}: {method} fitted on {counts}{distance}")
    if moved is not None:
        print(f"{moved}: moved into image space")


@transfer_app.command("apply")
def transfer_apply(
    data: Annotated[str, typer.Argument(help=f"Text vectors: {VECTORS}")],
    transfer: Annotated[str, typer.Option(help="A folder of `transfer fit`, or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A dataset folder to write, or a .npy file.")],
    column: Annotated[str, typer.Option(help="The column with the text vectors.")] = "text_embeds",
    out_column: OutColumn = "image_embeds",
    encoder: VectorsEncoder = None,
    skip_non_finite: SkipNonFinite = False,
    allow_pickle: AllowPickle = False,
):
    """Move text vectors into image space: the dataset with one column more, or a .npy file of the vectors."""
    from unicorn_hf.transfer import ModalityTransfer

    ModalityTransfer.from_pretrained(transfer).apply(
        data,
        output,
        column=column,
        out_column=out_column,
        encoder=encoder,
        skip_non_finite=skip_non_finite,
        allow_pickle=allow_pickle,
    )
    print(f"{output}: moved into image space")


@transfer_app.command("moments")
def transfer_moments(
    data: Annotated[str, typer.Argument(metavar="SHARD", help=f"Vectors: {VECTORS}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    modality: Annotated[str, typer.Option(help="text or image: what the vectors are of.")],
    column: Annotated[str | None, typer.Option(help="The column; text_embeds or image_embeds by default.")] = None,
    covariance: Annotated[bool, typer.Option(help="Measure the covariance too (covariance, anisotropic).")] = False,
    aligned_by: Annotated[list[Path] | None, typer.Option(help="ReAlign's second round: files of the first.")] = None,
    encoder: VectorsEncoder = None,
    skip_non_finite: SkipNonFinite = False,
    allow_pickle: AllowPickle = False,
):
    """Measure one shard, so that shards on different machines can be fitted together (`transfer fit --moments`)."""
    from unicorn_hf.transfer import Moments, ReAlign
    from unicorn_hf.transfer.moments import merge_files

    if modality not in ("text", "image"):
        raise InputError(f"--modality is {modality!r}; expected text or image")
    options = {"encoder": encoder, "skip_non_finite": skip_non_finite, "allow_pickle": allow_pickle}
    column = column or f"{modality}_embeds"
    if aligned_by:
        first = merge_files(aligned_by)
        if modality != "text" or not {"text", "image"} <= set(first):
            raise InputError("--aligned-by needs --modality text, and the files of all text and all image moments")
        moments = ReAlign.measure_aligned(data, column, text=first["text"], image=first["image"], **options)
        modality = "aligned"
    else:
        moments = Moments.measure(data, column, covariance=covariance, **options)
    moments.save(output, modality=modality, **moments.info)
    _print_skipped(moments.skipped)
    print(f"{output}: {moments.count:,} vectors of {len(moments.mean)} dimensions")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="pretrain (the projector) or finetune (the whole model, or LoRA).")],
    accelerate_config: Annotated[Path | None, typer.Option(help="A configuration of accelerate.")] = None,
):
    """Run a recipe under `accelerate launch`; further arguments go to it, e.g. --config pretrain/llama3-8b.yaml.

    A YAML that is not on disk is looked for among those that come with the package.
    """
    import subprocess
    from importlib.resources import files

    require("accelerate", "train")
    require("trl", "train")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if stage not in ("pretrain", "finetune"):
        raise InputError(f"unknown stage {stage!r}; expected pretrain or finetune")
    launcher = []
    if accelerate_config is not None:
        launcher += ["--config_file", str(_find_recipe(accelerate_config))]
    recipe = files("unicorn_hf.recipes") / f"{stage}.py"
    options = list(context.args)
    if "--config" in options[:-1]:
        position = options.index("--config") + 1
        options[position] = str(_find_recipe(Path(options[position])))
    try:
        launch_command(launch_command_parser().parse_args([*launcher, str(recipe), *options]))
    except subprocess.CalledProcessError as error:  # the recipe has said in a sentence what is wrong
        raise typer.Exit(error.returncode) from None
    except ChildFailedError as error:
        raise typer.Exit(error.get_first_failure()[1].exitcode) from None


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the model's folder brings.")
]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")],
    data: Annotated[str, typer.Argument(help="A dataset with questions, and pictures or their image_embeds.")],
    task: Annotated[str, typer.Option(help="vqa, multiple-choice, yes-no or caption.")] = "vqa",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder to write: JSON, every answer, an HTML report.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="The dataset's configuration.")] = None,
    split: Annotated[str, typer.Option(help="The dataset's split.")] = "train",
    encoder: Annotated[str | None, typer.Option(help="The pictures' encoder, where the model names another.")] = None,
    transfer: Annotated[str | None, typer.Option(help="The transfer of the training data.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Leave the picture out and ask the question alone.")] = False,
    baseline: Annotated[bool, typer.Option(help="Ask again before the pictures' mean vector.")] = True,
    circular: Annotated[bool, typer.Option(help="multiple-choice: the options in every rotation.")] = True,
    suffix: Annotated[str, typer.Option(help="Put behind every question.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a batch.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="32; 64 for captions.")] = None,
    device: Annotated[str | None, typer.Option(help="A torch device; a GPU by default, where there is one.")] = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Ask a model questions about pictures; score its answers beside those it gives blind."""
    from unicorn_hf.evaluation import evaluate

    result = evaluate(
        model,
        data,
        output,
        task=task,
        config=config,
        split=split,
        encoder=encoder,
        transfer=transfer,
        blind=blind,
        baseline=baseline,
        circular=circular,
        suffix=suffix,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    print(result)
    if output is not None:
        print(output / "report.html")


# What `generate` and `app` share: the model, and how pictures become its vectors.
TrainedModel = Annotated[str, typer.Argument(help="Folder or Hub id of a trained model.")]
PictureEncoder = Annotated[
    str | None, typer.Option("--encoder", help="The pictures' encoder, where the model does not say it.")
]
PictureTransfer = Annotated[
    str | None, typer.Option("--transfer", help="The training data's transfer, where pictures must go through it too.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")]
Device = Annotated[str | None, typer.Option(help="A torch device; a GPU by default, where there is one.")]
Dtype = Annotated[str, typer.Option(help="Of the weights: auto (as saved), float32, bfloat16, float16.")]


@app.command()
def generate(
    model: TrainedModel,
    question: Annotated[str, typer.Argument(help="In the user's words; the model's chat template is applied.")],
    image: Annotated[list[str] | None, typer.Option(help="A picture's file or URL; may be repeated.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Of the sampling; 0 for the likeliest answer.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this share.")] = 1.0,
    encoder: PictureEncoder = None,
    transfer: PictureTransfer = None,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
):
    """Ask a model about pictures, or about none; the answer is printed as it is written."""
    from unicorn_hf.evaluation.pictures import answer, encode_pictures, load_model, open_picture, picture_encoder
    from unicorn_hf.evaluation.reader import check_chat_template
    from unicorn_hf.transfer import ModalityTransfer

    pictures = [open_picture(source) for source in image or []]
    transfer = ModalityTransfer.from_pretrained(transfer) if transfer is not None else None
    name, (model, processor) = model, load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    check_chat_template(processor, name)
    encoder = picture_encoder(model, encoder) if pictures else None
    vectors = encode_pictures(model, processor, pictures, encoder=encoder, transfer=transfer)
    sampling = {"temperature": temperature, "top_p": top_p} if temperature else {}
    printed = ""

    def show(written: str) -> None:
        nonlocal printed
        if written.startswith(printed):
            print(written[len(printed) :], end="", flush=True)
        else:  # what looked like the answer was a thought, whose end shows it
            print(f"\n\n{written}", end="", flush=True)
        printed = written

    try:
        answer(model, processor, question, vectors, max_new_tokens=max_new_tokens, show=show, **sampling)
    finally:
        if printed:
            print()


@app.command("app")
def app_command(
    model: TrainedModel,
    captions: Annotated[
        str | None, typer.Option(help="A dataset with caption and image_embeds or text_embeds, to look pictures up in.")
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    encoder: PictureEncoder = None,
    transfer: PictureTransfer = None,
    device: Device = None,
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    host: Annotated[str, typer.Option(help="The address to serve at; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The port; the first free one from 7860 by default.")] = None,
):
    """Serve a page to ask a model about pictures, with the nearest captions and the modality gap."""
    from unicorn_hf.evaluation.app import make_page
    from unicorn_hf.transfer import ModalityTransfer

    page = make_page(
        model,
        captions=captions,
        transfer=ModalityTransfer.from_pretrained(transfer) if transfer is not None else None,
        encoder=encoder,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    try:
        page.launch(server_name=host, server_port=port)
    except OSError as error:  # gradio's word for a port that is taken
        raise InputError(f"The page cannot be served at {host}, port {port}: {error}") from error


@app.command("convert-checkpoint")
def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="A folder of the released training, or a lone mm_projector.bin.")],
    output: Annotated[Path | None, typer.Argument(help="The same as --output.")] = None,
    output_option: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; must not exist, or be empty.")
    ] = None,
    language_model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the language model of a lone projector, or under a LoRA.")
    ] = None,
    num_image_tokens: Annotated[int, typer.Option(help="Copies of an image's projected vector.")] = 576,
    image_encoder: Annotated[str | None, typer.Option(help="Whose vectors it was trained on, for the record.")] = None,
    transfer: Annotated[str | None, typer.Option(help="What moved them, for the record: mean_shift, ...")] = None,
):
    """Bring a released Unicorn checkpoint (Bunny's layout) into this package's model."""
    from unicorn_hf.data.staging import new_folder
    from unicorn_hf.modeling.convert_unicorn_checkpoint_to_hf import convert_unicorn_checkpoint

    if (output is None) == (output_option is None):
        raise InputError(f"convert-checkpoint {source}: name the folder to write once (--output)")
    output = output or output_option
    try:
        with new_folder(output) as folder:
            convert_unicorn_checkpoint(
                source,
                folder,
                language_model=language_model,
                num_image_tokens=num_image_tokens,
                image_encoder=image_encoder,
                transfer=transfer,
            )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    print(f"{output}: converted")


@app.command("convert-tower")
def convert_tower(
    encoder: Annotated[str, typer.Argument(help="open_clip/ViT-B-32/laion2b_s34b_b79k, open_clip/hf-hub:…, a folder.")],
    output: Output,
):
    """Turn an image tower of open_clip into one of transformers, for a model's `set_vision_tower`."""
    from unicorn_hf.embedding.convert_open_clip_tower_to_hf import convert_open_clip_tower

    convert_open_clip_tower(encoder, output)
    print(f"{output}: converted")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that keeps everything.")] = Path(
        "demo-output"
    ),
    fast: Annotated[
        bool, typer.Option(help="The same road over a fraction of the data; no claim of accuracy.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the world, the writers and the training.")] = 0,
):
    """The whole path, offline, on a CPU: text in, a model that answers about pictures out. Goes on where it stopped."""
    from unicorn_hf.sandbox.demo import demo

    demo(output, fast=fast, seed=seed)


@app.command("gap")
def gap_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML report to write.")],
    text: Annotated[str, typer.Option(help=f"Text vectors: {VECTORS}")],
    image: Annotated[str, typer.Option(help="Image vectors: as for --text.")],
    more_transfers: Annotated[list[str] | None, typer.Argument(metavar="[DIR]...", hidden=True)] = None,
    paired: Annotated[bool, typer.Option("--paired", help="Row i of both belong together: measure retrieval.")] = False,
    transfer: Annotated[list[str] | None, typer.Option(help="Folders of `transfer fit`, to measure after.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers here too.")] = None,
    text_column: TextColumn = "text_embeds",
    image_column: ImageColumn = "image_embeds",
    sample_size: Annotated[int, typer.Option(min=2, help="Rows of each set that are measured.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    allow_pickle: AllowPickle = False,
):
    """Measure the modality gap, before and after transfers, and what is wrong with the sets: an HTML report."""
    from unicorn_hf.errors import require
    from unicorn_hf.transfer.gap import measure_gap

    require("matplotlib", "gap")
    gap = measure_gap(
        text,
        image,
        paired=paired,
        transfers=[*(transfer or []), *(more_transfers or [])],
        text_column=text_column,
        image_column=image_column,
        sample_size=sample_size,
        seed=seed,
        allow_pickle=allow_pickle,
    )
    from unicorn_hf.transfer.gap_report import write_report

    write_report(gap, output)
    if json is not None:
        gap.save_json(json)
    for flag in gap.flags:
        print(f"{flag['set']}: {flag['kind']}: {flag['message']}")
    distances = (f"{state} {values['centroid_distance']:.3g}" for state, values in gap.measures.items())
    print(f"{output}: centroid distance {', '.join(distances)}")


def _find_recipe(path: Path) -> Path:
    """`path` itself, or the YAML of this name, with or without `recipes/` in front, that comes with the package."""
    from importlib.resources import files

    if path.is_file():
        return path
    recipes = Path(str(files("unicorn_hf.recipes")))
    packaged = recipes.joinpath(*path.parts[1:] if path.parts[:1] == ("recipes",) else path.parts)
    if not packaged.is_file():
        names = ", ".join(sorted(str(each.relative_to(recipes)) for each in recipes.glob("*/*.yaml")))
        raise InputError(f"{path}: no such file, and not among those of the package: {names}")
    return packaged


def _print_skipped(rows: list[str]) -> None:
    if rows:
        print(f"left out {len(rows)} rows that hold NaN, Inf or zeros: {', '.join(rows)}", file=sys.stderr)


def _key_values(pairs: list[str]) -> dict:
    """`key=value` strings as a dictionary; numbers become numbers."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(f"{pair!r} is not an option; expected KEY=VALUE")
        options[key] = int(value) if value.isdigit() else value
    return options


def _shares(mix: str) -> dict[str, float]:
    try:
        return {task: float(share) for task, share in _key_values(mix.split(",")).items()}
    except ValueError:
        raise InputError(f"--mix {mix!r}: expected numbers, as in multiple_choice=2,complex_reasoning=1") from None


def _language_model_writer(
    writer,
    model,
    servers,
    concurrency,
    timeout,
    deadline,
    temperature,
    request,
    extra_body,
    price_in,
    price_out,
    batch_answers,
):
    """The writer of a name, with those of the options that it takes."""
    from unicorn_hf.synthesis.usage import Prices
    from unicorn_hf.synthesis.writers import load_writer

    try:
        body = json.loads(extra_body)
    except ValueError as error:
        raise InputError(f"--extra-body {extra_body!r}: {error}; expected a JSON object") from None
    options = {
        "model": model,
        "temperature": temperature,
        "max_tokens": request["max_tokens"],
        "prices": Prices(price_in, price_out),
    }
    if writer == "chat":
        addresses = tuple(filter(None, servers.split(",")))
        options |= {"servers": addresses, "timeout": timeout}
    if writer in ("chat", "transformers"):
        options |= {"concurrency": concurrency, "deadline": deadline}
    if writer == "batch":
        options |= {"answers": tuple(map(str, batch_answers or ()))}
    if writer in ("chat", "batch"):
        options |= {**request, "extra_body": body}
    return load_writer(writer, **options)


def _text_encoder(name: str | None):
    if name is None:
        return None
    from unicorn_hf.embedding import load_encoder

    return load_encoder(name).encode_text


def _print_preview(stage, rows, writer) -> None:
    from unicorn_hf.synthesis.job import preview

    estimate = preview(stage, rows, writer)
    for number, messages in enumerate(estimate["prompts"], 1):
        print(f"--- prompt {number}")
        for message in messages:
            print(f"[{message['role']}]\n{message['content']}")
    if "checking" in estimate:
        check = estimate["checking"]
        print(
            f"--no-verify saves the check of every conversation, which comes on top: about {check['prompt_tokens']:,} "
            f"tokens in and {check['completion_tokens']:,} out, {check['cost']:,.2f}"
        )
    print(
        f"{estimate['requests']:,} requests, about {estimate['prompt_tokens']:,} tokens in and "
        f"{estimate['completion_tokens']:,} out, {estimate['cost']:,.2f} at these prices"
    )


def _print_summary(output: Path) -> None:
    """One line for a dataset that is there; status 3 where some rows failed."""
    path = output / "summary.json"
    if not path.is_file():
        return
    summary = json.loads(path.read_text(encoding="utf-8"))
    rejected, failed = (sum(summary[name].values()) for name in ("rejected", "dead_letters"))
    print(
        f"{output}: {summary['rows']:,} rows of {summary['requested']:,} requests, {rejected:,} rejected, {failed:,} "
        f"failed; {_spent(summary)}"
    )
    if "checking" in summary:
        print(
            f"{output}: of that, checking the conversations against their captions took {_spent(summary['checking'])}"
        )
    if failed:
        print(f"{output}/dead_letters.jsonl names the failures; ask again with: unicorn-hf retry-failed {output}")
        sys.exit(3)


def _spent(summary: dict) -> str:
    from unicorn_hf.synthesis.usage import money

    tokens = summary["usage"]["prompt_tokens"] + summary["usage"]["completion_tokens"]
    return f"{tokens:,} tokens, {money(summary['cost'])} spent"


if __name__ == "__main__":
    main()
