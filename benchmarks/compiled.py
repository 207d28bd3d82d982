"""Whole runs on the device beside rejax's PPO, on gymnax's CartPole-v1.

Three questions, each of both programs on the same machine:

- Speed and return at 64 environments and 32 steps (rejax: 10 epochs, 8 minibatches, step size 3e-4, the rest its
  defaults): both train in one process, in turns of as many steps, seed after seed. Ours is `surefoot.train` with its
  record; rejax's program holds its training iterations alone, without evaluations. The final policies play the
  same deterministic episodes.
- What compiling costs each of these two programs, tracing included, without a cache of compiled programs. rejax's
  `train` as it comes also holds its evaluation twice; that is under `detail`.
- Seconds from the start of a process until the last 50 or more finished training episodes return 475 on average: ours
  with its defaults, with an empty and with a filled cache, and rejax with the settings that it publishes for this task.
  Ours is asked after every chunk (about a second), rejax after every 5,000 steps. rejax keeps no cache by itself; with
  one of JAX's, filled, it takes what is under `detail`.

    python benchmarks/compiled.py [--json] [--steps N] [--seeds N] [--episodes N] [--repeats N]

Needs gymnax and rejax (0.1.3): `pip install rejax` beside this package brings chex, distrax, gast, tfp-nightly and
toolz, and moves nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

import surefoot as sf
from surefoot.errors import Stopped
from surefoot.settings import dumps

ENVIRONMENT = "CartPole-v1"
SETTINGS = {"num_envs": 64, "num_steps": 32, "num_epochs": 10, "num_minibatches": 8, "learning_rate": 3e-4}
# configs/gymnax/cartpole.yaml of rejax's repository.
PUBLISHED = {
    "agent_kwargs": {"activation": "tanh"},
    "num_envs": 5,
    "num_steps": 100,
    "num_epochs": 5,
    "num_minibatches": 5,
    "learning_rate": 0.00075,
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
}
SOLVED = 475.0
WINDOW = 50  # episodes
ASKED_EVERY = 5_000  # steps of the peer
GIVEN_UP = 1_000_000  # steps
SECONDS = 300  # of a process that does not get there


class Peer:
    """rejax's PPO as one program of any number of training iterations, without evaluations."""

    def __init__(self, environment: Any, settings: dict[str, Any], parameters: Any = None):
        from rejax import PPO

        options = {} if parameters is None else {"env_params": parameters}
        self.algorithm = PPO.create(env=environment, **options, **settings)
        self.per_iteration = self.algorithm.num_envs * self.algorithm.num_steps
        self.init = jax.jit(self.algorithm.init_state)
        state = self.init(jax.random.key(0))
        begun = time.perf_counter()
        self._advance = jax.jit(self._iterations).lower(state, jnp.asarray(1)).compile()
        self.compile_seconds = time.perf_counter() - begun

    def _iterations(self, state: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, state: self.algorithm.train_iteration(state), state)

    def advance(self, state: Any, count: int) -> tuple[Any, float]:
        """The state after `count` more iterations, and the seconds that they took."""
        begun = time.perf_counter()
        state = jax.block_until_ready(self._advance(state, jnp.asarray(count)))
        return state, time.perf_counter() - begun

    def act(self, weights: Any, observation: Any, key: Any, deterministic: bool) -> Any:
        """Its policy's actions for observations [N, ...]."""
        distribution = self.algorithm.actor.apply(weights, observation, method="_action_dist")
        return distribution.mode() if deterministic else distribution.sample(seed=key)


def act(policy: Any, observation: Any, key: Any, deterministic: bool) -> Any:
    distribution = policy(observation)
    return policy.action_map(distribution.mode() if deterministic else distribution.sample(key))


