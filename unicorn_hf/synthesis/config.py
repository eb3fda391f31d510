"""The options of the steps that write text: the writer, its prices, and where the work runs."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from unicorn_hf.errors import InputError
from unicorn_hf.executors import ExecutorName
from unicorn_hf.options import CLUSTER, LIMITS, MODEL, WHAT, Options, flag_of, option
from unicorn_hf.synthesis.writers import WriterName, writer_class


@runtime_checkable
class Writer(Protocol):
    """A writer object: `ChatWriter`, `TransformersWriter`, `BatchWriter`, `GrammarWriter`."""

    name: str


@dataclass(kw_only=True)
class LanguageModelOptions(Options):
    """The arguments of `ChatWriter`, `TransformersWriter` and `BatchWriter`, under the same names."""

    model: str = option("", "The model's name at the server, or its folder or Hub id.", panel=MODEL)
    servers: list[str] = option(
        [],
        "A server's address, such as http://127.0.0.1:8000/v1; may be repeated. The key is read from OPENAI_API_KEY.",
        panel=MODEL,
        flags=("--base-url", "--servers"),
    )
    temperature: float = option(1.0, "The sampling temperature.", panel=MODEL, at_least=0, at_most=100)
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens", "none"] = option(
        "auto", "The field that limits an answer; auto finds out what the server accepts.", panel=MODEL
    )
    response_format: Literal["auto", "json_schema", "json_object", "none"] = option(
        "auto", "How JSON is requested; auto finds out what the server accepts.", panel=MODEL
    )
    send_temperature: bool | None = option(
        None, "Send the temperature; by default, if the server accepts it.", panel=MODEL
    )
    send_seed: bool | None = option(None, "Send the seed; by default, if the server accepts it.", panel=MODEL)
    extra_body: dict = option({}, "Further fields of every request, as a JSON object.", panel=MODEL)
    answers: list[Path] = option(
        [], "A file of answers for the batch writer; may be repeated.", panel=MODEL, flags=("--batch-answers",)
    )
    max_tokens: int = option(
        8192,
        "The most tokens of one answer, its thought included; a truncated answer is asked again with more, up to this.",
        panel=LIMITS,
        at_least=1,
        at_most=10**7,
    )
    concurrency: int | None = option(
        None,
        "The most calls at a time; by default 64 for servers, 32 prompts in a local batch.",
        panel=LIMITS,
        at_least=1,
        at_most=10**5,
    )
    timeout: float = option(120.0, "Seconds for one try of a call.", panel=LIMITS, above=0, at_most=10**6)
    deadline: float = option(
        600.0, "Seconds for a call with all its tries and pauses.", panel=LIMITS, above=0, at_most=10**6
    )


@dataclass(kw_only=True)
class WriterConfig(LanguageModelOptions):
    """The options of all these steps: the writer and its options, the budget, and where the work runs."""

    writer: WriterName | Writer = option(
        None,
        "grammar (the toy world, no model), chat (a server), transformers (a local model), batch (files).",
        required=True,
        panel=MODEL,
    )
    seed: int = option(0, "The seed of the random choices; a row depends only on it and on the row's own text.")
    prompt_dir: Path | None = option(None, "A folder with prompts that replace the package's own.", panel=MODEL)
    price_in: float = option(0.0, "The price of a million prompt tokens.", panel=LIMITS, at_least=0)
    price_out: float = option(0.0, "The price of a million generated tokens.", panel=LIMITS, at_least=0)
    budget: float | None = option(
        None,
        "The most that the run may cost; requests that it does not cover are left to retry-failed.",
        panel=LIMITS,
        above=0,
    )
    executor: ExecutorName = option("local", "Where the ranks run, through datatrove.", panel=CLUSTER)
    tasks: int = option(
        1, "The number of shards of the input; each is answered by one rank.", panel=CLUSTER, at_least=1, at_most=10**5
    )
    workers: int = option(-1, "Ranks at a time; -1 for all.", panel=CLUSTER, at_least=-1, at_most=10**5)
    executor_options: dict = option(
        {},
        "NAME=VALUE for datatrove's executor; may be repeated.",
        panel=CLUSTER,
        flags=("--executor-option",),
        repeat=True,
    )

    def __post_init__(self):
        super().__post_init__()
        self.servers = read_servers(self.servers)
        check_workers(self.workers)

    def make_asked_writer(self):
        """As `make_writer`, for a preview of the requests.

        Raises:
            InputError: the writer is the grammar writer, which sends no requests.
        """
        writer = self.make_writer()
        if writer.name == "grammar":
            raise InputError("--dry-run: the grammar writer calls no model, so there are no prompts to show")
        return writer

    def make_writer(self):
        """The writer, made with the options that it reads.

        Raises:
            InputError: an option is given that the writer does not read, or that it refuses.
            MissingExtraError: the writer's package is not installed.
        """
        from unicorn_hf.synthesis.usage import Prices

        is_name = isinstance(self.writer, str)
        name, kind = (self.writer, writer_class(self.writer)) if is_name else (self.writer.name, object)
        taken = {field.name for field in fields(kind)} if hasattr(kind, "__dataclass_fields__") else set()
        unread = {field.name for field in fields(LanguageModelOptions)} - taken
        unread |= set() if "prices" in taken else {"price_in", "price_out"}
        if name == "grammar":
            unread |= set(self.given()) - {"writer", "seed", "captions_per_seed", "mix", "format"}
        for option_name in self.given():
            if option_name in unread:
                how = f"the {name} writer does not read it" if is_name else "give it to the writer object itself"
                raise InputError(f"{flag_of(option_name)}: {how}")
        if not is_name:
            return self.writer
        options = {
            option_name: getattr(self, option_name) for option_name in taken - {"prices"} if option_name in vars(self)
        }
        options |= {"prices": Prices(self.price_in, self.price_out)} if "prices" in taken else {}
        return kind(**{option_name: value for option_name, value in options.items() if value is not None})


@dataclass(kw_only=True)
class CaptionConfig(WriterConfig):
    """The options of `write_captions`. The grammar writer reads `captions_per_seed` and `seed` only."""

    captions_per_seed: int = option(
        3, "Captions per seed; a seed with fewer possible captions gets fewer.", at_least=1, at_most=10**6
    )
    language: str | None = option("en", "The captions' language, by its code, or any.")
    word_list: Path | None = option(None, "A file of words, one a line, that no caption may hold.")
    max_caption_tokens: int = option(
        77, "The most CLIP tokens of a caption; CLIP's text encoder reads 77.", panel=LIMITS, at_least=12, at_most=10**6
    )
    near_duplicates: float | None = option(
        0.6,
        "The lowest Jaccard index of word 3-grams at which a caption is a near duplicate; 0 keeps all.",
        panel=LIMITS,
        at_least=0,
        at_most=1,
    )
    semantic_duplicates: float = option(
        0.97,
        "The lowest cosine at which a caption is a semantic duplicate; needs --encoder.",
        panel=LIMITS,
        at_least=-1,
        at_most=1,
    )
    encoder: str | None = option(None, "The text encoder that finds semantic duplicates.", panel=MODEL)

    def __post_init__(self):
        super().__post_init__()
        if self.language == "any":
            self.language = None


@dataclass(kw_only=True)
class InstructionConfig(WriterConfig):
    """The options of `write_instructions`. The grammar writer reads `mix`, `format` and `seed` only."""

    mix: dict[str, float] | None = option(
        None, "Shares of the tasks, such as multiple_choice=2,complex_reasoning=1; three equal shares by default."
    )
    verify: bool | None = option(
        None, "Answer every question twice, and keep conversations whose answers agree; the default, but not for batch."
    )
    format: Literal["messages", "llava"] = option("messages", "llava writes conversations.json too, as LLaVA reads it.")

    def __post_init__(self):
        super().__post_init__()
        if self.mix is not None:
            from unicorn_hf.synthesis.tasks import check_mix

            check_mix(self.mix)


@dataclass(kw_only=True)
class PreferenceConfig(WriterConfig):
    """The options of `write_preferences`. The grammar writer reads `mix` and `seed` only."""

    mix: dict[str, float] | None = option(
        None, "Shares of the errors, such as object=2,color=1; by default equal ones of object, color, count, relation."
    )
    verify: bool | None = option(
        None,
        "Answer every question twice, and keep pairs that the second answer confirms; the default, but not for batch.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mix is not None:
            from unicorn_hf.synthesis.grammar import FAULTS
            from unicorn_hf.synthesis.tasks import check_mix

            check_mix(self.mix, FAULTS)


@dataclass(kw_only=True)
class RetryConfig(Options):
    """The options of `retry_failed`."""

    servers: list[str] = option(
        [],
        "A server's address, in place of the run's; may be repeated.",
        panel=MODEL,
        flags=("--base-url", "--servers"),
    )
    encoder: str | None = option(None, "The text encoder of the run, if it had one.", panel=MODEL)
    budget: float | None = option(
        None, "The most that the whole run may cost, its earlier cost included.", panel=LIMITS, above=0
    )
    workers: int = option(-1, "Ranks at a time; -1 for all.", panel=CLUSTER, at_least=-1, at_most=10**5)

    def __post_init__(self):
        super().__post_init__()
        self.servers = read_servers(self.servers)
        check_workers(self.workers)


@dataclass(kw_only=True)
class ReportConfig(Options):
    """The options of `report_captions`."""

    sample: int = option(
        2000, "The number of captions that the slow measures read.", panel=LIMITS, at_least=2, at_most=10**7
    )
    seed: int = option(0, "The seed of the sample.", panel=WHAT)
    encoder: str | None = option(
        None, "The encoder for the Vendi score, if the dataset has no column text_embeds.", panel=MODEL
    )


def read_servers(servers) -> list[str]:
    """The addresses; a text may hold several, separated by commas.

    Raises:
        InputError: one is not the address of a server.
    """
    addresses = [address.strip() for text in servers for address in text.split(",") if address.strip()]
    for address in addresses:
        try:
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # an invalid port or host
            usable = False
        if not usable or any(character.isspace() for character in address):
            raise InputError(f"--base-url is {address[:200]!r}; expected an address such as http://127.0.0.1:8000/v1")
    return addresses


def check_workers(workers: int) -> None:
    if workers == 0:
        raise InputError("--workers is 0; expected a number from 1 on, or -1 for all")


def text_encoder(name: str | None):
    """The function texts -> vectors [N, D] of an encoder; None without a name."""
    if name is None:
        return None
    from unicorn_hf.embedding import load_encoder

    return load_encoder(name).encode_text
