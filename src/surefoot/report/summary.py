"""What a report says of its runs in words and tables: at a glance, key figures, findings, time, settings."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from surefoot.report.runs import MISSING, Run, count, last, median, number, share
from surefoot.report.scales import fit
from surefoot.report.shapes import path, swatch

STAGES = (
    ("collect", "collect_seconds", "blue"),
    ("update", "update_seconds", "orange"),
    ("critic", "critic_seconds", "green"),
    ("certify", "certify_seconds", "violet"),
)
"""The stages of an update: name, metric, colour."""


def heading(run: Run) -> str:
    """What ran, in a line."""
    return f"{run.setting('environment')} · {run.setting('rule')} · seed {run.setting('seed')}"


def health(run: Run) -> tuple[str, str]:
    """The doctor's verdict: the badge's class and its words."""
    found = run.examination.findings
    severe = sum(finding.severity == "severe" for finding in found)
    if not run.examination.made:
        return "mixed", "? not enough recorded to judge"
    if severe:
        others = f", {count(len(found) - severe, 'warning')}" if len(found) > severe else ""
        return "bad", f"✕ not healthy: {count(severe, 'severe finding')}{others}"
    return ("mixed", f"! {count(len(found), 'warning')}") if found else ("good", "✓ healthy")


def final_return(run: Run) -> tuple[str, str]:
    """The return in the end, and what was measured."""
    if run.evaluated:
        told = run.evaluated
        mean, std = (number(_float(told.get(key)), 4) for key in ("mean", "std"))
        return f"{mean} ± {std}", f"final evaluation, {told.get('episodes', 'no')} episodes"
    return number(
        last(run.column("return_mean")), 4
    ), "last training return; no final evaluation: stopped, or still running"


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def behaviour(run: Run) -> str:
    """How the updates behaved, in a sentence."""
    if not run.updates:
        return "No update was recorded."
    told = [f"{number(int(run.refused.sum()), 7)} refused"]
    if run.is_set("undone").any():
        told.append(f"{number(int(run.is_set('undone').sum()), 7)} undone")
    if run.outside is not None:
        told.append(f"{number(int(run.outside.sum()), 7)} left the trust region")
    measured = int(run.measured.sum())
    if measured:
        told.append(
            f"{number(int(run.lowered.sum()), 7)} of {number(measured, 7)} measured lowered the return beyond noise"
        )
    return f"{count(run.updates, 'update')}: {', '.join(told)}."


def card(run: Run) -> str:
    """A run at a glance."""
    verdict, words = health(run)
    value, measured = final_return(run)
    name = f'<p class="name">{swatch(run.colour, run.dash)} <b>{run.mark}</b> {html.escape(run.name)}</p>'
    return f"""<article class="card" aria-label="{html.escape(f"{run.mark} {heading(run)}".strip())}">
{name if run.mark else ""}<p class="what">{html.escape(heading(run))}</p>
<div class="big"><p><span class="return">{value}</span><br><span class="measured">{html.escape(measured)}</span></p>
{_sparkline(run)}</div>
<p><span class="verdict {verdict}">{words}</span></p><p class="behaviour">{behaviour(run)}</p></article>"""


def _sparkline(run: Run) -> str:
    values = run.column("return_mean")
    known = np.flatnonzero(np.isfinite(values))
    if known.size < 2:
        return ""
    # A picture of this width has no room for more.
    known = known[np.unique(np.linspace(0, known.size - 1, 120).round().astype(int))]
    y = (1 - fit(values[known]).place(values[known])) * 40
    x = known / max(run.updates - 1, 1) * 160
    return (
        '<svg class="sparkline" viewBox="0 0 160 40" preserveAspectRatio="none" aria-hidden="true"><path class="line" '
        f'stroke="var(--{run.colour})" d="{path(x, y)}"/></svg>'
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None else share(round(value * 100_000), 100_000)


def _ratio(run: Run) -> str:
    kept = run.calibration
    if not kept.judged:
        return MISSING
    ratio = "" if kept.ratio is None else f" ({number(100 * kept.ratio)}\u202f%)"
    return f"{number(kept.realised)} of {number(kept.promised)}{ratio}"


_KEY_FIGURES: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("Environment", lambda run: run.setting("environment")),
    ("Rule", lambda run: run.setting("rule")),
    ("Trust region", lambda run: run.setting("trust_region")),
    ("Seed", lambda run: run.setting("seed")),
    ("Updates", lambda run: number(run.updates, 7)),
    ("Environment steps", lambda run: number(last(run.column("steps")), 12)),
    ("Wall time", lambda run: duration(last(run.column("seconds")))),
    ("Final evaluation", lambda run: final_return(run)[0] if run.evaluated else "none"),
    ("Last training return", lambda run: number(last(run.column("return_mean")), 4)),
    ("Environment repeatable", lambda run: _yes(run.history.evaluation)),
    ("Refused", lambda run: _part(run.refused)),
    ("Undone by the guard", lambda run: _part(run.is_set("undone"))),
    ("Left the trust region (KL over 1.01 radii)", lambda run: _percent(run.calibration.left)),
    ("Real over predicted KL, median", lambda run: number(median(run.column("kl_ratio")))),
    ("Realised of promised gain, in sum", _ratio),
    ("Lowered the return beyond noise", lambda run: _percent(run.calibration.lowered)),
    ("Best estimated bound vacuous", lambda run: _percent(run.calibration.vacuous)),
    ("Entropy in the end, nats", lambda run: number(last(run.column("entropy")))),
    ("Explained variance in the end", lambda run: number(last(run.column("explained_variance")))),
)


def _part(which: np.ndarray) -> str:
    return f"{number(int(which.sum()), 7)} ({share(int(which.sum()), which.size)})" if which.size else MISSING


def _yes(evaluation: dict[str, Any] | None) -> str:
    told = (evaluation or {}).get("repeatable")
    return ("yes" if told else "no") if isinstance(told, bool) else "not known"


def duration(seconds: float) -> str:
    """Seconds for reading, with minutes and hours where there are any."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def key_figures(runs: Sequence[Run]) -> str:
    """The key figures: of several runs as a table with a column for each, of one as a list that fills the width."""
    if len(runs) == 1:
        items = "".join(
            f"<div><dt>{name}</dt><dd>{html.escape(value(runs[0]))}</dd></div>" for name, value in _KEY_FIGURES
        )
        return f'<dl class="tiles">{items}</dl>'
    rows = [(name, [value(run) for run in runs]) for name, value in _KEY_FIGURES]
    return _table("Key figures", runs, rows)


