"""Reading a run folder, which anyone may have written. Imports nothing of surefoot but what reads and refuses."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import RunError, did_you_mean
from surefoot.reading import parse_json, read_bytes, read_json


@dataclass(frozen=True)
class History:
    """What a run recorded.

    Attributes:
        path: the run's folder.
        config: its config.json.
        rows: one dictionary an update, in order; null where an update has no such value.
        evaluation: its evaluation.json; None where the run did not come to its end.
        evaluations: one dictionary for each evaluation made while it learned, in order.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def column(self, key: str) -> np.ndarray:
        """One metric over all updates, float64 [updates]; NaN where it is null.

        Raises RunError where no update has it, or one holds what is no number.
        """
        if self.rows and not any(key in row for row in self.rows):
            raise RunError(f"{self.path} records no {key!r}{did_you_mean(key, self.rows[0])}")
        return self._numbers(self.rows, key, "metrics.jsonl")

    def evaluated(self, key: str) -> np.ndarray:
        """A number of every evaluation made while the run learned, float64 [evaluations]; NaN where it is null.

        Raises RunError where one holds what is no number.
        """
        return self._numbers(self.evaluations, key, "evaluations.jsonl")

    def _numbers(self, rows: list[dict[str, Any]], key: str, file: str) -> np.ndarray:
        try:
            return np.array([_number(row.get(key)) for row in rows], np.float64)
        except (TypeError, ValueError, OverflowError):
            raise RunError(f"{self.path}/{file}: some {key} is no number") from None


def _number(value: Any) -> float:
    # "inf", "-inf" and "nan" are how non-finite numbers are written.
    return math.nan if value is None else float(value)


def read(path: str | os.PathLike) -> History:
    """The history of a run folder. A torn last line, as a kill leaves it, is left out.

    Raises RunError where the folder holds no run or a line in the middle cannot be read.
    """
    folder = Path(path)
    try:
        configuration = read_json(folder / "config.json")
        rows = _objects(folder / "metrics.jsonl")
        evaluations = _objects(folder / "evaluations.jsonl") if (folder / "evaluations.jsonl").exists() else []
    except RunError:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no run that can be read: {error}") from None
    if not isinstance(configuration, dict):
        raise RunError(f"{folder}/config.json is not a JSON object")
    return History(folder, configuration, rows, _evaluation(folder), evaluations)


def _objects(file: Path) -> list[dict[str, Any]]:
    """The objects of a file that holds one a line. Raises OSError, RunError."""
    lines, found = read_bytes(file).split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError:
            if number == len(lines):
                break
            raise RunError(f"{file}, line {number}, is not a JSON object") from None
        found.append(row)
    return found


def _evaluation(folder: Path) -> dict[str, Any] | None:
    file = folder / "evaluation.json"
    if not file.exists():
        return None
    try:
        found = read_json(file)
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from None
    return found
