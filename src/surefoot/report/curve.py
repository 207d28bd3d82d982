"""The learning-curve picture of a run."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np

from surefoot.errors import RunError, printable
from surefoot.files import write_atomically
from surefoot.history import History, read


def learning_curve(run: str | os.PathLike, file: str | os.PathLike | None = None) -> Path:
    """Draw a run: return with spread, KL against the radius with refusals marked, explained variance.

    Written to `file`, by default learning_curve.png in the run's folder. Raises RunError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    history = read(run)
    target = Path(file) if file is not None else history.path / "learning_curve.png"
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    returns, movement, critic = figure.subplots(3, 1, sharex=True, height_ratios=[2, 1, 1])
    steps = history.column("steps")
    _returns(returns, history, steps)
    _movement(movement, history, steps)
    critic.plot(steps, history.column("explained_variance"), color="tab:green", linewidth=1)
    critic.set(ylabel="explained variance", ylim=(-0.5, 1.05), xlabel="environment steps")
    for axes in (returns, movement, critic):
        axes.grid(alpha=0.25)
    settings = history.config
    title = "  ·  ".join(printable(settings.get(name))[:80] for name in ("environment", "rule"))
    # A name is no formula, whatever signs it has.
    returns.set_title(f"{title}  ·  seed {printable(settings.get('seed'))[:80]}", parse_math=False)
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs that the font lacks, and axes of one value
        try:
            figure.savefig(drawn, dpi=120, format="png")
        except (ValueError, ArithmeticError) as error:  # of numbers so far apart that no axis holds them
            raise RunError(f"{target} cannot be drawn from these metrics: {printable(error)}") from error
    write_atomically(target, drawn.getvalue())
    return target


def _returns(axes, history: History, steps: np.ndarray) -> None:
    mean, std = history.column("return_mean"), history.column("return_std")
    known = np.isfinite(mean)
    axes.plot(steps[known], mean[known], color="tab:blue", linewidth=1.2, label="mean of the episodes that ended")
    band = (mean - std)[known], (mean + std)[known]
    axes.fill_between(steps[known], *band, color="tab:blue", alpha=0.2, linewidth=0, label="± 1 standard deviation")
    if history.evaluations:
        evaluated, score = (history.evaluated(key) for key in ("steps", "mean"))
        axes.plot(evaluated, score, "o-", color="tab:orange", linewidth=1, markersize=3, label="evaluations, mean")
    axes.set_ylabel("return")
    axes.legend(loc="best", frameon=False, fontsize=8)


def _movement(axes, history: History, steps: np.ndarray) -> None:
    kl, accepted = history.column("kl"), history.column("accepted") > 0
    axes.plot(steps, kl, color="tab:orange", linewidth=1, label="KL(old‖new)")
    radius = history.column("radius")
    if history.config.get("trust_region") == "kl":
        axes.plot(steps, radius, color="black", linewidth=0.8, linestyle="--", label="radius")
    if not accepted.all():
        refused = steps[~accepted]
        axes.plot(refused, np.zeros_like(refused), "x", color="tab:red", markersize=4, label="refused")
    axes.set(ylabel="KL (nats)", ylim=(0, None))
    axes.legend(loc="best", frameon=False, fontsize=8)
