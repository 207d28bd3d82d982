"""What an update costs as its batch, its parameters and the policies updated at once grow.

    python benchmarks/scaling.py [--out docs] [--json] [--quick]
    python benchmarks/scaling.py --point largest

Every point is a process of its own: a Gaussian policy of two hidden layers on HalfCheetah's sizes, 17 observed
numbers and 6 actions. Timed in turn, so that a drifting machine harms all alike, and the fastest of the repetitions
told: the gradient of the surrogate and the Fisher product on the same rows, both on the whole batch and in chunks,
each a fifth of a program of five (the product's linearisation included), and a whole TRPO update with its defaults.

Memory is that of the compiled programs as XLA accounts for it: arguments, results and temporaries. Beside it stands
by how much the peak of the process grew after its imports, compilation included, as the operating system tells it.
The largest point, a single chunked product, is judged by the peak of its whole process.

`--out` writes scaling.md, scaling.csv and scaling.png.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot import config
from surefoot.batch import Batch, sampled_batch
from surefoot.geometry import fisher_operator, surrogate_gradient
from surefoot.policy import NeuralPolicy, flatten, make_policy
from surefoot.rules import TRPO
from surefoot.settings import dumps

OBSERVED, ACTIONS = 17, 6
PRODUCTS = 5
CHUNK = 512
LIMIT_GIB = 8.0
SECONDS = 10.0  # of repetitions a point, of which there are two at least
AXES = {"batch": "rows", "parameters": "parameters", "lanes": "lanes"}
KINDS = {"": "whole batch", "chunked_": f"chunks of {CHUNK}"}


@dataclass(frozen=True)
class Point:
    """One size of a problem; `lanes` policies with a batch of `rows` each."""

    axis: str
    rows: int = 2048
    width: int = 64
    lanes: int = 1


LARGEST = Point("largest", rows=1_000_000, width=988)
# The widths give 1e4, 1e5, 1e6 and 1e7 parameters to within one in a hundred.
POINTS = {
    **{f"batch:{rows}": Point("batch", rows=rows) for rows in (1_000, 10_000, 100_000, 1_000_000)},
    **{f"parameters:{width}": Point("parameters", width=width) for width in (88, 305, 988, 3149)},
    **{f"lanes:{lanes}": Point("lanes", lanes=lanes) for lanes in (1, 4, 16, 64)},
    "largest": LARGEST,
}
QUICK = ("batch:1000", "batch:10000", "parameters:88", "parameters:305", "lanes:1", "lanes:4")


def problem(point: Point) -> tuple[NeuralPolicy, Batch, Any]:
    """Policies, their batches and a direction each; with a leading axis of lanes where lanes are what grows."""
    box = spaces.Box(-np.inf, np.inf, (OBSERVED,)), spaces.Box(-1, 1, (ACTIONS,))
    initial = make_policy(*box, config.Network(hidden=(point.width, point.width)), jax.random.key(0))

    def lane(key: Any) -> tuple[NeuralPolicy, Batch, Any]:
        shift, rows, actions, noise, direction = jax.random.split(key, 5)
        theta, rebuild = flatten(initial)
        policy = rebuild(theta + 0.01 * jax.random.normal(shift, theta.shape))
        observation = jax.random.normal(rows, (point.rows, OBSERVED))
        # The hidden layers of a million rows at once would be the peak of the process.
        old = jax.lax.map(policy, observation, batch_size=min(point.rows, 1000))
        action = old.sample(actions)
        advantage = jnp.tanh(observation[:, 0] + action[:, 0]) + jax.random.normal(noise, (point.rows,))
        batch = sampled_batch(observation, None, action, advantage, old, jnp.ones(point.rows))
        return policy, batch, jax.random.normal(direction, theta.shape)

    keys = jax.random.split(jax.random.key(1), point.lanes)
    made: Any = jax.jit(jax.vmap(lane))(keys) if point.axis == "lanes" else jax.jit(lane)(keys[0])
    return made


def programs(point: Point, arguments: Any) -> dict[str, Any]:
    """The compiled programs by name, the sizes of their arguments fixed."""

    def gradients(chunk: int) -> Callable:
        def run(policy: NeuralPolicy, batch: Batch, v: Any) -> Any:
            theta, rebuild = flatten(policy)
            step = lambda _, v: v + 1e-9 * surrogate_gradient(rebuild(theta + 1e-9 * v), batch, chunk=chunk)  # noqa: E731
            return jax.lax.fori_loop(0, PRODUCTS, step, v)

        return run

    def products(chunk: int) -> Callable:
        def run(policy: NeuralPolicy, batch: Batch, v: Any) -> Any:
            operator = fisher_operator(policy, batch, chunk=chunk)
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: v + 1e-9 * operator(v), v)

        return run

    def update(policy: NeuralPolicy, batch: Batch, v: Any) -> Any:
        rule = TRPO()
        return rule.update(policy, rule.init(policy), batch, jax.random.key(2))[0]

    def largest(policy: NeuralPolicy, batch: Batch, v: Any) -> Any:
        return fisher_operator(policy, batch, chunk=CHUNK)(v)

    wanted = {
        "gradient": gradients(0),
        "product": products(0),
        "chunked_gradient": gradients(CHUNK),
        "chunked_product": products(CHUNK),
        "update": update,
    }
    if point == LARGEST:
        wanted = {"chunked_product": largest}
    over: Callable = jax.vmap if point.axis == "lanes" else lambda run: run
    return {name: jax.jit(over(run)).lower(*arguments).compile() for name, run in wanted.items()}


def peak_mib() -> float:
    """The peak resident memory of this process until now; its unit is the kibibyte on Linux, the byte on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def fastest(compiled: dict[str, Any], arguments: Any, seconds: float) -> dict[str, float]:
    spent: dict[str, float] = {}
    for function in compiled.values():
        jax.block_until_ready(function(*arguments))
    begun, repetitions = time.perf_counter(), 0
    while repetitions < 2 or time.perf_counter() - begun < seconds:
        for name, function in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            spent[name] = min(spent.get(name, np.inf), time.perf_counter() - started)
        repetitions += 1
    return spent


