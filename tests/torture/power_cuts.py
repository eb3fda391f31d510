"""A process that ends at every one of its calls that change the file system; what it leaves is whole or not there."""

import io
import os
import shutil
import sys
import time
from pathlib import Path

# The last parts of a path that the steps' own work leaves beside an output until it is whole.
CALLS = ("mkdir", "rename", "replace", "rmdir", "unlink", "remove", "fsync", "link", "symlink", "truncate", "ftruncate")


def captions(material: Path, output: Path) -> list:
    return ["captions", material / "seeds.txt", "--writer", "grammar", "-o", output]


def instructions(material: Path, output: Path) -> list:
    return ["instructions", material / "shapes", "--writer", "grammar", "-o", output]


def embed(material: Path, output: Path) -> list:
    return ["embed", material / "captions", "--encoder", "sandbox", "--column", "caption", "--shard-rows", 20,
            "--num-workers", 0, "-o", output]  # fmt: skip


def fit(material: Path, output: Path) -> list:
    return ["transfer", "fit", "--text", material / "text.npy", "--image", material / "image.npy", "-o", output]


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


STEPS = {
    "captions": captions, "instructions": instructions, "embed": embed, "transfer fit": fit, "transfer apply": apply,
    "transfer moments": moments, "gap": gap, "report": report, "publish": publish, "import": import_released,
}  # fmt: skip


def cut_power(step, material: Path, folder: Path, *, until: float) -> tuple[int, list[str]]:
    """End a step at its first call, its second, … until it gets through.

    Returns:
        the number of points tried, and what was wrong at which.
    """
    folder.mkdir(parents=True)
    whole = folder / "whole" / "out"
    whole.parent.mkdir()
    status = _run(step(material, whole), folder, None)
    if status:
        return 1, [f"the undisturbed run ends with {status}: {(folder / 'log.txt').read_text()[-300:]}"]
    expected, faults, point = contents(whole), [], 0
    place = folder / "cut"
    while time.monotonic() < until:
        point += 1
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        output = place / "out"
        if "--overwrite" in step(material, output):  # the old is there
            shutil.copytree(whole, output)
        if _run(step(material, output), folder, point) == 0:
            break
        under_final_names = {
            name: content for name, content in contents(output).items() if not name.endswith((".partial", ".lock"))
        }
        if under_final_names not in ({}, expected):
            faults.append(f"point {point}: a part is there: {sorted(under_final_names)}")
        status = _run(step(material, output), folder, None)
        if status or contents(output) != expected:
            faults.append(f"point {point}: the same command again ends with {status}, {sorted(contents(output))}")
        elif rest := sorted(set(os.listdir(place)) - {"out"}):
            faults.append(f"point {point}: {rest} is left")
    return point, faults


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt"
    }


def _run(command: list, folder: Path, last: int | None) -> int:
    """The status of a command whose process ends at the call of the number `last`."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if last is not None:
            _make_mortal(last)
        sys.argv = ["unicorn-hf", *map(str, command)]
        try:
            from unicorn_hf.cli import main

            main()
        except SystemExit as error:
            os._exit(error.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _make_mortal(last: int) -> None:
    count = 0

    def mortal(function, counts=lambda *_: True):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += bool(counts(*args))
            if count == last and counts(*args):
                os._exit(99)
            return function(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name)))
    io.open = mortal(io.open, lambda file, mode="r", *_: set(mode) & set("wax+"))  # what `Path.open` calls
