"""The nine MuJoCo tasks, one set of defaults, five seeds: a row a run in docs/scoreboard.jsonl, and the page of them.

    python benchmarks/scoreboard.py [--tasks T …] [--seeds S …] [--steps N] [--rule NAME] [--set NAME=VALUE …]
    python benchmarks/scoreboard.py --peer sb3-trpo        # surefoot and the peer in turns; needs the extra `bench`
    python benchmarks/scoreboard.py --page                 # docs/scoreboard.md and docs/images/scoreboard.png
    python benchmarks/scoreboard.py --random               # returns of random actions, for published.py

Each run is a process of its own. One that has a row with the same version and settings is not made again; one that was
killed goes on from its folder under --runs (a peer's begins again). Every `--every` steps (a twentieth of the run) the
policy is evaluated on Gymnasium's own task, deterministically, 10 episodes; that is no part of a row's `seconds`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from published import TASKS, VERSION

from surefoot import config
from surefoot.compilation import cores
from surefoot.errors import RunError, SettingError, SurefootError, did_you_mean
from surefoot.files import held, write_atomically
from surefoot.reading import parse_json, read_bytes
from surefoot.settings import digest, dumps
from surefoot.sweep import setting_name

SEEDS = (0, 1, 2, 3, 4)
STEPS = 1_000_000
EPISODES = 10
POINTS = 20
"""Evaluations of a run while it learns."""
PEERS = {"sb3-trpo": "sb3-contrib", "sb3-ppo": "stable-baselines3"}
"""Each peer, and the package whose version it is of."""
PEER_TASKS, PEER_STEPS, PEER_SEEDS = ("HalfCheetah", "Hopper", "Walker2d"), 100_000, (0, 1)
ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "scoreboard.jsonl"


class Plan(NamedTuple):
    """A run that is to have a row: the row's keys but for what is measured, `peer` None for surefoot's own."""

    peer: str | None
    version: str
    task: str
    seed: int
    steps: int
    settings: dict[str, Any]

    def folder(self, runs: Path) -> Path:
        """Its work folder."""
        return runs / f"{self.task}-s{self.seed}-{digest(self._asdict())[:12]}"


def ours(task: str, seed: int, steps: int, every: int, rule: str, given: dict[str, Any]) -> Plan:
    """A run of surefoot, with every setting of rule and run that its row has. Raises SettingError."""
    from surefoot import __version__
    from surefoot.ledger import configuration
    from surefoot.rules import RULES

    own = {item.name for item in dataclasses.fields(config.RULES[rule])}
    known = {*config.run_options(), *own}
    for name in given:
        if name not in known:
            raise SettingError(f"unknown setting {name!r}{did_you_mean(name, known)}")
        if name in _NOT_SETTINGS:
            raise SettingError(
                f"set cannot change {name}; there are --steps and --seeds, and nothing else depends on it"
            )
    made = RULES[rule](**{name: value for name, value in given.items() if name in own})
    chosen = {"evaluate_every": every, "evaluation_episodes": EPISODES}
    run = config.make_run(**chosen | {name: value for name, value in given.items() if name not in own})
    settings = configuration("", made, run)
    left_out = {"environment", "trust_region", *_NOT_SETTINGS}
    return Plan(None, __version__, task, seed, steps, {k: v for k, v in settings.items() if k not in left_out})


_NOT_SETTINGS = (
    *("seed", "steps", "checkpoint_seconds"),
    *("workers", "ray_address", "worker_seconds", "enough", "devices"),
)
"""Settings of a run that a row tells apart from its settings, that change no result, or that are of many machines."""


def peers_run(peer: str, task: str, seed: int, steps: int, every: int) -> Plan:
    """A run of a peer, whose settings `peers.make_sb3` has."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Plan(peer, version(PEERS[peer]), task, seed, steps, {"settings": "rl-zoo", "evaluate_every": every})
    except PackageNotFoundError:
        raise SettingError(f"peer {peer} needs {PEERS[peer]}; install the extra bench") from None


