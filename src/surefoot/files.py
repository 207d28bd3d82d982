"""Files that are written whole or not at all, folders that one process at a time may write in."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from surefoot.errors import RunError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

WRITING = os.O_WRONLY | getattr(os, "O_BINARY", 0)  # or Windows would change the ends of lines
_NOT_THROUGH_LINKS = getattr(os, "O_NOFOLLOW", 0)  # a stranger's folder may have one under the name
_UNFINISHED = "surefoot-partial"
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.ENOENT: "put the folder back",
    errno.ENOTDIR: "a file stands where the folder belongs; take it away",
    errno.EISDIR: "a folder stands where the file belongs; take it away",
    errno.EEXIST: "a file stands where the folder belongs; take it away",
}


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment it is the old one or the new one, also across a power cut.

    Raises RunError that names the file and what would help; the old file is then as it was.
    """
    path = Path(path)
    if not path.name:
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{_UNFINISHED}")
    try:
        descriptor = os.open(temporary, WRITING | os.O_CREAT | os.O_TRUNC | _NOT_THROUGH_LINKS, 0o666)
        try:
            write_whole(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error
    _sync_folder(path.parent)


def write_whole(descriptor: int, content: bytes) -> None:
    """Write every byte; the system may take fewer at a time. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def make_folder(folder: Path) -> None:
    """Make a folder inside one that is there. Raises RunError that names it and what would help."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def remove(file: Path) -> None:
    """Remove a file that may be there. Raises RunError that names it and what would help."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(file, error) from error


def move(path: Path, target: Path) -> None:
    """Give a file or folder another name on the same file system. Raises RunError as `remove` does."""
    try:
        path.rename(target)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> RunError:
    """What to raise where the system refuses to write a file: one line with the file, the reason and the remedy."""
    remedy = _REMEDIES.get(error.errno or 0)
    reason = f"{path} cannot be written: {error.strerror or error}"
    return RunError(f"{reason}; {remedy}" if remedy else reason)


def sweep(*folders: Path) -> None:
    """Remove the unfinished files that killed processes left in these folders."""
    for folder in folders:
        for file in folder.glob(f".*.{_UNFINISHED}"):
            with contextlib.suppress(OSError):  # what cannot be removed does no harm either
                file.unlink()


def holds_anything(folder: Path) -> bool:
    """Whether there is anything in a folder beside unfinished files. Raises OSError."""
    return any(file.suffix != f".{_UNFINISHED}" for file in folder.iterdir())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within it no other process holds this folder. The system itself lets go of it when the process dies.

    Raises RunError where another one does. Nothing is held where the file system has no locks.
    """
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        try:
            # The folder itself is locked, so that no file of a lock is left behind.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder} is being trained in by another process; wait for it or end it, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename last. Some file systems cannot; the file itself is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
