"""Files: only regular ones are opened, and they are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_CHUNK = 2**20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust's libraries write the number of a system's error
_TORCH_WRITER = "inline_container.cc"  # where torch.save writes
_TORCH_FILES = (".pt", ".pth", ".bin")


def regular_file(path: str | Path, kind: str) -> Path:
    """Check, before it is opened, that a path is a regular file: opening a FIFO waits for a writer, for ever.

    Args:
        path (`str` or `Path`): the file; links are followed.
        kind (`str`): what is expected there, for messages.

    Returns:
        `Path`

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a FIFO, a socket or a device.

    Example:

    ```python
    >>> from hf_captioners.data.files import regular_file
    >>> regular_file("/dev/null", "vocabulary")
    Traceback (most recent call last):
        ...
    OSError: /dev/null: expected a vocabulary, found something that is not a regular file

    ```
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{kind} not found: {path}") from None
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: expected a {kind}, found something that is not a regular file")
    return Path(path)


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits.

    Args:
        path (`Path`): the file.

    Returns:
        `str`
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:  # `hashlib.file_digest` is not in Python 3.10
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def check_can_be_made(path: Path) -> None:
    """Check, before the work is done, that a file or folder may be made at a place, with folders above it.

    Args:
        path (`Path`): the place; absolute. It need not exist.

    Raises:
        NotADirectoryError: the nearest path above it that exists is a file.
        PermissionError: that folder may not be written.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from hf_captioners.data.files import check_can_be_made
    >>> check_can_be_made(Path("/dev/null/captioners/model"))
    Traceback (most recent call last):
        ...
    NotADirectoryError: [Errno 20] Not a directory: '/dev/null'

    ```
    """
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))


@contextmanager
def system_errors(path: str | Path) -> Iterator[None]:
    """Raise what libraries say of a full disk and the like as the `OSError` that it is, with the name of the file.

    safetensors and tokenizers raise a `SafetensorError` or a bare `Exception` with the system's number in its text,
    torch.save a `RuntimeError` without: there was no space for all of its file.

    Args:
        path (`str` or `Path`): what is being written, for the message; of a folder the file that was written last.

    Raises:
        OSError: with the system's number and a name; everything else passes.

    Example:

    ```python
    >>> from hf_captioners.data.files import system_errors
    >>> with system_errors("model"):
    ...     raise Exception("I/O error: No space left on device (os error 28)")
    Traceback (most recent call last):
        ...
    OSError: [Errno 28] No space left on device: 'model'

    ```
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(_last_written(Path(path)))) from error
    except Exception as error:
        match = _OS_ERROR.search(str(error))
        if match is None and _TORCH_WRITER not in str(error):
            raise
        number = errno.ENOSPC if match is None else int(match[1])
        raise OSError(number, os.strerror(number), str(_last_written(Path(path), match is None))) from error


def _last_written(path: Path, is_torch: bool = False) -> Path:
    """A file itself; of a folder the file that was changed last, or the one that torch has not finished, if any."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    if is_torch:
        files = [file for file in files if file.suffix in _TORCH_FILES and not zipfile.is_zipfile(file)] or files
    return max(files, key=lambda file: file.stat().st_mtime_ns, default=path)


