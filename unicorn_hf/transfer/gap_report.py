"""The gap as one HTML page that opens offline: flags, the table of measures, and four figures."""

import base64
import html
import io
from pathlib import Path

import numpy as np

from unicorn_hf.data.staging import new_file
from unicorn_hf.errors import require
from unicorn_hf.transfer.gap import BEFORE, NO_GAP, Gap

# Distinguishable with every common form of colour blindness (Okabe and Ito 2008).
_TEXT_COLOUR, _IMAGE_COLOUR, _PAIR_COLOUR = "#0072B2", "#D55E00", "#009E73"
_STATE_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_POINTS = 1500  # of each modality in a scatter plot

# Measure -> name, explanation, number of decimals.
_MEASURES = {
    "centroid_distance": ("Centroid distance", "between the two means", 3),
    "trace_text": ("Trace, text", "mean squared distance of the text to its mean", 3),
    "trace_image": ("Trace, images", "the same for the images", 3),
    "trace_ratio": ("Trace ratio", "images over text", 3),
    "paired_cosine": ("Cosine of pairs", "mean over all pairs", 3),
    "recall_at_1_text_to_image": ("R@1, text to image", "share of texts whose own image is the nearest", 3),
    "recall_at_1_image_to_text": ("R@1, image to text", "", 3),
    "recall_at_10_text_to_image": ("R@10, text to image", "the same among the ten nearest", 3),
    "recall_at_10_image_to_text": ("R@10, image to text", "", 3),
    "separability": ("Linear separability", "held-out accuracy of a linear classifier; 0.5 is chance", 3),
    "cmmd": ("CMMD", "squared kernel MMD, sigma 10, times 1000", 3),
    "frechet_distance": ("Fréchet distance", "squared, between the two Gaussians", 3),
    "frechet_centred": ("Fréchet distance, centred", "its part from the covariances, without the means", 3),
    "distribution_gap": ("Distribution gap", "squared MMD of the centred sets, times 1000", 2),
    "effective_rank_text": ("Effective rank, text", "participation ratio of the spectrum", 1),
    "effective_rank_image": ("Effective rank, images", "", 1),
    "subspace_overlap": ("Subspace overlap", "mean squared cosine of the leading principal angles", 3),
    "largest_principal_angle": ("Largest principal angle", "degrees, among the leading directions", 1),
    "hubness": ("Hubness", "skewness of how often an image is among a text's ten nearest", 2),
    "never_retrieved": ("Never retrieved", "share of images not among any text's ten nearest", 3),
}

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #fff; --quiet: #555; --line: #e3e3e3;
  --warn: #fdf0e6; --fine: #eef7f1; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --page: #16191c; --quiet: #a0a8b0; --line: #353b41;
  --warn: #3a2618; --fine: #17301f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1080px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.about, td.note, figcaption { color: var(--quiet); }
