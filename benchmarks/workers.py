"""Ray's workers: how many steps a second, what they cost, and whether a model of both foretells what is measured.

    python benchmarks/workers.py speed-up [--workers 1 2 4 8 16] [--rounds N]
    python benchmarks/workers.py overhead [ENV] [--rounds N]       # one worker against the plain source
    python benchmarks/workers.py model [--rounds N]                # measured against foretold

`speed-up` and `model` collect in an environment whose step sleeps 5 milliseconds, four to a worker. Times are medians
over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# As Ray has it in its workers, or this process would act with more cores than they do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import jax
import numpy as np

from surefoot import config
from surefoot.compilation import cores
from surefoot.policy import HostPolicy, make_policy
from surefoot.sources import make_source

MILLISECONDS, EACH, HORIZON = 5.0, 4, 64
WIDTH, ACTIONS = 32, 8
HIDDEN = {"6,000": (64, 64), "0.6M": (640, 800), "4M": (1920, 1920)}
"""Policies, by how many parameters they have."""


class Sleeping(gymnasium.Env):
    """Each step sleeps; what it shows is noise."""

    def __init__(self, milliseconds: float = MILLISECONDS):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)
        self._seconds = milliseconds / 1000

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return self._show(), 1.0, False, False, {}

    def _show(self) -> np.ndarray:
        return self.np_random.normal(size=WIDTH).astype(np.float32)


def opened(environment: Any, workers: int | None, envs: int, **settings: Any) -> Any:
    return make_source(
        environment, config.Collection(workers=workers, envs=envs, horizon=HORIZON, restart_every=10**6, **settings)
    )


def policy_for(source: Any, hidden: tuple[int, ...]) -> Any:
    network = config.Network(hidden=hidden)
    return make_policy(source.observation_space, source.action_space, network, jax.random.key(0))


class Collecting:
    """A source and where it stands, collected from once for every call."""

    def __init__(self, source: Any, hidden: tuple[int, ...]):
        self.source, self.policy = source, policy_for(source, hidden)
        self._state, self._number = source.reset(jax.random.key(1)), 0

    def __call__(self) -> float:
        """Seconds of a collection."""
        self._number += 1
        begun = time.perf_counter()
        _, self._state = self.source.collect(self.policy, self._state, jax.random.key(self._number))
        return time.perf_counter() - begun


def medians(rows: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, float]:
    """The median of each row's times, taken in turn; the first round is for compiling."""
    times: dict[Any, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, row in rows.items():
            seconds = row()
            if number:
                times[name].append(seconds)
    return {name: statistics.median(each) for name, each in times.items()}


def speed_up(workers: list[int], rounds: int) -> dict[str, Any]:
    # One at a time: processes of workers that wait still take turns with those that do not.
    seconds = {}
    for count in workers:
        source = opened(Sleeping, count, EACH * count, vectorisation="sync", source="gymnasium")
        collecting = Collecting(source, HIDDEN["6,000"])
        seconds[count] = medians({count: collecting}, rounds)[count]
        source.close()
    rates = {count: EACH * count * HORIZON / spent for count, spent in seconds.items()}
    first = rates[workers[0]] / workers[0]
    return {
        "steps_per_second": rates,
        "share_of_linear": {count: rate / (first * count) for count, rate in rates.items()},
        "share_of_the_simulators": {count: rate / (count * 1000 / MILLISECONDS) for count, rate in rates.items()},
    }


def overhead(environment: str, rounds: int) -> dict[str, Any]:
    """Whole iterations of training, and collections alone, with one worker and without."""
    from surefoot.iteration import begin, iterate
    from surefoot.training import make_rule

    rule, rows, closing = make_rule("trpo"), {}, []
    for name, workers in (("plain", None), ("worker", 1)):
        run = config.make_run(workers=workers)
        source = make_source(environment, run.collection)
        closing.append(source)
        standing = list(begin(source, rule, run))

        def train(source: Any = source, run: Any = run, standing: list = standing) -> float:
            begun = time.perf_counter()
            for _ in range(4):
                standing[0], standing[1], _ = iterate(source, rule, run, standing[0], standing[1])
            jax.block_until_ready(standing[0].critic)
            return time.perf_counter() - begun

        rows[name] = train
        collecting = Collecting(source, run.network.hidden)
        rows[f"{name}, collecting"] = lambda collecting=collecting: sum(collecting() for _ in range(4))
    # A source goes on from one state at a time: training first, then collecting.
    trained = medians({name: rows[name] for name in ("plain", "worker")}, rounds)
    collected = medians({name: rows[f"{name}, collecting"] for name in ("plain", "worker")}, rounds)
    for source in closing:
        source.close()
    return {
        "environment": environment,
        "training": trained | {"overhead": trained["worker"] / trained["plain"] - 1},
        "collecting": collected | {"overhead": collected["worker"] / collected["plain"] - 1},
    }


# The model. A collection of W workers with policies of p bytes takes
#     T max(n s + c(p), W c(p) / C)  +  a + b W + d p + e W p
# seconds: T steps in each of which a worker's n environments take s seconds each and the rest of its work c, of which
# C cores have no more than W c / C to do at once; and what asking, sending and bringing back take beside.

CALIBRATED = (1, 4)
FORETOLD = (2, 8, 16)


def seconds_of(workers: int, hidden: tuple[int, ...], rounds: int, milliseconds: float) -> float:
    """A collection by so many workers, or with 0 by none but this process."""
    source = opened(
        partial(Sleeping, milliseconds),
        workers or None,
        EACH * max(workers, 1),
        vectorisation="sync",
        source="gymnasium",
    )
    seconds = medians({0: Collecting(source, hidden)}, rounds)[0]
    source.close()
    return seconds


def acting(rounds: int) -> dict[str, float]:
    """Seconds in which a policy of each size answers a worker's environments."""
    space = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32), gymnasium.spaces.Box(-1, 1, (ACTIONS,))
    shown, rows = np.zeros((EACH, WIDTH), np.float32), {}
    for name, hidden in HIDDEN.items():
        actor = HostPolicy(make_policy(*space, config.Network(hidden=hidden), jax.random.key(0)))

        def act(actor: Any = actor) -> float:
            begun = time.perf_counter()
            for _ in range(50):
                actor.outputs(shown)
            return (time.perf_counter() - begun) / 50

        rows[name] = act
    return medians(rows, rounds)


