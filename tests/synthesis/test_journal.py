import pytest

from unicorn_hf.errors import InputError
from unicorn_hf.synthesis.journal import Journal, read_journal
from unicorn_hf.synthesis.work_folder import WorkFolder


def entries(path):
    return [entry for _, entry in read_journal(path)]


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append({"request": 0, "status": "ok", "record": {}})
        journal.append({"request": 1, "status": "ok", "record": "ü" * 70_000})
    whole = path.read_bytes()
    for cut in (1, 10, 69_000):
        path.write_bytes(whole[:-cut])
        assert [entry["request"] for entry in entries(path)] == [0]
        with Journal(path) as journal:
            journal.append({"request": 2, "status": "ok", "record": {}})
        assert [entry["request"] for entry in entries(path)] == [0, 2]


def test_a_journal_has_one_writer(tmp_path):
    with Journal(tmp_path / "journal.jsonl"), pytest.raises(InputError, match="another process"):
        Journal(tmp_path / "journal.jsonl")
    Journal(tmp_path / "journal.jsonl").close()


def test_no_journal_is_no_entry(tmp_path):
    assert entries(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"request": 1, "sta',
        "[1]",
        "3",
        '{"status": "dead"}',
        '{"request": -1, "status": "dead"}',
        '{"request": 1}',
    ],
)
def test_a_damaged_line_in_the_middle_is_passed_over(line, tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    whole = '{"request": %d, "status": "dead"}'
    path.write_text(f"{whole % 0}\n{line}\n{whole % 2}\n")
    assert [entry["request"] for entry in entries(path)] == [0, 2]
    assert "1 damaged lines are skipped" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"shards": 3}', "\x00\x00"])
def test_a_damaged_plan_is_one_sentence(text, tmp_path):
    work = WorkFolder(tmp_path / "captions")
    work.path.mkdir()
    (work.path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json: is damaged \(.*; remove "):
        work.plan()
