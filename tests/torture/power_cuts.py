"""A process that ends at one of its calls that change the file system; what it leaves is whole or not there.

At every other point it is killed; at those between the power is cut too: of the files that it has written and not
handed to the disk (`fsync`) some lose a half, and some all.
"""

import builtins
import io
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from training_run import train
from writing_run import captions_of_a_model, conversations_of_a_model

from unicorn_hf.cli import main
from unicorn_hf.errors import one_sentence_errors

CALLS = ("mkdir", "rename", "replace", "rmdir", "unlink", "remove", "fsync", "link", "symlink", "truncate", "ftruncate",
         "write", "pwrite")  # fmt: skip


def captions(material: Path, output: Path) -> list:
    return ["captions", material / "seeds.txt", "--writer", "grammar", "-o", output]


def instructions(material: Path, output: Path) -> list:
    return ["instructions", material / "shapes", "--writer", "grammar", "-o", output]


def embed(material: Path, output: Path) -> list:
    return ["embed", material / "captions", "--encoder", "sandbox", "--column", "caption", "--shard-rows", 20,
            "--num-workers", 0, "-o", output]  # fmt: skip


def fit(material: Path, output: Path) -> list:
    return ["transfer", "fit", "--text", material / "text.npy", "--image", material / "image.npy", "-o", output]


def fit_of_moments(material: Path, output: Path) -> list:
    return ["transfer", "fit", *(material / f"{name}.safetensors" for name in ("text-0", "text-1", "image")), "-o",
            output, "--method", "mean_shift"]  # fmt: skip


def apply(material: Path, output: Path) -> list:
    return ["transfer", "apply", material / "captions", "--transfer", material / "transfer", "--out-column", "moved",
            "-o", output]  # fmt: skip


def moments(material: Path, output: Path) -> list:
    return ["transfer", "moments", material / "text.npy", "--modality", "text", "-o", output / "x.safetensors"]


def gap(material: Path, output: Path) -> list:
    return ["gap", "--text", material / "text.npy", "--image", material / "image.npy", "-o", output / "gap.html"]


def report(material: Path, output: Path) -> list:
    return ["report", "captions", material / "shapes", "-o", output]


def publish(material: Path, output: Path) -> list:
    return ["publish", "--pretrain", material / "captions", "--instruction", material / "conversations", "--overwrite",
            "-o", output]  # fmt: skip


def import_released(material: Path, output: Path) -> list:
    return ["import", material / "released", "--allow-pickle", "--overwrite", "-o", output]


# What a step is: the words of a command, or a function that does it in its process.
STEPS = {
    "captions": captions, "captions of a model": captions_of_a_model, "instructions": instructions,
    "instructions of a model": conversations_of_a_model, "embed": embed, "transfer fit": fit,
    "transfer fit of moments": fit_of_moments, "transfer apply": apply, "transfer moments": moments, "gap": gap,
    "report": report, "publish": publish, "import": import_released, "training": train,
}  # fmt: skip


def cut_power(step: Callable, material: Path, folder: Path, *, most: int) -> tuple[int, list[str]]:
    """End a step at its calls, one after another, or at `most` of them that lie evenly between the first and the last.

    Returns:
        the number of points tried, and what was wrong at which.
    """
    whole, place = folder / "whole" / "out", folder / "cut"
    whole.parent.mkdir(parents=True)
    log = folder / "log.txt"
    if status := _run(step(material, whole), log, count := folder / "count.txt"):
        return 1, [f"the undisturbed run ends with {status}: {log.read_text()[-300:]}"]
    result = getattr(step, "result", contents)
    num_calls, expected, faults = int(count.read_text()), result(whole), []
    points = list(_spread(num_calls, most))
    for point in points:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        output = place / "out"
        if "--overwrite" in _words(step(material, output)):  # the old is there
            shutil.copytree(whole, output)
        _run(step(material, output), log, at=point, place=place, loses=point % 2 == 0)
        if result is contents:
            under_final_names = {
                name: content for name, content in contents(output).items() if not name.endswith((".partial", ".lock"))
            }
            if under_final_names not in ({}, expected):
                faults.append(f"point {point}: a part is there: {sorted(under_final_names)}")
        status = _run(step(material, output), log)
        if status == 2 and result is contents and under_final_names == expected and "exists" in log.read_text():
            continue  # the step was done, and is not done again
        if status or result(output) != expected:
            said = log.read_text(errors="replace").strip().splitlines()[-1:]
            differ = sorted(name for name, value in expected.items() if result(output).get(name) != value)
            faults.append(f"point {point}: the same again ends with {status}; {differ} differ: {said}")
        elif rest := sorted(set(os.listdir(place)) - {"out"}):
            faults.append(f"point {point}: {rest} is left")
    return len(points), faults


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _spread(num_calls: int, most: int) -> Iterator[int]:
    """Up to `most` of the numbers from 1 to `num_calls`, the first and the last among them."""
    count = min(num_calls, most)
    yield from sorted({1 + round(index * (num_calls - 1) / max(1, count - 1)) for index in range(count)})


def _words(step) -> list:
    return step if isinstance(step, list) else []


def _run(step, log: Path, count: Path | None = None, *, at: int | None = None, place=None, loses: bool = False) -> int:
    """The status of a step in a process of its own.

    Args:
        count: a file for the number of its calls.
        at: the call at which it ends, of which nothing has happened.
        place, loses: whether what was written under `place` and not handed to the disk is lost then.
    """
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        calls = _Calls(at, place if loses else None)
        status = 1
        try:
            with one_sentence_errors():
                if callable(step):
                    step()
                else:
                    sys.argv = ["unicorn-hf", *map(str, step)]
                    main()
            status = 0
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if count is not None:
            count.write_text(str(calls.count))
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Calls:
    """Counts this process's calls that change the file system, and ends it at one of them."""

    def __init__(self, last: int | None, place: Path | None):
        self.count, self.last, self.place, self.on_disk = 0, last, place, set()
        self.truncate = os.truncate
        if place is not None:
            self.on_disk = {path.stat().st_ino for path in place.rglob("*") if path.is_file()}
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name)))
        os.open = self.counted(os.open, lambda path, flags, *_, **__: flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
        io.open = self.counted(io.open, lambda file, mode="r", *_, **__: set(mode) & set("wax+"))  # `Path.open`
        builtins.open = io.open

    def counted(self, function: Callable, counts: Callable = lambda *_, **__: True) -> Callable:
        def wrapped(*args, **kwargs):
            self.count += bool(counts(*args, **kwargs))
            if self.count == self.last:
                self.end()
            result = function(*args, **kwargs)
            if function.__name__ == "fsync":
                self.on_disk.add(os.fstat(args[0]).st_ino)
            return result

        return wrapped

    def end(self):
        if self.place is not None:
            rng = random.Random(self.last)
            for path in sorted(self.place.rglob("*")):
                if path.is_file() and not path.is_symlink() and path.stat().st_ino not in self.on_disk:
                    self.truncate(path, round(path.stat().st_size * rng.choice([0, 0.5, 1, 1])))
        os._exit(99)
