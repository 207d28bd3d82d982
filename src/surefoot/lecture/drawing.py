"""From a matplotlib figure to an SVG that belongs to a page: its colours, its text, no identifier of its own."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from surefoot.lecture.statement import number

INK = "#22262e"
FAINT = "#8a8f99"
COLOURS = {
    "blue": "#2a62b8",
    "orange": "#c05a10",
    "green": "#2b7f4d",
    "red": "#c22f3d",
    "violet": "#7b4bb3",
    "teal": "#0f7a86",
}
"""Line colours. In the SVG each is a variable of the page, so that a dark page can have lighter ones."""

_VARIABLES = {INK: "ink", FAINT: "faint", **{value: name for name, value in COLOURS.items()}}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "surefoot",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "path.simplify": True,
}


class Sheet:
    """Final: a matplotlib figure that becomes SVG when it is done.

    Attributes:
        axes: as many as were asked for, in one row.
        svg: the finished picture; empty before.
    """

    def __init__(self, figure: Any, axes: list[Any]):
        self.axes, self.svg = axes, ""
        self._figure = figure

    def finish(self, name: str, alternative: str) -> None:
        """Set `svg`, with `alternative` as what is read to those who do not see it."""
        buffer = io.StringIO()
        self._figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        self.svg = inline(buffer.getvalue(), name, alternative)


@contextmanager
def sheet(name: str, alternative: str, *, panels: int = 1, height: float = 3.4) -> Iterator[Sheet]:
    """A sheet to draw on, `panels` axes side by side; its SVG is ready when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        drawn = Sheet(figure, list(np.atleast_1d(figure.subplots(1, panels))))
        yield drawn
        drawn.finish(name, alternative)


def inline(svg: str, name: str, alternative: str) -> str:
    """An SVG file's text as an element of a page.

    Without the file's head, its global style (which would reach the whole page) and addresses; identifiers
    begin with `name`, so that those of two figures cannot meet; colours are variables.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    title = html.escape(alternative)
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{title}"><title>{title}</title>'
    body = head + body[body.index(">") + 1 :].replace("xlink:href", "href")
    used = set(re.findall(r"#([A-Za-z][\w.-]*)", " ".join(re.findall(r'(?:href="|url\()#[^")]+', body))))
    body = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{name}-\2", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    # Hundredths of a point are enough for shapes; text between tags stays as it is.
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), body)
    return re.sub(r"\s*\n\s*", "\n", body).strip()


def powers(axis: Any) -> None:
    """Label a logarithmic axis with powers of ten in plain text."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def label(value: float, _: Any) -> str:
        return "0" if value == 0 else number(value, 2)

    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())
