"""The best policy of large finite MDPs: surefoot beside mdpsolver and QuantEcon's DiscreteDP on the same arrays.

Modified policy iteration to a Bellman residual max |T V - V| of 1e-8, on sparse Garnet (three successors) and
grid models with four actions and g = .99. Each solver has a process of its own for each model, one after the
other, in rounds; a time is the median over rounds of the fastest of a few solves. Times are of solving alone:
what each takes to make its own model of the arrays is listed apart. The residual of every value that comes back
is computed here, in the same way for all. Needs the extra `bench`. Run

    python benchmarks/tabular.py [--sizes N ...] [--repeats N] [--limit SECONDS] [--figure FILE] [--json]

Settings of the others, the fastest of those that they document, as far as tried on 10,000 states:

- QuantEcon: state-action pairs, sparse, `modified_policy_iteration` with its 20 sweeps an improvement. Its
  epsilon bounds the span of a change; 2e-8 / (1 - g) is the largest that ensures a residual of 1e-8. Compiled
  on a small model first.
- mdpsolver: its own parallel option, and the faster of `mpi` with 20 sweeps an improvement (its 100 are slower)
  and `vi`. Its tolerance of 1e-8 / (1 - g) ensures the residual. Its threads wait without spinning, which costs
  nothing and is ten times faster where anything else runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from surefoot.settings import dumps
from surefoot.tabular import MDP, library, modified_policy_iteration

DISCOUNT, RESIDUAL = 0.99, 1e-8
FAMILIES = ("garnet", "grid")
SOLVERS = ("surefoot", "quantecon", "mdpsolver-mpi", "mdpsolver-vi")
NAMES = ("surefoot", "quantecon", "mdpsolver")


def make_model(family: str, states: int) -> MDP:
    if family == "garnet":
        return library.garnet(states, 4, 3, DISCOUNT)
    return library.grid(round(states**0.5), discount=DISCOUNT)


def quantecon_solver(mdp: MDP) -> Callable[[], Any]:
    from quantecon.markov import DiscreteDP

    state, action = np.divmod(np.arange(mdp.reward.size), mdp.actions)
    model = DiscreteDP(mdp.reward.ravel(), mdp.matrix, mdp.discount, state, action)
    epsilon = 2 * RESIDUAL / (1 - mdp.discount)
    return lambda: model.solve("modified_policy_iteration", epsilon=epsilon, max_iter=1_000_000).v


def mdpsolver_solver(mdp: MDP, algorithm: str) -> Callable[[], Any]:
    import mdpsolver

    ends = mdp.matrix.indptr.tolist()

    def nested(array: np.ndarray) -> list:
        values = array.tolist()
        rows = [values[begin:end] for begin, end in itertools.pairwise(ends)]
        return [rows[s : s + mdp.actions] for s in range(0, len(rows), mdp.actions)]

    rewards, probabilities, columns = mdp.reward.tolist(), nested(mdp.matrix.data), nested(mdp.matrix.indices)
    model = mdpsolver.model()
    model.mdp(discount=mdp.discount, rewards=rewards, tranMatProbs=probabilities, tranMatColumns=columns)

    def solve() -> Any:
        tolerance = RESIDUAL / (1 - mdp.discount)
        model.solve(algorithm=algorithm, tolerance=tolerance, parIterLim=20, parallel=True, makeFinalCheck=False)
        return model.getValueVector

    return solve


def solver(name: str, mdp: MDP) -> Callable[[], Any]:
    if name == "quantecon":
        return quantecon_solver(mdp)
    if name == "surefoot":
        # The model is checked again: that is what making it from arrays takes.
        model = MDP(mdp.matrix, mdp.reward, mdp.discount, mdp.start)
        return lambda: modified_policy_iteration(model, tolerance=RESIDUAL).value
    return mdpsolver_solver(mdp, name.removeprefix("mdpsolver-"))


def run_one(name: str, family: str, states: int) -> dict[str, float]:
    """Solve in this process: seconds to build and to solve, residual, peak memory in MiB."""
    solver(name, library.garnet(300, 4, 3, DISCOUNT))()
    mdp = make_model(family, states)
    begun = time.perf_counter()
    solve = solver(name, mdp)
    building = time.perf_counter() - begun
    spent: list[float] = []
    # mdpsolver goes on from its last solution, so it solves once.
    while not spent or (len(spent) < 5 and sum(spent) < 2 and not name.startswith("mdpsolver")):
        begun = time.perf_counter()
        found = solve()
        spent.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    value = np.asarray(found() if callable(found) else found)
    action_value = mdp.reward + mdp.discount * mdp.expected_next(value)
    residual = float(np.max(np.abs(action_value.max(axis=1) - value)))
    return {"seconds": min(spent), "building": building, "residual": residual, "peak_memory_mib": peak}


def run_apart(name: str, family: str, states: int, limit: float) -> dict[str, float] | None:
    """`run_one` in a process of its own; None where solving is over the limit."""
    command = [sys.executable, __file__, "--only", name, family, str(states)]
    surroundings = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    try:
        # Making the model and its lists takes up to a minute of its own.
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit + 60, env=surroundings)
    except subprocess.TimeoutExpired:
        return None
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return told if told["seconds"] <= limit else None


def compare(family: str, states: int, repeats: int, limit: float) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float] | None]] = {name: [] for name in SOLVERS}
    for _ in range(repeats):
        for name, told in rounds.items():
            # What took minutes once is not repeated.
            if not told or (told[-1] is not None and told[-1]["seconds"] < 60):
                told.append(run_apart(name, family, states, limit))
    medians: dict[str, Any] = {}
    for name, told in rounds.items():
        done = [each for each in told if each is not None]
        medians[name] = {key: statistics.median(each[key] for each in done) for key in done[0]} if done else None
    of_mdpsolver = [medians.pop(name) for name in SOLVERS[2:]]
    finished = [each for each in of_mdpsolver if each]
    medians["mdpsolver"] = min(finished, key=lambda each: each["seconds"]) if finished else None
    return {"family": family, "states": round(states**0.5) ** 2 if family == "grid" else states, **medians}


def table(results: list[dict[str, Any]], limit: float) -> str:
    lines = [
        "| family | states | surefoot, s | QuantEcon, s | mdpsolver, s | ratio to each | residuals | building, s | "
        "peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        told = [result[name] for name in NAMES]
        ours = told[0]["seconds"]
        seconds = [f"{each['seconds']:.3g}" if each else f"over {limit:g}" for each in told]
        ratios = ", ".join(f"{each['seconds'] / ours:.3g}" if each else f"over {limit / ours:.3g}" for each in told[1:])
        residuals = ", ".join(f"{each['residual']:.0e}" if each else "-" for each in told)
        building = ", ".join(f"{each['building']:.2g}" if each else "-" for each in told)
        peak = f"{told[0]['peak_memory_mib']:,.0f} MiB"
        lines.append(
            f"| {result['family']} | {result['states']:,} | {' | '.join(seconds)} | {ratios} | {residuals} | "
            f"{building} | {peak} |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], limit: float, file: str) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(FAMILIES), figsize=(9, 4), sharey=True, layout="constrained")
    labels = {"surefoot": "surefoot", "quantecon": "QuantEcon", "mdpsolver": "mdpsolver"}
    for panel, family in zip(panels, FAMILIES, strict=True):
        chosen = [result for result in results if result["family"] == family]
        for name, colour, marker in zip(NAMES, ("C0", "C1", "C2"), "os^", strict=True):
            done = [(each["states"], each[name]["seconds"]) for each in chosen if each[name]]
            if done:
                panel.plot(*zip(*done, strict=True), color=colour, marker=marker, label=labels[name])
            over = [each["states"] for each in chosen if not each[name]]
            panel.plot(over, [limit] * len(over), color=colour, marker=marker, fillstyle="none", linestyle="none")
        panel.set(xscale="log", yscale="log", xlabel="states", title={"garnet": "Garnet", "grid": "Grid"}[family])
        panel.grid(alpha=0.3)
    if any(not result[name] for result in results for name in NAMES):
        panels[0].plot([], [], "k^", fillstyle="none", label=f"over {limit:g} s")
    panels[0].set_ylabel("seconds to a residual of 1e-8")
    panels[0].legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a solver is given up")
    parser.add_argument("--figure", help="file to draw the times to")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs=3, metavar=("SOLVER", "FAMILY", "STATES"), help="run one in this process")
    arguments = parser.parse_args()
    if arguments.only:
        name, family, states = arguments.only
        print(dumps(run_one(name, family, int(states))))
        return
    results = []
    for family in FAMILIES:
        for states in arguments.sizes:
            results.append(compare(family, states, arguments.repeats, arguments.limit))
            if not arguments.json:
                print(table(results[-1:], arguments.limit).splitlines()[-1], file=sys.stderr, flush=True)
    print(dumps({"results": results}) if arguments.json else table(results, arguments.limit))
    if arguments.figure:
        draw(results, arguments.limit, arguments.figure)


if __name__ == "__main__":
    main()
