"""What the scoreboard's rows come to, as JSON, as a page and as learning curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from published import (
    BEST,
    DIFFERENCES,
    RANDOM,
    ROWS,
    TARGETS,
    TASKS,
    TENTH_OF_THE_TIME,
    VERSION,
    WORST_OVER_MEAN,
    normalised,
)

from surefoot.errors import RunError
from surefoot.files import make_folder, write_atomically
from surefoot.scores import interquartile_mean

Row = dict[str, Any]
MISSING = "\N{EN DASH}"
BY_HAND = "## What was tried"
"""From this heading on the page is written by hand, and kept."""


def tell(rows: Sequence[Row]) -> dict[str, Any]:
    """What the newest set of surefoot's rows comes to (those of the longest runs whose version and settings are those
    of the last such row), beside what was published and beside the peers that were run.

    Raises RunError where there are no rows of surefoot.
    """
    chosen = newest(rows)
    tasks = {task: told_of(task, own) for task in TASKS if (own := [row for row in chosen if row["task"] == task])}
    return {
        "version": chosen[-1]["version"],
        "steps": chosen[-1]["steps"],
        "settings": chosen[-1]["settings"],
        "tasks": tasks,
        "interquartile_mean": {point: over_tasks({k: v[point]["mean"] for k, v in tasks.items()}) for point in POINTS},
        "published": [
            {
                "name": row.name,
                "point": row.point,
                "tasks": len(row.mean),
                "interquartile_mean": over_tasks(row.mean),
                "ours_on_these": over_tasks({k: v[row.point]["mean"] for k, v in tasks.items() if k in row.mean}),
            }
            for row in ROWS
        ],
        "below_halfway": [f"{task}, seed {seed}" for task, told in tasks.items() for seed in told["below_halfway"]],
        "peers": beside_peers(rows, chosen),
    }


POINTS = ("final", "best")


def newest(rows: Sequence[Row], steps: int | None = None) -> list[Row]:
    """surefoot's rows of the newest version and settings among its runs of so many steps, the longest by default."""
    own = [row for row in rows if row["peer"] is None]
    if not own:
        raise RunError("there are no rows of surefoot; make some first: python benchmarks/scoreboard.py")
    steps = steps or max(row["steps"] for row in own)
    own = [row for row in own if row["steps"] == steps]
    return [row for row in own if (row["version"], row["settings"]) == (own[-1]["version"], own[-1]["settings"])]


