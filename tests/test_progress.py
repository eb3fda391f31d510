"""What a bar leaves in a log."""

import io
import sys

from unicorn_hf import progress
from unicorn_hf.progress import progress_bar


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(range(1000), desc="rows") as bar:
        for _ in bar:
            bar.set_postfix_str("so far")
    lines = [line for line in log.getvalue().splitlines() if line]
    assert len(lines) == 2 and "\r" not in log.getvalue()
    assert lines[0].startswith("rows:   0%") and lines[1].startswith("rows: 100%") and "1000/1000" in lines[1]


def test_a_bar_that_is_switched_off_shows_nothing(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(range(3), desc="rows", disable=True) as bar:
        for _ in bar:
            bar.set_postfix_str("so far")
    assert not log.getvalue()


def test_a_log_gets_a_line_as_often_as_said(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0)
    for _ in progress_bar(range(5), desc="rows", miniters=1):
        pass
    assert log.getvalue().count("rows:") >= 5