@contextmanager
def working_folder(parent: Path, prefix: str, suffix: str = "", mode: int = 0o777) -> Iterator[Path]:
    """Make a folder to work in, which is gone at the end, and remove those that killed runs have left.

    A folder in use is locked by its process, and the system releases the lock of a process that ends. (Where there are
    no such locks, as on Windows, nothing is removed.)

    Args:
        parent (`Path`): where to make it.
        prefix (`str`), suffix (`str`, *optional*): what its name begins and ends with; a random number is between.
        mode (`int`, *optional*, defaults to `0o777`): permissions, before the user's mask.

    Yields:
        `Path`: the folder, empty; it may be renamed.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.files import working_folder
    >>> with tempfile.TemporaryDirectory() as parent, working_folder(Path(parent), ".model.", ".new") as folder:
    ...     folder.name.startswith(".model."), folder.name.endswith(".new")
    (True, True)

    ```
    """
    for path in working_folders(parent, prefix, suffix):
        if not is_in_use(path):
            shutil.rmtree(path, ignore_errors=True)
    name = f"{prefix}{uuid.uuid4().hex}{suffix}"
    folder = parent / f"{name}.making"  # under its name only when it is locked, or another process would remove it
    folder.mkdir(mode)
    lock = _lock(folder)
    try:
        folder = folder.rename(parent / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def working_folders(parent: Path, prefix: str, suffix: str = "") -> list[Path]:
    """List the folders that [`working_folder`] has made, in use or left.

    Args:
        parent (`Path`), prefix (`str`), suffix (`str`): as there.

    Returns:
        `list[Path]`
    """
    pattern = re.compile(f"{re.escape(prefix)}[0-9a-f]{{32}}{re.escape(suffix)}")
    return [path for path in parent.iterdir() if pattern.fullmatch(path.name)] if parent.is_dir() else []


def is_in_use(folder: Path) -> bool:
    """Tell whether a folder is locked by a process, this one included.

    Args:
        folder (`Path`): from [`working_folders`].

    Returns:
        `bool`: also true if that cannot be told.
    """
    lock = _lock(folder)
    if lock is None:
        return True
    os.close(lock)
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that no second process writes into it.

    Args:
        folder (`Path`): the folder.

    Raises:
        BlockingIOError: another process, or another writer of this one, holds it. (Where there are no such locks, as on
            Windows and on some network disks, nothing is locked.)
    """
    lock, is_held = _try_lock(folder)
    if is_held:
        raise BlockingIOError(errno.EWOULDBLOCK, "in use by another process that writes into it", str(folder))
    try:
        yield
    finally:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)  # processes that were forked meanwhile hold the descriptor, too
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; `None` if there is none to be had."""
    return _try_lock(folder)[0]


def _try_lock(folder: Path) -> tuple[int | None, bool]:
    """A descriptor that holds the lock of a folder, `None` if there is none to be had; whether somebody holds it."""
    if fcntl is None:
        return None, False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None, False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None, isinstance(error, BlockingIOError)
    return descriptor, False


def replace_folder(new: Path, target: Path) -> None:
    """Rename a folder to another's name, which is set aside first, and restored if that fails.

    Args:
        new (`Path`): the folder, of [`working_folder`] with the prefix `.NAME.` and the suffix `.new`.
        target (`Path`): its name to be; need not exist.

    Raises:
        OSError: it cannot be renamed.
    """
    if not target.exists():
        new.rename(target)
        return
    # not hidden: if the process is killed before the next line, this is the only copy
    previous = target.with_name(f"{target.name}.old-{uuid.uuid4().hex}")
    target.rename(previous)
    try:
        new.rename(target)
    except BaseException:
        previous.rename(target)
        raise
    shutil.rmtree(previous)


def bring_back(target: Path) -> None:
    """Restore or remove a folder that a process killed in [`replace_folder`] has set aside.

    Args:
        target (`Path`): the folder that was to be replaced.
    """
    if any(is_in_use(path) for path in working_folders(target.parent, f".{target.name}.", ".new")):
        return
    for previous in working_folders(target.parent, f"{target.name}.old-"):
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            previous.rename(target)
            logger.warning("%s: brought back; the process that was to replace it was killed", target)


def settle(folder: Path) -> None:
    """Bring a folder that has been written safely to the disk, its files readable as it is itself.

    Some libraries make files that only their owner may read, whatever the user's mask.

    Args:
        folder (`Path`): made under the user's mask.

    Raises:
        OSError: the disk is full, or the like.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, and move it there once it is safely on the disk.

    Processes that write the same file do not meet, the last one wins; what killed ones left is removed. The file is as
    readable as the user's mask allows.

    Args:
        path (`Path`): the file; an older one is replaced at the end, or stays if `write` fails.
        write (`Callable[[Path], object]`): writes the file that it is given.

    Raises:
        OSError: the folder cannot be written, or whatever `write` raises.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.files import write_whole
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_whole(path, lambda temporary: temporary.write_text("done"))
    >>> path.read_text()
    'done'

    ```
    """
    try:
        with working_folder(path.parent, f".{path.name}.", ".tmp") as folder:
            temporary = folder / path.name
            with system_errors(path):
                write(temporary)
            temporary.chmod(folder.stat().st_mode & 0o666)  # some libraries make files that only their owner may read
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error  # not the name of the temporary one
