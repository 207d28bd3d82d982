"""Figures of the report as HTML and SVG that stretch to the room there is; their text keeps its size.

Shapes are drawn in a box of fixed height that the browser stretches in width, with strokes that are not
stretched. What is written, and what must keep its form, lies over it as HTML.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surefoot.report.runs import MISSING, Run, countable, number
from surefoot.report.scales import Scale, even_ticks, fit, kept
from surefoot.report.shapes import band, dashed, dots, path, swatch

WIDTH = 1000
"""Of the box that shapes are drawn in; the browser stretches it."""
DENSE = 400
"""Lines of more points are drawn thinner."""


@dataclass(frozen=True)
class Line:
    """A quantity of a run over its updates.

    Attributes:
        run: whose.
        label: what it is, in a word or two.
        values: [updates]; gaps where not finite.
        colour: the name of its colour.
        dash: the pattern of its stroke.
        lower: the lower edge of its band, if it has one.
        upper: the upper edge.
        joined: gaps are crossed.
        thin: it is what the others are measured by.
    """

    run: Run
    label: str
    values: np.ndarray
    colour: str
    dash: str = ""
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    joined: bool = False
    thin: bool = False

    @property
    def parts(self) -> list[np.ndarray]:
        """Everything of it that is drawn."""
        return [part for part in (self.values, self.lower, self.upper) if part is not None]


@dataclass(frozen=True)
class Lane:
    """Updates of a run to which something happened, marked below a panel.

    Attributes:
        run: whose.
        label: what happened, in a word.
        where: boolean [updates].
        colour: the name of its colour.
    """

    run: Run
    label: str
    where: np.ndarray
    colour: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is drawn, with its unit.
        lines: of all runs.
        lanes: of all runs.
        levels: values to which a horizontal line is drawn, with what they are.
        wide: bend the axis where values lie far off.
        height: in pixels.
    """

    title: str
    lines: Sequence[Line]
    lanes: Sequence[Lane] = ()
    levels: Sequence[tuple[float, str]] = ()
    wide: bool = True
    height: int = 190


@dataclass(frozen=True)
class Figure:
    """Panels over one horizontal axis, and what they show.

    Attributes:
        anchor: its identifier on the page.
        title: of one line.
        findings: what it shows, a sentence with numbers for each run.
        panels: from top to bottom.
        after: HTML that belongs below it.
    """

    anchor: str
    title: str
    findings: Sequence[str]
    panels: Sequence[Panel]
    after: str = ""


def axis(runs: Sequence[Run]) -> tuple[str, list[np.ndarray]]:
    """The horizontal axis: its name, and each run's places on it. Steps, or updates where a run lacks the steps."""
    steps = [run.column("steps") for run in runs]
    if all(map(countable, steps)):
        return "environment steps", steps
    return "updates", [run.number for run in runs]


def draw(figure: Figure, runs: Sequence[Run]) -> str:
    """A figure's element: heading, readout, panels, what it shows, values."""
    name = figure.anchor
    head = f'<h3 id="{name}-title">{html.escape(figure.title)}</h3>'
    found = _findings(figure)
    if not any(run.updates for run in runs):
        return f'<figure id="{name}" class="chart">{head}<p class="empty">No update was recorded.</p></figure>'
    drawn = _Drawn(figure, runs)
    kind = "plot several" if len(runs) > 1 else "plot"
    return f"""<figure id="{name}" class="chart">{head}
<div class="{kind}" tabindex="0" role="application" aria-roledescription="chart" aria-labelledby="{name}-title"
 aria-describedby="{name}-found keys">
<output class="readout" aria-live="polite" aria-atomic="true">{drawn.readout()}</output>
{drawn.panels()}
<div class="along"><div class="ticks">{drawn.ticks()}</div><p class="unit" aria-hidden="true">{drawn.unit}</p></div>
</div>
<figcaption id="{name}-found">{found}{drawn.note()}</figcaption>
{figure.after}
{drawn.table()}
<script type="application/json">{drawn.data()}</script>
</figure>"""


