"""Generators of broken input: a command line, and whether its input can be used (None: either is right)."""

import json
import pickle
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

ODD_VALUES = ("nan", "inf", "-1", "0", "1e400", "", "nonsense", "../..", "é" * 40, "9" * 30, "[1", "{", "<image>")


def safetensors_header(rng: random.Random, material: Path, place: Path):
    """A header that lies about a file of vectors."""
    rows = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    data = rows.tobytes()
    entry = {"dtype": "F32", "shape": [40, 16], "data_offsets": [0, len(data)]}
    left_out = rng.choice(list(entry))
    lies = [
        {"x": {**entry, "data_offsets": [rng.randint(-9, -1), len(data)]}},
        {"x": {**entry, "data_offsets": [0, len(data) + rng.randint(1, 1 << 40)]}},
        {"x": {**entry, "shape": rng.choice([["a", 16], [40.5, 16], [40], [-40, -16], [1 << 40, 16], None, "40", []])}},
        {"x": {**entry, "dtype": rng.choice(["F99", None, 7, "", "I64"])}},
        {"x": {key: value for key, value in entry.items() if key != left_out}},
        {"x": rng.choice([[], None, 1, "F32"])},
        [entry],
        {},
        json.loads("[" * 900 + "]" * 900),
    ]
    text = json.dumps(rng.choice(lies)).encode()
    size = rng.choice([len(text), len(text), len(text), 0, 1 << 62, max(0, len(text) - 3)])
    path = place / "text.safetensors"
    path.write_bytes(struct.pack("<Q", size) + text + data)
    return ["transfer", "fit", "--text", path, "--image", material / "image.npy", "-o", place / "out"], False


def npy_header(rng: random.Random, material: Path, place: Path):
    """A `.npy` file with another header, type or length."""
    path = place / "text.npy"
    content = bytearray((material / "text.npy").read_bytes())
    change = rng.randrange(6)
    if change == 0:
        content = content[: rng.randrange(len(content))]
    elif change == 1:
        shape = rng.choice([b"(-1, 16)", b"(1<<9,16)", b"(999999999999, 16)", b"(200,)", b"()", b"('a', 16)"])
        content = content.replace(b"(200, 16)", shape.ljust(9)[: max(9, len(shape))], 1)
    elif change == 2:
        content = content.replace(b"<f4", rng.choice([b"|O8", b"<U4", b"|S4", b"?b1"]), 1)
    elif change == 3:
        content[:10] = bytes(rng.randrange(256) for _ in range(10))
    elif change == 4:
        content = bytearray(b"")
    else:
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        content = bytearray(path.read_bytes())
    path.write_bytes(bytes(content))
    return ["transfer", "fit", "--text", path, "--image", material / "image.npy", "-o", place / "out"], False


def column_of_vectors(rng: random.Random, material: Path, place: Path):
    """A column that is not what its name says, in one of the shards."""
    good = pa.array([[1.0, 2.0, 3.0]] * 4, pa.list_(pa.float32(), 3))
    odd = rng.choice(
        [
            pa.array([[True, False, True]] * 4),
            pa.array([["1", "2", "3"]] * 4),
            pa.array([[[1.0], [2.0], [3.0]]] * 4),
            pa.array([1.0] * 4),
            pa.array(["1,2,3"] * 4),
            pa.array([[1.0, 2.0, 3.0]] * 3 + [[1.0]]),
            pa.array([[1.0, 2.0, 3.0]] * 3 + [None]),
            pa.array([[1.0, float("nan"), 3.0]] * 4),
            pa.array([[0.0, 0.0, 0.0]] * 4),
            pa.array([[1.0, None, 3.0]] * 4),
            pa.array([{"a": 1}] * 4),
            pa.array([[]] * 4, pa.list_(pa.float32())),
            pa.nulls(4),
        ]
    )
    ids = [f"{number}" for number in range(4)]
    (place / "data").mkdir()
    columns = [odd, good] if rng.random() < 0.5 else [good, odd]
    for index, column in enumerate(columns if rng.random() < 0.6 else [odd]):
        table = pa.table({"id": ids, "caption": ids, "text_embeds": column})
        if rng.random() < 0.5:
            pq.write_table(table, place / "data" / f"{index}.parquet")
        else:
            with pa.ipc.new_stream(place / "data" / f"{index}.arrow", table.schema) as writer:
                writer.write_table(table)
    kinds = {path.suffix for path in (place / "data").iterdir()}
    data = place / "data"
    commands = [
        ["transfer", "fit", "--method", "mean_shift", "--text", data, "--image", data, "--image-column", "text_embeds"],
        ["transfer", "moments", data, "--modality", "text"],
    ]
    output = "out.safetensors" if "moments" in (command := rng.choice(commands)) else "out"
    return [*command, "-o", place / output], False if len(kinds) == 1 else None


