"""The page of a study: what each setting came to, how each does against the others, and how they got there."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from surefoot.errors import printable
from surefoot.files import write_atomically
from surefoot.history import History
from surefoot.report.curves import MOST_SETTINGS, Curves, Spread, curves_of, finished, shown_rows
from surefoot.report.drawing import Figure, Line, Panel, draw
from surefoot.report.page import KEYS, whole
from surefoot.report.runs import MISSING, Run, count, last, letters, number
from surefoot.report.scales import Scale, fit
from surefoot.scores import Improvement
from surefoot.study_record import (
    FAILED,
    RULE,
    Member,
    Row,
    StudyRecord,
    described,
    improvements,
    read_study,
)

FILE = "study.html"

_ACCOUNT = (
    "Seconds, steps a second, KL of an update and refusals are means over the finished runs, the largest KL is that of "
    "any update of any of them. The first run of a rule may compile its program; runs made together in one program "
    "each show the time of all."
)

_MOST_ROWS = 200  # of a table; a page of more is larger than a mail takes
_STRIP = 150  # width of a setting's seeds in pixels


def study_page(study: str | os.PathLike, file: str | os.PathLike | None = None) -> Path:
    """Write the page of a study, with what is finished of it.

    Written to `file`, by default study.html in the study's folder. Raises RunError where there is no study that can be
    read, or the file cannot be written.
    """
    record = read_study(study)
    target = Path(file) if file is not None else record.path / FILE
    write_atomically(target, rendered(record).encode())
    return target


def rendered(record: StudyRecord) -> str:
    """The whole page."""
    name, rule = html.escape(printable(record.environment)), html.escape(printable(record.rule))
    sections = [("settings", "What each came to", _settings(record))]
    if matrix := _matrix(record):
        sections.append(("improvement", "Which is likely to be better", matrix))
    sections += [("curves", "How they learned", _curves(record)), ("runs", "Every run", _runs(record))]
    return whole(
        "study",
        f"{printable(record.environment)} · {printable(record.rule)}",
        f"{name} <span>with {rule}</span>",
        sections,
        f"Made from <code>{html.escape(printable(record.path))}</code>. Interquartile means, their bootstrap intervals "
        "and probabilities of improvement are those of Agarwal et al. 2021, over seeds on one task.",
    )


def _settings(record: StudyRecord) -> str:
    rows = sorted(record.rows, key=lambda row: row.value is None)[:_MOST_ROWS]
    rows = [row for row in record.rows if row in rows]
    seeds = np.array([member.score for member in record.members if member.score is not None], np.float64)
    ends = np.array([end for row in rows for end in (row.lower, row.upper) if end is not None], np.float64)
    scale = fit(np.concatenate([seeds, ends]))
    kinds = sorted({row.statistic for row in rows if row.value is not None})
    heads = (
        "rule" if any(RULE in row.values for row in rows) else "setting",
        html.escape(" or ".join(kinds) or "return"),
        "95% interval",
        "",
        "mean ± std",
        "seeds",
        "seconds",
        "steps/s",
        "KL",
        "largest KL",
        "refused",
    )
    body = "".join(_setting(record, row, scale) for row in rows)
    note = "Return is that of the final deterministic evaluation; a dot is a seed, the bar the interval."
    if len(rows) < len(record.rows):
        note += f" {count(len(rows), 'setting')} of {number(len(record.rows), 7)} are shown."
    return f'{_table("What each setting came to", heads, body)}<p class="note">{note} {_ACCOUNT}</p>'


def _setting(record: StudyRecord, row: Row, scale: Scale) -> str:
    account = row.account
    lost = "".join(
        f", {how_many} {what}"
        for how_many, what in ((row.failed, "failed"), (row.unfinished, "unfinished"))
        if how_many
    )
    spread = MISSING if row.mean is None else f"{number(row.mean, 4)} ± {number(row.std, 3)}"
    interval = MISSING if row.lower is None else f"{number(row.lower, 4)} … {number(row.upper, 4)}"
    cells = (
        f"<b>{number(row.value, 4)}</b>",
        interval,
        _strip(record, row, scale),
        spread,
        f"{row.finished}{lost}",
        number(account.seconds),
        number(account.steps_per_second),
        number(account.mean_kl),
        number(account.largest_kl),
        MISSING if account.refused is None else f"{number(100 * account.refused)}\u202f%",
    )
    return _line(described(row.values), cells)


def _strip(record: StudyRecord, row: Row, scale: Scale) -> str:
    """The seeds of a setting as dots on one axis for all settings, with the interval and its middle."""
    if row.value is None:
        return ""

    def place(value: float) -> float:
        return float(scale.place(np.array(value))) * _STRIP

    scores = [float(member.score or 0) for member in finished(record, row)]
    dots = "".join(f'<circle cx="{place(value):.1f}" cy="9" r="3.5"/>' for value in scores)
    bar = ""
    if row.lower is not None and row.upper is not None:
        bar = f'<path class="interval" d="M{place(row.lower):.1f} 9H{place(row.upper):.1f}"/>'
    middle = place(row.value)
    said = f"Seeds: {', '.join(number(value, 4) for value in scores)}"
    return (
        f'<svg class="strip" viewBox="-5 0 {_STRIP + 10} 18" width="{_STRIP + 10}" height="18" role="img" '
        f'aria-label="{said}"><path class="grid" d="M0 17H{_STRIP}"/>{bar}{dots}'
        f'<path class="middle" d="M{middle:.1f} 2V16"/></svg>'
    )


def _matrix(record: StudyRecord) -> str:
    found = improvements(record.members)
    rows = record.rows
    if not any(cell is not None for line in found for cell in line):
        return ""
    names = [described(row.values) for row in rows]
    heads = ["P(row > column)", *(html.escape(name) for name in names)]
    body = "".join(_line(name, [_probability(cell) for cell in line]) for name, line in zip(names, found, strict=True))
    note = (
        "How likely a run of the row ends with a larger return than one of the column, ties counting one half, with "
        "its 95% interval. A half is no difference; an interval that leaves it out is in bold."
    )
    return f'{_table("Probability of improvement", heads, body, "matrix")}<p class="note">{note}</p>'


def _probability(found: Improvement | None) -> str:
    if found is None:
        return f'<span class="probability">{MISSING}</span>'
    sure = found.lower is not None and found.upper is not None and not found.lower <= 0.5 <= found.upper
    colour = "green" if found.value > 0.5 else "red"
    depth = round(80 * abs(found.value - 0.5))
    interval = "" if found.lower is None else f"<br><small>{found.lower:.2f} … {found.upper:.2f}</small>"
    return (
        f'<span class="probability" style="background:color-mix(in srgb, var(--{colour}) {depth}%, var(--card))">'
        f"{'<b>' if sure else ''}{found.value:.2f}{'</b>' if sure else ''}{interval}</span>"
    )


def _curves(record: StudyRecord) -> str:
    rows = shown_rows(record)
    pairs = [(row, one) for row in rows if (one := curves_of(record, finished(record, row))) is not None]
    if not pairs:
        return '<p class="empty">No finished run has a training return yet.</p>'
    marks = letters(len(pairs))
    runs = [
        Run(_as_history(record, one), place, mark, described(row.values))
        for place, ((row, one), mark) in enumerate(zip(pairs, marks, strict=True))
    ]
    curves = [one for _, one in pairs]
    note = ""
    if len(rows) == MOST_SETTINGS < len(record.rows):
        note = f'<p class="note">The {MOST_SETTINGS} settings with the largest return are drawn.</p>'
    figures = (
        Figure(
            "learning",
            "Learning curves",
            [_said(run, "return", one.returns) for run, one in zip(runs, curves, strict=True)],
            [_panel(runs, curves, "return", "Training return: interquartile mean over seeds, first to third quartile")],
        ),
        Figure(
            "movement",
            "Movement of an update",
            [_said(run, "KL", one.kl) for run, one in zip(runs, curves, strict=True)],
            [_panel(runs, curves, "KL", "KL from the old policy to the new, in nats", _radius(record))],
        ),
    )
    drawn = "".join(draw(figure, runs) for figure in figures)
    return f'{note}{KEYS}<div class="charts">{drawn}</div>'


def _as_history(record: StudyRecord, curves: Curves) -> History:
    rows = [
        {"update": float(update), "steps": float(steps)}
        for update, steps in zip(curves.updates, curves.steps, strict=True)
    ]
    return History(record.path, {}, rows)


def _panel(
    runs: Sequence[Run],
    curves: Sequence[Curves],
    label: str,
    title: str,
    levels: Sequence[tuple[float, str]] = (),
) -> Panel:
    drawn = [
        (run, one.kl if label == "KL" else one.returns, one.runs > 1) for run, one in zip(runs, curves, strict=True)
    ]
    lines = [
        Line(run, label, spread.middle, run.colour, run.dash, *((spread.lower, spread.upper) if several else ()))
        for run, spread, several in drawn
    ]
    return Panel(title, lines, levels=levels, wide=label == "KL", height=300)


def _said(run: Run, what: str, spread: Spread) -> str:
    told = f"{what} from {number(spread.middle[0])} to {number(last(spread.middle))}."
    return f"{run.mark}: {run.name}, {told}" if run.mark else f"{run.name}: {told}"


def _radius(record: StudyRecord) -> list[tuple[float, str]]:
    """The radius that all rules with one in nats share."""
    rules = record.told.get("rules")
    if not isinstance(rules, dict):
        return []
    settings = [rule.get("settings") for rule in rules.values() if isinstance(rule, dict) and rule.get("rule") != "pg"]
    found = {one["radius"] for one in settings if isinstance(one, dict) and isinstance(one.get("radius"), float)}
    return [(found.pop(), "radius")] if len(found) == 1 else []


def _runs(record: StudyRecord) -> str:
    rows = record.rows[:_MOST_ROWS]
    seeds = sorted({member.seed for member in record.members})
    body = "".join(_line(described(row.values), [_reached(record, row, seed) for seed in seeds]) for row in rows)
    failed = [member for member in record.members if member.status == FAILED][:_MOST_ROWS]
    told = "".join(
        f"<li><code>{html.escape(member.folder)}</code> {html.escape(printable(member.error))}</li>"
        for member in failed
    )
    heads = ["final return", *(f"seed {seed}" for seed in seeds)]
    lost = f"<h3>What failed</h3><ul>{told}</ul>" if told else ""
    return f"{_table('Final return of every run', heads, body)}{lost}"


def _reached(record: StudyRecord, row: Row, seed: int) -> str:
    member: Member | None = next((one for one in record.of(row) if one.seed == seed), None)
    if member is None:
        return MISSING
    return number(member.score, 4) if member.score is not None else member.status


def _table(title: str, heads: Sequence[str], body: str, kind: str = "") -> str:
    shown = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="values {kind}"><thead><tr>'
        f"{shown}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _line(name: str, cells: Sequence[str]) -> str:
    told = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{html.escape(name)}</th>{told}</tr>'
