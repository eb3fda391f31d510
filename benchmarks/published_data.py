"""Published datasets: look-up of vectors, layouts of the vector column, and publishing and opening 1.2M rows.

    python benchmarks/published_data.py            # all of it: about ten minutes, 15 GB of disk
    python benchmarks/published_data.py --quick    # 10k and 100k rows

Vectors are 1280-d float16. "List scan" and "dict" are the methods of the papers' released loaders: Unicorn's compares
an id as a string with every record of a list, ReVision's keeps every vector in a dict. Each case runs in its own
process. Memory is the memory that opening adds to the process, without imports.

This script is not called `datasets.py` because then every script in this folder would import it as `datasets`.
"""

import argparse
import gc
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EMBED_DIM = 1280
BATCH = 32
SIZES = (10_000, 100_000, 1_200_000)
LARGEST_SCAN = 100_000
INSTRUCTIONS_SHARE = 471 / 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10k and 100k rows only")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("case", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, *arguments = options.case
        print(json.dumps(CASES[name](*arguments)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="published-data-"))
    try:
        encodings(folder)
        print("\nLook-up of vectors, microseconds a row, and memory after opening")
        for num_rows in SIZES[:2] if options.quick else SIZES:
            lookups(folder, num_rows)
    finally:
        shutil.rmtree(folder)


def lookups(folder: Path, num_rows: int) -> None:
    """Build, publish and open a dataset; then look vectors up in it, in a dict and in a list."""
    work = folder / f"{num_rows}"
    built = run("build", num_rows, work)
    published = run("publish", work)
    opened = run("first_open", work)
    print(
        f"\n{num_rows:,} rows: built in {built['seconds']:.1f} s ({built['gb']:.2f} GB); published with "
        f"{int(num_rows * INSTRUCTIONS_SHARE):,} conversations joined by id in {published['seconds']:.1f} s, peak "
        f"memory {published['peak_gb']:.2f} GB, {published['gb']:.2f} GB in {published['files']} shards; first "
        f"load_dataset {opened['seconds']:.1f} s, peak memory {opened['peak_gb']:.2f} GB"
    )
    kinds = ["ours", "dict"] + (["list scan"] if num_rows <= LARGEST_SCAN else [])
    results = {kind: run("look_up", kind, num_rows, work) for kind in kinds}
    columns = ("row", "row_batch", "id", "id_batch")
    print(f"| {num_rows:,} | by row | by row, batch {BATCH} | by id | by id, batch {BATCH} | opening | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, result in results.items():
        cells = [f"{result[column]:.2f} µs" for column in columns]
        print(f"| {kind} | {' | '.join(cells)} | {result['seconds']:.2f} s | {result['mb']:.0f} MB |")
    ours, held = results["ours"], results["dict"]
    text = f"against the dict: {ours['row_batch'] / held['row_batch']:.1f} x a row of a batch by row, "
    text += f"{ours['id_batch'] / held['id_batch']:.1f} x by id, {100 * ours['mb'] / held['mb']:.1f} % of the memory"
    if "list scan" in results:
        text += f"; {results['list scan']['id'] / ours['id']:,.0f} x as fast as the list scan by id"
    print(text)
    shutil.rmtree(work)


def run(*case) -> dict:
    """Run a case in its own process."""
    command = [sys.executable, __file__, *map(str, case)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def build(num_rows: str, work: str) -> dict:
    """The outputs of two steps: captions with vectors, and conversations without."""
    import pyarrow as pa
    from datasets import Dataset, Features, List, Value

    from unicorn_hf.data.shards import as_lists, write_shards

    start, rows, work = time.perf_counter(), int(num_rows), Path(work)
    features = Features(
        id=Value("string"), caption=Value("string"), image_embeds=List(Value("float16"), length=EMBED_DIM)
    )

    def tables():
        for first in range(0, rows, 1000):
            block = range(first, min(first + 1000, rows))
            columns = [[f"{row:010d}" for row in block], [caption(row) for row in block], as_lists(vectors(block))]
            yield pa.table(columns, schema=features.arrow_schema)

    shards = write_shards(tables(), work / "pretrain" / "data", features.arrow_schema)
    chosen = random.Random(0).sample(range(rows), int(rows * INSTRUCTIONS_SHARE))

    def conversations():
        for row in chosen:
            turns = [("user", "<image>\nWhat is in the picture?"), ("assistant", caption(row))] * 2
            messages = [{"role": role, "content": content} for role, content in turns]
            yield {"id": f"{row:010d}", "caption": caption(row), "task": "question_answering", "messages": messages}

    instruction = Dataset.from_generator(conversations, cache_dir=str(work / "cache"))
    batches = instruction.with_format("arrow").iter(1000)
    write_shards(batches, work / "instruction" / "data", instruction.features.arrow_schema)
    shutil.rmtree(work / "cache")
    return {"seconds": time.perf_counter() - start, "gb": sum(file.stat().st_size for file in shards.files) / 1e9}


def caption(row: int) -> str:
    rng = random.Random(row)
    return " ".join(f"word{rng.randrange(5000)}" for _ in range(rng.randrange(10, 50)))


def vectors(block: range) -> np.ndarray:
    """Arbitrary float16 rows of about unit length, made faster than a normal distribution would be."""
    bits = np.random.default_rng(block.start).integers(0, 1 << 16, (len(block), EMBED_DIM), np.uint16)
    return ((bits & 0x83FF) | 0x2400).view(np.float16)


def publish(work: str) -> dict:
    from unicorn_hf import publish

    start, work = time.perf_counter(), Path(work)
    output = publish(work / "pretrain", work / "instruction", work / "published")
    files = list(output.rglob("*.parquet"))
    shutil.rmtree(work / "pretrain")
    size = sum(file.stat().st_size for file in files) / 1e9
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb(), "gb": size, "files": len(files)}


def first_open(work: str) -> dict:
    start = time.perf_counter()
    load(work)
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb()}


