"""Progress bars: moving ones on a terminal, and a line every half a minute in a log."""

import sys

from tqdm.auto import tqdm as _bar

SECONDS_A_LINE = 30


def progress(*arguments, **options):
    """A `tqdm` bar; where the errors go to no terminal, each of its states is a line of its own, and few are."""
    if sys.stderr.isatty():
        return _bar(*arguments, **options)
    return _Lines(*arguments, **options | {"mininterval": SECONDS_A_LINE, "maxinterval": 10 * SECONDS_A_LINE})


class _Lines(_bar):
    @staticmethod
    def status_printer(file):
        def print_line(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return print_line
