"""`report_captions`: how diverse captions are and which were rejected, as JSON and as an HTML page."""

import collections
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from unicorn_hf.data.sources import Source, check_columns, read_dataset
from unicorn_hf.data.staging import check_new_folder, new_folder, read_json, write_json
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.caption_length import count_tokens
from unicorn_hf.synthesis.config import ReportConfig, text_encoder
from unicorn_hf.synthesis.diversity import distinct_n, self_bleu, vendi_score

_NUM_SHOWN = 24
_BAG_DIM = 2048


def report_captions(
    captions: Source,
    output: str | Path | None = None,
    *,
    config: ReportConfig | None = None,
    embed_text: Callable | None = None,
    **options,
) -> Path:
    """Write `report.json` and `report.html` about a dataset of captions. Returns the page's path.

    Args:
        captions: what `write_captions` wrote, or any dataset with the column `caption`.
        output: the folder to write; `<captions>.report` by default.
        config: the options; `options` are fields of `ReportConfig` that replace those of it. Distinct-n, self-BLEU,
            token counts and the Vendi score depend on `sample`: compare only reports with the same sample size.
        embed_text: texts -> vectors [N, D] for the Vendi score, in place of the option `encoder`; by default the column
            `text_embeds`, or bags of words if there is none.

    Raises:
        InputError: unusable captions, fewer than two, or a non-empty output folder.
    """
    config = ReportConfig.of(config, options)
    embed_text = embed_text or text_encoder(config.encoder)
    name = captions if isinstance(captions, str | Path) else "the captions"
    if output is None:
        if not Path(name).exists():
            raise InputError(
                f"{name}: is not a folder, so the report has no place beside it; name the report's folder (--output)"
            )
        output = Path(f"{Path(name)}.report")
    check_new_folder(output)
    dataset = read_dataset(captions)
    check_columns(dataset, "caption", source=name)
    if len(dataset) < 2:
        raise InputError(f"{name}: a report compares captions; expected two or more")
    rng = random.Random(config.seed)
    chosen = sorted(rng.sample(range(len(dataset)), min(config.sample, len(dataset))))
    report = measure(dataset, chosen, embed_text)
    folder = Path(name) if isinstance(captions, str | Path) else None
    report |= _what_was_rejected(folder, rng)
    shown = sorted(rng.sample(range(len(dataset)), min(_NUM_SHOWN, len(dataset))))
    columns = [column for column in ("seed", "domain", "caption") if column in dataset.column_names]
    report["samples"] = dataset.select_columns(columns).select(shown).to_list()
    with new_folder(output) as partial:
        write_json(report, partial / "report.json")
        (partial / "report.html").write_text(_page(str(name), report), encoding="utf-8")
    return Path(output) / "report.html"


def measure(dataset, chosen: list[int], embed_text=None) -> dict:
    """The numbers of a report; `chosen` are the rows of the sample."""
    captions = dataset.select(chosen)["caption"][:]
    vectors, space = _vectors(dataset, chosen, captions, embed_text)
    num_words = collections.Counter(len(text.split()) for text in dataset["caption"])
    num_tokens = collections.Counter(map(count_tokens, captions))
    domains = collections.Counter(dataset["domain"] if "domain" in dataset.column_names else ())
    return {
        "captions": len(dataset),
        "sample": len(chosen),
        "distinct_n": {str(n): round(distinct_n(captions, n), 4) for n in (1, 2, 3)},
        "self_bleu": round(self_bleu(captions), 4),
        "vendi_score": {"value": round(vendi_score(vectors), 2), "space": space},
        "words": {str(length): num_words[length] for length in sorted(num_words)},
        "clip_tokens": {str(length): num_tokens[length] for length in sorted(num_tokens)},
        "domains": {domain: count / len(dataset) for domain, count in domains.most_common()},
    }


def _vectors(dataset, chosen: list[int], captions: list[str], embed_text) -> tuple[np.ndarray, str]:
    if embed_text is not None:
        return np.asarray(embed_text(captions), dtype=np.float32), "the given encoder"
    if "text_embeds" in dataset.column_names:
        column = dataset.select_columns(["text_embeds"]).select(chosen).with_format("numpy")
        return np.stack(column["text_embeds"][:]), "text_embeds"
    bags = np.zeros((len(captions), _BAG_DIM), dtype=np.float32)
    for row, caption in enumerate(captions):
        for word in caption.lower().split():
            bags[row, zlib.crc32(word.encode()) % _BAG_DIM] += 1
    return bags, "bags of words"


def _what_was_rejected(folder: Path | None, rng: random.Random) -> dict:
    """Requested, rejected and failed by reason, with some rejected rows; empty if the folder has no summary."""
    if folder is None or not (folder / "summary.json").is_file():
        return {}
    summary = read_json(folder / "summary.json")
    shown = {}
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):  # an even sample of a file of any length
            place = number if number < _NUM_SHOWN else rng.randrange(number + 1)
            if place < _NUM_SHOWN:
                shown[place] = json.loads(line)
    return {
        "requested": summary["requested"],
        "rejected": summary["rejected"],
        "dead_letters": summary["dead_letters"],
        "rejected_samples": list(shown.values()),
    }


def _page(name: str, report: dict) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        name=name, title=Path(name).name, report=report, bins=_bins
    )


def _bins(counts: dict[str, int], most: int = 40) -> list[tuple[str, int]]:
    """A histogram of at most `most` bars: (label, count)."""
    lengths = {int(length): count for length, count in counts.items()}
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // most)
    bars = []
    for start in range(low, high + 1, width):
        label = str(start) if width == 1 else f"{start}–{start + width - 1}"
        bars.append((label, sum(lengths.get(length, 0) for length in range(start, start + width))))
    return bars
