"""What checkpoints cost: one at its largest, and their share of a run's time.

A checkpoint holds the actions since the environments were last restarted, so it is largest just before the next
restart. The share is that of the saves of one run of `--seconds`, begun as a user begins it. Run

    python benchmarks/checkpoint.py [ENV] [NAME=VALUE ...] [--json] [--seconds N]

where NAME=VALUE is any setting of the run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np

from surefoot import config, ledger, training
from surefoot.iteration import begin, iterate
from surefoot.settings import dumps
from surefoot.sources import make_source
from surefoot.standing import Standing, save

SAVES = 20


def largest(environment: str, run: config.Run) -> dict:
    """Seconds and size of a checkpoint with as many actions as there can be."""
    rule = training.make_rule("trpo")
    source = make_source(environment, run.collection)
    learner, state = begin(source, rule, run)
    learner, state, done = iterate(source, rule, run, learner, state)
    (block,) = state.actions
    many = (block,) * -(-source._restart_every // len(block))
    standing = Standing(learner, dataclasses.replace(state, actions=many), done)
    spent, sound = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for update in range(SAVES):
            begun = time.perf_counter()
            sound = save(Path(folder), "", source, standing._replace(updates=update), sound)
            spent.append(time.perf_counter() - begun)
        size = max(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    source.close()
    return {"seconds": float(np.median(spent)), "seconds_at_most": max(spent), "mebibytes": size / 2**20}


def share(environment: str, settings: dict, seconds: float) -> dict:
    """The share of a run's time, from its first update on, that its checkpoints take."""
    spent, updates, begun = [], [], time.perf_counter()
    real = ledger.save

    def timed(*arguments):
        before = time.perf_counter()
        try:
            return real(*arguments)
        finally:
            spent.append(time.perf_counter() - before)

    def stop() -> bool:
        updates.append(time.perf_counter())
        return updates[-1] - begun >= seconds

    ledger.save = timed
    try:
        with tempfile.TemporaryDirectory(dir=".") as folder, contextlib.suppress(KeyboardInterrupt):
            training.train(environment, out=f"{folder}/run", progress=False, stop=stop, **settings | {"steps": 10**12})
    finally:
        ledger.save = real
    trained = time.perf_counter() - updates[0]
    return {"share": sum(spent) / trained, "saves": len(spent), "seconds": trained, "updates": len(updates)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of the run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_intermixed_args()
    pairs = (pair.split("=", 1) for pair in arguments.settings)
    settings = {name: ast.literal_eval(value) for name, value in pairs}
    run = config.make_run(**settings)
    one = largest(arguments.environment, run)
    result = {
        "environment": arguments.environment,
        "largest_checkpoint": one,
        "largest_over_interval": one["seconds"] / run.checkpoint_seconds if run.checkpoint_seconds else None,
        "run": share(arguments.environment, settings, arguments.seconds),
    }
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
