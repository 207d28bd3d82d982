"""The picture of a study: learning curves by setting, and what each setting came to."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import RunError, printable
from surefoot.files import write_atomically
from surefoot.report.curves import curves_of, finished, shown_rows
from surefoot.study_record import Row, StudyRecord, described, read_study

_DISTINCT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's colours, which people who see colours differently tell apart."""


def study_picture(study: str | os.PathLike, file: str | os.PathLike | None = None) -> Path:
    """Draw a study: learning curves over its finished seeds by setting, and each setting's final return.

    Written to `file`, by default study.png in the study's folder. Raises RunError where there is no study that can be
    read, or the file cannot be written.
    """
    record = read_study(study)
    target = Path(file) if file is not None else record.path / "study.png"
    write_atomically(target, drawn(record, target))
    return target


def drawn(record: StudyRecord, what: object) -> bytes:
    """The picture as PNG. Raises RunError, which names `what`, for numbers that no axis holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = shown_rows(record)
    figure = Figure(figsize=(11, max(4.6, 1.9 + 0.34 * len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    curves, finals = figure.subplots(1, 2, width_ratios=[3, 2])
    chosen = colours(len(rows))
    for row, colour in zip(rows, chosen, strict=True):
        _curve(curves, record, row, colour)
    _finals(finals, record, rows, chosen)
    for axes in (curves, finals):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _titles(figure, curves, finals, record, rows)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that the font lacks, and axes of one value
        try:
            figure.savefig(buffer, dpi=120, format="png")
        except (ValueError, ArithmeticError) as error:  # of numbers so far apart that no axis holds them
            raise RunError(f"{what} cannot be drawn from these runs: {printable(error)}") from error
    return buffer.getvalue()


def _titles(figure: Any, curves: Any, finals: Any, record: StudyRecord, rows: Sequence[Row]) -> None:
    seeds = max((row.finished for row in rows), default=0)
    told = f"{record.environment}  ·  {record.rule}  ·  {seeds} seed{'' if seeds == 1 else 's'}"
    if len(rows) < len(record.rows):
        told += f"  ·  {len(rows)} of {len(record.rows)} settings"
    # A name is no formula, whatever signs it has.
    figure.suptitle(printable(told)[:160], parse_math=False, fontsize=12)
    curves.set_title("training return: interquartile mean over seeds,\nband from quartile to quartile", fontsize=9)
    curves.set(xlabel="environment steps", ylabel="return")
    kinds = sorted({row.statistic for row in rows}) or ["no run is finished"]
    with_interval = any(row.lower is not None for row in rows)
    finals.set_title(
        f"final evaluation: {' or '.join(kinds)}"
        + (" with 95% interval" if with_interval else "")
        + "\ndots are seeds",
        fontsize=9,
    )
    finals.set_xlabel("return")


def colours(count: int) -> list[Any]:
    """So many colours that are told apart."""
    if count <= len(_DISTINCT):
        return list(_DISTINCT[:count])
    from matplotlib import colormaps

    return [colormaps["turbo"](place) for place in np.linspace(0.03, 0.95, count)]


def _curve(axes: Any, record: StudyRecord, row: Row, colour: Any) -> None:
    curves = curves_of(record, finished(record, row))
    if curves is None:
        return
    axes.plot(curves.steps, curves.returns.middle, color=colour, linewidth=1.4)
    if curves.runs > 1:
        spread = curves.returns
        axes.fill_between(curves.steps, spread.lower, spread.upper, color=colour, alpha=0.15, linewidth=0)


def _finals(axes: Any, record: StudyRecord, rows: Sequence[Row], colours: Sequence[Any]) -> None:
    """One line a setting; its name beside it in its colour is the legend of both halves."""
    for height, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        seeds = [member.score for member in finished(record, row)]
        # Seeds that came to the same return lie beside one another.
        spread = np.linspace(-0.16, 0.16, len(seeds)) if len(seeds) > 1 else [0.0]
        axes.plot(seeds, height + np.asarray(spread), "o", color=colour, alpha=0.35, markersize=3.5, markeredgewidth=0)
        if row.lower is not None and row.upper is not None:
            axes.plot([row.lower, row.upper], [height, height], color=colour, linewidth=2.6, solid_capstyle="butt")
        axes.plot([row.value], [height], "D", color=colour, markersize=6.5, markeredgecolor="white")
    axes.set_yticks(range(len(rows)))
    labels = axes.set_yticklabels([described(row.values)[:60] for row in rows], parse_math=False)
    for label, colour in zip(labels, colours, strict=True):
        label.set_color(colour)
        label.set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
