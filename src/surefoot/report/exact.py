"""The picture of `surefoot exact`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.errors import printable
from surefoot.reading import read_json


def picture(folder: str | os.PathLike) -> Path:
    """Draw exact.json of a folder: return towards the best, gain against its surrogate and best bound, KL.

    Written to exact.png in the folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder = Path(folder)
    result = {name: _numbers(value) for name, value in read_json(folder / "exact.json").items()}
    settings = read_json(folder / "config.json")
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    returns, gains, movement = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 1])
    update = np.arange(len(result["return"]))
    returns.plot(update, result["return"], color="tab:blue", marker=".", label="return")
    returns.axhline(result["optimal_return"], color="black", linewidth=0.8, linestyle="--", label="best possible")
    returns.set(ylabel="return J")
    _gains(gains, update[1:], result)
    movement.plot(update[1:], result["kl"], color="tab:orange", marker=".", label="KL(old‖new)")
    radius = settings["settings"].get("radius")
    if settings["trust_region"] == "kl" and settings["settings"].get("eta") is None:
        movement.axhline(radius, color="black", linewidth=0.8, linestyle="--", label="radius")
    if not np.isfinite(result["kl"]).all():
        endless = update[1:][~np.isfinite(result["kl"])]
        movement.plot(endless, np.zeros_like(endless), "^", color="tab:orange", label="infinite")
    movement.set(ylabel="KL (nats)", xlabel="update", ylim=(0, None))
    for axes in (returns, gains, movement):
        axes.grid(alpha=0.25)
        axes.legend(loc="best", frameon=False, fontsize=8)
    horizon = f", horizon {settings['horizon']}" if settings["horizon"] else ""
    discounted = f"discount {settings['discount']:g}{horizon}"
    title = f"{printable(settings['mdp'])[-80:]}  ·  {settings['rule']}  ·  {discounted}  ·  exact"
    returns.set_title(title, parse_math=False)  # a file's name is no formula
    target = folder / "exact.png"
    figure.savefig(target, dpi=120, format="png")
    return target


def _gains(axes: Any, update: np.ndarray, result: dict[str, Any]) -> None:
    axes.plot(update, result["surrogate_gain"], color="tab:green", marker=".", label="surrogate gain")
    axes.plot(update, result["gain"], color="tab:blue", marker=".", label="true gain")
    bound = np.where(np.isfinite(result["best_bound"]), result["best_bound"], np.nan)
    axes.plot(update, bound, color="tab:red", marker=".", label="best lower bound")
    axes.axhline(0, color="black", linewidth=0.6)
    largest = np.max(np.abs([*result["surrogate_gain"], *result["gain"]]), initial=0)
    # A vacuous bound lies orders of magnitude below: the scale is linear where the gains are.
    axes.set_yscale("symlog", linthresh=10 ** np.ceil(np.log10(max(largest, 1e-12))), linscale=2)
    axes.set(ylabel="change of return")


def _numbers(value: Any) -> Any:
    return np.array([float(item) for item in value]) if isinstance(value, list) else float(value)
