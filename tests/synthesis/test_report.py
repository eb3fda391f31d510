import json

import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import report_captions, write_captions


def test_a_report_counts_what_is_there(tmp_path):
    seeds = [f"{color} circle, small, {place}" for color in ("red", "blue") for place in ("top left", "center")]
    captions = write_captions(seeds, tmp_path / "captions", writer="grammar")
    page = report_captions(tmp_path / "captions")
    report = json.loads((tmp_path / "captions.report" / "report.json").read_text())
    assert report["captions"] == report["sample"] == len(captions) == sum(report["words"].values())
    assert report["domains"] == {"open": 1.0}
    assert 1 < report["vendi_score"]["value"] < len(captions)
    assert 0 < report["distinct_n"]["1"] < report["distinct_n"]["3"] < 1
    assert report["samples"][0]["caption"] in page.read_text()


def test_what_a_model_wrote_cannot_run_in_the_page(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    bad = "<script>alert(1)</script> a dog"
    (folder / "captions.jsonl").write_text("".join(json.dumps({"caption": f"{bad} {i}"}) + "\n" for i in range(3)))
    (folder / "summary.json").write_text(
        json.dumps({"requested": 5, "rejected": {"markdown": 1}, "dead_letters": {"timeout": 1}})
    )
    (folder / "rejected.jsonl").write_text(
        json.dumps({"reason": "markdown", "answer": bad, "row": {"seed": bad}}) + "\n"
    )
    page = report_captions(folder / "captions.jsonl", tmp_path / "one").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_rejections_are_shown_with_their_reasons(tmp_path, llm_server, chat_writer):
    seeds = [f"dog number {index}" for index in range(5)] + ["dog number 1 " * 200]
    write_captions(seeds, tmp_path / "captions", writer=chat_writer(llm_server()), captions_per_seed=1)
    page = report_captions(tmp_path / "captions").read_text()
    report = json.loads((tmp_path / "captions.report" / "report.json").read_text())
    assert report["rejected"] == {"seed_too_long": 1} and report["requested"] == 6
    assert "seed too long" in page


def test_a_report_needs_two_captions(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"caption": "a dog"}\n')
    with pytest.raises(InputError, match="two or more"):
        report_captions(tmp_path / "one.jsonl")
