"""study.json, written and read: the runs of a study, and what each of its settings came to."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from surefoot.errors import RunError, printable, shown
from surefoot.reading import read_json
from surefoot.scores import CONFIDENCE, FEWEST, Improvement, improvement, score

FILE = "study.json"
FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"

RULE = "rule"
"""The setting by which the runs of a comparison differ: which rule, by its label."""
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
"""A label of a rule is part of the name of a folder."""
MOST_COMPARED = 12
"""Of more settings nobody reads how each does against every other."""

_FOLDER = re.compile(f"runs/{LABEL.pattern}")  # nothing else, or a stranger's file would lead elsewhere


class Account(NamedTuple):
    """What a run took, and how far its updates moved; of a setting the means over its runs, but for the largest KL.

    Attributes:
        seconds: wall time of training; of runs made together in one program that of all of them.
        steps_per_second: environment steps in each of them.
        mean_kl: KL(old || new) of an update, in nats, the mean over updates.
        largest_kl: the largest of an update; of a setting the largest of any run.
        refused: share of the updates that the rule refused.

    None where it is not recorded or not finite.
    """

    seconds: float | None = None
    steps_per_second: float | None = None
    mean_kl: float | None = None
    largest_kl: float | None = None
    refused: float | None = None


class Member(NamedTuple):
    """One run of a study.

    Attributes:
        folder: inside the study's, such as "runs/radius0.003-s0".
        values: of the settings that are swept.
        seed: its own.
        status: "finished", "failed" or "unfinished".
        error: a line that says why, where it failed.
        score: mean return of the final evaluation; None unless it is finished.
        steps: environment steps taken; None unless it is finished.
        account: of a finished run.
    """

    folder: str
    values: dict[str, Any]
    seed: int
    status: str = UNFINISHED
    error: str | None = None
    score: float | None = None
    steps: int | None = None
    account: Account = Account()


class Row(NamedTuple):
    """One setting of a study, over its finished seeds.

    Attributes:
        values: of the settings that are swept.
        finished, failed, unfinished: how many of its runs are.
        statistic: "interquartile mean", or "mean" of fewer than three seeds.
        value: of the final evaluation's mean return over seeds; None where no run is finished.
        lower, upper: a 95% bootstrap interval; None with fewer than three seeds.
        mean, std: of the same returns, the deviation over their number; None where no run is finished.
        account: over its finished runs.
    """

    values: dict[str, Any]
    finished: int
    failed: int
    unfinished: int
    statistic: str
    value: float | None
    lower: float | None
    upper: float | None
    mean: float | None
    std: float | None
    account: Account


@dataclass(frozen=True)
class StudyRecord:
    """What a study recorded.

    Attributes:
        path: the study's folder.
        environment, rule: their names; of a comparison the labels of its rules.
        members: its runs, those of one setting one after the other.
        told: all of study.json, where it was read from one.
    """

    path: Path
    environment: str
    rule: str
    members: Sequence[Member]
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """One for each setting, in the order of the runs."""
        return rows_of(self.members)

    def of(self, row: Row) -> list[Member]:
        """The runs of a setting."""
        return [member for member in self.members if member.values == row.values]


def rows_of(members: Iterable[Member]) -> list[Row]:
    """What each setting came to, in the order of the runs."""
    return [_row(found) for found in _by_setting(members)]


def improvements(members: Iterable[Member]) -> list[list[Improvement | None]]:
    """How likely a run of each setting ends above one of each other: [settings][others], in the order of the runs.

    None for a setting against itself, and where either has no finished run. Empty for one setting, and for more than
    `MOST_COMPARED`.
    """
    returns = [_returns(found) for found in _by_setting(members)]
    if not 2 <= len(returns) <= MOST_COMPARED:
        return []
    found: list[list[Improvement | None]] = [[None] * len(returns) for _ in returns]
    for first, second in itertools.combinations(range(len(returns)), 2):
        if returns[first] and returns[second]:
            one = improvement(returns[first], returns[second])
            found[first][second] = one
            found[second][first] = one.turned()
    return found


def _by_setting(members: Iterable[Member]) -> list[list[Member]]:
    by_setting: dict[tuple, list[Member]] = {}
    for member in members:
        by_setting.setdefault(tuple(member.values.items()), []).append(member)
    return list(by_setting.values())


def _returns(members: Iterable[Member]) -> tuple[float, ...]:
    return tuple(member.score for member in members if member.status == FINISHED and member.score is not None)


def _row(members: Sequence[Member]) -> Row:
    finished, failed, unfinished = (
        sum(member.status == status for member in members) for status in (FINISHED, FAILED, UNFINISHED)
    )
    returns = _returns(members)
    mean = std = None
    if returns:
        mean = sum(returns) / len(returns)
        std = math.sqrt(sum((value - mean) ** 2 for value in returns) / len(returns))
    account = _together([member.account for member in members if member.status == FINISHED])
    return Row(members[0].values, finished, failed, unfinished, *score(returns), mean, std, account)


def _together(accounts: Sequence[Account]) -> Account:
    known = {
        name: [value for account in accounts if (value := getattr(account, name)) is not None]
        for name in Account._fields
    }
    means = {name: sum(values) / len(values) for name, values in known.items() if values}
    return Account(**means)._replace(largest_kl=max(known["largest_kl"], default=None))


def as_told(members: Sequence[Member]) -> dict[str, Any]:
    """The runs, the row of each setting and how they compare, as study.json has them."""
    runs = [
        {
            "folder": member.folder,
            "setting": member.values,
            "seed": member.seed,
            "status": member.status,
            "error": member.error,
            "return": member.score,
            "steps": member.steps,
            **member.account._asdict(),
        }
        for member in members
    ]
    of_settings = rows_of(members)
    rows = [
        {
            "setting": row.values,
            "finished": row.finished,
            "failed": row.failed,
            "unfinished": row.unfinished,
            "statistic": row.statistic,
            "return": row.value,
            "lower": row.lower,
            "upper": row.upper,
            "confidence": None if row.lower is None else CONFIDENCE,
            "mean": row.mean,
            "std": row.std,
            **row.account._asdict(),
            "note": None if row.finished >= FEWEST else f"fewer than {FEWEST} finished seeds have no interval",
        }
        for row in of_settings
    ]
    pairs = [
        {
            "setting": row.values,
            "over": other.values,
            "probability": found.value,
            "lower": found.lower,
            "upper": found.upper,
        }
        for row, line in zip(of_settings, improvements(members), strict=False)  # none, of too many settings
        for other, found in zip(of_settings, line, strict=True)
        if found is not None
    ]
    return {"runs": runs, "rows": rows, "improvement": pairs}


def described(values: Mapping[str, Any]) -> str:
    """The values of a setting for reading: "radius 0.003, damping 0.1"; the label of a rule that is compared."""
    if RULE in values:
        return written(values[RULE])
    return ", ".join(f"{printable(name)} {written(value)}" for name, value in values.items()) or "as given"


def written(value: Any) -> str:
    """A value so that another one is written otherwise: 0.003, 1e-05, 64, none, dense."""
    return value if isinstance(value, str) else "none" if value is None else repr(value).removesuffix(".0")


def is_study(path: str | os.PathLike) -> bool:
    """Whether a folder is one of a study."""
    return os.path.lexists(Path(path) / FILE)


def read_study(path: str | os.PathLike) -> StudyRecord:
    """What a study's folder holds. Raises RunError where it is none that can be read.

    A run counts as the file has it, whatever its own folder holds.
    """
    folder = Path(path)
    try:
        told = read_json(folder / FILE)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} holds no study that can be read: {printable(error)}") from None
    try:
        runs = _typed(told, "the file", dict).get("runs")
        members = [_member(run) for run in _typed(runs, "runs", list)]
        environment = str(told.get("environment", "unknown"))
        rules = told.get("rules")
        rule = ", ".join(map(str, rules)) if isinstance(rules, dict) else str(told.get("rule", "unknown"))
        if len({member.folder for member in members}) < len(members):
            raise ValueError("two runs have the same folder")
    except ValueError as error:
        raise RunError(f"{folder / FILE}: {error}") from None
    return StudyRecord(folder, environment, rule, members, told)


def _member(told: Any) -> Member:
    run = _typed(told, "a run", dict)
    folder, seed, status, error = (run.get(key) for key in ("folder", "seed", "status", "error"))
    if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
        raise ValueError(f"folder must be runs/ and a plain name, but {shown(folder)} came")
    if status not in (FINISHED, FAILED, UNFINISHED):
        raise ValueError(f"status must be {FINISHED}, {FAILED} or {UNFINISHED}, but {shown(status)} came")
    values = _typed(run.get("setting"), "setting", dict)
    for name, value in values.items():
        labelled = name == RULE and isinstance(value, str) and LABEL.fullmatch(value)
        if value is not None and not labelled and not _is_number(value):
            raise ValueError(f"setting must hold numbers, or a rule's label, but {shown(value)} came")
    reached, steps = run.get("return"), run.get("steps")
    if status == FINISHED and not _is_number(reached):
        raise ValueError(f"return of a finished run must be a number, but {shown(reached)} came")
    return Member(
        folder,
        values,
        _whole(seed, "seed"),
        status,
        None if error is None else str(error),
        float(reached) if status == FINISHED else None,
        None if steps is None else _whole(steps, "steps"),
        _account(run) if status == FINISHED else Account(),
    )


def _account(run: Mapping[str, Any]) -> Account:
    for name in Account._fields:
        if run.get(name) is not None and not _is_number(run[name]):
            raise ValueError(f"{name} must be a number or null, but {shown(run[name])} came")
    return Account(*(run.get(name) for name in Account._fields))


def _typed(value: Any, what: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be a JSON {'object' if kind is dict else 'array'}, but {shown(value)} came")
    return value


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} must be a whole number, but {shown(value)} came")
    return value


def _is_number(value: Any) -> bool:
    """A finite one of at most 64 bits' range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value)) and abs(float(value)) < 1e150
    except OverflowError:
        return False
