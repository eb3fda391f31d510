"""Files and folders that appear under their final name only when they are whole.

What is written lies beside its place under a hidden name, is handed to the disk, and is renamed: after a kill or a
power cut the final name holds the old content or the new, never a part. One process at a time writes an output. A
folder lists its own files in a marker, and only what a marker proves to be ours is ever replaced.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from unicorn_hf.errors import InputError

MARKER = ".unicorn-hf.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_held: set[int] = set()  # the open lock files of this process


@contextlib.contextmanager
def new_folder(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Iterator[Path]:
    """A folder that appears under the name `output` only when the block has ended well.

    Args:
        output: a missing or an empty folder.
        overwrite: replace a folder that this function has written and nobody has changed since; None where a command
            has no such option to name.
        inputs: what the block reads; `output` may be none of it, and hold none of it.

    Raises:
        InputError: `output` cannot be written, at the start or at the end; another process is writing it.
    """
    output = check_new_folder(output, overwrite=overwrite, inputs=inputs)
    with lock(output):
        staged = start_folder(output)
        try:
            yield staged
            finish_folder(staged, output, overwrite=overwrite)
        finally:
            _remove(staged)


@contextlib.contextmanager
def new_file(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Iterator[Path]:
    """A name to write a file under, which becomes `output` when the block has ended well; else as `new_folder`."""
    output = check_new_file(output, overwrite=overwrite, inputs=inputs)
    with lock(output), _staged_file(output) as staged:
        yield staged
        check_new_file(output, overwrite=overwrite)


def check_new_folder(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Path:
    """The absolute path of `output`, where `new_folder` may write it.

    Raises:
        InputError: it may not. The message says what is there.
    """
    path = _check_path(output, inputs)
    if _mode(path) is None:
        return path
    if not path.is_dir():
        raise InputError(f"{output}: is no folder; name another place")
    held = sorted(os.listdir(path))
    if not held:
        return path
    if not overwrite:
        if overwrite is None:
            raise InputError(f"{output}: exists and is not an empty folder; name another folder, or remove this one")
        raise InputError(f"{output}: exists and is not empty; name another folder, or give --overwrite")
    listed = _read_marker(path)
    if listed is None:
        raise InputError(
            f"{output}: is not a dataset folder that unicorn-hf has written (it has no {MARKER}), so it is not "
            "overwritten; name another folder, or remove this one"
        )
    ours = {*listed.items()} | {(f"{parent}/", 0) for name in listed for parent in Path(name).parents}
    foreign = sorted(name for name, size in _sizes(path).items() if (name, size) not in ours)
    if foreign:
        raise InputError(
            f"{output}: {foreign[0]!r} was added or changed since unicorn-hf wrote the folder"
            f"{f' (and {len(foreign) - 1} more)' if len(foreign) > 1 else ''}, so it is not overwritten; name another "
            "folder, or remove this one"
        )
    return path


def check_new_file(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Path:
    """The absolute path of `output`, where `new_file` may write it.

    Raises:
        InputError: it may not. The message says what is there.
    """
    path = _check_path(output, inputs)
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise InputError(f"{output}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; name another file")
    if mode is not None and not overwrite:
        raise InputError(f"{output}: exists; name another file, or give --overwrite")
    return path


@contextlib.contextmanager
def lock(output) -> Iterator[None]:
    """Be the only process that writes `output`; the lock goes with the process, however it ends.

    Raises:
        InputError: another process is writing it.
    """
    import fcntl

    output = _check_path(output, ())
    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        _held.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it before may have removed the file that we opened.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                break
        except OSError as error:
            _let_go(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"{path}: cannot be locked ({error.strerror}); name an output elsewhere") from error
            raise InputError(f"{output}: another process is writing it; wait for it, or stop it") from None
        _let_go(file)
    try:
        yield
    finally:
        if file in _held:
            path.unlink(missing_ok=True)
            _let_go(file)


def _let_go(*files: int) -> None:
    for file in files:
        os.close(file)
        _held.discard(file)


# A lock lasts while any process has the file open; a worker may outlive the killed process that started it.
os.register_at_fork(after_in_child=lambda: _let_go(*_held))


def start_folder(output: Path) -> Path:
    """An empty folder beside `output`, in place of what a killed run has left there. The caller holds the lock.

    Raises:
        InputError: something else is in its place.
    """
    staged = output.with_name(f".{output.name}.partial")
    if staged.is_dir() and (staged / MARKER).exists():
        _remove(staged)
    with contextlib.suppress(OSError):
        staged.rmdir()  # a kill came before the marker
    if _mode(staged) is not None:
        raise InputError(f"{staged}: is in the way and was not written by unicorn-hf; move it elsewhere")
    staged.mkdir(parents=True)
    (staged / MARKER).write_text("{}\n", encoding="utf-8")
    return staged


def finish_folder(staged: Path, output: Path, *, overwrite: bool | None = None) -> None:
    """Give a whole folder its final name, marker and all. The caller holds the lock.

    Raises:
        InputError: `output` holds what it did not hold before, which stays as it is.
    """
    check_new_folder(output, overwrite=overwrite)
    write_json({"files": _sizes(staged)}, staged / MARKER)
    sync_tree(staged)
    try:
        staged.rename(output)  # takes the place of an empty folder too
    except OSError as error:
        if not overwrite or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            check_new_folder(output)  # says what has come there since
            raise
        _exchange(staged, output)
        _remove(staged)
    sync(output.parent)


def read_json(path) -> dict:
    """The JSON object of a file that `write_json` has written.

    Raises:
        InputError: the file is not what was written there.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove it with what it belongs to, and run again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: is damaged (no JSON object); remove it with what it belongs to, and run again")
    return value


