"""Training speed as a share of the simulator's own.

Rounds of training iterations, everything included, alternate in one process with rounds of raw stepping:
an EnvPool of the same size given the very actions that the policy just took, and nothing else. Run

    python benchmarks/throughput.py [ENV] [--json] [--rounds N] [any setting of the run as NAME=VALUE]
"""

from __future__ import annotations

import argparse
import ast
import time

import numpy as np

from surefoot import config
from surefoot.iteration import begin, iterate
from surefoot.settings import dumps
from surefoot.sources import make_source
from surefoot.training import make_rule


def measure(environment: str, rounds: int, iterations: int, settings: dict) -> dict:
    run = config.make_run(**settings)
    rule = make_rule("trpo")
    source, raw = (make_source(environment, run.collection) for _ in range(2))
    learner, state = begin(source, rule, run)
    simulator = raw._simulator
    simulator.reset(list(range(run.collection.envs)))
    steps = 0
    seconds = {"train": [], "raw": []}
    stages = {"collect_seconds": 0.0, "update_seconds": 0.0, "critic_seconds": 0.0, "certify_seconds": 0.0}
    for number in range(rounds + 1):
        begun = time.perf_counter()
        rows = []
        for _ in range(iterations):
            learner, state, told = iterate(source, rule, run, learner, state)
            rows.append(told.row)
        trained = time.perf_counter() - begun
        actions = [block for part in state.actions[-iterations:] for block in part]
        begun = time.perf_counter()
        for action in actions:
            simulator.send(action)
            simulator.receive()
        stepped = time.perf_counter() - begun
        if number == 0:  # compiling
            continue
        steps = len(actions) * run.collection.envs
        seconds["train"].append(trained)
        seconds["raw"].append(stepped)
        for name in stages:
            stages[name] += sum(row[name] for row in rows)
    train, raw_seconds = np.median(seconds["train"]), np.median(seconds["raw"])
    total = sum(seconds["train"])
    return {
        "environment": environment,
        "ratio": float(raw_seconds / train),
        "ratio_by_round": [float(b / a) for a, b in zip(seconds["train"], seconds["raw"], strict=True)],
        "train_steps_per_second": float(steps / train),
        "raw_steps_per_second": float(steps / raw_seconds),
        "share_of_time": {name.removesuffix("_seconds"): value / total for name, value in stages.items()},
        "envs": run.collection.envs,
        "horizon": run.collection.horizon,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=10, help="training iterations a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    settings = {}
    for pair in arguments.settings:
        name, _, value = pair.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    result = measure(arguments.environment, arguments.rounds, arguments.iterations, settings)
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
