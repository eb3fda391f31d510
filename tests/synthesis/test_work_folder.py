"""What a run has left beside its output, damaged since: it is made anew, or named with what to do."""

import shutil

import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis import write_captions
from unicorn_hf.synthesis.work_folder import WorkFolder

SEEDS = [f"{thing} number {index}" for index in range(4) for thing in ("dog", "boat", "lamp")]


@pytest.fixture
def finish_anew(llm_server, chat_writer, tmp_path, monkeypatch):
    """The work folder of a run whose requests are all answered and whose output is missing, and the same command."""
    writer = chat_writer(llm_server())
    monkeypatch.setattr(WorkFolder, "remove", lambda self: None)
    whole = write_captions(SEEDS, tmp_path / "captions", writer=writer, captions_per_seed=2)
    shutil.rmtree(tmp_path / "captions")

    def again():
        rows = write_captions(SEEDS, tmp_path / "captions", writer=writer, captions_per_seed=2)
        assert rows.to_list() == whole.to_list()

    return WorkFolder(tmp_path / "captions"), again


@pytest.mark.parametrize("damage", [b"", b"{\n", b"[1]\n", b"\xff\n", b'{"id": "0"', None])
def test_a_damaged_shard_of_rows_is_written_anew_by_the_same_command(finish_anew, damage):
    work, again = finish_anew
    shard = work.path / "shards" / "00000.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    if damage is None:
        shard.unlink()
    else:
        shard.write_bytes(b"".join([*lines[:3], damage, *lines[4:]]) if damage else b"")
    with pytest.raises(InputError, match=r"00000\.jsonl, line \d+: is damaged .* run the command that began this run"):
        list(work.rows(0))
    again()


def test_a_damaged_prompt_is_written_anew_by_the_same_command(finish_anew):
    work, again = finish_anew
    (work.path / "prompts" / "caption.jinja").write_text("{% block system")
    again()


def test_an_answer_that_a_done_rank_has_lost_is_asked_for_again(finish_anew):
    work, again = finish_anew
    journal = work.journal_path(0)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b'{"request": 5, "sta\n', *lines[6:-1]]))
    again()