def configuration(runs: Sequence[Run]) -> str:
    """Every setting, those that differ between the runs first told and marked."""
    flat = [dict(_flat(run.history.config)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [(name, [settings.get(name, MISSING) for settings in flat]) for name in names]
    differing = {name for name, values in rows if len(set(values)) > 1}
    told = f", {number(len(differing), 7)} of them not the same in all runs (marked ≠)" if len(runs) > 1 else ""
    return (
        f"<details><summary>{count(len(names), 'setting')}{told}</summary>"
        f"{_table('Configuration', runs, rows, differing, codes=True)}</details>"
    )


def _flat(settings: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "none" if value is None else str(value)


def _table(
    title: str,
    runs: Sequence[Run],
    rows: Sequence[tuple[str, list[str]]],
    differing: set[str] | frozenset[str] = frozenset(),
    *,
    codes: bool = False,
) -> str:
    heads = "".join(
        f'<th scope="col">{swatch(run.colour, run.dash)} {run.mark} <span>{html.escape(run.name)}</span></th>'
        for run in runs
        if run.mark
    )
    body = "".join(_row(name, values, name in differing, codes) for name, values in rows)
    head = f'<thead><tr><th scope="col"></th>{heads}</tr></thead>' if heads else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="side">'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def _row(name: str, values: list[str], differs: bool, codes: bool) -> str:
    shown = f"<code>{html.escape(name)}</code>" if codes else html.escape(name)
    cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
    if differs:
        return f'<tr class="differs"><th scope="row">{shown} <b>≠</b></th>{cells}</tr>'
    return f'<tr><th scope="row">{shown}</th>{cells}</tr>'


def findings(run: Run) -> str:
    """The doctor's findings in a run, worst first."""
    told = run.examination
    title = f"<h3>{run.mark} {html.escape(run.name)}</h3>" if run.mark else ""
    found = "".join(
        f'<li class="finding"><h4><span class="verdict {"bad" if finding.severity == "severe" else "mixed"}">'
        f"{'✕ severe' if finding.severity == 'severe' else '! warning'}</span> {html.escape(finding.title)}</h4>"
        f"<dl><dt>Evidence</dt><dd>{html.escape(finding.evidence)}</dd><dt>Cause</dt>"
        f"<dd>{html.escape(finding.cause)}</dd><dt>Remedy</dt><dd>{html.escape(finding.remedy)}</dd></dl></li>"
        for finding in told.findings
    )
    made = f"{count(told.made, 'check')} over {count(told.updates, 'update')}"
    summary = f"<p>{'No findings' if not told.findings else count(len(told.findings), 'finding')}: {made}.</p>"
    left = "".join(
        f"<dt><code>{html.escape(name)}</code></dt><dd>{html.escape(reason)}</dd>"
        for name, reason in told.unchecked.items()
    )
    skipped = (
        f"<details><summary>{count(len(told.unchecked), 'check')} could not be made</summary>"
        f'<dl class="unchecked">{left}</dl></details>'
        if left
        else ""
    )
    return f'<div class="findings">{title}{summary}{f"<ol>{found}</ol>" if found else ""}{skipped}</div>'


def time_spent(runs: Sequence[Run]) -> str:
    """Time by stage: a bar for each run, and the numbers."""
    spent = [_spent(run) for run in runs]
    bars = "".join(_bar(run, parts) for run, parts in zip(runs, spent, strict=True))
    names = [(name, colour) for name, _, colour in STAGES] + [("other", "quiet")]
    heads = "".join(f'<th scope="col">{run.mark or "time"}</th><th scope="col">share</th>' for run in runs)
    rows = "".join(
        f'<tr><th scope="row"><i class="key" style="background:var(--{colour})"></i> {name}</th>'
        + "".join(f"<td>{duration(part[name])}</td><td>{_of(part[name], part)}</td>" for part in spent)
        + "</tr>"
        for name, colour in names
    )
    told = "".join(
        f"<p>{run.mark + ': ' if run.mark else ''}{_most(part)}</p>" for run, part in zip(runs, spent, strict=True)
    )
    return f"""<figure id="time" class="chart"><h3 id="time-title">Time by stage</h3>
<div role="img" aria-labelledby="time-title" aria-describedby="time-found">{bars}</div>
<figcaption id="time-found">{told}</figcaption>
<div class="scroll" tabindex="0" role="region" aria-label="Time by stage"><table class="values"><thead><tr>
<th scope="col">stage</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></figure>"""


def _spent(run: Run) -> dict[str, float]:
    spent = {name: float(np.nansum(_finite(run.column(key)))) for name, key, _ in STAGES}
    whole = last(run.column("seconds"))
    return spent | {"other": max(whole - sum(spent.values()), 0.0) if math.isfinite(whole) else 0.0}


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _of(part: float, spent: dict[str, float]) -> str:
    whole = sum(spent.values())
    return share(round(1000 * part / whole), 1000) if whole else MISSING


def _bar(run: Run, spent: dict[str, float]) -> str:
    whole = sum(spent.values())
    if not whole:
        return ""
    colours = {name: colour for name, _, colour in STAGES} | {"other": "quiet"}
    parts = "".join(
        f'<span style="flex-grow:{part / whole:.4f};background:var(--{colours[name]})">'
        f"<b>{name} {_of(part, spent)}</b></span>"
        for name, part in spent.items()
        if part / whole > 0.002
    )
    return f'<div class="stacked">{f"<b>{run.mark}</b>" if run.mark else ""}<div>{parts}</div></div>'


def _most(spent: dict[str, float]) -> str:
    whole = sum(spent.values())
    if not whole:
        return "No time was recorded."
    if spent["other"] == whole:
        return f"The run did not leave the compiler, so nobody saw where one stage ended: {duration(whole)} in all."
    name = max(spent, key=lambda stage: spent[stage])
    return f"Most time went into {name}: {duration(spent[name])} of {duration(whole)}, {_of(spent[name], spent)}."
