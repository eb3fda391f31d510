"""Files and folders that appear under their final name only when they are complete.

Content is written under a hidden name beside its final place, synced to the disk, then renamed: after a kill or a power
cut the final name holds the old content or the new, never a part. One process at a time writes an output. A folder
lists its own files in a marker, and only files that a marker lists are ever replaced.
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
_held: set[int] = set()  # file descriptors of the locks of this process


@contextlib.contextmanager
def new_folder(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Iterator[Path]:
    """A folder that appears under the name `output` only when the block ends without an error.

    Args:
        output: a missing or an empty folder.
        overwrite: replace a folder that this function wrote and nobody has changed since; None if the command has no
            option for it.
        inputs: what the block reads; `output` must neither be nor contain one of them.

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
    """A temporary path for a file that becomes `output` when the block ends without an error; see `new_folder`."""
    output = check_new_file(output, overwrite=overwrite, inputs=inputs)
    with lock(output), _staged_file(output) as staged:
        yield staged
        check_new_file(output, overwrite=overwrite)


def check_new_folder(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Path:
    """The absolute path of `output`, if `new_folder` may write it.

    Raises:
        InputError: it may not. The message says why.
    """
    path = _check_path(output, inputs)
    if _mode(path) is None:
        return path
    if not path.is_dir():
        raise InputError(f"{output}: is not a folder; name another output")
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
    written = os.lstat(path / MARKER).st_mtime_ns  # the last file of the folder to be written
    foreign = sorted(
        name
        for name, size in _sizes(path).items()
        if (name, size) not in ours or (not name.endswith("/") and os.lstat(path / name).st_mtime_ns > written)
    )
    if foreign:
        raise InputError(
            f"{output}: {foreign[0]!r} was added or changed since unicorn-hf wrote the folder"
            f"{f' (and {len(foreign) - 1} more)' if len(foreign) > 1 else ''}, so it is not overwritten; name another "
            "folder, or remove this one"
        )
    return path


def check_new_file(output, *, overwrite: bool | None = None, inputs: Iterable = ()) -> Path:
    """The absolute path of `output`, if `new_file` may write it.

    Raises:
        InputError: it may not. The message says why.
    """
    path = _check_path(output, inputs)
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{output}: is {kind}; name another file")
    if mode is not None and not overwrite:
        raise InputError(f"{output}: exists; name another file, or give --overwrite")
    return path


@contextlib.contextmanager
def lock(output) -> Iterator[None]:
    """Be the only process that writes `output`; the system releases the lock however the process ends.

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
            # The process that held the lock before us may have removed the file that we opened.
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


# A lock lasts while any process has the file open, and a worker can outlive the killed process that started it.
os.register_at_fork(after_in_child=lambda: _let_go(*_held))


def start_folder(output: Path) -> Path:
    """An empty folder beside `output`; it replaces the leftovers of a killed run. The caller holds the lock.

    Raises:
        InputError: something else is in the way.
    """
    staged = output.with_name(f".{output.name}.partial")
    if staged.is_dir() and (staged / MARKER).exists():
        _remove(staged)
    with contextlib.suppress(OSError):
        staged.rmdir()  # an empty one without a marker: the run was killed before it wrote the marker
    if _mode(staged) is not None:
        raise InputError(f"{staged}: is in the way and was not written by unicorn-hf; move it elsewhere")
    staged.mkdir(parents=True)
    (staged / MARKER).write_text("{}\n", encoding="utf-8")
    return staged


def finish_folder(staged: Path, output: Path, *, overwrite: bool | None = None) -> None:
    """Write the marker of a complete folder and give the folder its final name. The caller holds the lock.

    Raises:
        InputError: something has appeared in `output` meanwhile; it is left as it is.
    """
    check_new_folder(output, overwrite=overwrite)
    write_json({"files": _sizes(staged)}, staged / MARKER)
    sync_tree(staged)
    try:
        staged.rename(output)  # also replaces an empty folder
    except OSError as error:
        if not overwrite or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            check_new_folder(output)  # names what has appeared there meanwhile
            raise
        _exchange(staged, output)
        _remove(staged)
    sync(output.parent)


def read_json(path) -> dict:
    """The JSON object of a file written by `write_json`.

    Raises:
        InputError: the file is damaged.
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
    """Write `text` to `path` through a temporary name: `path` holds either the old content or the new."""
    with _staged_file(Path(path)) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _staged_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends without an error."""
    staged = path.with_name(f".{path.name}.partial")
    try:
        yield staged
        rename_durably(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def rename_durably(staged: Path, path: Path) -> None:
    """Rename a file after its content is on the disk, and sync the new name too."""
    sync(staged)
    staged.rename(path)
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Sync everything in `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(file)


def _check_path(output, inputs: Iterable) -> Path:
    """`output` as an absolute path, once it is clear that it can be created and is not one of `inputs`."""
    path = Path(os.path.abspath(Path(output).expanduser()))
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{output!s:.100}: its name is not text in UTF-8; name another output") from None
    here = Path.cwd()
    if path == here or path in here.parents:
        raise InputError(f"{output}: is the current folder, or holds it; name a new one")
    if len(os.fsencode(path.name)) > 255 - len("..partial"):
        raise InputError(f"{str(output)[:60]}…: has a name of {len(path.name)} characters; name a shorter one")
    if path.is_symlink():
        raise InputError(f"{output}: is a link to {os.readlink(path)}; name its target instead")
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
    """The `st_mode` of `path` itself, links not followed; None if nothing is there."""
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_marker(folder: Path) -> dict[str, int] | None:
    """Path in the folder -> size, for the files that the marker lists; None without a valid marker."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_ours = isinstance(files, dict) and all(type(size) is int for size in files.values())
    return files if is_ours else None


def _sizes(folder: Path) -> dict[str, int]:
    """Path in the folder -> size, for every file but the marker; an empty folder is listed with size 0."""
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
    """Remove a folder, its marker last, so that the leftovers of a killed removal still count as ours."""
    if not staged.is_dir():
        return
    for path in staged.iterdir():
        if path.name != MARKER:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(staged)


def _exchange(staged: Path, output: Path) -> None:
    """Swap two folders, in one atomic step where the system can, so that `output` always exists."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        names = os.fsencode(staged), os.fsencode(output)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):  # these two: not supported by the file system
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(output))
    old = output.with_name(f".{output.name}.old")
    output.rename(old)
    staged.rename(output)
    old.rename(staged)