def told_of(task: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What the seeds of one task come to."""
    finals = {row["seed"]: row["final"]["mean"] for row in sorted(rows, key=lambda row: row["seed"])}
    values = np.array(list(finals.values()))
    places, curves = curve(rows)
    best = int(np.argmax(curves.mean(axis=0)))
    halfway = {row["seed"]: value for row in rows if (value := at_halfway(row)) is not None}
    mean, worst = float(values.mean()), float(values.min())
    known = [row["seconds_in_all"] for row in rows if row["seconds_in_all"] is not None]
    return {
        "seeds": finals,
        "final": {"mean": mean, "std": float(values.std())},
        "best": {
            "mean": float(curves[:, best].mean()),
            "std": float(curves[:, best].std()),
            "steps": int(places[best]),
        },
        "worst": worst,
        "worst_over_mean": share(task, worst, mean),
        "below_halfway": [seed for seed, value in halfway.items() if finals[seed] < value],
        "target": TARGETS[task],
        "reached": mean >= TARGETS[task],
        "best_published": BEST[task],
        "above_best_published": mean > BEST[task],
        "cores": sorted({row["cores"] for row in rows}),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "seconds_in_all": float(np.mean(known)) if known else None,
    }


def share(task: str, worst: float, mean: float) -> float | None:
    """The worst seed over the mean; where good returns are negative, of what either has over random actions. None
    where the mean is no gain over nothing."""
    nothing = 0.0 if BEST[task] > 0 else RANDOM[task]
    return (worst - nothing) / (mean - nothing) if mean > nothing else None


def curve(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [points] and mean returns [seeds, points] at the evaluations that every seed has, the final one last."""
    every, steps = rows[-1]["settings"]["evaluate_every"], rows[-1]["steps"]
    each = [
        {min(point["steps"] // every * every, steps): point["mean"] for point in row["evaluations"]}
        | {steps: row["final"]["mean"]}
        for row in rows
    ]
    places = sorted(set.intersection(*map(set, each)))
    return np.array(places), np.array([[one[place] for place in places] for one in each])


def at_halfway(row: Row) -> float | None:
    """The first evaluation from half of the steps on; None where there was none before the end."""
    later = [point["mean"] for point in row["evaluations"] if row["steps"] / 2 <= point["steps"] < row["steps"]]
    return later[0] if later else None


def over_tasks(means: dict[str, float]) -> float | None:
    """The interquartile mean over tasks of normalised returns; None without tasks."""
    scores = np.array([normalised(task, mean) for task, mean in means.items()])
    return float(interquartile_mean(scores)) if scores.size else None


def beside_peers(rows: Sequence[Row], chosen: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns and times of each peer's newest rows, by task, and of surefoot's of as many steps and the same seeds."""
    told = []
    for peer, task in sorted({(row["peer"], row["task"]) for row in rows if row["peer"]}):
        theirs = [row for row in rows if (row["peer"], row["task"]) == (peer, task)]
        theirs = [
            row for row in theirs if (row["version"], row["steps"]) == (theirs[-1]["version"], theirs[-1]["steps"])
        ]
        steps, seeds = theirs[-1]["steps"], {row["seed"] for row in theirs}
        same = [row for row in rows if row["peer"] is None and row["steps"] == steps]
        own = [row for row in (newest(same, steps) if same else []) if row["task"] == task and row["seed"] in seeds]
        whole = [row["seconds"] for row in chosen if row["task"] == task]
        seconds = float(np.mean([row["seconds"] for row in theirs]))
        told.append(
            {
                "peer": peer,
                "version": theirs[-1]["version"],
                "task": task,
                "steps": steps,
                "seeds": sorted(seeds),
                "return": float(np.mean([row["final"]["mean"] for row in theirs])),
                "seconds": seconds,
                "our_return": float(np.mean([row["final"]["mean"] for row in own])) if own else None,
                "our_seconds": float(np.mean([row["seconds"] for row in own])) if own else None,
                # Of all our steps, against theirs extrapolated to as many.
                "our_share_of_time": float(np.mean(whole)) / (seconds * chosen[-1]["steps"] / steps) if whole else None,
            }
        )
    return told


def write_page(rows: Sequence[Row], results: Path) -> Path:
    """Write scoreboard.md beside the results file, and images/scoreboard.png. Raises RunError."""
    page = results.parent / "scoreboard.md"
    kept = page.read_text(encoding="utf-8").partition(BY_HAND)[2] if page.exists() else "\n\nNothing is written yet.\n"
    told = tell(rows)
    make_folder(results.parent / "images")
    write_atomically(results.parent / "images" / "scoreboard.png", picture(newest(rows), told))
    write_atomically(page, (text(told, results.name) + BY_HAND + kept).encode())
    return page


def text(told: dict[str, Any], results: str) -> str:
    """The page but for what is written by hand."""
    tasks, steps = told["tasks"], told["steps"]
    seeds = sorted({int(seed) for one in tasks.values() for seed in one["seeds"]})
    rule = told["settings"]["rule"]
    sections = [
        f"""# The scoreboard

Written by `python benchmarks/scoreboard.py --page` from [{results}]({results}): surefoot {told["version"]},
rule {rule}, one set of settings for all tasks (each row has them), {steps:,} steps, seeds {", ".join(map(str, seeds))}.
Every return is of {told["settings"]["evaluation_episodes"]} deterministic episodes of Gymnasium's own {VERSION} task;
± is the standard deviation over seeds. *Final* is after the last step; *best* is the highest point of the curve of
means over seeds, as tianshou publishes it: the largest of some twenty noisy numbers, so it flatters.

![Learning curves of the nine tasks](images/scoreboard.png)
""",
        "## Beside what was published\n\n"
        + table(["", *TASKS], [*(_ours(point, tasks) for point in POINTS), *(_published(row) for row in ROWS)])
        + "\nSources, and what they played:\n\n"
        + "".join(f"- {name}: {played} ({source})\n" for name, played, source in _sources())
        + f"\nWhat changed in the tasks until {VERSION}:\n\n"
        + "".join(f"- {line}\n" for line in DIFFERENCES),
        "## Targets, spread and time\n\n"
        + table(
            ["task", "final", "target", "reached", "best published", "above it", "worst seed", "worst over mean",
             "below their halfway point", "cores of a run", "training, s", "with evaluations, s"],
            [_targets(task, one) for task, one in tasks.items()],
        )
        + f"""
Worst over mean is to be at least {WORST_OVER_MEAN:g}; for Reacher, whose returns are negative, both are measured from
the return of random actions. {_fallen(told["below_halfway"], sum(len(one["seeds"]) for one in tasks.values()))}
""",
        """## All tasks in one figure

The interquartile mean over tasks of (return - random) / (best published - random), where random is the mean return of
uniformly random actions, measured on these tasks over 100 episodes, and best published the largest figure of the table
above. A row that lacks tasks is compared on those it has.

"""
        + table(
            ["row", "tasks", "its interquartile mean", "surefoot's on the same tasks", "surefoot above it"],
            [
                [f"{row['name']}, {row['point']}", row["tasks"], _number(row["interquartile_mean"], 3),
                 _number(row["ours_on_these"], 3), _above(row)]
                for row in told["published"]
            ],
        )
        + f"\nsurefoot over the {len(tasks)} tasks: {_number(told['interquartile_mean']['final'], 3)} final, "
        f"{_number(told['interquartile_mean']['best'], 3)} best.\n",
    ]  # fmt: skip
    if told["peers"]:
        sections.append(_side_by_side(told["peers"], steps))
    return "\n".join(sections) + "\n"


def table(heads: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return MISSING
    return f"{value:.{(1 if abs(value) < 100 else 0) if digits is None else digits}f}"


def _yes(truth: bool) -> str:
    return "yes" if truth else "**no**"


def _ours(point: str, tasks: dict[str, Any]) -> list[str]:
    cells = [
        f"{_number(tasks[task][point]['mean'])} ± {_number(tasks[task][point]['std'])}" if task in tasks else MISSING
        for task in TASKS
    ]
    return [f"**surefoot**, {point}", *cells]


def _published(row: Any) -> list[str]:
    cells = [
        f"{row.mean[task]:g}" + (f" ± {row.spread[task]:g}" if task in row.spread else "")
        if task in row.mean
        else MISSING
        for task in TASKS
    ]
    return [f"{row.name}, {row.point}", *cells]


def _sources() -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row.name, row.played, row.source) for row in ROWS))


def _targets(task: str, told: dict[str, Any]) -> list[str]:
    below = told["below_halfway"]
    return [
        task,
        f"{_number(told['final']['mean'])} ± {_number(told['final']['std'])}",
        _number(told["target"]),
        _yes(told["reached"]),
        _number(told["best_published"]),
        _yes(told["above_best_published"]),
        _number(told["worst"]),
        _worst(told["worst_over_mean"]),
        f"{len(below)} (seed {', '.join(map(str, below))})" if below else "none",
        " or ".join(map(str, told["cores"])),
        _number(told["seconds"], 0),
        _number(told["seconds_in_all"], 0),
    ]  # fmt: skip


def _worst(part: float | None) -> str:
    text = _number(part, 2)
    return text if part is not None and part >= WORST_OVER_MEAN else f"**{text}**"


def _fallen(below: Sequence[str], runs: int) -> str:
    if not below:
        return f"None of the {runs} runs ends below its halfway point."
    return f"{len(below)} of the {runs} runs end below their halfway point: {'; '.join(below)}."


def _above(row: dict[str, Any]) -> str:
    ours = row["ours_on_these"]
    return MISSING if ours is None else _yes(ours > row["interquartile_mean"])


def _side_by_side(peers: Sequence[dict[str, Any]], steps: int) -> str:
    heads = ["task", "peer", "steps", "seeds", "its return", "surefoot's", "its seconds", "surefoot's",
             f"surefoot's {steps:,} steps over its time for as many"]  # fmt: skip
    rows = [
        [one["task"], f"{one['peer']} {one['version']}", f"{one['steps']:,}", ", ".join(map(str, one["seeds"])),
         _number(one["return"]), _number(one["our_return"]), _number(one["seconds"]), _number(one["our_seconds"]),
         _number(one["our_share_of_time"], 3)]
        for one in peers
    ]  # fmt: skip
    return f"""## Peers on the same machine

`python benchmarks/scoreboard.py --peer sb3-trpo` (and `sb3-ppo`): the same tasks and the same evaluation, the runs of
surefoot and of the peer in turns. sb3-contrib's TRPO has its zoo settings, Stable-Baselines3's PPO its own
(`benchmarks/peers.py`). Times are of training alone, returns means over seeds. The last column extrapolates the peer's
time; on HalfCheetah, against sb3-trpo, it is to be at most {TENTH_OF_THE_TIME:g}.

""" + table(heads, rows)


def picture(rows: Sequence[Row], told: dict[str, Any]) -> bytes:
    """Learning curves of all tasks: each seed, their mean and spread, the target and the best published figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    every_axes = figure.subplots(3, 3).flat
    for axes, task in zip(every_axes, TASKS, strict=True):
        own = [row for row in rows if row["task"] == task]
        if own:
            steps, curves = curve(own)
            mean, spread = curves.mean(axis=0), curves.std(axis=0)
            axes.plot(steps, curves.T, color="tab:blue", linewidth=0.5, alpha=0.5)
            axes.fill_between(steps, mean - spread, mean + spread, color="tab:blue", alpha=0.2, linewidth=0)
            axes.plot(steps, mean, color="tab:blue", linewidth=1.8, label="mean ± standard deviation, and seeds")
        axes.axhline(TARGETS[task], color="tab:green", linestyle="--", linewidth=1, label="target")
        axes.axhline(BEST[task], color="black", linestyle=":", linewidth=1, label="best published")
        axes.set_title(f"{task}-{VERSION}", fontsize=10)
        axes.grid(alpha=0.25)
    most = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    figure.legend(*most.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel("environment steps", fontsize=10)
    figure.supylabel("return of deterministic episodes", fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    return drawn.getvalue()