def train_ours(plan: Plan, folder: Path) -> dict[str, Any]:
    """Train, or go on with what a killed process left, and what was measured."""
    import surefoot as sf
    from surefoot import history
    from surefoot.rules import RULES

    resumed = (folder / "config.json").exists()
    if resumed:
        run = sf.resume(folder, progress=False)
    else:
        settings = {k: v for k, v in plan.settings.items() if k not in ("rule", "rule_settings")}
        rule = RULES[plan.settings["rule"]](**plan.settings["rule_settings"])
        run = sf.train(
            f"{plan.task}-{VERSION}", rule, seed=plan.seed, steps=plan.steps, out=folder, progress=False, **settings
        )
    told = history.read(folder).evaluations
    return {
        "evaluations": [{key: row[key] for key in ("steps", "mean", "std")} for row in told],
        "final": run.evaluation["return"],
        "seconds": run.seconds,
        "resumed": resumed,
    }


def train_peer(plan: Plan) -> dict[str, Any]:
    """Train a peer, stopped for its evaluations, and what was measured."""
    from peers import evaluate_sb3, make_sb3

    environment = f"{plan.task}-{VERSION}"
    model, envs = make_sb3(environment, plan.seed, contrib=plan.peer == "sb3-trpo")
    every, seconds, evaluations = plan.settings["evaluate_every"], 0.0, []
    while model.num_timesteps < plan.steps:
        pause = min(plan.steps, (model.num_timesteps // every + 1) * every)
        begun = time.perf_counter()
        model.learn(pause - model.num_timesteps, reset_num_timesteps=False)
        seconds += time.perf_counter() - begun
        returns = evaluate_sb3(model, envs, environment, plan.seed, EPISODES)
        found = {"mean": float(np.mean(returns)), "std": float(np.std(returns))}
        evaluations.append({"steps": model.num_timesteps, **found})
    final = {**found, "episodes": len(returns)}
    return {"evaluations": evaluations, "final": final, "seconds": seconds, "resumed": False}


def in_a_process(plan: Plan, runs: Path) -> dict[str, Any]:
    """The row of a run that is made in a process of its own. Raises RunError with what it said last."""
    command = [sys.executable, __file__, "--one", dumps(plan._asdict()), "--runs", str(runs)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        *_, last = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RunError(f"{plan.task}, seed {plan.seed}: exit code {done.returncode}: {last}")
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    # What came before it was killed is not known.
    whole = None if measured["resumed"] else seconds
    return {**plan._asdict(), **measured, "seconds_in_all": whole, "cores": len(cores())}


def _shares(workers: int) -> Queue[list[int]]:
    """The cores dealt out to as many workers, one or more each: runs that share theirs wait for each other."""
    every, shares = cores(), Queue()
    for place in range(workers):
        shares.put(every[place::workers] or every)
    return shares


def _keep_to(shares: Queue[list[int]]) -> None:
    """Keep this thread, and what it begins, to a share of the cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, shares.get())


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none where there is no such file. Raises RunError for a line that is no row."""
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(read_bytes(file).splitlines(), start=1):
        try:
            row = parse_json(line)
            plan_of(row)
            rows.append(row)
        except (ValueError, LookupError, TypeError):
            raise RunError(f"{file}, line {number}, is no row of a run; take it out") from None
    return rows


def plan_of(row: dict[str, Any]) -> Plan:
    """The plan that a row is of. Raises LookupError where something of it is missing."""
    return Plan(*(row[name] for name in Plan._fields))


def run_all(plans: Sequence[Plan], out: Path, runs: Path, workers: int, told: Callable[[str], None]) -> int:
    """Make the runs that have no row yet, and append their rows, each as it is done; how many went wrong."""
    known = [plan_of(row) for row in read_rows(out)]
    left = [plan for plan in plans if plan not in known]
    told(f"{len(plans) - len(left)} of {len(plans)} runs have a row; {len(left)} to make")
    writing, failed = Lock(), 0

    def make(plan: Plan) -> None:
        nonlocal failed
        name = f"{plan.peer or 'surefoot'} {plan.task} seed {plan.seed}"
        try:
            row = in_a_process(plan, runs)
        except RunError as error:
            failed += 1
            told(str(error))
            return
        with writing:
            before = read_bytes(out) if out.exists() else b""
            write_atomically(out, before + dumps(row).encode() + b"\n")
        told(f"{name}: {row['final']['mean']:.1f} in {row['seconds']:.0f} s")

    for folder in (runs, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # Two of these at once would make the same runs and lose each other's rows.
    with held(runs), ThreadPoolExecutor(workers, initializer=_keep_to, initargs=(_shares(workers),)) as pool:
        list(pool.map(make, left))
    return failed


def random_returns(task: str, episodes: int = 100) -> list[float]:
    """Returns of uniformly random actions."""
    import gymnasium

    from surefoot.sources.guard import quiet

    with quiet():
        env = gymnasium.make(f"{task}-{VERSION}")
    env.action_space.seed(0)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def settings_given(texts: Sequence[str]) -> dict[str, Any]:
    """Settings from NAME=VALUE, a value read as JSON where it is some. Raises SettingError."""
    given = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise SettingError(f"set must be NAME=VALUE, but {text!r} came")
        try:
            given[setting_name(name)] = json.loads(value)
        except ValueError:
            given[setting_name(name)] = None if value == "none" else value
    return given


def plans_of(arguments: argparse.Namespace) -> list[Plan]:
    """The runs that were asked for, seed by seed, so that what is there early is of every task."""
    given = settings_given(arguments.set)
    made = []
    for seed in arguments.seeds:
        for task in arguments.tasks:
            made.append(ours(task, seed, arguments.steps, arguments.every, arguments.rule, given))
            if arguments.peer:
                made.append(peers_run(arguments.peer, task, seed, arguments.steps, arguments.every))
    return made


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--every", type=int, help="steps between two evaluations (a twentieth of the run)")
    parser.add_argument("--rule", default="trpo", choices=[name for name in config.RULES if name != "pi"])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of rule or run")
    parser.add_argument("--peer", choices=PEERS, help="make each run with this library too, on three tasks by default")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, each on its share of the cores")
    parser.add_argument("--out", type=Path, default=OUT, help="results file; the page is written beside it")
    parser.add_argument("--runs", type=Path, default=Path("runs/scoreboard"), help="folder of the runs")
    parser.add_argument("--json", action="store_true", help="print what the page tells, as JSON")
    parser.add_argument("--page", action="store_true", help="write the page of the newest rows and run nothing")
    parser.add_argument("--random", action="store_true", help="measure random actions")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    peer = arguments.peer is not None
    arguments.tasks = arguments.tasks or (PEER_TASKS if peer else TASKS)
    arguments.steps = arguments.steps or (PEER_STEPS if peer else STEPS)
    arguments.seeds = arguments.seeds or (PEER_SEEDS if peer else SEEDS)
    arguments.every = arguments.every or max(arguments.steps // POINTS, 1)
    return arguments


def main() -> int:
    arguments = parsed()
    if arguments.one:
        plan = Plan(**json.loads(arguments.one))
        print(dumps(train_peer(plan) if plan.peer else train_ours(plan, plan.folder(arguments.runs))))
        return 0
    if arguments.random:
        for task in arguments.tasks:
            print(f'    "{task}": {np.mean(random_returns(task)):.2f},', flush=True)
        return 0
    from scoreboard_page import tell, write_page

    failed = 0
    if not arguments.page:
        plans = plans_of(arguments)
        failed = run_all(
            plans, arguments.out, arguments.runs, arguments.workers, lambda line: print(line, file=sys.stderr)
        )
    else:
        print(f"{write_page(read_rows(arguments.out), arguments.out)} is written", file=sys.stderr)
    if arguments.json:
        print(dumps(tell(read_rows(arguments.out))))
    return 1 if failed else 0


if __name__ == "__main__":
    # What compiling costs is the same in every process; keep it as every user of the command does.
    os.environ.setdefault("MPLBACKEND", "agg")
    try:
        sys.exit(main())
    except SurefootError as error:
        sys.exit(f"scoreboard: {error}")
