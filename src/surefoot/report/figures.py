"""Which figures a report has, and what each of them says in a sentence."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from surefoot.report.drawing import Figure, Lane, Line, Panel
from surefoot.report.runs import Run, count, first, last, median, number, share

Draft = Callable[[Run], Line]
_NUMBER = re.compile(r"\d+([.,]\d+)*")


def figures(runs: Sequence[Run]) -> list[Figure]:
    """All figures of a report over updates, in their order."""
    drafts = (_returns, _gains, _movement, _bounds, _policy, _critic)
    return [draft(runs) for draft in drafts]


def _quantity(
    key: str, label: str, colour: str, *, dash: str = "", band: tuple[str, str] | None = None, joined: bool = False
) -> Draft:
    """How a metric becomes a run's line: in its own colour in a report of one run, else in the run's."""

    def line(run: Run) -> Line:
        lower, upper = (run.column(band[0]), run.column(band[1])) if band else (None, None)
        own = (run.colour, run.dash) if run.mark else (colour, dash)
        return Line(run, label, run.column(key), *own, lower=lower, upper=upper, joined=joined)

    return line


def _panels(
    title: str,
    drafts: Sequence[Draft],
    runs: Sequence[Run],
    *,
    lanes: Sequence[Lane] = (),
    levels: Sequence[tuple[float, str]] = (),
) -> list[Panel]:
    """One panel with all quantities of a run; of several runs one panel for each quantity."""
    if len(runs) == 1:
        return [Panel(title, [draft(runs[0]) for draft in drafts], lanes, levels)]
    drawn = [[draft(run) for run in runs] for draft in drafts]
    return [
        Panel(
            f"{lines[0].label}: {title}" if len(drafts) > 1 else title,
            lines,
            lanes if place == len(drawn) - 1 else (),
            levels,
        )
        for place, lines in enumerate(drawn)
    ]


def _lanes(runs: Sequence[Run], label: str, colour: str, where: Callable[[Run], np.ndarray]) -> list[Lane]:
    return [Lane(run, label, where(run), run.colour if run.mark else colour) for run in runs]


def _endless(runs: Sequence[Run], *keys: str) -> list[Lane]:
    """Where a number was recorded that no axis can hold."""
    return _lanes(runs, "not finite", "red", lambda run: np.any([run.not_finite(key) for key in keys], axis=0))


def _sentences(runs: Sequence[Run], say: Callable[[Run], str]) -> list[str]:
    return [f"{run.mark}: {say(run)}" if run.mark else say(run) for run in runs]


def _returns(runs: Sequence[Run]) -> Figure:
    def line(run: Run) -> Line:
        mean, spread = run.column("return_mean"), run.column("return_std")
        colour, dash = (run.colour, run.dash) if run.mark else ("blue", "")
        return Line(run, "return", mean, colour, dash, lower=mean - spread, upper=mean + spread, joined=True)

    def evaluations(run: Run) -> Line:
        mean, spread = (run.evaluated_at_updates(key) for key in ("mean", "std"))
        own = (run.colour, run.dash) if run.mark else ("orange", "7 4")
        return Line(run, "evaluation", mean, *own, lower=mean - spread, upper=mean + spread, joined=True)

    def say(run: Run) -> str:
        mean = run.column("return_mean")
        if not np.isfinite(mean).any():
            return "No episode ended."
        best = int(np.nanargmax(np.where(np.isfinite(mean), mean, -np.inf)))
        told = (
            f"The mean return of the episodes that ended went from {number(first(mean))} to {number(last(mean))}; the "
            f"best was {number(mean[best])} at update {number(run.number[best], 7)}."
        )
        evaluated = run.evaluated_at_updates("mean")
        known = evaluated[np.isfinite(evaluated)]
        if not known.size:
            return told
        went = f"from {number(known[0])} to {number(known[-1])}, the best {number(known.max())}"
        return f"{told} {count(known.size, 'deterministic evaluation')} went {went}."

    level = [(run.evaluated.get("mean"), "final evaluation") for run in runs if len(runs) == 1 and run.evaluated]
    title = "Return per episode: mean, ± 1 standard deviation"
    drafts = [line, evaluations] if any(run.history.evaluations for run in runs) else [line]
    panels = [
        replace(panel, wide=False, height=240)
        for panel in _panels(title, drafts, runs, lanes=_endless(runs, "return_mean"), levels=_numbers(level))
    ]
    return Figure("learning", "Learning curve", _sentences(runs, say), panels)


def _numbers(levels: Sequence[tuple[object, str]]) -> list[tuple[float, str]]:
    """Those levels that are numbers: an evaluation may hold "nan"."""
    return [(float(value), what) for value, what in levels if isinstance(value, (int, float))]


def _movement(runs: Sequence[Run]) -> Figure:
    kl = _quantity("kl", "KL", "blue")
    lines = [kl(run) for run in runs]
    limits = [
        Line(run, "radius", run.column("radius"), run.colour if run.mark else "ink", "1 4", thin=True)
        for run in runs
        if run.outside is not None
    ]
    lanes = [
        *_lanes(runs, "refused", "red", lambda run: run.refused),
        *_lanes(runs, "undone", "violet", lambda run: run.is_set("undone")),
        *_endless(runs, "kl", "kl_ratio"),
    ]
    panels = [
        Panel("KL from the old policy to the new, in nats", [*lines, *limits], lanes),
        *_panels(
            "KL as measured over KL as predicted",
            [_quantity("kl_ratio", "real / predicted", "orange")],
            runs,
            levels=[(1.0, "as predicted")],
        ),
    ]
    return Figure("movement", "Movement against the trust region", _sentences(runs, _say_movement), panels)


def _say_movement(run: Run) -> str:
    kl, moved = run.column("kl"), run.updates - int(run.refused.sum())
    if not run.updates:
        return "No update was recorded."
    told = [f"{count(int(run.refused.sum()), 'update')} of {number(run.updates, 7)} refused"]
    if run.is_set("undone").any():
        told.append(f"{number(int(run.is_set('undone').sum()), 7)} undone by the guard")
    if run.outside is not None:
        told.append(f"{number(int(run.outside.sum()), 7)} of {number(moved, 7)} accepted left the trust region")
    largest = kl[np.isfinite(kl)].max(initial=-math.inf)
    if math.isfinite(largest):
        told.append(f"the largest KL was {number(largest)} nats")
    ratio = median(run.column("kl_ratio"))
    if math.isfinite(ratio):
        told.append(f"the median of real over predicted KL is {number(ratio)}")
    return "; ".join(told) + "."


def _gains(runs: Sequence[Run]) -> Figure:
    drafts = [
        _quantity("realised_gain", "realised", "blue", band=("realised_gain_lower", "realised_gain_upper")),
        _quantity("promised_gain", "promised", "orange", dash="7 4"),
    ]
    if any(np.isfinite(run.column("held_out_gain")).any() for run in runs):
        drafts.append(_quantity("held_out_gain", "held out", "green", dash="2 3"))
    lanes = [
        *_lanes(runs, "lowered", "red", lambda run: run.lowered),
        *_endless(runs, "realised_gain", "promised_gain"),
    ]
    told = [run.history.config.get("confidence") for run in runs]
    level = f"{told[0]:.0%} " if all(isinstance(share, float) and share == told[0] for share in told) else ""
    panels = _panels(f"gain in return; a band is the {level}interval", drafts, runs, lanes=lanes, levels=[(0.0, "")])
    reasons = tally("Why a realised gain is not known", runs, _reasons(runs, "realised_gain_reason"))
    return Figure("gains", "Promised and realised gain", _sentences(runs, _say_gains), panels, reasons)


def _reasons(runs: Sequence[Run], key: str) -> Callable[[Run], Counter[str]]:
    """A run's reasons counted; those that differ only in a number, in whichever run, are one."""
    alike: dict[str, set[str]] = {}
    for reason in (reason for run in runs for reason in run.words(key)):
        alike.setdefault(_NUMBER.sub("…", reason), set()).add(reason)

    def counted(run: Run) -> Counter[str]:
        general = [(reason, _NUMBER.sub("…", reason)) for reason in run.words(key)]
        return Counter(reason if len(alike[form]) == 1 else form for reason, form in general)

    return counted


