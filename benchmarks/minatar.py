"""Return on gymnax's MinAtar Breakout beside rejax's PPO, seed after seed, both for as many steps.

Ours is `surefoot.train` with its defaults but for what --set says; rejax has the settings that its repository
publishes for this task (benchmark/breakout_1m.yaml), without evaluations meanwhile. The final policies play the same
whole episodes: once with the likeliest actions, as `return` and `peer_return`, and once with sampled ones, as under
`detail`.

    python benchmarks/minatar.py [--json] [--steps N] [--seeds N] [--episodes N] [--set NAME=VALUE ...]

Needs gymnax and rejax, as `benchmarks/compiled.py` does.
"""

from __future__ import annotations

import argparse
import ast
import tempfile
import time
from typing import Any

import jax
import numpy as np
from compiled import Peer, act, play

import surefoot as sf
from surefoot.settings import dumps

ENVIRONMENT = "Breakout-MinAtar"
PUBLISHED = {
    "agent_kwargs": {"activation": "tanh"},
    "num_envs": 32,
    "num_steps": 32,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 0.00025674088686342003,
    "max_grad_norm": 1,
    "gamma": 0.995,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
}


def measure(steps: int, seeds: int, episodes: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns of every seed, and seconds of training with what compiling takes of ours."""
    peer = Peer(ENVIRONMENT, PUBLISHED)
    names = ("return", "peer_return", "sampled_return", "peer_sampled_return", "seconds", "peer_seconds")
    told: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            begun = time.perf_counter()
            run = sf.train(
                f"gymnax:{ENVIRONMENT}", steps=steps, seed=seed, out=f"{work}/run", progress=False, **settings
            )
            told["seconds"].append(time.perf_counter() - begun)
        state, seconds = peer.advance(peer.init(jax.random.key(seed)), -(-steps // peer.per_iteration))
        told["peer_seconds"].append(seconds)
        key = jax.random.key(1_000 + seed)
        for name, deterministic in (("return", True), ("sampled_return", False)):
            options: dict[str, Any] = {"episodes": episodes, "deterministic": deterministic}
            ours = play(act, run.agent.policy, ENVIRONMENT, key, **options)
            theirs = play(peer.act, state.actor_ts.params, ENVIRONMENT, key, **options)
            told[name].append(float(np.mean(ours)))
            told[f"peer_{name}"].append(float(np.mean(theirs)))
    return {
        "return": float(np.mean(told["return"])),
        "peer_return": float(np.mean(told["peer_return"])),
        "steps": steps,
        "detail": told | {"settings": settings},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of ours")
    arguments = parser.parse_args()
    settings = {}
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    result = measure(arguments.steps, arguments.seeds, arguments.episodes, settings)
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:12} {value}")


if __name__ == "__main__":
    main()
