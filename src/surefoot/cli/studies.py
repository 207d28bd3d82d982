"""What the commands share of studies: the options that make one, its table, and what the doctor says of its runs."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from surefoot.cli import devices
from surefoot.cli.options import number, whole
from surefoot.errors import RunError, SettingError, SurefootError, printable
from surefoot.scores import Improvement
from surefoot.study_record import (
    FAILED,
    FILE,
    FINISHED,
    RULE,
    Member,
    Row,
    StudyRecord,
    as_told,
    described,
    improvements,
    read_study,
)
from surefoot.sweep import setting_name

_MISSING = "\N{EN DASH}"


def add_options(parser: Any) -> None:
    """`--seeds`, `--sweep` and `--lanes`."""
    group = parser.add_argument_group("study", "More than one run makes a study: a folder with all of them.")
    group.add_argument(
        "--seeds", type=whole, default=1, metavar="N", help="run N seeds, from --seed on (default 1) [at least 1]"
    )
    group.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=X,X,…",
        help="run every one of these values of a numeric setting, named as its option is: radius=0.003,0.01 or "
        "rule.damping=0,0.1; given again for another setting, every combination",
    )
    add_lanes(group, "as many as fit")


def add_lanes(parser: Any, default: str) -> None:
    """`--lanes`, with what holds where it is not given."""
    parser.add_argument(
        "--lanes", type=whole, metavar="N", help=f"train at most N runs together (default: {default}) [at least 1]"
    )


def far(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out of a study's settings where its runs are made, which is no setting of theirs."""
    return {name: settings.pop(name) for name in ("workers", "ray_address") if name in settings}