def pickled(rng: random.Random, material: Path, place: Path):
    """A pickle that builds without end, imports what it may not, or ends early."""
    folder = Path(shutil.copytree(material / "released", place / "released"))
    path = folder / "embeddings" / "chunk_0.pkl"
    bombs = [
        b"\x80\x04]" + b"".join(b"(" + b"2" * 8 + b"l" for _ in range(30)) + b".",
        b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04(" + b"I1\n" * 10 + b"l" + b"q\x00" * 40 + b".",
        pickle.dumps([{"id": "000000", "embed": None}]),
        pickle.dumps([{"id": "000000", "embed": np.full(16, np.nan, np.float32)}]),
        pickle.dumps({"a": 1}),
        path.read_bytes()[: rng.randrange(path.stat().st_size)],
        bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))),
        b"",
        b"\x80\x04X\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    ]
    path.write_bytes(rng.choice(bombs))
    return ["import", folder, "-o", place / "out", "--allow-pickle"], None


def released_json(rng: random.Random, material: Path, place: Path):
    """Released records with odd fields, or text that is not JSON."""
    folder = Path(shutil.copytree(material / "released", place / "released"))
    path = folder / rng.choice(["Pretrain.json", "Instruction.json"])
    records = json.loads(path.read_text())
    odd = rng.choice([None, 1, [], {}, "", "x", {"id": None}, {"id": ["a"]}, {"id": "0", "conversations": 3}])
    texts = [
        json.dumps([*records[:5], odd, *records[5:]]),
        json.dumps(odd),
        "[" * 100_000,
        '{"a":' * 50_000,
        path.read_text()[: rng.randrange(path.stat().st_size)],
        "\ufeff" + path.read_text(),
        "\x00" * 50,
        "",
        path.read_text().replace('"human"', json.dumps(rng.choice(["gpt", "", None, "system"]))),
    ]
    path.write_text(rng.choice(texts), encoding=rng.choice(["utf-8", "utf-8", "utf-16", "utf-32"]))
    return ["import", folder, "-o", place / "out", "--allow-pickle"], None


def seeds(rng: random.Random, material: Path, place: Path):
    """Files of seeds in odd encodings, of odd shapes."""
    name = rng.choice(["seeds.txt", "seeds.csv", "seeds.jsonl", "seeds.parquet", "seeds", "seeds.json"])
    content = rng.choice(
        [
            b"", b"\n\n\n", b"\x00\x01\x02", b"\xff\xfe\x00", "ünï\n".encode("latin-1"), "a red dog\n".encode("utf-16"),
            b'"unclosed,\n1', b"seed\n", b"seed,seed\n1,2\n", b'{"seed": 1}\n', b'{"seed": "a"}\n{"other": 2}\n', b"{",
            b"[]", b'[{"seed": "a red circle"}]', b"PAR1", b"PAR1" + b"\x00" * 40 + b"PAR1", b"x" * 200_000,
            b'{"seed": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", b"a red circle\r\nb\r\n", b"\xef\xbb\xbfa red circle\n",
        ]
    )  # fmt: skip
    (place / name).write_bytes(content)
    return ["captions", place / name, "--writer", "grammar", "-o", place / "out"], None


def card(rng: random.Random, material: Path, place: Path):
    """The card of a data set, damaged."""
    folder = Path(shutil.copytree(material / "captions", place / "captions"))
    text = (folder / "README.md").read_text()
    value = rng.choice(["[1, 2]", "null", "{", "- a\n- b", "&a [*a]", "'", "!!python/object:os.system x", "1", "\t"])
    cards = [
        f"---\n{value}\n---\n",
        f"---\nconfigs: {value}\n---\n",
        f"---\nunicorn: {value}\n---\n" + text.split("---\n", 2)[2],
        f"---\nconfigs:\n- config_name: default\n  data_files: {value}\n---\n",
        "---\nconfigs:\n- config_name: default\n  data_files: ../../../../etc/*\n---\n",
        text[: rng.randrange(len(text))],
        text.replace("unicorn:", "unicorn: ü"),
    ]
    (folder / "README.md").write_text(rng.choice(cards), encoding=rng.choice(["utf-8", "latin-1"]))
    command = rng.choice(
        [
            ["publish", "--pretrain", folder],
            ["transfer", "apply", folder, "--transfer", material / "transfer"],
            ["embed", folder, "--encoder", "sandbox", "--column", "caption"],
        ]
    )
    return [*command, "-o", place / "out"], None