def _findings(figure: Figure) -> str:
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in figure.findings)


class _Drawn:
    """Final: a figure with its scales and the updates that are drawn."""

    def __init__(self, figure: Figure, runs: Sequence[Run]):
        self.figure, self.runs = figure, runs
        self.unit, places = axis(runs)
        self.lines = [line for panel in figure.panels for line in panel.lines]
        self.x = {run.place: values for run, values in zip(runs, places, strict=True)}
        self.kept = {run.place: kept(self._columns(run)) for run in runs if run.updates}
        self.scales = [_scale(panel) for panel in figure.panels]
        everywhere = np.concatenate(places)
        self.low, self.high = float(everywhere.min()), float(everywhere.max())
        if self.low == self.high:
            self.low, self.high = self.low - 1, self.high + 1

    def _columns(self, run: Run) -> list[np.ndarray]:
        return [self.x[run.place], *(part for line in self._of(run) for part in line.parts)]

    def _of(self, run: Run) -> list[Line]:
        return [line for line in self.lines if line.run is run]

    def _across(self, x: np.ndarray) -> np.ndarray:
        return (x - self.low) / (self.high - self.low)

    def panels(self) -> str:
        """All panels, top to bottom."""
        pairs = zip(self.figure.panels, self.scales, strict=True)
        return "".join(self._panel(panel, scale, place) for place, (panel, scale) in enumerate(pairs))

    def _panel(self, panel: Panel, scale: Scale, place: int) -> str:
        name = self.figure.anchor
        title = f'<div class="panel"><p class="unit" id="{name}-{place}">{html.escape(panel.title)}</p>'
        lanes = "".join(self._lane(lane) for lane in panel.lanes if lane.where.any())
        if not any(np.isfinite(line.values).any() for line in panel.lines):
            return f'{title}<div class="area none">no values<i class="cross"></i></div>{lanes}</div>'
        return f"{title}{self._axes(panel, scale, place)}{lanes}</div>"

    def _axes(self, panel: Panel, scale: Scale, place: int) -> str:
        name, height = self.figure.anchor, panel.height
        ticks = [(tick, (1 - float(scale.place(np.array(tick)))) * height) for tick in scale.ticks()]
        grid = "".join(f"M0 {y:.1f}H{WIDTH}" for _, y in ticks)
        labels = "".join(f'<span style="top:{y:.1f}px">{number(tick)}</span>' for tick, y in ticks)
        levels = "".join(_level(value, what, scale, height) for value, what in panel.levels)
        shapes = "".join(self._band(line, scale, height) for line in panel.lines)
        shapes += "".join(self._stroke(line, scale, height) for line in panel.lines)
        return f"""<div class="area" style="height:{height}px">
<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img" aria-labelledby="{name}-title {name}-{place}"
 aria-describedby="{name}-found"><path class="grid" d="{grid}"/>{shapes}</svg>
<div class="labels" aria-hidden="true">{labels}</div>{levels}{self._marks(panel, scale)}<i class="cross"></i></div>"""

    def _points(self, line: Line, values: np.ndarray, scale: Scale, height: int) -> tuple[np.ndarray, np.ndarray]:
        at = self.kept[line.run.place]
        x = self._across(self.x[line.run.place][at]) * WIDTH
        y = (1 - scale.place(values[at])) * height
        # An infinite value has no place; it is told of in its lane.
        return x, np.where(np.isfinite(values[at]), y, np.nan)

    def _stroke(self, line: Line, scale: Scale, height: int) -> str:
        if not line.run.updates:
            return ""
        x, y = self._points(line, line.values, scale, height)
        kind = "line thin" if line.thin else "line dense" if len(x) > DENSE else "line"
        stroke = (
            f'<path class="{kind}" stroke="var(--{line.colour})"{dashed(line.dash)} d="{path(x, y, line.joined)}"/>'
        )
        if line.joined and 2 * np.isfinite(y).sum() < len(y):
            # Where most of a line crosses gaps, dots tell what was measured.
            stroke += f'<path class="line dots" stroke="var(--{line.colour})" d="{dots(x, y)}"/>'
        return stroke

    def _band(self, line: Line, scale: Scale, height: int) -> str:
        if line.lower is None or line.upper is None or not line.run.updates:
            return ""
        x, bottom = self._points(line, line.lower, scale, height)
        _, top = self._points(line, line.upper, scale, height)
        shape = band(x, top, bottom, line.joined)
        return f'<path class="band" fill="var(--{line.colour})" stroke="var(--{line.colour})" d="{shape}"/>'

    def _marks(self, panel: Panel, scale: Scale) -> str:
        """The runs' letters at the ends of their lines."""
        ends = []
        for line in panel.lines:
            known = np.flatnonzero(np.isfinite(line.values))
            if line.run.mark and not line.thin and known.size:
                y = (1 - float(scale.place(line.values[known[-1]]))) * panel.height
                ends.append((y, float(self._across(self.x[line.run.place][known[-1]])), line))
        ends.sort(key=lambda end: end[:2])
        taken: list[tuple[float, float]] = []
        shown = []
        for y, x, line in ends:
            # Letters of lines that end together stand below one another.
            beside = [above for above, across in taken if abs(across - x) < 0.03]
            y = max([y, *(above + 14 for above in beside)])
            taken.append((y, x))
            shown.append(
                f'<span class="mark" style="top:{y:.1f}px;left:{100 * x:.2f}%;color:var(--{line.colour})">'
                f"{line.run.mark}</span>"
            )
        return f'<div aria-hidden="true">{"".join(shown)}</div>' if shown else ""

    def _lane(self, lane: Lane) -> str:
        x = np.unique(np.round(self._across(self.x[lane.run.place][lane.where]) * WIDTH, 1))
        ticks = "".join(f"M{place:g} 1V11" for place in x)
        label = f"{lane.run.mark} {lane.label}".strip()
        return (
            f'<div class="lane"><span>{html.escape(label)}</span><svg viewBox="0 0 {WIDTH} 12" '
            f'preserveAspectRatio="none" aria-hidden="true"><path class="line" stroke="var(--{lane.colour})" '
            f'd="{ticks}"/></svg><span class="count">{number(int(lane.where.sum()), 7)}</span></div>'
        )

    def ticks(self) -> str:
        """The labels of the horizontal axis."""
        found = even_ticks(self.low, self.high, 4)
        return "".join(
            f'<span style="left:{100 * float(self._across(np.array(tick))):.2f}%" aria-hidden="true">'
            f"{_short(tick)}</span>"
            for tick in found
        )

    def readout(self) -> str:
        """The legend, with the values of each run's last update; the page's script writes others there."""
        return "".join(self._reading(run) for run in self.runs)

    def _reading(self, run: Run) -> str:
        own = f"{swatch(run.colour, run.dash)}<b>{run.mark}</b> {html.escape(run.name)} " if run.mark else ""
        at = (
            f"update {number(run.number[-1], 7)}, {_short(self.x[run.place][-1])} steps" if run.updates else "no update"
        )
        items = "".join(_item(line, plain=bool(run.mark)) for line in self._of(run))
        return (
            f'<span class="run"><span class="head">{own}<span class="where">{at}</span> '
            f'<span class="flags"></span></span><span class="items">{items}</span></span>'
        )

    def note(self) -> str:
        """How much of the runs is drawn, where it is not all."""
        thinned = [(run, len(self.kept[run.place])) for run in self.runs if run.updates]
        return "".join(
            f'<p class="note">{run.mark} {number(drawn, 7)} of {number(run.updates, 7)} updates are drawn: of every '
            "stretch those with the least and the largest values, so that no extreme is lost.</p>"
            for run, drawn in thinned
            if drawn < run.updates
        )

    def table(self) -> str:
        """At most 50 updates of each run as tables that can be opened."""
        tables = "".join(self._table(run) for run in self.runs if run.updates)
        return f'<details><summary>Values</summary><div class="tables">{tables}</div></details>'

    def _table(self, run: Run) -> str:
        rows = np.unique(np.linspace(0, run.updates - 1, min(run.updates, 50)).round().astype(int))
        lines = self._of(run)
        heads = "".join(f'<th scope="col">{html.escape(line.label)}</th>' for line in lines)
        body = "".join(
            f'<tr><th scope="row">{number(run.number[at], 7)}</th><td>{number(self.x[run.place][at], 9)}</td>'
            + "".join(f"<td>{_shown(line, int(at))}</td>" for line in lines)
            + "</tr>"
            for at in rows
        )
        which = f"{len(rows)} of {number(run.updates, 7)} updates" if len(rows) < run.updates else "Every update"
        caption = f"{run.mark} {html.escape(run.name)}: {which}" if run.mark else which
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="Values {html.escape(run.mark)} of '
            f'{html.escape(self.figure.title)}"><table class="values"><caption>{caption}</caption><thead><tr>'
            f'<th scope="col">update</th><th scope="col">{self.unit}</th>{heads}</tr></thead><tbody>{body}</tbody>'
            "</table></div>"
        )

    def data(self) -> str:
        """What the page's script reads the values from."""
        scales = [[scale.low, scale.high, 0 if math.isinf(scale.linear) else scale.linear] for scale in self.scales]
        runs = [self._of_run(run) for run in self.runs if run.updates]
        text = json.dumps({"x": [self.low, self.high], "scales": scales, "runs": runs}, separators=(",", ":"))
        return text.replace("<", "\\u003c")

    def _of_run(self, run: Run) -> dict[str, Any]:
        at = self.kept[run.place]
        where = {id(line): place for place, panel in enumerate(self.figure.panels) for line in panel.lines}
        lanes = [lane for panel in self.figure.panels for lane in panel.lanes if lane.run is run]
        return {
            "row": self.runs.index(run),
            "x": self.x[run.place][at].tolist(),
            "update": run.number[at].tolist(),
            "lines": [
                {
                    "panel": where[id(line)],
                    "colour": line.colour,
                    "values": _compact(line.values[at]),
                    "lower": None if line.lower is None else _compact(line.lower[at]),
                    "upper": None if line.upper is None else _compact(line.upper[at]),
                }
                for line in self._of(run)
            ],
            "flags": {lane.label: np.flatnonzero(lane.where[at]).tolist() for lane in lanes},
        }


