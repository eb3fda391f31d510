import json

import pytest
from llm_server import answer, body

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import BatchWriter, Prices, retry_failed, write_captions, write_instructions

SEEDS = [f"{thing} number {index}" for index in range(10) for thing in ("dog", "boat", "lamp")]


def run_batch(requests, answers, broken=()):
    """What a batch API does with a file; the lines in `broken` get an error."""
    with open(requests) as file, open(answers, "w") as out:
        for number, line in enumerate(file):
            request = json.loads(line)
            assert request["method"] == "POST" and request["url"] == "/v1/chat/completions"
            response = {"status_code": 200, "body": body(answer(request["body"]))}
            error = None
            if number in broken:
                response, error = None, {"code": "batch_expired", "message": "too late"}
            out.write(
                json.dumps(
                    {"id": f"x{number}", "custom_id": request["custom_id"], "response": response, "error": error}
                )
            )
            out.write("\n")


def test_requests_go_out_as_files_and_answers_come_back(tmp_path):
    output = tmp_path / "captions"
    assert write_captions(SEEDS, output, writer=BatchWriter("m"), captions_per_seed=2) is None
    assert not output.exists()
    (requests,) = (tmp_path / "captions.work" / "batch").glob("*.jsonl")
    lines = [json.loads(line) for line in requests.open()]
    assert len({line["custom_id"] for line in lines}) == 60
    assert lines[0]["body"]["response_format"]["json_schema"]["schema"]["required"] == ["caption"]

    run_batch(requests, tmp_path / "answers.jsonl", broken=(3, 7))
    writer = BatchWriter("m", answers=(str(tmp_path / "answers.jsonl"),), prices=Prices(1.0, 1.0))
    rows = write_captions(SEEDS, output, writer=writer, captions_per_seed=2)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["dead_letters"] == {"http_None": 2} and summary["usage"]["calls"] == 58
    assert summary["cost"] == pytest.approx(58 * 120 / 1e6)
    assert len(rows) + sum(summary["rejected"].values()) == 58

    assert retry_failed(output) is None
    (requests,) = (tmp_path / "captions.work" / "batch").glob("*.jsonl")
    run_batch(requests, tmp_path / "more.jsonl")
    retry_writer = BatchWriter("m", answers=(str(tmp_path / "more.jsonl"),))
    assert retry_failed(output, writer=retry_writer) is not None
    assert json.loads((output / "summary.json").read_text())["dead_letters"] == {}


def test_a_file_of_another_kind_is_named_with_its_line(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"custom_id": "a"}\n{"id": 3}\n')
    writer = BatchWriter("m", answers=(str(tmp_path / "answers.jsonl"),))
    with pytest.raises(InputError, match="line 2: is no batch answer"):
        write_captions(SEEDS, tmp_path / "captions", writer=writer)
    with pytest.raises(InputError, match="no second pass"):
        captions = {"id": ["1"], "caption": ["a dog on a lawn"]}
        import datasets

        write_instructions(datasets.Dataset.from_dict(captions), tmp_path / "c", writer=BatchWriter("m"), verify=True)
