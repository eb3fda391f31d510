"""The data of a stage: one or several datasets, from disk, from the Hub or streamed, with vectors of one encoder."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unicorn_hf.data.provenance import Origin, read_provenance
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.errors import InputError
from unicorn_hf.training.batching import group_stream_by_length
from unicorn_hf.training.images import holds_vectors, image_column, is_nested, list_lengths, split_vectors, vectors_dim

SHUFFLE_BUFFER = 10_000  # rows of a stream to shuffle at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One dataset of a mixture, and its card's facts about its image vectors; `embed_dim` is None without vectors."""

    name: str
    dataset: object
    weight: float | None = None
    image_encoder: str | None = None
    transfer: str | None = None
    embed_dim: int | None = None
    config: str | None = None

    @property
    def source(self) -> str:
        """Its name in messages about its rows and columns."""
        return self.name if self.config is None else f"{self.name} ({self.config})"


class Mixture:
    """Datasets to train on together; all their image vectors have the same encoder, transfer and dimension."""

    def __init__(self, members: list[Member]):
        self.members = members
        weighted = [member.weight is not None for member in members]
        if any(weighted) and not all(weighted):
            missing = members[weighted.index(False)].name
            raise InputError(f"{missing}: has no weight, but others have one; give a weight to all of them, or to none")
        with_images = [member for member in members if member.embed_dim is not None or _has_pictures(member)]
        first = with_images[0] if with_images else members[0]
        for member in with_images[1:]:
            if (member.embed_dim is None) != (first.embed_dim is None):
                pictures = member if member.embed_dim is None else first
                raise InputError(
                    f"{pictures.name}: has images, but others of the mixture have vectors; embed the images first"
                    f" (`unicorn-hf embed {pictures.name} --output EMBEDDED`), and train on the vectors"
                )
            _check_same(member, first, f"those of {first.name}")
        known = [*with_images, *members]
        self.image_encoder = next((member.image_encoder for member in known if member.image_encoder), None)
        self.transfer = next((member.transfer for member in known if member.transfer), None)
        self.embed_dim = first.embed_dim

    @classmethod
    def read(cls, arguments) -> "Mixture":
        """Open the datasets of `DataArguments`.

        Raises:
            InputError: no dataset is named, one cannot be read, or their vectors do not fit together.
        """
        if (arguments.dataset is None) == (not arguments.mixture):
            raise InputError("Name the data by --dataset, or by --mixture; exactly one of them")
        if arguments.mixture:
            parts = [part.strip() for entry in arguments.mixture for part in entry.split(",")]
            sources = [_parse(part) for part in parts if part]
        else:
            sources = [(arguments.dataset, arguments.dataset_config, None)]
        return cls(
            [
                _open(name, config, weight, split=arguments.dataset_split, streaming=arguments.streaming)
                for name, config, weight in sources
            ]
        )

    @property
    def datasets(self) -> list:
        return [member.dataset for member in self.members]

    def check_vectors(self) -> None:
        """Raise `InputError` unless all members have image vectors, which stage 1 learns from."""
        for member in self.members:
            if member.embed_dim is None:
                raise InputError(
                    f"{member.name}: has no image vectors (column image_embeds), which the projector is trained on;"
                    f" make them with `unicorn-hf embed {member.name} --output EMBEDDED`"
                )

    def check_model(self, config, name: str) -> None:
        """Raise `InputError` unless a model, given by its `UnicornConfig` and name, reads these vectors."""
        model = Member(name, None, None, config.image_encoder, config.transfer, config.embed_dim)
        for member in self.members:
            if member.embed_dim is not None:
                _check_same(member, model, f"those that {name} was trained on")

    def tokenize(self, tokenize, processor, data_args, training_args):
        """The members, tokenized and mixed: a `datasets.Dataset`, or a shuffled `IterableDataset` of streams.

        One process tokenizes, and the others read its cache.

        Args:
            tokenize: `tokenize_captions`, `tokenize_conversations` or `tokenize_pairs`.
            processor: the model's `UnicornProcessor`.
            data_args: the recipe's `DataArguments`.
            training_args: the recipe's `SFTConfig` or `DPOConfig`, for `max_length`, the seed and the size of a batch.
        """
        from datasets import Dataset, concatenate_datasets, interleave_datasets

        if data_args.streaming and training_args.max_steps < 0:  # 0 is a dry run
            raise InputError("A stream has no length that could end the training: add --max_steps to --streaming")
        options = {"max_length": training_args.max_length, "num_proc": training_args.dataset_num_proc}
        with training_args.main_process_first(desc="tokenizing"):
            tokens = _same_types(
                [tokenize(member.dataset, processor, source=member.source, **options) for member in self.members]
            )
        weights = [member.weight for member in self.members]
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        if None in weights:
            mixed = concatenate_datasets(tokens)
        else:
            shares = [weight / sum(weights) for weight in weights]
            mixed = interleave_datasets(tokens, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
        arrays = [column for column in mixed.column_names if column not in ("image", "images")]
        if isinstance(mixed, Dataset):
            self._report(tokens, mixed)
            return mixed.with_format("numpy", columns=arrays, output_all_columns=True)
        mixed = mixed.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        if training_args.train_sampling_strategy == "group_by_length":
            step = training_args.train_batch_size * training_args.gradient_accumulation_steps * training_args.world_size
            mixed = group_stream_by_length(mixed, step, seed)
        return mixed.with_format("numpy") if arrays == mixed.column_names else mixed

    def _report(self, tokens: list, mixed) -> None:
        if len(tokens) > 1:
            rows = ", ".join(f"{member.name} {len(part):,}" for member, part in zip(self.members, tokens, strict=True))
            logger.warning(f"a mixture of {len(mixed):,} samples per epoch, from datasets of these sizes: {rows}")


def _parse(text: str) -> tuple[str, str | None, float | None]:
    """`DATASET[:CONFIG][=WEIGHT]`"""
    source, equals, weight = text.rpartition("=")
    if not equals:
        source, weight = text, None
    else:
        try:
            weight = float(weight)
        except ValueError:
            weight = -1.0
        if not 0 < weight < float("inf"):
            raise InputError(f"mixture: {text!r} has no number above 0 after '='; expected DATASET[:CONFIG]=WEIGHT")
    name, colon, config = source.rpartition(":")
    if colon and not Path(source).exists():
        return name, config, weight
    return source, None, weight


def _open(name: str, config: str | None, weight: float | None, *, split: str, streaming: bool) -> Member:
    dataset = read_dataset(name, name=config, split=split, streaming=streaming)
    if image_column(dataset) != "image_embeds":
        return Member(name, dataset, weight, config=config)
    type_ = dataset.features.arrow_schema.field("image_embeds").type
    if not holds_vectors(type_):
        raise InputError(
            f"{name}: its column 'image_embeds' has the type {type_}; expected one vector or a list of vectors per row"
        )
    said = read_provenance(name).get("image_embeds", {})
    return Member(name, dataset, weight, said.get("encoder"), said.get("transfer"), vectors_dim(dataset), config=config)


def _has_pictures(member: Member) -> bool:
    return image_column(member.dataset) in ("images", "image")


def _check_same(member: Member, other: Member, whose: str) -> None:
    """Raise unless `member` and `other` agree in the encoder, transfer and dimension of their vectors, if known."""
    ours, theirs = (Origin(each.image_encoder, each.transfer, each.embed_dim) for each in (member, other))
    if differ := ours.difference(theirs):
        raise InputError(
            f"{member.name}: its image vectors have {differ[0]}, but {whose} have {differ[1]}; use vectors that were"
            " made in the same way"
        )


def _same_types(tokens: list) -> list:
    """Give all datasets the image column in the same type, so that they can be concatenated and read in batches.

    Usually the types are equal already. If they differ, or a row has no image, the column becomes lists, empty for such
    a row: `datasets` cannot concatenate float16 lists of a fixed length with the lists of a JSON file, and its NumPy
    format fails on a batch whose first row is null.
    """
    from datasets import Dataset

    column = next((name for name in map(image_column, tokens) if name is not None), None)
    if column is None:
        return tokens
    if not isinstance(tokens[0], Dataset):
        with_images = [part for part in tokens if column in part.column_names]
        features = [part.features[column] for part in with_images]
        feature = next((feature for feature in features if is_nested(feature)), features[0])
        return [_with_images_of(feature, part, column) for part in tokens]
    vectors = [part for part in tokens if "image_embeds" in part.column_names]
    if not vectors:
        return tokens
    features = [part.features["image_embeds"] for part in vectors]
    if len(set(map(str, features))) == 1 and len(vectors) == len(tokens) and not any(map(_has_null, vectors)):
        return tokens
    return [_with_lists(part, nested=any(map(is_nested, features))) for part in tokens]


def _with_images_of(feature, stream, column: str):
    """A stream with its image column in the type `feature`: missing images become null, one vector becomes a list."""
    from datasets import Features

    given = stream.features.get(column)
    if given == feature:
        return stream
    wrap = given is not None and is_nested(feature) and not is_nested(given)

    def convert(batch):
        images = batch.get(column, [None] * len(batch["length"]))
        return {**batch, column: [[value] if wrap and value else value for value in images]}

    return stream.map(convert, batched=True, features=Features({**stream.features, column: feature}))


def _has_null(tokens) -> bool:
    return any(
        table.column(0).null_count for table in tokens.select_columns("image_embeds").with_format("arrow").iter(4096)
    )


def _with_lists(tokens, nested: bool):
    import pyarrow as pa
    from datasets import Features, List, Value

    vector = List(Value("float16"))
    features = Features({**tokens.features, "image_embeds": List(vector) if nested else vector})

    def to_lists(table):
        rows, vectors = np.zeros(0, np.int64), pa.array([], pa.list_(pa.float16()))
        position = len(table.column_names)
        if "image_embeds" in table.column_names:
            rows, vectors = split_vectors(table.column("image_embeds"))
            position = table.column_names.index("image_embeds")
            table = table.remove_column(position)
        lengths, numbers = list_lengths(vectors), vectors.flatten().cast(pa.float16())
        if nested:
            lists = _lists(np.bincount(rows, minlength=len(table)), _lists(lengths, numbers))
        else:
            lists = _lists(np.bincount(rows, lengths, minlength=len(table)), numbers)
        return table.add_column(position, "image_embeds", lists)

    made = tokens.with_format("arrow").map(to_lists, batched=True, features=features, desc="vectors to lists")
    return made.with_format(None)


def _lists(lengths, values):
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *lengths]).astype(np.int32)), values)