def _say_gains(run: Run) -> str:
    judged = run.calibration.judged
    if not judged:
        return "What the updates gained is not known for any of them."
    measured, lowered = int(run.measured.sum()), int(run.lowered.sum())
    raised = int((run.measured & (run.column("realised_gain_lower") > 0)).sum())
    return (
        f"{count(judged, 'update')} promised {number(run.calibration.promised)} and realised "
        f"{number(run.calibration.realised)} in sum; of {number(measured, 7)} with an interval {number(lowered, 7)} "
        f"lowered the return beyond noise and {number(raised, 7)} raised it beyond noise."
    )


def _bounds(runs: Sequence[Run]) -> Figure:
    lanes = [
        *_lanes(runs, "vacuous", "red", lambda run: run.is_set("vacuous")),
        *_lanes(runs, "above 0", "green", lambda run: run.column("best_bound_lower") > 0),
        *_endless(runs, "best_bound_lower"),
    ]
    best = _quantity("best_bound_lower", "best estimated bound", "violet")
    panels = _panels("estimated lower bound on the gain in return", [best], runs, lanes=lanes, levels=[(0.0, "")])
    after = tally(
        "Which estimated bound was the best", runs, lambda run: Counter(run.words("best_bound")), codes=True
    ) + tally("Why no bound was estimated", runs, _reasons(runs, "estimated_bounds_reason"))
    return Figure("bounds", "Estimated bounds on the gain", _sentences(runs, _say_bounds), panels, after)


