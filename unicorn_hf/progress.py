"""Progress bars: animated on a terminal and in a notebook, one line every 30 seconds in a log."""

import sys
import time

from tqdm.auto import tqdm

SECONDS_PER_LINE = 30


def progress_bar(*arguments, **options) -> tqdm:
    """A progress bar; takes the arguments of `tqdm`."""
    if sys.stderr.isatty() or _in_notebook():
        return tqdm(*arguments, **options)
    of_a_log = {"position": None, "mininterval": SECONDS_PER_LINE, "maxinterval": 2 * SECONDS_PER_LINE}
    return _LogLines(*arguments, **{**options, **of_a_log})


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class _LogLines(tqdm):
    """Prints each shown state on a line of its own."""

    @staticmethod
    def status_printer(file):
        def print_line(text: str) -> None:
            if text.strip():
                print(text, file=file, flush=True)

        return print_line

    def refresh(self, *arguments, **options):
        """Show the state unless it was shown recently: every `set_postfix` calls this."""
        if self.disable:  # a disabled bar (TQDM_DISABLE) lacks the attributes used below
            return
        now = time.time()
        if now - getattr(self, "last_print_t", 0) >= self.mininterval:
            self.last_print_t = now
            super().refresh(*arguments, **options)