@functools.partial(jax.jit, static_argnames=("act", "name", "episodes", "deterministic"))
def play(act: Callable, weights: Any, name: str, key: Any, *, episodes: int, deterministic: bool = True) -> Any:
    """Returns of whole episodes, [episodes], ended by the environment alone; the same starts for the same key."""
    environment, parameters = gymnax.make(name)
    reset_key, key = jax.random.split(key)
    observation, state = jax.vmap(environment.reset_env, (0, None))(jax.random.split(reset_key, episodes), parameters)

    def body(carry: Any) -> Any:
        observation, state, total, over, key = carry
        key, act_key, step_key = jax.random.split(key, 3)
        action = act(weights, observation, act_key, deterministic)
        keys = jax.random.split(step_key, episodes)
        step = jax.vmap(environment.step_env, (0, 0, 0, None))
        observation, state, reward, ended, *_ = step(keys, state, action, parameters)
        return observation, state, total + jnp.where(over, 0, reward), over | ended, key

    state = jax.tree.map(jnp.asarray, state)
    begun = observation, state, jnp.zeros(episodes), jnp.zeros(episodes, bool), key
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]), body, begun)[2]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics so far."""
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Turns:
    """The peer's turns between the chunks of ours: it is what `surefoot.train` asks whether to stop."""

    def __init__(self, folder: Path, make_peer: Callable[[], Peer], seed: int):
        self.folder, self.make_peer, self.seed = folder, make_peer, seed
        self.peer: Peer | None = None
        self.ours: list[tuple[int, float]] = []  # iterations and seconds of each turn
        self.theirs: list[tuple[int, float]] = []
        self.first = 0
        self.done = 0
        self.resumed = 0.0

    def __call__(self) -> bool:
        """The peer's turn, of as many iterations as the chunk before it had; never stops the run."""
        asked = time.perf_counter()
        done = len(rows_of(self.folder)) + 1  # the last row waits for its judgement
        if self.peer is None:
            # The first chunk is the one that was compiled.
            self.peer, self.first = self.make_peer(), done
            self.state = self.peer.init(jax.random.key(self.seed))
            jax.block_until_ready(self.peer.advance(self.state, 1))
        else:
            self.ours.append((done - self.done, asked - self.resumed))
        self.state, seconds = self.peer.advance(self.state, done - self.done)
        if self.ours:
            self.theirs.append((done - self.done, seconds))
        self.done = done
        self.resumed = time.perf_counter()
        return False


def rate(turns: list[tuple[int, float]]) -> float:
    """Seconds of an iteration."""
    return sum(seconds for _, seconds in turns) / sum(count for count, _ in turns)


