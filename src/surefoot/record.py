"""Writing a run folder: config.json, metrics.jsonl and whatever else belongs in it, each whole or not at all."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from surefoot._version import __version__
from surefoot.errors import RunError
from surefoot.settings import dumps


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that at any moment it is the old one or the new one, also across a power cut."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def new_run_folder(out: str | os.PathLike | None, name: str) -> Path:
    """Make the folder of a new run: `out`, or runs/<name> with the first free number behind it.

    Raises RunError where `out` already holds something or cannot be made.
    """
    try:
        if out is not None:
            folder = Path(out)
            if folder.is_dir() and any(folder.iterdir()):
                raise RunError(f"out: {folder} already holds a run or other files; name a new folder")
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        stem = Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", name)
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


def versions() -> dict[str, str]:
    """The versions that a run's bits depend on."""
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium")
    found = {name: importlib.metadata.version(name) for name in packages}
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


class Recorder:
    """Appends one JSON object an update to metrics.jsonl, each line flushed before the next update begins."""

    def __init__(self, folder: Path, configuration: dict[str, Any], kept: int = 0):
        """Write config.json (the settings, with the versions in use) and open metrics.jsonl after its first `kept`
        lines; whatever stands behind them is dropped."""
        self.folder = folder
        content = dumps({**configuration, "versions": versions()}, indent=1)
        write_atomically(folder / "config.json", content.encode())
        file = folder / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:kept] if kept else []
        if len(lines) < kept:
            raise RunError(f"{file} has {len(lines)} whole lines, but {kept} were recorded")
        write_atomically(file, b"".join(line + b"\n" for line in lines))
        self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def append(self, row: dict[str, Any]) -> None:
        """Write one update's row. Raises RunError where the disk refuses it."""
        try:
            self._metrics.write(dumps(row) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise RunError(f"{self.folder}/metrics.jsonl cannot be written: {error.strerror}") from error

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        write_atomically(self.folder / name, dumps(content, indent=1).encode())

    def close(self) -> None:
        """Close metrics.jsonl."""
        self._metrics.close()
