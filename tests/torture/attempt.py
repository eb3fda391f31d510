"""One command line in a forked process, with a limit of time and memory."""

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY = 6 << 30  # beyond what the process has when it starts


@dataclass
class Attempt:
    status: int
    output: str
    timed_out: bool

    def has_one_sentence(self) -> bool:
        """Whether the last thing said is one sentence of ours that a person can read."""
        lines = [line for line in self.output.splitlines() if line.startswith("unicorn-hf: ")]
        return len(lines) == 1 and len(lines[0]) < 2000

    def tail(self) -> str:
        return " | ".join(self.output.strip().splitlines()[-3:])[-600:] or "(no output)"


def attempt(command: list, folder: Path, seconds: float) -> Attempt:
    """Run `unicorn-hf COMMAND` in `folder`, for `seconds` at most."""
    log = folder / "log.txt"
    # A fork of this process has the libraries imported: an attempt takes a fraction of a second.
    child = os.fork()
    if child == 0:
        _run(command, folder, log)
    status, timed_out = _wait(child, seconds)
    return Attempt(status, log.read_text(encoding="utf-8", errors="replace"), timed_out)


def _run(command: list, folder: Path, log: Path):
    os.setpgid(0, 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, file), (2, file)):
        os.dup2(source, target)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.chdir(folder)
    sys.argv = ["unicorn-hf", *map(str, command)]
    status = 1
    try:
        from unicorn_hf.cli import main

        main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(child: int, seconds: float) -> tuple[int, bool]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL, True
