"""Memory of one long run: does it grow?

One run of many updates, with checkpoints, its process's resident memory and JAX's live arrays noted after every
update. The first updates are left out: they compile, and fill what is kept between two restarts of the
environments. Run

    python benchmarks/soak.py [ENV] [--json] [--updates N] [--since N] [any setting of the run as NAME=VALUE]

Exits with 1 where memory at the end is more than 5% above that at update `--since`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from surefoot.settings import dumps
from surefoot.training import train

ALLOWED = 0.05
WINDOW = 50  # updates whose median stands for one moment


def resident_mebibytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(environment: str, updates: int, since: int, settings: dict) -> dict:
    resident, arrays = [], []

    def stop() -> bool:
        resident.append(resident_mebibytes())
        arrays.append(len(jax.live_arrays()))
        return len(resident) >= updates

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(KeyboardInterrupt):
            train(environment, out=f"{folder}/run", progress=False, stop=stop, **settings | {"steps": 10**12})
        written = (Path(folder) / "run" / "metrics.jsonl").stat().st_size

    def around(values: list, update: int) -> float:
        return float(np.median(values[max(update - WINDOW, 0) : update]))

    marks = sorted({since, *np.linspace(since, len(resident), 6).astype(int).tolist()})
    growth = around(resident, len(resident)) / around(resident, since) - 1
    return {
        "environment": environment,
        "updates": len(resident),
        "seconds": time.perf_counter() - begun,
        "growth": growth,
        "growth_of_live_arrays": around(arrays, len(arrays)) / around(arrays, since) - 1,
        "largest_over_first": max(resident[since:]) / around(resident, since) - 1,
        "resident_mebibytes": {mark: around(resident, mark) for mark in marks},
        "live_arrays": {mark: around(arrays, mark) for mark in marks},
        "metrics_mebibytes": written / 2**20,
        "flat": growth <= ALLOWED,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="CartPole-v1")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--since", type=int, default=100, help="the update whose memory the end's is compared with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_intermixed_args()
    settings = dict(pair.split("=", 1) for pair in arguments.settings)
    result = measure(
        arguments.environment,
        arguments.updates,
        arguments.since,
        {name: ast.literal_eval(value) for name, value in settings.items()},
    )
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")
    return 0 if result["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
