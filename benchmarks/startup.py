"""From the command to the first finished update: with an empty compilation cache, and with a warm one.

python benchmarks/startup.py [ENV] [--json] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from surefoot.settings import dumps


def first_update(environment: str, cache: Path, out: Path) -> float:
    """Seconds until metrics.jsonl holds its first line."""
    command = [sys.executable, "-m", "surefoot.cli", "train", environment, "--steps", "100000000", "--out", str(out)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stderr=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - begun
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cold, warm = [], []
    for number in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            cold.append(first_update(arguments.environment, work / "cache", work / "cold"))
            warm.append(first_update(arguments.environment, work / "cache", work / f"warm{number}"))
    result = {
        "cold_seconds": float(np.median(cold)),
        "warm_seconds": float(np.median(warm)),
        "cold_all": cold,
        "warm_all": warm,
        "environment": arguments.environment,
    }
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