def own_records(rng: random.Random, material: Path, place: Path):
    """What an earlier run has written, damaged: the same command again ends in a sentence or goes on."""
    from attempt import attempt

    command = ["embed", material / "captions", "--encoder", "sandbox", "--column", "caption", "-o", place / "out"]
    if outcome := attempt(command, place, 600).status:
        raise AssertionError(f"sound input ends with {outcome}")
    files = sorted(path for path in (place / "out").rglob("*") if path.is_file())
    path = rng.choice(files)
    content = path.read_bytes()
    path.write_bytes(
        rng.choice([b"", content[: len(content) // 2], b"{}", b"[]", b"null", b"[" * 50_000, b"\xff" * 20, b'{"a": 1}'])
    )
    if rng.random() < 0.5:
        return command, None
    return ["transfer", "apply", place / "out", "--transfer", material / "transfer", "-o", place / "next"], None


def transfer_files(rng: random.Random, material: Path, place: Path):
    """A transfer's own files, damaged."""
    folder = Path(shutil.copytree(material / "transfer", place / "transfer"))
    path = folder / rng.choice(["transfer.safetensors", "transfer_config.json"])
    content = path.read_bytes()
    if path.suffix == ".json":
        config = json.loads(content)
        config[rng.choice(list(config))] = rng.choice([None, [], {}, -1, "x", 1e400, True])
        changed = rng.choice([json.dumps(config).encode(), b"[]", b"{", b"", b"null", b"[" * 50_000])
    else:
        changed = rng.choice([b"", content[: rng.randrange(len(content))], b"\xff" * 64, content[8:]])
    path.write_bytes(changed)
    return [
        "transfer",
        "apply",
        material / "captions",
        "--transfer",
        folder,
        "--out-column",
        "moved",
        "-o",
        place / "out",
    ], None


def pictures(rng: random.Random, material: Path, place: Path):
    """Pictures that are none, or would fill the memory, under odd names."""
    folder = Path(shutil.copytree(material / "photos", place / "photos"))
    name = rng.choice(["x.png", ".hidden.png", "line\nfeed.png", "train.png", "x.PNG", "é.jpg", "-o.png", "a b.webp"])
    good = (material / "photos" / "a.png").read_bytes()
    bomb = good[:16] + struct.pack(">II", 30_000, 30_000) + good[24:]
    content = rng.choice([b"", b"x", good[:60], bomb, good + b"x" * 1000, b"GIF89a", b"\xff\xd8\xff", b"<svg/>"])
    (folder / name).write_bytes(content)
    if rng.random() < 0.3:
        Image.new(rng.choice(["1", "L", "LA", "P", "RGBA", "CMYK", "I", "F"]), (8, 8)).save(folder / "mode.tiff")
    return ["embed", folder, "--encoder", "sandbox", "-o", place / "out"], None


def place_of_output(rng: random.Random, material: Path, place: Path):
    """An output that holds something, cannot be, or is the input."""
    data = Path(shutil.copytree(material / "captions", place / "captions"))
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("precious")
    (place / "link").symlink_to(place / "full")
    (place / "file").write_text("precious")
    output = rng.choice([".", "..", "/", data, place / "full", place / "link", place / "file", place / "file" / "x",
                         place / ("x" * 300), "/dev/null", "/proc/x"])  # fmt: skip
    command = rng.choice(
        [
            ["publish", "--pretrain", data, *rng.choice([[], ["--overwrite"]])],
            ["transfer", "apply", data, "--transfer", material / "transfer", "--out-column", "moved"],
            ["embed", data, "--encoder", "sandbox", "--column", "caption"],
            ["captions", material / "seeds.txt", "--writer", "grammar"],
            ["instructions", data, "--writer", "grammar"],
            ["transfer", "fit", "--text", material / "text.npy", "--image", material / "image.npy"],
            ["import", material / "released", *rng.choice([[], ["--overwrite"]])],
        ]
    )
    return [*command, "-o", output], False


def options(rng: random.Random, material: Path, place: Path):
    """Odd values for every option of every command."""
    from unicorn_hf.cli.command import COMMANDS

    places = {
        "captions": ["captions", material / "seeds.txt", "--writer", "grammar", "-o", place / "out"],
        "instructions": ["instructions", material / "captions", "--writer", "grammar", "-o", place / "out"],
        "embed": ["embed", material / "seeds.txt", "--encoder", "sandbox", "-o", place / "out"],
        "publish": ["publish", "--pretrain", material / "captions", "-o", place / "out"],
        "import": ["import", material / "released", "-o", place / "out", "--allow-pickle"],
        "gap": ["gap", "--text", material / "text.npy", "--image", material / "image.npy", "-o", place / "gap.html"],
        "evaluate": ["evaluate", material / "photos", material / "photos", "-o", place / "out"],
        "generate": ["generate", material / "photos", "what?"],
        "report captions": ["report", "captions", material / "captions", "-o", place / "out"],
    }
    name = rng.choice(sorted(places))
    # What reaches for the network or a cluster is tried elsewhere.
    away = {"--push-to-hub", "--executor", "--base-url", "--writer", "--output", "--model"}
    flags = [parameter.label for parameter in COMMANDS[name].parameters if parameter.flags]
    flags = [flag for flag in flags if flag not in away]
    return [*places[name], f"{rng.choice(flags)}={rng.choice(ODD_VALUES)}"], None


KINDS = {
    "safetensors headers": safetensors_header,
    ".npy headers": npy_header,
    "columns of vectors": column_of_vectors,
    "pickles": pickled,
    "released JSON": released_json,
    "seeds": seeds,
    "cards": card,
    "records of earlier runs": own_records,
    "files of a transfer": transfer_files,
    "pictures": pictures,
    "places of outputs": place_of_output,
    "values of options": options,
}
