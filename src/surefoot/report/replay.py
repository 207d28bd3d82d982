"""The picture of several rules' steps on one batch."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surefoot.errors import RunError, printable
from surefoot.files import write_atomically
from surefoot.report.study import colours


class Trace(NamedTuple):
    """KL and surrogate gain along the line of a rule's step.

    Attributes:
        name: the rule's.
        kl: mean KL(old || new) at each place, nats, [places].
        gain: surrogate gain at each, in reward units, [places].
        whole: the place of the step as it was taken.
        radius: of the rule's trust region, nats; None for one that has none in nats.
    """

    name: str
    kl: np.ndarray
    gain: np.ndarray
    whole: int
    radius: float | None

    def along(self) -> dict[str, list[float]]:
        """Both as JSON has them."""
        return {"kl": np.asarray(self.kl, float).tolist(), "gain": np.asarray(self.gain, float).tolist()}


def replay_picture(
    title: str, traces: Sequence[Trace], names: Sequence[str], cosine: np.ndarray, fisher_cosine: np.ndarray, file: Path
) -> None:
    """Draw KL against surrogate gain along every step, and the cosines between the steps, as PNG.

    Arguments:
        title: what it is of.
        traces: of the steps that were taken.
        names: of all steps, in the order of the matrices.
        cosine, fisher_cosine: between them, [steps, steps]; NaN where there is none.
        file: where it is written.

    Raises RunError for numbers that no axis holds, or where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    paths, angles = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.suptitle(printable(title)[:160], parse_math=False, fontsize=12)  # a name is no formula
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that the font lacks, and axes of one value
        try:
            _paths(paths, traces, dict(zip(names, colours(len(names)), strict=True)))
            _angles(angles, names, cosine, fisher_cosine)
            figure.savefig(drawn, dpi=120, format="png")
        except (ValueError, ArithmeticError) as error:  # of numbers so far apart that no axis holds them
            raise RunError(f"{file} cannot be drawn from these steps: {printable(error)}") from error
    write_atomically(file, drawn.getvalue())


def _paths(axes, traces: Sequence[Trace], colour: dict) -> None:
    from matplotlib.ticker import FixedLocator

    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    radii = sorted({trace.radius for trace in traces if trace.radius is not None})
    limit = 1.6 * (max([*(float(trace.kl[trace.whole]) for trace in traces), *radii], default=0.0) or 1.0)
    for number, trace in enumerate(traces):
        # What lies below is seen on both sides.
        style = {"color": colour[trace.name], "linewidth": max(3.4 - 0.4 * number, 1.2)}
        dot = {"markersize": max(13 - 1.4 * number, 5), "markeredgecolor": "white", "markeredgewidth": 0.6}
        # Rounding makes some KL of next to nothing negative.
        kl, end = np.maximum(np.asarray(trace.kl, float), 0), trace.whole
        beyond = slice(end, max(int(np.searchsorted(kl, limit)), end + 1))
        axes.plot(kl[: end + 1], trace.gain[: end + 1], **style)
        axes.plot(kl[beyond], trace.gain[beyond], **style, linestyle=":")
        axes.plot(kl[end], trace.gain[end], "o", color=colour[trace.name], label=printable(trace.name), **dot)
    for radius in radii:
        axes.axvline(radius, color="black", linewidth=0.8, linestyle="--", label=f"radius {radius:g}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlim(0, limit)
    axes.xaxis.set_major_locator(FixedLocator([0.0, *_round_numbers(limit)]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="mean KL(old‖new), nats, as its square root", ylabel="surrogate gain, reward units")
    axes.set_title("each step scaled from 0 to 1.5; the dot is the step taken", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if traces:
        axes.legend(frameon=False, fontsize=9)


def _round_numbers(most: float) -> list[float]:
    """The ones, twos and fives of decades up to `most`, as far down as the axis of square roots tells them apart."""
    decade = math.floor(math.log10(most))
    found = [digit * 10.0**power for power in (decade - 2, decade - 1, decade) for digit in (1, 2, 5)]
    return [number for number in found if most / 50 < number <= most]


def _angles(axes, names: Sequence[str], cosine: np.ndarray, fisher_cosine: np.ndarray) -> None:
    shown = np.tril(cosine, -1) + np.triu(fisher_cosine, 1)
    np.fill_diagonal(shown, np.nan)
    axes.imshow(shown, vmin=-1, vmax=1, cmap="RdBu")
    for (row, column), value in np.ndenumerate(shown):
        if row != column:
            text = "\N{EN DASH}" if np.isnan(value) else f"{value:.2f}"
            ink = "white" if abs(value) > 0.7 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)
    labels = [printable(name) for name in names]
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axes.set_title(
        "cosines between the steps: below the diagonal in the parameters,\nabove it in the Fisher metric", fontsize=9
    )
    axes.spines[:].set_visible(False)
