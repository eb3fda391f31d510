"""Each measure against its definition, and the report."""

import html.parser
import importlib.util
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from unicorn_hf import InputError, MissingExtraError, ModalityTransfer
from unicorn_hf.cli import app

pytest.importorskip("sklearn", reason="needs the extra [gap]")
linalg = pytest.importorskip("scipy.linalg", reason="needs the extra [gap]")

from unicorn_hf.transfer import gap as gap_module  # noqa: E402
from unicorn_hf.transfer.gap import BEFORE, NO_GAP, Spread, measure_gap  # noqa: E402
from unicorn_hf.transfer.gap_report import write_report  # noqa: E402


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def paired():
    """Texts and images of the same things: the same latent vector, a modality's own shift and spread each."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((1200, 32)) * np.geomspace(2, 0.3, 32)
    shifts = rng.standard_normal((2, 32))
    text = latent + 3 * shifts[0] + 0.3 * rng.standard_normal(latent.shape)
    image = 1.3 * latent + 3 * shifts[1] + 0.3 * rng.standard_normal(latent.shape)
    return unit(text), unit(image)


def test_frechet_distance_is_that_of_the_two_gaussians(paired):
    text, image = paired
    measures = measure_gap(text, image).measures[BEFORE]
    means = [rows.mean(0, dtype=np.float64) for rows in paired]
    text_cov, image_cov = (np.cov(rows.T.astype(np.float64), bias=True) for rows in paired)
    cross = linalg.sqrtm(text_cov @ image_cov).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(text_cov + image_cov - 2 * cross)
    assert measures["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert measures["centroid_distance"] == pytest.approx(np.linalg.norm(means[0] - means[1]), rel=1e-5)
    assert measures["trace_ratio"] == pytest.approx(np.trace(image_cov) / np.trace(text_cov), rel=1e-4)


def test_cmmd_is_its_definition(paired):
    text, image = (rows[:300].astype(np.float64) for rows in paired)

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10**2)).mean()

    expected = 1000 * (kernel(text, text) + kernel(image, image) - 2 * kernel(text, image))
    assert gap_module.cmmd(text.astype(np.float32), image.astype(np.float32)) == pytest.approx(expected, rel=1e-3)


def test_retrieval_counts_ranks(paired):
    text, image = paired
    scores = text @ image.T
    ranks = (scores > np.diag(scores)[:, None]).sum(1)
    for k in (1, 10):
        assert gap_module.recall(text, image, k)[0] == pytest.approx((ranks < k).mean())
        assert gap_module.recall(image, text, k)[1] == gap_module.recall(text, image, k)[0]
    assert gap_module.recall(text, text, 1) == (1.0, 1.0)


def test_the_distribution_gap_does_not_see_a_shift_but_sees_the_spread(paired):
    text, image = paired
    own = gap_module.distribution_gap(image + 0.5, image)
    assert own == pytest.approx(0, abs=1e-3)
    assert gap_module.distribution_gap(text, image) > own + 0.1


def test_separability_is_chance_for_one_distribution_and_1_across_a_gap(paired):
    text, image = paired
    assert gap_module.separability(text, image) > 0.99
    assert gap_module.separability(image[::2], image[1::2]) == pytest.approx(0.5, abs=0.08)


def test_the_subspace_overlap_is_1_for_a_set_and_itself_and_0_for_orthogonal_ones():
    rng = np.random.default_rng(0)
    text, image = np.full((400, 64), 1e-4), np.full((400, 64), 1e-4)
    text[:, :20] += rng.standard_normal((400, 20))
    image[:, 30:50] += rng.standard_normal((400, 20))
    same = gap_module.measure(Spread(unit(text)), Spread(unit(text)))
    other = gap_module.measure(Spread(unit(text)), Spread(unit(image)))
    assert same["subspace_overlap"] == pytest.approx(1, abs=1e-4)
    assert other["subspace_overlap"] == pytest.approx(0, abs=0.02)
    assert other["largest_principal_angle"] == pytest.approx(90, abs=2)


def test_one_image_near_every_text_is_a_hub(paired):
    text, image = paired
    image = image.copy()
    image[0] = unit(text.mean(0, keepdims=True))
    assert gap_module.hubness(text, image)[0] > gap_module.hubness(image, image)[0] + 5


def test_every_transfer_has_its_column_and_closes_the_gap(paired, tmp_path):
    text, image = paired
    transfers = [
        ModalityTransfer.fit(text[::2], image[1::2], method=m) for m in ("mean_shift", "realign", "covariance")
    ]
    centred = ModalityTransfer.fit(text, method="mean_shift").save_pretrained(tmp_path / "centred")
    gap = measure_gap(text, image, paired=True, transfers=[*transfers, centred])
    assert list(gap.measures) == [BEFORE, "mean_shift", "realign", "covariance", "mean_shift (centred)", NO_GAP]
    before = gap.measures[BEFORE]
    for name in list(gap.measures)[1:-1]:
        after = gap.measures[name]
        assert after["centroid_distance"] < 0.15 * before["centroid_distance"]
        assert after["cmmd"] < 0.1 * before["cmmd"]
        assert after["recall_at_1_text_to_image"] > before["recall_at_1_text_to_image"]
        assert after["paired_cosine"] > before["paired_cosine"]
    assert "paired_cosine" not in gap.measures[NO_GAP]
    assert abs(gap.measures["realign"]["trace_ratio"] - 1) < abs(gap.measures["mean_shift"]["trace_ratio"] - 1)


def test_broken_rows_are_flagged_and_left_out_on_both_sides(paired):
    text, image = (rows.copy() for rows in paired)
    text[5], image[9] = np.nan, 0
    gap = measure_gap(text, image, paired=True)
    assert [(flag["set"], flag["kind"]) for flag in gap.flags] == [("text", "non-finite"), ("image", "non-finite")]
    keep = np.delete(np.arange(len(text)), [5, 9])
    clean = measure_gap(text[keep], image[keep], paired=True).measures[BEFORE]
    for name, value in gap.measures[BEFORE].items():
        assert value == pytest.approx(clean[name], rel=1e-3, abs=0.03), name


def test_sets_of_two_encoders_are_flagged(paired, make_folder):
    text, image = paired
    gap = measure_gap(make_folder(text, encoder="a"), make_folder(image, "image_embeds", encoder="b"))
    assert gap.flags[-1] == {
        "set": "both",
        "kind": "mixed",
        "message": "the text comes from the encoder 'a' and the images from 'b': two different spaces",
    }


def test_what_is_no_pair_is_refused(paired, make_dataset):
    text, image = paired
    with pytest.raises(InputError, match="1,200 rows, the array 10"):
        measure_gap(text, image[:10], paired=True)
    with pytest.raises(InputError, match=r"row 0 is 'a0' .* 'a1199'"):
        measure_gap(make_dataset(text), make_dataset(image, "image_embeds").select(range(1199, -1, -1)), paired=True)
    with pytest.raises(InputError, match="32 dimensions and the image vectors 8"):
        measure_gap(text, image[:, :8])


def test_a_missing_extra_is_named(paired, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"unicorn-hf\[gap\]"):
        measure_gap(*paired)


class _Page(html.parser.HTMLParser):
    """Collects tags, the sources of pictures and the text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_that_needs_nothing_else(paired, tmp_path):
    text, image = paired
    gap = measure_gap(text, image, paired=True, transfers=[ModalityTransfer.fit(text, image)])
    gap.text.name = "<script>alert(1)</script>"
    page = _Page()
    page.feed(write_report(gap, tmp_path / "deep" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 4
    assert "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    for words in ("Centroid distance", "CMMD", "Fréchet", "R@10", "Hubness", "No problems", "realign"):
        assert words in page.text
    assert f"{gap.measures['realign']['cmmd']:.3f}" in page.text


def test_the_command_writes_report_and_numbers(paired, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in zip(("text", "image"), paired, strict=True):
        np.save(f"{name}.npy", rows)
    for method in ("mean_shift", "realign"):
        ModalityTransfer.fit(*paired, method=method).save_pretrained(method)
    command = "gap --text text.npy --image image.npy --paired -o r.html --json r.json"
    command += " --transfer mean_shift --transfer realign"
    result = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert result.exit_code == 0
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert list(numbers["measures"]) == [BEFORE, "mean_shift", "realign", NO_GAP]
    assert numbers["text"]["rows"] == 1200
    assert numbers["flags"] == []
    assert (tmp_path / "r.html").stat().st_size > 50_000