def side_by_side(steps: int, seeds: int, episodes: int) -> dict[str, Any]:
    """Speed, return and compile seconds, seed after seed; what is compiled is measured at the first."""
    make_peer = functools.cache(lambda: Peer(ENVIRONMENT, SETTINGS))
    own, peers, ratios, returns, peer_returns, compiling = [], [], [], [], [], []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "run"
            turns = Turns(folder, make_peer, seed)
            shape = {"envs": SETTINGS["num_envs"], "horizon": SETTINGS["num_steps"]}
            run = sf.train(
                f"gymnax:{ENVIRONMENT}",
                sf.TRPO(),
                steps=steps,
                seed=seed,
                out=folder,
                progress=False,
                stop=turns,
                **shape,
            )
            rows = rows_of(folder)
        peer = make_peer()
        ours, theirs = rate(turns.ours), rate(turns.theirs)
        taken = (rows[-1]["steps"] - rows[turns.first - 1]["steps"]) / (len(rows) - turns.first)
        own.append(taken / ours)
        peers.append(peer.per_iteration / theirs)
        ratios.append(own[-1] / peers[-1])
        compiling.append(rows[turns.first - 1]["seconds"] - turns.first * ours)
        key = jax.random.key(1_000 + seed)
        told = play(act, run.agent.policy, ENVIRONMENT, key, episodes=episodes)
        returns.append(float(np.mean(told)))
        told = play(peer.act, turns.state.actor_ts.params, ENVIRONMENT, key, episodes=episodes)
        peer_returns.append(float(np.mean(told)))
    algorithm = peer.algorithm.replace(total_timesteps=steps, eval_freq=max(steps // 20, 1))
    begun = time.perf_counter()
    jax.jit(algorithm.train).lower(jax.random.key(0)).compile()
    return {
        "ratio": float(np.median(ratios)),
        "return": float(np.mean(returns)),
        "peer_return": float(np.mean(peer_returns)),
        "compile_seconds": compiling[0],
        "peer_compile_seconds": peer.compile_seconds,
        "detail": {
            "steps_per_second": own,
            "peer_steps_per_second": peers,
            "returns": returns,
            "peer_returns": peer_returns,
            "ratios": ratios,
            "compile_seconds_of_each_seed": compiling,
            "peer_compile_seconds_with_evaluations": time.perf_counter() - begun,
        },
    }


class Recent:
    """A gymnax environment that also remembers the returns of its last episodes in its state."""

    def __init__(self, environment: Any, kept: int):
        self.environment, self.kept = environment, kept

    def __getattr__(self, name: str) -> Any:
        if name == "environment":  # a copy in the making, which rejax's settings are given as, has none yet
            raise AttributeError(name)
        return getattr(self.environment, name)

    def reset(self, key: Any, parameters: Any) -> Any:
        """As gymnax has it; -inf stands for an episode that there has not been."""
        observation, state = self.environment.reset(key, parameters)
        return observation, (state, jnp.zeros(()), jnp.full(self.kept, -jnp.inf))

    def step(self, key: Any, state: Any, action: Any, parameters: Any) -> Any:
        """As gymnax has it."""
        inner, total, last = state
        observation, inner, reward, ended, told = self.environment.step(key, inner, action, parameters)
        total = total + reward
        last = jnp.where(ended, jnp.roll(last, 1).at[0].set(total), last)
        return observation, (inner, jnp.where(ended, 0, total), last), reward, ended, told


def recent_return(rows: list[dict[str, Any]]) -> float:
    """The mean return of the last episodes, of as few iterations as had `WINDOW` of them; -inf before."""
    total, episodes = 0.0, 0
    for row in reversed(rows):
        if row["episodes"]:
            total, episodes = total + row["episodes"] * row["return_mean"], episodes + row["episodes"]
        if episodes >= WINDOW:
            return total / episodes
    return -np.inf


def solve_ours(seed: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"

        def solved() -> bool:
            there = recent_return(rows_of(folder)) >= SOLVED
            if there:
                print("solved", flush=True)
            return there

        with contextlib.suppress(Stopped):
            sf.train(f"gymnax:{ENVIRONMENT}", steps=GIVEN_UP, seed=seed, out=folder, progress=False, stop=solved)


def solve_peer(seed: int) -> None:
    environment, parameters = gymnax.make(ENVIRONMENT)
    peer = Peer(Recent(environment, WINDOW // PUBLISHED["num_envs"]), PUBLISHED, parameters)
    state = peer.init(jax.random.key(seed))
    count = ASKED_EVERY // peer.per_iteration
    for _ in range(GIVEN_UP // ASKED_EVERY):
        state, _ = peer.advance(state, count)
        if float(jnp.mean(state.env_state[2])) >= SOLVED:
            print("solved", flush=True)
            return


def seconds_to_solved(who: str, seed: int, surroundings: dict[str, str]) -> float | None:
    """From the start of a process of its own until it says that it is there; None where it never does."""
    command = [sys.executable, __file__, "--solve", who, "--seed", str(seed)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        seconds = time.perf_counter() - begun
        process.wait(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return seconds if line.strip() == "solved" else None


def to_solved(repeats: int) -> dict[str, Any]:
    """In turns, repeat after repeat, each with a seed of its own."""
    told: dict[str, list[float | None]] = {"cold": [], "warm": [], "peer": [], "peer_warm": []}
    bare = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    for seed in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            ours = bare | {"XDG_CACHE_HOME": cache}
            told["cold"].append(seconds_to_solved("ours", seed, ours))
            told["warm"].append(seconds_to_solved("ours", seed, ours))
            told["peer"].append(seconds_to_solved("peer", seed, bare))
            kept = bare | {
                "JAX_COMPILATION_CACHE_DIR": f"{cache}/peer",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            seconds_to_solved("peer", seed, kept)
            told["peer_warm"].append(seconds_to_solved("peer", seed, kept))
    middle = {name: None if None in values else float(np.median(values)) for name, values in told.items()}
    return {
        "cold_seconds_to_solved": middle["cold"],
        "warm_seconds_to_solved": middle["warm"],
        "peer_seconds_to_solved": middle["peer"],
        "detail": {"peer_warm_seconds_to_solved": middle["peer_warm"], "seconds_to_solved": told},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3, help="runs whose speed and return are measured")
    parser.add_argument("--episodes", type=int, default=100, help="of each final evaluation")
    parser.add_argument("--repeats", type=int, default=3, help="processes whose seconds to solved are measured")
    parser.add_argument("--solve", choices=("ours", "peer"), help="train in this process until it is solved")
    parser.add_argument("--seed", type=int, default=0, help="of --solve")
    arguments = parser.parse_args()
    if arguments.solve:
        (solve_ours if arguments.solve == "ours" else solve_peer)(arguments.seed)
        return
    jax.config.update("jax_enable_compilation_cache", False)
    result = side_by_side(arguments.steps, arguments.seeds, arguments.episodes) if arguments.seeds else {}
    if arguments.repeats:
        solved = to_solved(arguments.repeats)
        result |= solved | {"detail": result.get("detail", {}) | solved["detail"]}
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