def write_json(value, path) -> None:
    """Write `value` as JSON to `path`; see `write_text`."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def write_text(text: str, path) -> None:
    """Write `text` to `path` through a temporary name: whatever happens, `path` is as it was or whole."""
    with _staged_file(Path(path)) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _staged_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under, which becomes `path` when the block has ended well."""
    staged = path.with_name(f".{path.name}.partial")
    try:
        yield staged
        rename_durably(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def rename_durably(staged: Path, path: Path) -> None:
    """Rename a file so that its content is on the disk before its name is."""
    sync(staged)
    staged.rename(path)
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Hand everything in `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Hand a file, or the list of a folder's files, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot do it for folders
            raise
    finally:
        os.close(file)


def _check_path(output, inputs: Iterable) -> Path:
    """`output` as an absolute path that can be made anew and is none of `inputs`."""
    path = Path(os.path.abspath(Path(output).expanduser()))
    here = Path.cwd()
    if path == here or path in here.parents:
        raise InputError(f"{output}: is the current folder, or holds it; name a new one")
    if len(os.fsencode(path.name)) > 255 - len("..partial"):
        raise InputError(f"{str(output)[:60]}…: has a name of {len(path.name)} characters; name a shorter one")
    if path.is_symlink():
        raise InputError(f"{output}: is a link to {os.readlink(path)}; name the place itself")
    for parent in path.parents:
        if _mode(parent) is not None:
            if not parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            break
    for source in inputs:
        if not isinstance(source, str | Path) or _mode(Path(source).expanduser()) is None:
            continue  # data in memory, or on the Hub
        source = Path(source).expanduser().resolve()
        if path.resolve() == source or path.resolve() in source.parents:
            raise InputError(f"{output}: is the input {source}, or holds it; name another output")
    return path


def _mode(path: Path) -> int | None:
    """The kind of what lies at `path` itself; None where there is nothing."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_marker(folder: Path) -> dict[str, int] | None:
    """The sizes of the files that were written, by their path in the folder; None where no marker says so."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_ours = isinstance(files, dict) and all(type(size) is int for size in files.values())
    return files if is_ours else None


def _sizes(folder: Path) -> dict[str, int]:
    """The size of every file in `folder` by its path there, the marker left out; an empty folder counts as one."""
    sizes = {}
    for parent, folders, names in os.walk(folder):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]:
            path = Path(parent, name)
            sizes[path.relative_to(folder).as_posix()] = os.lstat(path).st_size
        if not names and not folders and parent != str(folder):
            sizes[f"{Path(parent).relative_to(folder).as_posix()}/"] = 0
    sizes.pop(MARKER, None)
    return dict(sorted(sizes.items()))


def _remove(staged: Path) -> None:
    """Remove a folder, its marker last: whatever is left of it by a kill is known as ours."""
    if not staged.is_dir():
        return
    for path in staged.iterdir():
        if path.name != MARKER:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(staged)


def _exchange(staged: Path, output: Path) -> None:
    """Swap two folders: in one step where the system can, so that a kill never finds neither under its name."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        names = os.fsencode(staged), os.fsencode(output)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):  # what a file system says that cannot do it
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(output))
    old = output.with_name(f".{output.name}.old")
    output.rename(old)
    staged.rename(output)
    old.rename(staged)
