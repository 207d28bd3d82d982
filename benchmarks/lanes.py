"""What many seeds at once cost beside one: the same run alone and as so many lanes of one program.

Two readings: the updates alone, and whole commands.

    python benchmarks/lanes.py [--json] [--environment ENV] [--seeds N] [--steps N] [--rounds N]

Each round trains one seed and then all of them, with records, in this process; what is compared is the time of the
updates after the first chunk, without compiling, as the rows of the runs have it. JAX sees each core of the CPU as a
device, as in the command. The ratio is the median of the rounds.

`command_ratio` is of the seconds that `surefoot train ENV --seeds N` and `--seeds 1` take from start to end, each with
an empty cache of compiled programs: what a user waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import surefoot as sf
from surefoot import config
from surefoot.compilation import see_every_core
from surefoot.history import read
from surefoot.lanes import train_together
from surefoot.turns import Plan


def seconds_an_update(run: Path) -> float:
    """Seconds of an update after the first chunk of a run."""
    seconds = read(run).column("seconds")
    return float((seconds[-1] - seconds[4]) / (len(seconds) - 5))


def seconds_of_the_command(environment: str, seeds: int, steps: int) -> float:
    """Seconds that the whole command takes, with everything to compile."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["train", environment, "--seeds", str(seeds), "--steps", str(steps), "--out", f"{folder}/run", "--json"]
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "surefoot.cli", *line],
            env=os.environ | {"XDG_CACHE_HOME": folder},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    see_every_core()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--environment", default="gymnax:CartPole-v1")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    ratios, alone, together, returns = [], [], [], []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            settings = {"steps": arguments.steps, "evaluation_episodes": 20}
            one = sf.train(arguments.environment, out=path / "one", progress=False, **settings)
            plans = [
                Plan(path / f"s{seed}", sf.TRPO(), config.make_run(seed=seed, **settings))
                for seed in range(arguments.seeds)
            ]
            runs = [outcome.run for outcome in train_together(arguments.environment, plans, progress=False)]
            alone.append(seconds_an_update(one.path))
            together.append(seconds_an_update(plans[0].folder))
            ratios.append(together[-1] / alone[-1])
            returns = [run.evaluation["return"]["mean"] for run in runs if run]
    result = {
        "seeds": arguments.seeds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "milliseconds_an_update": 1e3 * statistics.median(alone),
        "milliseconds_an_update_of_all": 1e3 * statistics.median(together),
        "returns": returns,
    }
    one, all_of_them = (
        seconds_of_the_command(arguments.environment, seeds, arguments.steps) for seeds in (1, arguments.seeds)
    )
    result |= {"command_ratio": all_of_them / one, "command_seconds": one, "command_seconds_of_all": all_of_them}
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<30} {value}")


if __name__ == "__main__":
    main()