def measured(point: Point, seconds: float) -> dict[str, Any]:
    """The row of one point, measured in this process."""
    imported = peak_mib()
    arguments = problem(point)
    size = flatten(arguments[0])[0].size // point.lanes
    row: dict[str, Any] = {"axis": point.axis, "rows": point.rows, "parameters": size, "lanes": point.lanes}
    compiled = programs(point, arguments)
    if point == LARGEST:
        # Once: it takes minutes, and a first call of a compiled program is like any other at this size.
        begun = time.perf_counter()
        jax.block_until_ready(compiled["chunked_product"](*arguments))
        row["chunked_product_seconds"] = time.perf_counter() - begun
    else:
        spent = fastest(compiled, arguments, seconds)
        for name, value in spent.items():
            row[f"{name}_seconds"] = value if name == "update" else value / PRODUCTS
        for kind in KINDS:
            row[f"{kind}ratio"] = spent[f"{kind}product"] / spent[f"{kind}gradient"]
    for name, program in compiled.items():
        told = program.memory_analysis()
        total = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes
        row[f"{name}_mib"] = total / 2**20
    row["process_growth_mib"] = peak_mib() - imported
    row["process_peak_mib"] = peak_mib()
    return row


def in_a_process(name: str, seconds: float) -> dict[str, Any]:
    import json

    command = [sys.executable, __file__, "--point", name, "--seconds", str(seconds), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"point {name} ended with code {done.returncode}; run it alone: {' '.join(command)}")
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def flatness(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For every axis and kind: the largest ratio over the smallest, and the furthest that one is from the median."""
    result = {}
    for axis in AXES:
        for kind in KINDS:
            ratios = np.array([row[f"{kind}ratio"] for row in rows if row["axis"] == axis])
            apart = np.max(np.abs(ratios / np.median(ratios) - 1))
            result[f"{axis}_{kind or 'whole_'}ratio"] = {
                "largest_over_smallest": float(ratios.max() / ratios.min()),
                "furthest_from_median": float(apart),
            }
    return result


BY_HAND = "# Beyond one machine"
"""The heading of the part of the page that this script leaves as it is."""


def line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page(rows: list[dict[str, Any]], flat: dict[str, dict[str, float]]) -> str:
    """docs/scaling.md."""
    parts = [
        "# What an update costs as it grows",
        "Written by `python benchmarks/scaling.py --out docs`, whose first lines say what is measured and how; every "
        "figure is in [scaling.csv](scaling.csv).",
        "![Seconds, and Fisher product over gradient, against batch, parameters and lanes](scaling.png)",
        "What is not growing stays at 2,048 rows, two hidden layers of 64 (5,708 parameters) and one policy. Lanes are "
        "policies with a batch each under one `jax.vmap`.",
    ]
    titles = ["gradient, s", "product, s", "ratio", "gradient in chunks, s", "product in chunks, s", "ratio in chunks"]
    memory = ["gradient", "product", "product in chunks", "update", "process"]
    for axis, size in AXES.items():
        cells = [[axis, *titles, "TRPO update, s"], ["---"] * (len(titles) + 2)]
        peaks = [[axis, *(f"{name}, MiB" for name in memory)], ["---"] * (len(memory) + 1)]
        for row in (row for row in rows if row["axis"] == axis):
            told = [f"{row[size]:,}"]
            for kind in KINDS:
                told += [f"{row[f'{kind}{name}_seconds']:.3g}" for name in ("gradient", "product")]
                told += [f"{row[f'{kind}ratio']:.2f}"]
            cells.append([*told, f"{row['update_seconds']:.3g}"])
            of = [row[f"{name.replace('product in chunks', 'chunked_product')}_mib"] for name in memory[:-1]]
            peaks.append([f"{row[size]:,}", *(f"{value:,.1f}" for value in of), f"{row['process_growth_mib']:,.0f}"])
        parts += [f"## {axis.capitalize()}", "\n".join(map(line, cells)), "\n".join(map(line, peaks))]
    spread = [["axis and way", "largest ratio over smallest", "furthest from the median"], ["---"] * 3]
    for name, told in flat.items():
        axis, way = name.removesuffix("_ratio").split("_")
        spread.append([f"{axis}, {way}", f"{told['largest_over_smallest']:.2f}", f"{told['furthest_from_median']:.0%}"])
    parts += [
        "## How flat the ratio is",
        "\n".join(map(line, spread)),
        "A hidden layer's gradient is three matrix products of its size: forward, and backward to its weights and to "
        "its inputs. A Fisher product is four, two forward along the direction and two back, and in chunks five, for "
        "nothing is kept between products. So 4/3 and 5/3 are where wide networks tend to. Narrow ones lie below: the "
        "gradient takes the activations anew every time, the linearised policy does not. This counts operations alone; "
        "memory, threads and whatever else runs on the machine add to it.",
    ]
    for row in (row for row in rows if row["axis"] == "largest"):
        inside = "inside" if row["process_peak_mib"] <= 1024 * LIMIT_GIB else "over"
        parts += [
            "## The largest",
            f"One Fisher product in chunks of {CHUNK} on {row['rows']:,} rows with {row['parameters']:,} parameters: "
            f"{row['chunked_product_seconds']:,.0f} seconds; the peak of its process is "
            f"{row['process_peak_mib'] / 1024:.2f} GiB, {inside} the {LIMIT_GIB:g} GiB asked for. The program's "
            f"own arguments, result and temporaries take {row['chunked_product_mib']:,.0f} MiB.",
        ]
    return "\n\n".join(parts) + "\n"


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(AXES), sharex="col", sharey="row")
    styles = {"gradient": "C0", "product": "C1"}
    for (above, below), (axis, size) in zip(panels.T, AXES.items(), strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        x = [row[size] for row in chosen]
        for kind, label in KINDS.items():
            form = "--" if kind else "-"
            for name, colour in styles.items():
                y = [row[f"{kind}{name}_seconds"] for row in chosen]
                above.plot(x, y, colour + form, marker=".", label=f"{name}, {label}")
            below.plot(x, [row[f"{kind}ratio"] for row in chosen], "C3" + form, marker=".", label=label)
        above.plot(x, [row["update_seconds"] for row in chosen], "k-", marker=".", label="TRPO update")
        above.set(xscale="log", yscale="log", title=axis)
        below.set(xlabel={"batch": "rows"}.get(axis, axis))
        for axes in (above, below):
            axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("seconds")
    panels[1][0].set(ylabel="Fisher product over gradient", yscale="log", yticks=[1, 1.5, 2, 4, 8])
    panels[1][0].set_yticklabels(["1", "1.5", "2", "4", "8"])
    panels[1][0].minorticks_off()
    panels[0][0].legend(frameon=False)
    panels[1][0].legend(frameon=False)
    figure.savefig(file, dpi=120)


def save(rows: list[dict[str, Any]], file: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for scaling.md, scaling.csv and scaling.png")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run whose numbers mean nothing")
    parser.add_argument("--point", choices=list(POINTS), help="measure this one, in this process")
    parser.add_argument("--seconds", type=float, help=f"of repetitions for each point; default {SECONDS:g}")
    arguments = parser.parse_args()
    seconds = arguments.seconds if arguments.seconds is not None else 0.0 if arguments.quick else SECONDS
    if arguments.point:
        row = measured(POINTS[arguments.point], seconds)
        print(dumps(row) if arguments.json else "\n".join(f"{k:26} {v}" for k, v in row.items()))
        return
    rows = []
    for name in QUICK if arguments.quick else POINTS:
        begun = time.perf_counter()
        rows.append(row := in_a_process(name, seconds))
        ratios = ", ".join(f"{row[f'{kind}ratio']:.2f}" for kind in KINDS if f"{kind}ratio" in row)
        print(f"{name:20} {ratios:12} {time.perf_counter() - begun:5.0f} s", file=sys.stderr, flush=True)
    flat = flatness(rows)
    largest = next((row for row in rows if row["axis"] == "largest"), None)
    result: dict[str, Any] = {"points": rows, "flatness": flat, "largest": largest}
    if largest:
        result["largest_inside_limit"] = largest["process_peak_mib"] <= 1024 * LIMIT_GIB
    if arguments.out:
        file = arguments.out / "scaling.md"
        _, heading, by_hand = file.read_text().partition(BY_HAND) if file.exists() else ("", "", "")
        file.write_text(page(rows, flat) + (f"\n{heading}{by_hand}" if heading else ""))
        save(rows, arguments.out / "scaling.csv")
        draw(rows, arguments.out / "scaling.png")
    print(dumps(result) if arguments.json else page(rows, flat))


if __name__ == "__main__":
    main()
