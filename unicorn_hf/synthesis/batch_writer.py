"""`BatchWriter`: requests and answers as files of OpenAI's batch API, which `vllm run-batch` reads and writes too."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.answer_loop import pending, refusal_entry, replay
from unicorn_hf.synthesis.answers import BadAnswer
from unicorn_hf.synthesis.chat_writer import BadBody, read_completion
from unicorn_hf.synthesis.completion import MAX_TOKENS
from unicorn_hf.synthesis.journal import DEAD, OK, Journal
from unicorn_hf.synthesis.request_options import check_options, first_options
from unicorn_hf.synthesis.usage import Prices, Usage
from unicorn_hf.synthesis.work_folder import WorkFolder

_REQUESTS_A_FILE = 50_000  # the limit of OpenAI's batch API


@dataclass
class BatchWriter:
    """Writes requests to files, and reads the answers from files.

    Args:
        model: the model's name at the server.
        answers: files of answers, one JSON object a line.
        temperature: the sampling temperature.
        max_tokens: the most tokens of one answer, its thought included.
        token_limit, response_format, send_temperature, send_seed: what the model accepts, as in `ChatWriter`; "auto"
            and None mean OpenAI's usual options.
        prices: money for a million tokens.
        extra_body: further fields of every request.
    """

    model: str
    answers: tuple[str, ...] = ()
    temperature: float = 1.0
    max_tokens: int = MAX_TOKENS
    token_limit: str = "auto"
    response_format: str = "auto"
    send_temperature: bool | None = None
    send_seed: bool | None = None
    prices: Prices = field(default_factory=Prices)
    extra_body: dict = field(default_factory=dict)

    name = "batch"

    def __post_init__(self):
        if not self.model:
            raise InputError("the batch writer needs the name of a model; name one (--model)")
        self._options = first_options(
            check_options(self.token_limit, self.response_format, self.send_temperature, self.send_seed)
        )

    def exchange(self, stage, work: WorkFolder) -> list[Path]:
        """Read the answers, and write files with all requests that are still open.

        Returns:
            the files of requests; none if every request has its answer.

        Raises:
            InputError: a file of answers cannot be read, or belongs to other requests.
        """
        num_requests = work.plan()["shards"][0] * stage.per_row
        with Journal(work.journal_path(0)) as journal:
            done, *_ = replay(work, 0, num_requests)
            for name in self.answers:
                answers = dict(_read_answers(name))
                for request, row, number in pending(stage, work, 0, done):
                    if answer := answers.get(_custom_id(stage, request, row)):
                        done[request] = True
                        journal.append({"request": request, **self._entry(stage, row, number, answer)})
        folder = work.path / "batch"
        folder.mkdir(exist_ok=True)
        for old in folder.glob("requests-*.jsonl"):
            old.unlink()
        return self._write_requests(stage, work, done, folder)

    def _entry(self, stage, row: dict, number: int, answer: dict) -> dict:
        usage, text = Usage(calls=1), ""
        try:
            response = answer.get("response") or {}
            if answer.get("error") or response.get("status_code") != 200:
                detail = json.dumps(answer.get("error") or response.get("body"), ensure_ascii=False)[:500]
                return {"status": DEAD, "reason": f"http_{response.get('status_code')}", "detail": detail}
            completion = read_completion(json.dumps(response["body"]).encode(), stage.prompt(row, number))
            text, usage = completion.text, completion.usage
            entry = {"status": OK, "record": stage.read(row, text, completion.cut_off)}
        except BadBody as error:
            entry = {"status": DEAD, "reason": error.reason, "detail": str(error)}
        except BadAnswer as error:
            error.answer = text
            entry = refusal_entry(error)
        return entry | {"usage": list(dataclasses.astuple(usage))}

    def _write_requests(self, stage, work: WorkFolder, done: bytearray, folder: Path) -> list[Path]:
        files: list[Path] = []
        count, file = 0, None
        with Journal(work.journal_path(0)) as journal:
            for request, row, number in pending(stage, work, 0, done):
                try:
                    prompt = stage.prompt(row, number)
                except BadAnswer as error:
                    journal.append({"request": request, **refusal_entry(error)})
                    continue
                if file is None or count % _REQUESTS_A_FILE == 0:
                    if file:
                        file.close()
                    files.append(folder / f"requests-{len(files):05d}.jsonl")
                    file = files[-1].open("w", encoding="utf-8")
                count += 1
                # A batch cannot ask again with more tokens, and only written tokens are paid.
                prompt = dataclasses.replace(prompt, max_tokens=self.max_tokens)
                body = {
                    "model": self.model,
                    "messages": prompt.messages,
                    **self._options.body(prompt, self.temperature),
                    **self.extra_body,
                }
                custom_id = _custom_id(stage, request, row)
                line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if file:
            file.close()
        return files


def _custom_id(stage, request: int, row: dict) -> str:
    return f"{stage.name}-{request}-{row['id']}"


def _read_answers(name: str) -> Iterator[tuple[str, dict]]:
    line_number = 0
    try:
        with open(name, encoding="utf-8") as file:
            for line in file:
                line_number += 1
                if line.strip():
                    answer = json.loads(line)
                    yield answer["custom_id"], answer
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; expected a file of batch answers") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{name}, line {line_number}: is no batch answer ({type(error).__name__}: {error}); expected a JSON object "
            "with custom_id and response"
        ) from error
