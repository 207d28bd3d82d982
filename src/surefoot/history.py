"""Reading a run folder, which anyone may have written. Imports nothing of surefoot but what reads and refuses."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
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
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    evaluation: dict[str, Any] | None = None

    def column(self, key: str) -> np.ndarray:
        """One metric over all updates, float64 [updates]; NaN where it is null.

        Raises RunError where no update has it, or one holds what is no number.
        """
        if self.rows and not any(key in row for row in self.rows):
            raise RunError(f"{self.path} records no {key!r}{did_you_mean(key, self.rows[0])}")
        try:
            return np.array([_number(row.get(key)) for row in self.rows], np.float64)
        except (TypeError, ValueError):
            raise RunError(f"{self.path}/metrics.jsonl: some {key} is no number") from None


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
        lines = read_bytes(folder / "metrics.jsonl").split(b"\n")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no run that can be read: {error}") from None
    rows = []
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
            raise RunError(f"{folder}/metrics.jsonl, line {number}, is not a JSON object") from None
        rows.append(row)
    if not isinstance(configuration, dict):
        raise RunError(f"{folder}/config.json is not a JSON object")
    return History(folder, configuration, rows, _evaluation(folder))


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
