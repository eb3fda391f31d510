import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unicorn_hf import InputError
from unicorn_hf.data.staging import (
    MARKER,
    check_new_file,
    check_new_folder,
    new_file,
    new_folder,
    read_json,
    write_json,
)


def write(output, files, **options):
    with new_folder(output, **options) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)


def contents(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


OLD, NEW = {"a": "old", "data/b": "old too"}, {"a": "new", "data/c": "new too"}


def test_a_folder_appears_when_it_is_whole_and_leaves_nothing_beside_it(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert contents(tmp_path / "out") == {"a": "1"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == []


def test_what_it_wrote_is_replaced_on_demand(tmp_path):
    write(tmp_path / "out", OLD)
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write(tmp_path / "out", NEW)
    with pytest.raises(InputError, match="give --overwrite"):
        write(tmp_path / "out", NEW, overwrite=False)
    write(tmp_path / "out", NEW, overwrite=True)
    assert contents(tmp_path / "out") == NEW and os.listdir(tmp_path) == ["out"]


names = st.text("ab.é -", min_size=1, max_size=6).filter(lambda name: name.strip(".") and "/" not in name)
trees = st.dictionaries(st.lists(names, min_size=1, max_size=3).map("/".join), st.text(max_size=5), min_size=1)


def possible(files):
    """No path that is a file and a folder at once."""
    return not any(a != b and b.startswith(f"{a}/") for a in files for b in files)


@settings(deadline=None, max_examples=60)
@given(files=trees.filter(possible), change=st.sampled_from(["add", "change", "remove", "link", "folder"]))
def test_a_folder_that_others_have_touched_is_never_replaced(files, change, tmp_path_factory):
    output = tmp_path_factory.mktemp("case") / "out"
    write(output, files)
    first = output / sorted(files)[0]
    if change == "add":
        (first.parent / "zz mine").write_text("precious")
    elif change == "change":
        first.write_text(first.read_text() + "precious")
    elif change == "link":
        (output / "zz link").symlink_to("/")
    elif change == "folder":
        (output / "zz mine").mkdir()
    else:
        first.unlink()
    before = contents(output)
    if change == "remove":  # nothing of anyone else is lost
        write(output, NEW, overwrite=True)
        assert contents(output) == NEW
        return
    with pytest.raises(InputError, match="added or changed"):
        write(output, NEW, overwrite=True)
    assert contents(output) == before


MARKERS = [None, "", "{", "[]", '{"files": []}', '{"files": {"README.md": [1]}}', "[" * 100_000, "\udcff"]


@pytest.mark.parametrize("marker", [*MARKERS, '{"files": {"README.md": 3}}'])
def test_a_project_is_never_replaced(marker, tmp_path):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "README.md").write_text("# My project")
    (project / "src" / "main.py").write_text("print()")
    if marker is not None:
        (project / MARKER).write_text(marker, errors="surrogateescape")
    before = contents(project)
    with pytest.raises(InputError, match=r"not a dataset folder that unicorn-hf has written|added or changed"):
        write(project, NEW, overwrite=True)
    assert contents(project) == before


def test_an_input_is_never_replaced(tmp_path):
    write(tmp_path / "data" / "captions", OLD)
    write(tmp_path / "whole", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    for output, source in (("whole", "whole"), ("whole", "link"), ("data", "data/captions"), ("whole", "whole/a")):
        with pytest.raises(InputError, match=r"is the input|or holds it"):
            write(tmp_path / output, NEW, overwrite=True, inputs=[tmp_path / source])
    assert contents(tmp_path / "whole") == OLD


def test_a_file_put_there_during_the_run_is_kept(tmp_path):
    write(tmp_path / "old", OLD)
    for name, options in (("out", {}), ("old", {"overwrite": True})):
        with pytest.raises(InputError), new_folder(tmp_path / name, **options) as folder:
            (folder / "a").write_text("new")
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "notes.txt").write_text("precious")
        assert (tmp_path / name / "notes.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["old", "out"]


def test_what_is_in_the_way_of_the_temporary_folder_is_kept(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").write_text("precious")
    with pytest.raises(InputError, match="in the way"):
        write(tmp_path / "out", NEW)
    assert (tmp_path / ".out.partial" / "mine").read_text() == "precious"


def test_two_writers_in_one_process_or_in_two(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        with pytest.raises(InputError, match="another process is writing it"):
            write(tmp_path / "out", NEW)
        program = (
            "import sys; from unicorn_hf.data.staging import new_folder\nwith new_folder(sys.argv[1]): print('inside')"
        )
        other = subprocess.run([sys.executable, "-c", program, tmp_path / "out"], capture_output=True, text=True)
        assert other.returncode and "another process is writing it" in other.stderr and not other.stdout
        (folder / "a").write_text("1")
    assert contents(tmp_path / "out") == {"a": "1"}


def test_a_worker_that_outlives_its_killed_parent_does_not_hold_the_lock(tmp_path):
    program = """
import os, signal, sys, time
from unicorn_hf.data.staging import new_folder
with new_folder(sys.argv[1]):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"here")
        time.sleep(30)
        os._exit(0)
    os.read(reader, 4)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "out"], start_new_session=True)
    try:
        process.wait()
        write(tmp_path / "out", NEW)
    finally:
        os.killpg(process.pid, 9)
    assert contents(tmp_path / "out") == NEW and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "device"])
def test_only_a_regular_file_is_written_over(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "target").write_text("precious")
        path.symlink_to(tmp_path / "target")
    else:
        path = Path(os.devnull)
    before = os.lstat(path).st_mode
    with (
        pytest.raises(InputError, match=r"is a folder|not a regular file|is a link"),
        new_file(path, overwrite=True) as file,
    ):
        file.write_text("new")
    assert os.lstat(path).st_mode == before


def test_a_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "keep.npy"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"keep.npy: exists; name another file, or give --overwrite"):
        check_new_file(path)
    with new_file(path, overwrite=True) as file:
        file.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["keep.npy"]
    with pytest.raises(InputError, match="is the input"):
        check_new_file(path, overwrite=True, inputs=[path])


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (".", "is the current folder"),
        ("..", "or holds it"),
        ("/", "or holds it"),
        ("x" * 300, "name a shorter one"),
        ("x" * 250, "name a shorter one"),
        ("file/out", "Not a directory"),
        ("link", "is a link"),
        ("dangling", "is a link"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_the_work(output, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("target").mkdir()
    Path("link").symlink_to("target")
    Path("dangling").symlink_to("nowhere")
    for check in (check_new_folder, check_new_file):
        with pytest.raises((InputError, NotADirectoryError), match=sentence):
            check(output)
    with pytest.raises((InputError, NotADirectoryError), match=sentence):
        write(output, NEW)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_after_a_power_cut_the_old_is_there_whole_or_the_new_is(kind, tmp_path):
    output = tmp_path / "out"
    seen = set()
    pids = []
    for call in range(1, 60):
        if kind == "folder":
            if not output.exists():
                write(output, OLD)
        else:
            write_json(OLD, output)
        pids.append(os.fork())
        if pids[-1] == 0:
            _die_in_this_process(call, kind, output)
        status = os.waitstatus_to_exitcode(os.waitpid(pids[-1], 0)[1])
        now = contents(output) if kind == "folder" else read_json(output)
        assert now in (OLD, NEW), f"after call {call}"
        seen.add(str(now))
        if status == 0:
            break
        if kind == "folder":
            write(output, OLD, overwrite=True)  # what was left behind is in nobody's way
            assert os.listdir(tmp_path) == ["out"], f"after call {call}"
    assert status == 0 and call > (12 if kind == "folder" else 3) and seen == {str(OLD), str(NEW)}


def _die_in_this_process(call, kind, output):
    """Make `os._exit` the call of this number of those that change the file system; ends the process."""
    from unicorn_hf.data import staging

    count = 0

    def mortal(function):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                os._exit(99)
            return function(*args, **kwargs)

        return wrapped

    for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "fsync"):
        setattr(os, name, mortal(getattr(os, name)))
    Path.write_text = mortal(Path.write_text)
    staging._exchange = mortal(staging._exchange)
    try:
        if kind == "folder":
            write(output, NEW, overwrite=True)
        else:
            write_json(NEW, output)
        os._exit(0)
    except BaseException:
        os._exit(98)


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", NEW)
    with pytest.raises(OSError, match="No space"):
        write_json({}, tmp_path / "x.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "[" * 100_000, "\x00", '{"a": 1'])
def test_a_damaged_control_file_is_one_sentence(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x.json: is damaged"):
        read_json(tmp_path / "x.json")


def test_a_file_that_was_edited_to_the_same_size_is_not_replaced(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "README.md").write_text("ours")
    (tmp_path / "out" / "README.md").write_text("mine")
    with (
        pytest.raises(InputError, match=r"'README\.md' was added or changed since"),
        new_folder(tmp_path / "out", overwrite=True),
    ):
        pass
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_copy_of_a_folder_is_replaced_as_the_folder_itself(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "README.md").write_text("ours")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    with new_folder(tmp_path / "copy", overwrite=True) as folder:
        (folder / "README.md").write_text("newer")
    assert (tmp_path / "copy" / "README.md").read_text() == "newer"


def test_a_name_that_is_no_text_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="its name is not text in UTF-8"), new_folder(tmp_path / os.fsdecode(b"\xff")):
        pass
