"""The transfer as whole processes: the released code's method and this package, on the same vectors in one run.

    python benchmarks/transfer.py                     # 100k and 300k rows, then 1.2M rows with this package only
    python benchmarks/transfer.py --rows 20000 --large 0

The released code's method is written here from its description: pickled lists of dicts, float64, one pass each for the
means, the traces, the mean after projection, and the output. This package runs as a user would run it: `unicorn-hf
transfer fit` and `transfer apply`, two processes whose times are added, or both calls in one Python process. The result
is the median of three such runs. On a busy machine, compare the CPU times.
"""

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM = 1280
CHUNK_ROWS = 50_000  # of a released pickle
ONE_PROCESS = """
import sys
from unicorn_hf import ModalityTransfer
text, image, moved = sys.argv[1:]
ModalityTransfer.fit(text, image).apply(text, moved)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 300_000])
    parser.add_argument(
        "--large", type=int, default=1_200_000, help="rows of the last run, with this package only; 0 for none"
    )
    parser.add_argument("--folder", type=Path, help="where to keep the vectors; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/output/transfer.json"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        STEPS[arguments.step](arguments.work, *arguments.rows)
        return
    results = []
    for rows in arguments.rows:
        results += run(rows, arguments.folder, with_released=True)
    if arguments.large:
        results += run(arguments.large, arguments.folder, with_released=False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"numbers: {arguments.output}")


def run(rows: int, folder: Path | None, with_released: bool) -> list[dict]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        step("write" if with_released else "write-npy", work, rows)
        results = []
        if with_released:
            results.append(measure("released way: pickles", rows, work, [step_command("released", work)], "*.pkl"))
        inputs = {"npy": ("text.npy", "image.npy", "moved.npy", "*.npy")}
        if with_released:
            inputs["folders"] = ("texts", "images", "moved", "*s/data/*.arrow")
        for name, (text, image, moved, files) in inputs.items():
            cli = ["-m", "unicorn_hf", "transfer"]
            commands = [
                [*cli, "fit", "--text", text, "--image", image, "-o", f"fitted-{name}"],
                [*cli, "apply", text, "--transfer", f"fitted-{name}", "-o", moved],
            ]
            results.append(measure(f"ours: {name}", rows, work, commands, files, runs=3))
            commands = [["-c", ONE_PROCESS, text, image, f"at-once-{moved}"]]
            results.append(measure(f"ours: {name}, one process", rows, work, commands, files, runs=3))
        report(results, work, rows)
        return results


def step(name: str, work: Path, *rows: int) -> str:
    """Run a part of this script in its own process.

    This process must stay small: Linux adds the memory that it holds at that time to the other process's peak.
    """
    command = [sys.executable, *step_command(name, work, *rows)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def step_command(name: str, work: Path, *rows: int) -> list[str]:
    return [os.path.abspath(__file__), "--step", name, "--work", str(work), "--rows", *map(str, rows)]


def write_vectors(work: Path, rows: int, with_released: bool = True) -> None:
    """The same text and image vectors as .npy, as folders and as pickles."""
    for name, seed in (("text", 1), ("image", 2)):
        rng = np.random.default_rng(seed)
        centre = rng.standard_normal(DIM, dtype=np.float32)
        spectrum = np.geomspace(2, 0.2, DIM, dtype=np.float32)
        file = np.lib.format.open_memmap(work / f"{name}.npy", "w+", np.float16, (rows, DIM))
        for start in range(0, rows, 10_000):
            noise = rng.standard_normal((min(10_000, rows - start), DIM), dtype=np.float32)
            block = centre + noise * spectrum
            file[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        file.flush()
        if with_released:
            for chunk, start in enumerate(range(0, rows, CHUNK_ROWS)):
                part = np.array(file[start : start + CHUNK_ROWS])
                records = [{"id": str(start + i), "caption": "", "embed": row} for i, row in enumerate(part)]
                with (work / f"{name}-{chunk:03d}.pkl").open("wb") as pickled:
                    pickle.dump(records, pickled)
            write_folder(file, work / f"{name}s", f"{name}_embeds")
        del file


def write_folder(vectors: np.ndarray, folder: Path, column: str) -> None:
    """As `embed` writes them."""
    import pyarrow as pa

    from unicorn_hf.data.dataset_folder import write_card
    from unicorn_hf.data.shards import as_lists, write_shards

    schema = pa.schema({"id": pa.string(), column: pa.list_(pa.float16(), DIM)})

    def tables():
        for start in range(0, len(vectors), 1000):
            block = np.array(vectors[start : start + 1000])
            ids = [str(row) for row in range(start, start + len(block))]
            yield pa.table([pa.array(ids), as_lists(block)], schema=schema)

    shards = write_shards(tables(), folder / "data", schema)
    write_card(
        folder,
        title=column,
        num_rows=len(vectors),
        columns={"id": "string", column: f"List(float16, length={DIM})"},
        provenance={column: {"encoder": "random", "embed_dim": DIM}},
        fingerprint=shards.fingerprint,
    )


def released(work: Path) -> None:
    """Four passes in float64 over pickles of `[{"id", "caption", "embed"}]`; refuses NaN and Inf; writes pickles."""

    def chunks(name):
        for path in sorted(work.glob(f"{name}-*.pkl")):
            with path.open("rb") as file:
                records = pickle.load(file)
            rows = np.stack([record["embed"] for record in records]).astype(np.float64)
            if not np.isfinite(rows).all():
                raise ValueError(f"{path} holds NaN or Inf")
            yield records, rows / np.linalg.norm(rows, axis=1, keepdims=True)

    means, traces = {}, {}
    for name in ("text", "image"):
        total, count = 0.0, 0
        for _, rows in chunks(name):
            total, count = total + rows.sum(axis=0), count + len(rows)
        means[name] = total / count
    for name in ("text", "image"):
        total, count = 0.0, 0
        for _, rows in chunks(name):
            total, count = total + ((rows - means[name]) ** 2).sum(), count + len(rows)
        traces[name] = total / count
    scale = np.sqrt(traces["image"] / traces["text"])

    def align(rows):
        moved = means["image"] + scale * (rows - means["text"])
        return moved / np.linalg.norm(moved, axis=1, keepdims=True)

    total, count = 0.0, 0
    for _, rows in chunks("text"):
        total, count = total + align(rows).sum(axis=0), count + len(rows)
    aligned = total / count
    for index, (records, rows) in enumerate(chunks("text")):
        moved = align(rows) - aligned + means["image"]
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        moved = moved.astype(np.float32)
        for record, row in zip(records, moved, strict=True):
            record["embed"] = row
        with (work / f"moved-{index:03d}.pkl").open("wb") as file:
            pickle.dump(records, file)


def measure(name: str, rows: int, work: Path, commands: list[list[str]], inputs: str, runs: int = 1) -> dict:
    """Wall time, CPU time and peak memory of Python processes that run one after the other, start-up included.

    The times of the processes are added; the result is the median of `runs`.
    """
    before = set(work.iterdir())
    all_seconds, all_cpu_seconds, peak = [], [], 0
    for _ in range(runs):
        for path in set(work.iterdir()) - before:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        seconds = cpu_seconds = 0.0
        for command in commands:
            settle(work, inputs)
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, *command], cwd=work, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            seconds += time.perf_counter() - start
            if status:
                sys.exit(f"{name} failed: {' '.join(command)}")
            cpu_seconds += usage.ru_utime + usage.ru_stime
            peak = max(peak, usage.ru_maxrss * 1024)
        all_seconds.append(seconds)
        all_cpu_seconds.append(cpu_seconds)
    return {
        "name": name,
        "rows": rows,
        "seconds": statistics.median(all_seconds),
        "cpu_seconds": statistics.median(all_cpu_seconds),
        "peak_bytes": peak,
        "all_seconds": all_seconds,
    }


def settle(work: Path, inputs: str) -> None:
    """Give every run the same start: no pending writes, 4 GB of available memory, the inputs in the page cache.

    A virtual machine fetches memory that was idle from its host page by page, at 0.3 GB/s on the machine where this was
    measured: as slow as a bad disk.
    """
    os.sync()
    subprocess.run([sys.executable, "-c", "import numpy; numpy.ones(1 << 29)"], check=True)
    for path in work.glob(inputs):
        read(path)


def read(path: Path) -> None:
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def report(results: list[dict], work: Path, rows: int) -> None:
    print(f"\n{rows:,} text and {rows:,} image vectors, {DIM} x float16, ReAlign; whole processes")
    for result in results:
        line = f"  {result['name']:30} {result['seconds']:7.2f} s, CPU {result['cpu_seconds']:7.2f} s"
        if len(results) > 1:
            for kind in ("seconds", "cpu_seconds"):
                result[f"{kind}_ratio"] = results[0][kind] / result[kind]
            line += f"; {result['seconds_ratio']:5.1f} x ({result['cpu_seconds_ratio']:5.1f} x by CPU time)"
        print(f"{line}; {rows / result['seconds']:11,.0f} rows/s; peak {result['peak_bytes'] / 1e9:.2f} GB")
    share_of_limit(next(result for result in results if result["name"] == "ours: npy"), work)
    if (work / "moved-000.pkl").exists():
        results[-1]["largest_difference"] = float(step("compare", work))
        print(f"  largest difference of the outputs: {results[-1]['largest_difference']:.1e}")


def compare(work: Path) -> None:
    from unicorn_hf import ModalityTransfer

    with (work / "moved-000.pkl").open("rb") as file:
        theirs = np.stack([record["embed"] for record in pickle.load(file)[:20_000]])
    text = np.load(work / "text.npy", mmap_mode="r")[:20_000]
    print(np.abs(ModalityTransfer.from_pretrained(work / "fitted-npy").apply(text) - theirs).max())


def share_of_limit(result: dict, work: Path) -> None:
    """This package's speed as a share of only copying the same bytes: images once, text four times, the output once."""
    size = (work / "text.npy").stat().st_size
    settle(work, "text.npy")
    start = time.perf_counter()
    read(work / "text.npy")
    reading = time.perf_counter() - start
    start = time.perf_counter()
    with (work / "text.npy").open("rb", buffering=0) as source, (work / "copy").open("wb", buffering=0) as target:
        shutil.copyfileobj(source, target, 4 << 20)
    write = max(time.perf_counter() - start - reading, 1e-9)
    bound = 5 * reading + write
    result |= {"read_bytes_per_second": size / reading, "write_bytes_per_second": size / write}
    result["share_of_limit"] = bound / result["seconds"]
    print(
        f"  limit: read {size / reading / 1e9:.1f} GB/s, write {size / write / 1e9:.1f} GB/s (page cache); "
        f"ours from .npy reaches {bound / result['seconds']:.0%} of it, starts of Python included"
    )


STEPS = {
    "write": write_vectors,
    "write-npy": lambda work, rows: write_vectors(work, rows, with_released=False),
    "released": released,
    "compare": compare,
}

if __name__ == "__main__":
    main()