def _scale(panel: Panel) -> Scale:
    parts = [part for line in panel.lines for part in line.parts]
    levels = np.array([value for value, _ in panel.levels], np.float64)
    return fit(np.concatenate([levels, *parts]), wide=panel.wide)


def _level(value: float, what: str, scale: Scale, height: int) -> str:
    if not math.isfinite(value):
        return ""
    y = (1 - float(scale.place(np.array(value)))) * height
    return f'<div class="level" style="top:{y:.1f}px" aria-hidden="true"><span>{html.escape(what)}</span></div>'


def _compact(values: np.ndarray) -> list[float | str | None]:
    """Numbers with as many figures as are shown; null for NaN, text for what is infinite."""
    return [
        (float(round(value)) if 1e3 <= abs(value) < 1e7 else float(f"{value:.4g}"))
        if math.isfinite(value)
        else None
        if math.isnan(value)
        else number(value)
        for value in values.tolist()
    ]


def _item(line: Line, *, plain: bool) -> str:
    """A quantity in the legend with its last value; without a piece of its line where the run's stands for it."""
    shown = "" if plain and not line.thin else swatch(line.colour, line.dash, line.thin)
    value = _shown(line, -1) if line.run.updates else MISSING
    return f'<span class="item">{shown}{html.escape(line.label)} <b class="value">{value}</b></span> '


def _shown(line: Line, at: int) -> str:
    text = number(line.values[at], 4)
    if line.lower is not None and line.upper is not None and math.isfinite(line.lower[at]):
        text += f" ({number(line.lower[at], 4)} … {number(line.upper[at], 4)})"
    return text


def _short(value: float) -> str:
    """Steps with k and M for thousands and millions."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size, 4)}{unit}"
    return number(value, 4)
