"""The commands of the two stages and of the report, as they are typed."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from typer.testing import CliRunner

from unicorn_hf import load_encoder, write_captions
from unicorn_hf.cli import app
from unicorn_hf.data.dataset_folder import write_dataset
from unicorn_hf.data.sources import read_dataset
from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.diversity import vendi_score

SEEDS = [f"{thing} number {index}" for index in range(10) for thing in ("dog", "boat", "lamp")]
NOBODY = ("--writer", "chat", "--model", "m", "--base-url", "http://127.0.0.1:9/v1")  # nothing listens there


@pytest.fixture
def seeds(tmp_path):
    (tmp_path / "seeds.txt").write_text("\n".join(SEEDS))
    return tmp_path / "seeds.txt"


def run(*arguments) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_writes_what_the_function_returns(seeds, tmp_path):
    texts = ["red circle, small, top left, white background", "blue square, large; green cross, small, left of"]
    seeds.write_text("\n".join(texts))
    run("captions", seeds, "-o", tmp_path / "captions", "--writer", "grammar", "--captions-per-seed", 2)
    expected = write_captions(texts, writer="grammar", captions_per_seed=2)
    assert read_dataset(tmp_path / "captions").to_list() == expected.to_list()


def check_preview(printed: str, texts: list[str], requests: int) -> list[str]:
    """Ten prompts, each of another text, and the estimate for all requests. Returns the prompts."""
    *prompts, last = re.split(r"--- prompt \d+\n", printed)[1:]
    last, _, estimate = last.rstrip().rpartition("\n")
    prompts.append(last)
    shown = {text for text in texts for prompt in prompts if json.dumps(text) in prompt}
    assert len(prompts) == len(shown) == 10
    numbers = re.fullmatch(r"(\S+) requests, about (\S+) tokens in and (\S+) out, (\S+) at these prices", estimate)
    asked, tokens_in, tokens_out, cost = (float(number.replace(",", "")) for number in numbers.groups())
    assert asked == requests
    mean_length = sum(len(prompt) for prompt in prompts) / len(prompts)
    assert tokens_in == pytest.approx(requests * mean_length / 4, rel=0.1)
    assert cost == pytest.approx((1000 * tokens_in + 3000 * tokens_out) / 1e6, abs=0.01)
    return prompts


@pytest.mark.parametrize("verify", [False, True])
def test_a_dry_run_shows_ten_prompts_and_what_all_would_cost(verify, seeds, tmp_path):
    prices = ("--price-in", "1000", "--price-out", "3000")
    if not verify:
        printed = run(
            "captions", seeds, "-o", tmp_path / "out", *NOBODY, *prices, "--captions-per-seed", 4, "--dry-run"
        )
        check_preview(printed, SEEDS, 120)
    else:
        rows = [{"id": str(index), "caption": f"A {text} in the sun."} for index, text in enumerate(SEEDS)]
        write_dataset(Dataset.from_list(rows), tmp_path / "captions", title="Captions")
        printed = run("instructions", tmp_path / "captions", "-o", tmp_path / "out", *NOBODY, *prices, "--dry-run")
        prompts = check_preview(printed, [row["caption"] for row in rows], 30)
        assert "--no-verify saves the check of every answer, which comes on top" in printed
        assert all("Number of questions" in prompt for prompt in prompts)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_a_dry_run_passes_over_a_seed_that_is_too_long_to_be_asked(seeds, tmp_path):
    seeds.write_text("a dog\n" + "a boat " * 500)
    assert "--- prompt 2" not in run("captions", seeds, "-o", tmp_path / "out", *NOBODY, "--dry-run")


def test_the_grammar_has_no_prompts_to_show(seeds, tmp_path):
    for command in ("captions", "instructions", "preferences"):
        with pytest.raises(InputError, match="--dry-run: the grammar writer calls no model"):
            run(command, seeds, "-o", tmp_path / "out", "--writer", "grammar", "--dry-run")
    assert not (tmp_path / "out").exists()


def test_captions_that_an_encoder_finds_alike_are_rejected(seeds, llm_server, tmp_path):
    arguments = ("captions", seeds, *NOBODY[:4], "--base-url", llm_server().base_url, "--captions-per-seed", 1)
    run(*arguments, "-o", tmp_path / "all")
    everything = read_dataset(tmp_path / "all")["caption"][:]
    vectors = load_encoder("sandbox").encode_text(everything)
    nearest = np.array([-1.0, *((vectors[row] @ vectors[:row].T).max() for row in range(1, len(vectors)))])
    threshold = np.sort(nearest)[14:16].mean()  # half of them
    run(*arguments, "-o", tmp_path / "distinct", "--encoder", "sandbox", "--semantic-duplicates", threshold)
    distinct = read_dataset(tmp_path / "distinct")["caption"][:]
    assert distinct == [text for text, cosine in zip(everything, nearest, strict=True) if cosine < threshold]
    assert len(everything) == 30 and len(distinct) == 15
    summary = json.loads((tmp_path / "distinct" / "summary.json").read_text())
    assert summary["rejected"] == {"semantic_duplicate": 15}


def test_a_report_measures_in_the_space_of_the_named_encoder(tmp_path):
    captions = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("circle", "cross")]
    write_dataset(Dataset.from_dict({"caption": captions}), tmp_path / "captions", title="Captions")
    page = run("report", "captions", tmp_path / "captions", "-o", tmp_path / "report", "--encoder", "sandbox")
    assert page.strip() == str(tmp_path / "report" / "report.html")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    expected = vendi_score(load_encoder("sandbox").encode_text(captions))
    assert report["vendi_score"] == {"value": pytest.approx(expected, abs=0.01), "space": "the given encoder"}