def size_of(hidden: tuple[int, ...]) -> int:
    """Bytes of a policy."""
    widths = (WIDTH, *hidden, ACTIONS)
    return 4 * sum(before * after + after for before, after in itertools.pairwise(widths))


def model(rounds: int) -> dict[str, Any]:
    """Measure what the model is made of, foretell other collections, and measure them."""
    act = acting(rounds)
    smallest = next(iter(HIDDEN))
    bare = seconds_of(0, HIDDEN[smallest], rounds, 0.0) / HORIZON
    work = {name: bare + act[name] - act[smallest] for name in HIDDEN}
    slept = seconds_of(0, HIDDEN[smallest], rounds, MILLISECONDS) / HORIZON - bare  # longer than was asked for
    rows, beside = [], []
    for workers in CALIBRATED:
        for name, hidden in HIDDEN.items():
            spent = seconds_of(workers, hidden, rounds, MILLISECONDS)
            rows.append(terms(workers, size_of(hidden)))
            beside.append(spent - HORIZON * step(workers, work[name], slept))
    found, *_ = np.linalg.lstsq(np.asarray(rows), np.asarray(beside), rcond=None)
    table = []
    for name, hidden in HIDDEN.items():
        for workers in FORETOLD:
            told = HORIZON * step(workers, work[name], slept) + float(terms(workers, size_of(hidden)) @ found)
            seen = seconds_of(workers, hidden, rounds, MILLISECONDS)
            table.append(
                {"parameters": name, "workers": workers, "foretold": told, "measured": seen, "ratio": told / seen}
            )
    return {
        "cores": len(cores()),
        "step_seconds_of_the_simulators": slept,
        "work_seconds_of_a_step": work,
        "beside": dict(zip(("a", "b", "d", "e"), map(float, found), strict=True)),
        "calibrated_on": {
            f"{count} workers, {name}": spent
            for (count, name), spent in zip(itertools.product(CALIBRATED, HIDDEN), beside, strict=True)
        },
        "table": table,
        "largest_error": max(abs(row["ratio"] - 1) for row in table),
    }


def step(workers: int, work: float, simulators: float) -> float:
    """Seconds of a step of every worker."""
    return max(simulators + work, workers * work / len(cores()))


def terms(workers: int, size: int) -> np.ndarray:
    return np.array([1.0, workers, size, workers * size])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed-up", "overhead", "model"))
    parser.add_argument("environment", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    if arguments.what == "speed-up":
        told = speed_up(arguments.workers, arguments.rounds)
    elif arguments.what == "overhead":
        told = overhead(arguments.environment, arguments.rounds)
    else:
        told = model(arguments.rounds)
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
