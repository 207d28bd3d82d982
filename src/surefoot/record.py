"""Writing a run folder: config.json, metrics.jsonl and whatever else belongs in it, each whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from surefoot._version import __version__
from surefoot.errors import RunError
from surefoot.files import WRITING, cannot_write, holds_anything, sweep, write_atomically, write_whole
from surefoot.reading import read_bytes
from surefoot.settings import dumps


def new_run_folder(out: str | os.PathLike | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or runs/<name> with the first free number behind it.

    Raises RunError where `out` already holds something or cannot be made.
    """
    try:
        if out is not None:
            folder = Path(out)
            if folder.is_dir() and holds_anything(folder):
                raise RunError(f"out: {folder} already holds a run or other files; name a new folder")
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        stem = Path("runs") / re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")
        number = 1
        while True:
            folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                number += 1
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"out: the folder {error.filename} cannot be made: {error.strerror}") from error


_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium")
_SIMULATORS = ("envpool", "mujoco")  # where they are installed


def versions() -> dict[str, str]:
    """The versions that a run's bits depend on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    for name in _SIMULATORS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"surefoot": __version__, "python": platform.python_version(), **found}


def differing_versions(told: Any) -> list[str]:
    """One entry for each version that is not the one in use, such as "jax 0.10.1, now 0.10.2".

    `told` is the `versions` of a run's config.json; what is missing there is called unknown.
    """
    told = told if isinstance(told, dict) else {}
    return [
        f"{name} {told.get(name, 'unknown')}, now {present}"
        for name, present in versions().items()
        if told.get(name) != present
    ]


def write_configuration(folder: Path, configuration: dict[str, Any]) -> None:
    """Write config.json, the settings with the versions in use. What a killed process left unfinished is swept away."""
    sweep(folder, *(folder / name for name in ("checkpoints", "policy", "batches")))
    content = dumps({**configuration, "versions": versions()}, indent=1)
    write_atomically(folder / "config.json", content.encode())


class Recorder:
    """Appends JSON objects to a file, a line each, given to the system before the run goes on."""

    def __init__(self, file: Path, kept: int = 0):
        """Open the file after its first `kept` lines; whatever stands behind them is dropped. Raises RunError."""
        self._file = file
        lines = whole_lines(file)[:kept] if kept else []
        if short := rows_missing(file, len(lines), kept):
            raise short
        write_atomically(file, b"".join(lines))
        try:
            self._descriptor = os.open(file, WRITING | os.O_APPEND)
        except OSError as error:
            raise cannot_write(file, error) from error

    def append(self, row: dict[str, Any]) -> None:
        """Write one row, whole or not at all. Raises RunError where the disk refuses it."""
        before = os.fstat(self._descriptor)
        try:
            if not before.st_nlink:  # the system would take lines for a removed file without a word
                raise FileNotFoundError(errno.ENOENT, "the file was removed while the run went on")
            write_whole(self._descriptor, (dumps(row) + "\n").encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before.st_size)
            raise cannot_write(self._file, error) from error

    def sync(self) -> None:
        """Make the rows so far outlast a power cut, so that no checkpoint knows of rows that are lost."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise cannot_write(self._file, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def rows_missing(file: Path, there: int, recorded: int) -> RunError | None:
    """What to raise where a file of rows has fewer whole lines than were recorded; None where it has them."""
    if there >= recorded:
        return None
    return RunError(f"{file} has {there} whole lines, but {recorded} were recorded; put it back as it was")


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file with their ends; a torn last one is left out. Raises RunError."""
    try:
        *lines, _ = read_bytes(file).split(b"\n")
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}; put it back") from error
    return [line + b"\n" for line in lines]