def load(work: str):
    from datasets import load_dataset

    folder = Path(work)
    return load_dataset(str(folder / "published"), "unicorn-1.2m", split="train", cache_dir=str(folder / "cache"))


def look_up(kind: str, num_rows: str, work: str) -> dict:
    """Microseconds per row of random look-ups, seconds to open, and megabytes that opening adds."""
    import datasets

    from unicorn_hf import EmbeddingLookup

    datasets.disable_progress_bars()
    rows, rng = int(num_rows), random.Random(1)
    keys = [f"{row:010d}" for row in range(rows)]
    EmbeddingLookup.from_dataset(load(work).select(range(1)))  # late imports must not count for any of them
    gc.collect()
    before, start = resident_mb(), time.perf_counter()
    if kind == "ours":
        lookup = EmbeddingLookup.from_dataset(load(work))
        by_row, by_rows, by_id, by_ids = lookup.row, lookup.rows, lookup.__getitem__, lookup.__getitem__
    elif kind == "dict":
        held = dict(read_all(work))
        listed = list(held.values())
        by_row, by_id = listed.__getitem__, held.__getitem__

        def by_rows(chosen):
            return np.stack([listed[row] for row in chosen])

        def by_ids(chosen):
            return np.stack([held[key] for key in chosen])
    else:
        records = [{"id": key, "embed": vector} for key, vector in read_all(work)]

        def by_row(row):
            return records[row]["embed"]

        def by_rows(chosen):
            return np.stack([records[row]["embed"] for row in chosen])

        def by_id(key):
            sample, found = {"id": key}, None
            for record in records:  # to the end of the list, as released
                if str(record.get("id")) == str(sample["id"]):
                    found = record.get("embed")
            return found

        def by_ids(chosen):
            return np.stack([by_id(key) for key in chosen])

    gc.collect()
    seconds, added = time.perf_counter() - start, resident_mb() - before
    few = 20 if kind == "list scan" else 4000
    singles = rng.sample(range(rows), min(4000, rows))
    batches = [rng.sample(range(rows), BATCH) for _ in range(200)]
    assert (by_id(keys[singles[0]]) == vectors_of(singles[0])).all()
    return {
        "seconds": seconds,
        "mb": added,
        "row": clock(by_row, singles),
        "row_batch": clock(by_rows, batches) / BATCH,
        "id": clock(by_id, [keys[row] for row in singles[:few]]),
        "id_batch": clock(by_ids, [[keys[row] for row in batch] for batch in batches[: max(2, few // 20)]]) / BATCH,
    }


def read_all(work: str):
    for batch in load(work).with_format("arrow").iter(1000):
        block = batch["image_embeds"].combine_chunks().flatten().to_numpy().reshape(-1, EMBED_DIM)
        for key, vector in zip(batch["id"].to_pylist(), block, strict=True):
            yield key, vector.copy()


def vectors_of(row: int) -> np.ndarray:
    first = row // 1000 * 1000
    return vectors(range(first, first + 1000))[row - first]


def clock(function, arguments: list) -> float:
    """Microseconds per call: the best of five rounds, with the pages in memory."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for argument in arguments:
            function(argument)
        rounds.append((time.perf_counter() - start) / len(arguments) * 1e6)
    return min(rounds)


def encodings(folder: Path, num_rows: int = 20_000) -> None:
    """Write and read one column of vectors in several Parquet layouts. Speeds are of float16 bytes, on one thread."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.config import DEFAULT_CDC_OPTIONS

    matrix = np.random.default_rng(0).standard_normal((num_rows, EMBED_DIM), np.float32)
    matrix = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float16)
    flat = pa.array(matrix.reshape(-1))

    def lists(nullable: bool) -> pa.Array:
        item = pa.field("item", pa.float16(), nullable=nullable)
        return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, EMBED_DIM))

    binary_type = pa.binary(2 * EMBED_DIM)
    binary = pa.FixedSizeBinaryArray.from_buffers(binary_type, num_rows, [None, pa.py_buffer(matrix)])
    plain = {"use_dictionary": False, "compression": "none"}
    split = {"use_dictionary": False, "compression": "zstd", "use_byte_stream_split": True}
    layouts = {  # name -> column, whether nulls are allowed, options, rows in a group
        "list, writer's defaults": (lists(True), True, {}, 1000),
        "list, no dictionary": (lists(True), True, {"use_dictionary": False}, 1000),
        "list, no dictionary, uncompressed": (lists(True), True, plain, 1000),
        "list without nulls, no dictionary, uncompressed (ours)": (lists(False), False, plain, 1000),
        "the same in row groups of 8,000": (lists(False), False, plain, 8000),
        "list without nulls, byte-stream split, zstd": (lists(False), False, split, 1000),
        "fixed-size binary, uncompressed": (binary, False, plain, 1000),
    }
    files, writing, reading = {}, {}, {name: [] for name in layouts}
    for name, (column, nullable, options, group) in layouts.items():
        schema = pa.schema([pa.field("image_embeds", column.type, nullable=nullable)])
        table = pa.table([column], schema=schema)
        files[name] = folder / f"{len(files)}.parquet"
        start = time.perf_counter()
        with pq.ParquetWriter(
            files[name], schema, use_content_defined_chunking=DEFAULT_CDC_OPTIONS, **options
        ) as writer:
            for first in range(0, num_rows, group):
                writer.write_table(table.slice(first, group))
        writing[name] = time.perf_counter() - start
    for _ in range(5):
        for name, file in files.items():
            start = time.perf_counter()
            with pq.ParquetFile(file) as parquet:
                for _ in parquet.iter_batches(1000, use_threads=False):
                    pass
            reading[name].append(time.perf_counter() - start)
    print(f"Parquet layouts of {num_rows:,} vectors, median of five readings\n")
    print("| layout | write GB/s | read GB/s | size | read like |\n| --- | --- | --- | --- | --- |")
    for name, file in files.items():
        seconds = statistics.median(reading[name])
        size, speed = file.stat().st_size / matrix.nbytes, matrix.nbytes / 1e9
        times = statistics.median(reading["list, writer's defaults"]) / seconds
        print(f"| {name} | {speed / writing[name]:.3f} | {speed / seconds:.2f} | {size:.2f} | {times:.1f} x |")
        file.unlink()


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def peak_gb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024**2


CASES = {"build": build, "publish": publish, "first_open": first_open, "look_up": look_up}

if __name__ == "__main__":
    main()