p.about { overflow-wrap: anywhere; } td.note { font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; max-width: 8rem; } td:first-child { white-space: nowrap; }
th { border-bottom: 2px solid #888; }
ul.flags { list-style: none; padding: 0; }
ul.flags li { padding: .4rem .8rem; margin: .3rem 0; background: var(--warn); border-left: 4px solid #D55E00; }
ul.flags li.fine { background: var(--fine); border-color: #009E73; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
@media (max-width: 640px) { td.note { min-width: 14rem; }
  td:first-child, th:first-child { white-space: normal; min-width: 7rem; position: sticky; left: 0;
    background: var(--page); } }
"""


def write_report(gap: Gap, path, *, overwrite: bool = False) -> Path:
    """Write `gap` to one self-contained HTML file; needs the extra [gap]. Returns the path.

    Raises:
        InputError: `path` exists, and `overwrite` is not given.
    """
    require("matplotlib", "gap")
    with new_file(path, overwrite=overwrite) as file:
        file.write_text(_page(gap), encoding="utf-8")
    return Path(path)


def _page(gap: Gap) -> str:
    text, image = gap.text, gap.image
    figures = "\n".join(
        f'<h2>{title}</h2><figure><img alt="{title}" src="data:image/png;base64,{_png(draw(gap))}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for title, caption, draw in (
            (
                "Where the two sets lie",
                "The two principal components of text and images together, before any transfer; the same axes for all.",
                _draw_scatter,
            ),
            ("Spectra", "Variance along the principal components, largest first, on a log scale.", _draw_spectra),
            (
                "Cosines",
                "Distribution of the cosine of random pairs of texts, of images, and of a text and an image"
                + ("; and of true pairs." if gap.paired else "."),
                _draw_cosines,
            ),
            (
                "Means, dimension by dimension",
                "One point per dimension; on the diagonal both sets have the same mean.",
                _draw_means,
            ),
        )
    )
    pairs = "paired, " if gap.paired else "unpaired, "
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Modality gap</title><style>{_STYLE}</style></head><body>
<h1>Modality gap</h1>
<p class="about">{_about("Text", text)}<br>{_about("Images", image)}<br>
{pairs}{text.embed_dim} dimensions; measured on {len(text.sample):,} texts and {len(image.sample):,} images.</p>
<h2>Quality of the sets</h2>
<ul class="flags">{_flags(gap)}</ul>
<h2>Measures</h2>
<div class="scroll">{_table(gap)}</div>
<p class="about">{_reading(gap)}</p>
{figures}
</body></html>
"""


def _about(name: str, quality) -> str:
    encoder = f", encoder {html.escape(quality.encoder)}" if quality.encoder else ""
    return f"{name}: {html.escape(quality.name)} ({quality.num_rows:,} rows{encoder})"


def _flags(gap: Gap) -> str:
    if not gap.flags:
        return '<li class="fine">No problems: finite, distinct, unit length, well spread, of one kind.</li>'
    return "".join(
        f"<li><b>{html.escape(flag['set'])}: {flag['kind']}</b>. {html.escape(flag['message'])}</li>"
        for flag in gap.flags
    )


def _reading(gap: Gap) -> str:
    """How to read the table."""
    floor = (
        "The last column shows each measure without a gap: images against other images, or against the other half of "
        "the sample if there are no other images. It shows how much of a value comes from the number of rows alone. "
        if NO_GAP in gap.measures
        else ""
    )
    pairs = "A high cosine of pairs alone says little: compare it with retrieval." if gap.paired else ""
    return floor + pairs


def _table(gap: Gap) -> str:
    states = list(gap.measures)
    head = "".join(f'<th class="number">{html.escape(state)}</th>' for state in states)
    rows = []
    for measure, (name, note, decimals) in _MEASURES.items():
        if measure in gap.measures[BEFORE]:
            values = [gap.measures[state].get(measure) for state in states]
            texts = ["" if value is None else f"{value:.{decimals}f}" for value in values]
            cells = "".join(f'<td class="number">{text}</td>' for text in texts)
            rows.append(f'<tr><td>{name}</td>{cells}<td class="note">{note}</td></tr>')
    return f"<table><thead><tr><th>Measure</th>{head}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _draw_scatter(gap: Gap):
    both = np.concatenate([spread.rows[:_POINTS] for spread in gap.samples[BEFORE]])
    centre = both.mean(axis=0)
    _, _, axes = np.linalg.svd(both - centre, full_matrices=False)
    figure, panels = _panels(_states(gap), sharex=True, sharey=True)
    for panel, state in zip(panels, _states(gap), strict=True):
        for spread, colour, name in zip(
            gap.samples[state], (_TEXT_COLOUR, _IMAGE_COLOUR), ("text", "images"), strict=True
        ):
            points = (spread.rows[:_POINTS] - centre) @ axes[:2].T
            panel.scatter(points[:, 0], points[:, 1], s=5, alpha=0.35, color=colour, label=name, linewidths=0)
        panel.set_title(state)
    _legend(panels[0], markerscale=4)
    return figure


def _draw_spectra(gap: Gap):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4))
    axes = figure.subplots()
    for state, colour in zip(_states(gap), _STATE_COLOURS * 3, strict=False):
        values = gap.samples[state][0].variances
        axes.semilogy(
            np.arange(1, len(values) + 1), values.clip(1e-9), color=colour, label=f"text, {state}", linewidth=1.5
        )
    values = gap.samples[BEFORE][1].variances
    axes.semilogy(
        np.arange(1, len(values) + 1), values.clip(1e-9), color="black", label="images", linewidth=1.5, ls="--"
    )
    axes.set_xlabel("principal component")
    axes.set_ylabel("variance")
    _legend(axes)
    return figure


def _draw_cosines(gap: Gap):
    figure, panels = _panels(_states(gap))
    bins = np.linspace(-1, 1, 161)
    rng = np.random.default_rng(0)
    lowest, highest = 1.0, -1.0
    for panel, state in zip(panels, _states(gap), strict=True):
        text, image = (spread.rows for spread in gap.samples[state])
        sets = {
            "text, text": (text, text, _TEXT_COLOUR, "-"),
            "image, image": (image, image, _IMAGE_COLOUR, "-"),
            "text, image": (text, image, "black", "-"),
        }
        cosines = {}
        for name, (a, b, colour, style) in sets.items():
            first, second = rng.integers(len(a), size=4000), rng.integers(len(b), size=4000)
            different = first != second
            cosines[name] = (np.einsum("ij,ij->i", a[first[different]], b[second[different]]), colour, style)
        if gap.paired:
            cosines["true pairs"] = (np.einsum("ij,ij->i", text, image), _PAIR_COLOUR, "--")
        for name, (values, colour, style) in cosines.items():
            panel.hist(values, bins, density=True, histtype="step", color=colour, label=name, linewidth=1.4, ls=style)
            low, high = np.quantile(values, [0.001, 0.999])
            lowest, highest = min(lowest, low), max(highest, high)
        panel.set_title(state)
        panel.set_yticks([])
    for panel in panels:
        panel.set_xlim(lowest - 0.05, min(highest + 0.05, 1))
    _legend(panels[0])
    return figure


def _draw_means(gap: Gap):
    figure, panels = _panels(_states(gap))
    for panel, state in zip(panels, _states(gap), strict=True):
        text, image = (spread.mean for spread in gap.samples[state])
        limit = 1.05 * max(np.abs(text).max(), np.abs(image).max())
        panel.plot([-limit, limit], [-limit, limit], color="#999999", linewidth=1)
        panel.scatter(image, text, s=8, color=_TEXT_COLOUR, alpha=0.6, linewidths=0)
        panel.set_title(state)
        panel.set_xlabel("mean of the images")
    panels[0].set_ylabel("mean of the text")
    return figure


def _states(gap: Gap) -> list[str]:
    return [state for state in gap.samples if state != NO_GAP]


def _panels(states: list[str], **options):
    from matplotlib.figure import Figure

    columns = min(3, len(states))
    rows = -(-len(states) // columns)
    figure = Figure(figsize=(max(4.4, 3.2 * columns), 3.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for spare in panels[len(states) :]:
        spare.remove()
    return figure, panels[: len(states)]


def _legend(axes, **options) -> None:
    axes.legend(frameon=False, fontsize="small", **options)


def _png(figure) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