def _say_bounds(run: Run) -> str:
    vacuous = run.column("vacuous")
    known = int(np.isfinite(vacuous).sum())
    if not known:
        return "No bound was estimated."
    positive = int((run.column("best_bound_lower") > 0).sum())
    return (
        f"Even the best estimated bound is vacuous in {share(int(run.is_set('vacuous').sum()), known)} of the "
        f"{count(known, 'update')} that have one, above 0 in {number(positive, 7)}; "
        f"{number(run.updates - known, 7)} of {count(run.updates, 'update')} have none."
    )


def _policy(runs: Sequence[Run]) -> Figure:
    entropy = _quantity("entropy", "entropy", "blue")
    panels = [Panel("mean entropy, in nats", [entropy(run) for run in runs], _endless(runs, "entropy"), wide=False)]
    gaussian = [run for run in runs if np.isfinite(run.column("smallest_std")).any()]
    if gaussian:
        smallest = _quantity("smallest_std", "smallest std", "orange")
        lines = [smallest(run) for run in gaussian]
        panels.append(Panel("smallest standard deviation", lines, _endless(gaussian, "smallest_std"), wide=False))

    def say(run: Run) -> str:
        entropy, std = run.column("entropy"), run.column("smallest_std")
        if not np.isfinite(entropy).any():
            return "No entropy was recorded."
        told = f"Entropy went from {number(first(entropy))} to {number(last(entropy))} nats"
        if np.isfinite(std).any():
            told += f", the smallest standard deviation from {number(first(std))} to {number(last(std))}"
        return told + "."

    title = "Entropy and smallest standard deviation" if gaussian else "Entropy"
    return Figure("policy", title, _sentences(runs, say), panels)


def _critic(runs: Sequence[Run]) -> Figure:
    panels = [
        *_panels(
            "explained variance before the fit",
            [_quantity("explained_variance", "explained variance", "green")],
            runs,
            lanes=_endless(runs, "explained_variance"),
            levels=[(1.0, "perfect"), (0.0, "")],
        ),
        *_panels(
            "loss after the fit, in squared standard deviations of the targets",
            [_quantity("loss", "loss", "orange")],
            runs,
            lanes=_endless(runs, "loss"),
        ),
    ]

    def say(run: Run) -> str:
        explained, loss = run.column("explained_variance"), run.column("loss")
        if not np.isfinite(explained).any():
            return "No explained variance was recorded."
        return (
            f"The critic explains {number(last(explained))} of the targets' variance in the end, "
            f"{number(median(explained))} in the median update; its loss ends at {number(last(loss))}."
        )

    return Figure("critic", "Critic", _sentences(runs, say), panels)


def tally(title: str, runs: Sequence[Run], tallied: Callable[[Run], Counter[str]], *, codes: bool = False) -> str:
    """How often something was the case in each run, as a table with bars; nothing where it never was.

    Args:
        title: the table's caption.
        runs: a column each.
        tallied: from a run to its counts by name.
        codes: the names are identifiers.
    """
    counts = [tallied(run) for run in runs]
    names = sorted(set().union(*counts), key=lambda name: (-sum(each[name] for each in counts), name))
    if not names:
        return ""
    heads = "".join(f'<th scope="col">{run.mark or "updates"}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{f"<code>{html.escape(name)}</code>" if codes else html.escape(name)}</th>'
        + "".join(_bar(each[name], run) for each, run in zip(counts, runs, strict=True))
        + "</tr>"
        for name in names
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}"><table class="tally">'
        f'<caption>{html.escape(title)}</caption><thead><tr><th scope="col"></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _bar(how_many: int, run: Run) -> str:
    width = 100 * how_many / max(run.updates, 1)
    colour = run.colour if run.mark else "blue"
    return (
        f'<td><i class="bar" style="width:{width:.1f}%;background:var(--{colour})"></i>'
        f"{number(how_many, 7)} <small>{share(how_many, run.updates)}</small></td>"
    )
