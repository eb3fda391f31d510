"""The card of a published dataset, filled from its rows (counted while they are written) and from its sources."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData
from unicorn_hf.dataset_scripts.sources import INSTRUCTION, PREFERENCE, PRETRAIN

from unicorn_hf.data.dataset_folder import feature_text
from unicorn_hf.data.shards import Shards

ROWS = {PRETRAIN: "captions", INSTRUCTION: "conversations", PREFERENCE: "preferences"}  # what a configuration's are
NUM_SAMPLES = 3
HISTOGRAM_BINS = 10
# The Hub's size categories by their lower bounds.
SIZE_CATEGORIES = {
    10**9: "1B<n<10B",
    10**8: "100M<n<1B",
    10**7: "10M<n<100M",
    10**6: "1M<n<10M",
    10**5: "100K<n<1M",
    10**4: "10K<n<100K",
    10**3: "1K<n<10K",
    0: "n<1K",
}


@dataclass
class Observed:
    """Statistics and samples of a configuration's rows, collected while the rows are written."""

    caption_words: Counter = field(default_factory=Counter)
    turns: Counter = field(default_factory=Counter)
    tasks: Counter = field(default_factory=Counter)
    samples: list[dict] = field(default_factory=list)

    def watch(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            self.caption_words.update(pc.add(pc.count_substring(table["caption"], " "), 1).to_pylist())
            if "messages" in table.column_names:
                self.turns.update(pc.list_value_length(table["messages"]).to_pylist())
                self.tasks.update(task or "not recorded" for task in table["task"].to_pylist())
            if len(self.samples) < NUM_SAMPLES:
                rows = table.slice(0, NUM_SAMPLES - len(self.samples)).to_pylist()
                self.samples += [{name: _short(value) for name, value in row.items()} for row in rows]
            yield table


def make_card(
    folder: Path,
    written: dict[str, tuple[Features, Shards, Observed]],
    *,
    title: str,
    license: str,
    provenance: dict,
    steps: dict[str, dict],
    gap: dict,
) -> DatasetCard:
    """The card of the configurations in `folder`; the first one is the default.

    Args:
        written: configuration -> its features, shards and statistics.
        provenance: column -> encoder, dimension and transfer of its vectors; kept in the card's metadata.
        steps: name of a step -> its record (model, prompts, filters, costs).
        gap: the distance between texts and images before and after the transfer.
    """
    rows = sum(shards.num_rows for _, shards, _ in written.values())
    card_data = DatasetCardData(
        pretty_name=title,
        license=license,
        annotations_creators=["machine-generated"],
        task_categories=["image-text-to-text", "visual-question-answering"],
        tags=["unicorn", "synthetic", "embeddings", "modality-gap", "text-only-training"],
        size_categories=[next(name for least, name in SIZE_CATEGORIES.items() if rows >= least)],
        unicorn=provenance,
    )
    infos: dict[str, DatasetInfo] = {}
    configs: dict[str, dict] = {}
    for config, (features, shards, _) in written.items():
        split = SplitInfo("train", num_bytes=shards.num_bytes, num_examples=shards.num_rows)
        infos[config] = DatasetInfo(
            features=features,
            splits=SplitDict({"train": split}),
            download_size=sum(file.stat().st_size for file in shards.files),
            dataset_size=shards.num_bytes,
        )
        configs[config] = {
            # The cache of `load_dataset` identifies a folder by its name; this keeps two of one name apart.
            "description": f"content {shards.fingerprint}",
            "data_files": [{"split": "train", "path": f"{config}/train-*.parquet"}],
        }
    configs[next(iter(written))]["default"] = True
    DatasetInfosDict(infos).to_dataset_card_data(card_data)
    MetadataConfigs(configs).to_dataset_card_data(card_data)
    sections = [
        {
            "name": config,
            "rows": ROWS[config],
            "num_rows": shards.num_rows,
            "size": _size(sum(file.stat().st_size for file in shards.files)),
            "columns": {name: feature_text(feature) for name, feature in features.items()},
            "histograms": {
                heading: histogram(counts)
                for heading, counts in (
                    ("words per caption", seen.caption_words),
                    ("messages per conversation", seen.turns),
                )
                if counts
            },
            "tasks": seen.tasks.most_common(),
            "samples": "\n".join(json.dumps(row, ensure_ascii=False) for row in seen.samples),
        }
        for config, (features, shards, seen) in written.items()
    ]
    with as_file(files(__package__) / "dataset_card.md.jinja") as template:
        return DatasetCard.from_template(
            card_data,
            template_path=str(template),
            title=title,
            sections=sections,
            default=next(iter(written)),
            provenance={column: _cells(facts) for column, facts in provenance.items() if isinstance(facts, dict)},
            steps={step: _cells(_flat(facts)) for step, facts in steps.items()},
            gap=_cells(gap),
        )


def histogram(counts: Counter) -> list[tuple[str, int, str]]:
    """Bins of the counts of a number: range, count, and a bar of characters."""
    values = np.array(sorted(counts))
    width = max(1, -(-(int(values[-1]) - int(values[0]) + 1) // HISTOGRAM_BINS))
    bins: Counter = Counter()
    for value, count in counts.items():
        bins[(value - values[0]) // width] += count
    most = max(bins.values())
    result = []
    for place in range(max(bins) + 1):
        low = int(values[0]) + place * width
        label = str(low) if width == 1 else f"{low}–{low + width - 1}"
        result.append((label, bins[place], "█" * round(20 * bins[place] / most)))
    return result


def _flat(facts: dict, prefix: str = "") -> dict:
    flat: dict[str, object] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}: ")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _cells(facts: dict) -> dict[str, str]:
    """Values as cells of a Markdown table."""
    return {
        name: " ".join((f"{value:.4g}" if isinstance(value, float) else str(value)).split()).replace("|", "\\|")[:300]
        for name, value in facts.items()
        if value not in (None, "", [], {})
    }


def _short(value):
    """A value for a sample row: of a vector only the first numbers."""
    if isinstance(value, list) and value and isinstance(value[0], float):
        return [round(number, 4) for number in value[:4]] + ["…"]
    return value


def _size(num_bytes: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= unit), (1e3, "kB"))
    return f"{num_bytes / unit:.1f} {name}"
