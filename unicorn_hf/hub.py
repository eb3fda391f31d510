"""`publish`: captions and instructions -> the Hub's layout, which `load_dataset` reads without code."""

from pathlib import Path

from unicorn_hf import storage
from unicorn_hf.errors import InputError

PRETRAIN_CONFIG = "unicorn-1.2m"
INSTRUCTION_CONFIG = "unicorn-471k-instruction"


def publish(pretrain, instruction, output, *, shard_size: int = 500 << 20) -> Path:
    """Write the two published configurations to the folder `output`, with a dataset card.

    Args:
        pretrain: a dataset or dataset folder with `id`, `caption`, `image_embeds`, and `text_embeds` where it has them.
        instruction: a dataset or dataset folder with `id`, `caption`, `task`, `messages`; `image_embeds` are taken from
            `pretrain` by `str(id)` where it has none.
        output: the folder to write.
        shard_size: size of a shard in bytes, about.

    Returns:
        `output`; `load_dataset(output, "unicorn-1.2m")` and `load_dataset(output, "unicorn-471k-instruction")` read it.

    Raises:
        InputError: an input lacks a column; an instruction has no vector; `output` exists and is not an empty folder.
    """
    storage.check_new_folder(output)
    pretrain_data = storage.read_dataset(pretrain)
    storage.check_columns(pretrain_data, "id", "caption", "image_embeds", source=pretrain)
    columns = [name for name in ("id", "caption", "text_embeds", "image_embeds") if name in pretrain_data.column_names]
    instruction_data = storage.read_dataset(instruction)
    storage.check_columns(instruction_data, "id", "caption", "task", "messages", source=instruction)
    if "image_embeds" not in instruction_data.column_names:
        instruction_data = join_vectors(instruction_data, pretrain_data, names=(instruction, pretrain))
    configs = {
        PRETRAIN_CONFIG: pretrain_data.select_columns(columns),
        INSTRUCTION_CONFIG: instruction_data.select_columns(["id", "caption", "task", "messages", "image_embeds"]),
    }
    provenance = storage.read_provenance(instruction) | storage.read_provenance(pretrain)
    with storage.new_folder(output) as folder:
        for config, dataset in configs.items():
            storage.write_shards(dataset, folder / config, shard_size=shard_size)
        dataset_card(configs, provenance, folder).save(folder / "README.md")
    return Path(output)


def join_vectors(instruction, pretrain, *, names):
    """`instruction` with the `image_embeds` of `pretrain`, matched by `str(id)`."""
    row_of = {str(key): row for row, key in enumerate(pretrain["id"])}
    rows = []
    for key in instruction["id"]:
        if str(key) not in row_of:
            raise InputError(
                f"{names[0]}: id {key!r} is not in {names[1]}, so it has no image_embeds; publish both whole"
            )
        rows.append(row_of[str(key)])
    vectors = pretrain.select_columns("image_embeds").select(rows).with_format("arrow")[:].column("image_embeds")
    return instruction.add_column("image_embeds", vectors.combine_chunks(), feature=pretrain.features["image_embeds"])


def dataset_card(configs: dict, provenance: dict, folder: Path):
    """The card of the datasets written to `folder`, one a configuration."""
    from importlib.resources import as_file, files

    from datasets.info import DatasetInfo, DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    card_data = DatasetCardData(pretty_name="Unicorn", unicorn=provenance)
    infos, data_files = {}, {}
    for config, dataset in configs.items():
        split = SplitInfo("train", num_bytes=dataset.data.nbytes, num_examples=len(dataset))
        size = sum(file.stat().st_size for file in (folder / config).iterdir())
        infos[config] = DatasetInfo(
            features=dataset.features,
            splits=SplitDict({"train": split}),
            download_size=size,
            dataset_size=split.num_bytes,
        )
        data_files[config] = {"data_files": [{"split": "train", "path": f"{config}/train-*"}]}
    data_files[PRETRAIN_CONFIG]["default"] = True
    DatasetInfosDict(infos).to_dataset_card_data(card_data)
    MetadataConfigs(data_files).to_dataset_card_data(card_data)
    columns = {
        config: {name: storage.feature_text(feature) for name, feature in dataset.features.items()}
        for config, dataset in configs.items()
    }
    with as_file(files("unicorn_hf.dataset_scripts") / "dataset_card.md.jinja") as template:
        return DatasetCard.from_template(card_data, template_path=template, columns=columns, provenance=provenance)