def spread(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """Have a study's lanes on all cores, and each run's batches over as many devices as its settings name, where the
    process is the command's own."""
    from surefoot.compilation import cores

    devices.show(arguments, settings, least=len(cores()))


def swept(texts: list[str]) -> dict[str, list[Any]]:
    """What `--sweep` was given, values by name. Raises SettingError for what is no NAME=X,X."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.strip("- ") or not values:
            raise SettingError(f"--sweep must be a setting and its values, as in radius=0.003,0.01, but {text!r} came")
        name = setting_name(name.strip())
        if name in found:
            raise SettingError(f"--sweep names {name} twice; name all its values at once")
        found[name] = [_value(name, value.strip()) for value in values.split(",")]
    return found


def _value(name: str, text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return number(text)
    except argparse.ArgumentTypeError as error:
        raise SettingError(f"--sweep {name}: {error}") from None


def refuse_for_studies(arguments: argparse.Namespace, *names: str) -> None:
    """Raise SettingError where an option was given that is for one run only."""
    for name in names:
        if getattr(arguments, name):
            raise SettingError(f"--{name} is for one run, and this is a study; leave it out, or name one of its runs")


def tell(path: Any, *, quiet: bool) -> dict[str, Any]:
    """Print what a study came to, and return it as `--json` does."""
    record = read_study(path)
    if not quiet:
        print("\n".join(table(record)))
        print(f"study   {printable(path / FILE)}")
        print(f"page    {printable(path / 'study.html')}")
        print(f"picture {printable(path / 'study.png')}")
        print(f"runs    {printable(path / 'runs')}: surefoot report or doctor {printable(path)}, or one of them")
    kinds = ("rules",) if "rules" in record.told else ("rule", "sweep")
    told = {key: record.told.get(key) for key in ("environment", *kinds, "seeds", "versions")}
    return {"study": str(path), **told, **as_told(record.members)}


def exit_code(told: dict[str, Any]) -> int:
    """2 where a run of a study failed, as where a run alone does."""
    return 2 if any(run["status"] == FAILED for run in told.get("runs", ())) else 0


def table(record: StudyRecord) -> list[str]:
    """A study's settings as lines of a table, how they compare, and why runs failed."""
    rows = record.rows
    kinds = {row.statistic for row in rows if row.value is not None} or {"mean"}
    kind = kinds.pop() if len(kinds) == 1 else "return"
    what = "rule" if any(RULE in row.values for row in rows) else "setting"
    heads = [what, kind, "95% interval", "mean ± std", "seeds", "seconds", "steps/s", "KL", "largest", "refused"]
    lines = _aligned([heads, *(_cells(row, mixed=kind == "return") for row in rows)])
    if all(row.lower is None for row in rows):
        lines.append("fewer than 3 finished seeds have no interval: --seeds 3 or more")
    failed = [member for member in record.members if member.status == FAILED]
    return [*lines, *_chances(record), *(f"failed: {member.folder}: {printable(member.error)}" for member in failed)]


def _cells(row: Row, *, mixed: bool) -> list[str]:
    """A setting as cells; with `mixed` a mean says that it is no interquartile mean."""
    value = _shown(row.value, 6)
    account = row.account
    counts = f"{row.finished}" + "".join(
        f", {count} {what}" for count, what in ((row.failed, "failed"), (row.unfinished, "unfinished")) if count
    )
    return [
        described(row.values),
        f"mean {value}" if mixed and row.statistic == "mean" else value,
        _MISSING if row.lower is None else f"{_shown(row.lower, 6)} … {_shown(row.upper, 6)}",
        _MISSING if row.mean is None else f"{_shown(row.mean, 6)} ± {_shown(row.std, 4)}",
        counts,
        _shown(account.seconds),
        _MISSING if account.steps_per_second is None else f"{account.steps_per_second:.0f}",
        _shown(account.mean_kl),
        _shown(account.largest_kl),
        _MISSING if account.refused is None else f"{account.refused:.1%}",
    ]


def _chances(record: StudyRecord) -> list[str]:
    """How likely a run of each setting ends above one of each other, as lines; none where there is nothing to tell."""
    found = improvements(record.members)
    if not any(cell is not None for line in found for cell in line):
        return []
    names = [described(row.values) for row in record.rows]
    cells = [[_MISSING if cell is None else _chance(cell) for cell in line] for line in found]
    lines = _aligned([["P(row > column)", *names], *([name, *line] for name, line in zip(names, cells, strict=True))])
    return ["", *lines, ""]


def _chance(found: Improvement) -> str:
    interval = "" if found.lower is None else f" ({found.lower:.2f} … {found.upper:.2f})"
    return f"{found.value:.2f}{interval}"


def _shown(value: float | None, digits: int = 3) -> str:
    return _MISSING if value is None else f"{value:.{digits}g}"


def _aligned(cells: list[list[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [f"{first:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))]
        )
        for first, *rest in cells
    ]


def examined(path: str) -> dict[str, Any]:
    """The doctor's findings for each run of a study. Raises RunError where none of them can be examined."""
    from surefoot.doctor import examine
    from surefoot.history import read

    record = read_study(path)
    runs = []
    for member in record.members:
        told: dict[str, Any] = {"run": str(record.path / member.folder), "healthy": None, "findings": []}
        if member.error:
            told["error"] = member.error
        if not (record.path / member.folder).exists():
            runs.append(told)
            continue
        try:
            history = read(record.path / member.folder)
            made = examine(history) if history.rows else None
        except SurefootError as error:
            told["unread"] = str(error)
            made = None
        if made is not None and made.made:
            told |= {"healthy": not made.findings, "findings": [dataclasses.asdict(found) for found in made.findings]}
            told["unchecked"] = list(made.unchecked)
        runs.append(told)
    if all(run["healthy"] is None for run in runs):
        raise RunError(f"{path} has no run that records anything that a check needs")
    healthy = all(run["healthy"] is not False and not {"error", "unread"} & run.keys() for run in runs)
    return {"study": path, "healthy": healthy, "runs": runs}


def verdicts(told: dict[str, Any]) -> list[str]:
    """What `examined` found as lines: one a run, and how often each finding was made."""
    width = max(len(run["run"]) for run in told["runs"])
    lines = [f"{printable(run['run']):<{width}}  {_verdict(run)}" for run in told["runs"]]
    often = Counter(finding["name"] for run in told["runs"] for finding in run["findings"])
    looked = sum(run["healthy"] is not None for run in told["runs"])
    lines += [f"{name}: in {count} of {looked} runs" for name, count in often.most_common()]
    if often:
        lines.append("evidence, cause and remedy: surefoot doctor RUN")
    return lines


def _verdict(run: dict[str, Any]) -> str:
    found = run["findings"]
    parts = [f"failed: {printable(run['error'])}"] if "error" in run else []
    if found:
        parts.append(f"{found[0]['title']} ({', '.join(finding['name'] for finding in found)})")
    elif run["healthy"]:
        parts.append("healthy")
    elif "unread" in run:
        parts.append(printable(run["unread"]))
    elif not parts:
        parts.append("nothing recorded yet")
    return "; ".join(parts)


_MOST_REPORTED = 12
"""Runs of a study side by side on a page; more cannot be told apart at a glance."""


def reported(path: str) -> list[str]:
    """The folders of a study's runs for a report of several: all of a small one, else those that stand for it.

    Of a study with more than 12 runs that is, of each setting, the finished run whose final return is nearest to the
    setting's own; of more than 12 settings, those with the best. Raises RunError where no run has begun.
    """
    record = read_study(path)
    there = [member for member in record.members if (record.path / member.folder / "metrics.jsonl").exists()]
    if not there:
        raise RunError(f"{path} has no run with a recorded update yet")
    if len(there) > _MOST_REPORTED:
        rows = [row for row in record.rows if row.value is not None]
        best = sorted(rows, key=lambda row: -float(row.value or 0))[:_MOST_REPORTED]
        typical = [_typical(record, row) for row in rows if row in best]
        there = [member for member in typical if member in there] or there[:_MOST_REPORTED]
    return [str(record.path / member.folder) for member in there]


def _typical(record: StudyRecord, row: Row) -> Member:
    """The finished run of a setting whose final return is nearest to the setting's own."""
    finished = [member for member in record.of(row) if member.status == FINISHED]
    return min(finished, key=lambda member: abs(float(member.score or 0) - float(row.value or 0)))
