"""surefoot beside Stable-Baselines3 on one machine: steps a second, return, peak memory.

Each runs in a process of its own, one after the other, for the same number of steps, and is judged by the
same deterministic episodes of the same Gymnasium task. surefoot runs twice: with an empty compilation cache,
as on a machine that never ran it, and with the one that this leaves, as ever after. Needs the extra `bench`. Run

    python benchmarks/peers.py [ENV] [--json] [--steps N] [--episodes N]

sb3-contrib averages the KL over action dimensions where surefoot sums it, so its `target_kl` is the zoo's
figure divided by the number of action dimensions: the same trust region.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from surefoot.settings import dumps

PEERS = ("surefoot-first-run", "surefoot", "sb3-contrib-trpo", "sb3-ppo")


def run_surefoot(environment: str, steps: int, seed: int, episodes: int) -> tuple[float, float]:
    import surefoot as sf

    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(
            environment,
            steps=steps,
            seed=seed,
            evaluation_episodes=episodes,
            out=f"{folder}/run",
            progress=False,
        )
    return run.seconds, run.evaluation["return"]["mean"]


def make_sb3(environment: str, seed: int, *, contrib: bool) -> tuple[Any, Any]:
    """sb3-contrib's TRPO at its zoo settings, or Stable-Baselines3's PPO at its own, and the environments of it."""
    import gymnasium as gym
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(2)
    if contrib:
        from sb3_contrib import TRPO

        dimensions = gym.make(environment).action_space.shape[0]
        target = 0.04 if environment.startswith("HalfCheetah") else 0.01
        envs = VecNormalize(make_vec_env(environment, n_envs=2, seed=seed), gamma=0.99)
        model = TRPO(
            "MlpPolicy",
            envs,
            n_steps=1024,
            batch_size=128,
            gamma=0.99,
            gae_lambda=0.95,
            learning_rate=1e-3,
            n_critic_updates=20,
            cg_max_steps=25,
            cg_damping=0.1,
            sub_sampling_factor=1,
            target_kl=target / dimensions,
            seed=seed,
            device="cpu",
        )
        return model, envs
    from stable_baselines3 import PPO

    envs = VecNormalize(make_vec_env(environment, n_envs=1, seed=seed), gamma=0.99)
    return PPO("MlpPolicy", envs, seed=seed, device="cpu"), envs


def evaluate_sb3(model: Any, envs: Any, environment: str, seed: int, episodes: int) -> list[float]:
    """Returns of deterministic episodes of the task itself, observations normalised as in training."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    test = VecNormalize(make_vec_env(environment, n_envs=1, seed=seed + 10_000), training=False, norm_reward=False)
    test.obs_rms = envs.obs_rms
    returns, _ = evaluate_policy(model, test, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True)
    test.close()
    return returns


def run_sb3(environment: str, steps: int, seed: int, episodes: int, *, contrib: bool) -> tuple[float, float]:
    model, envs = make_sb3(environment, seed, contrib=contrib)
    begun = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - begun
    return seconds, float(np.mean(evaluate_sb3(model, envs, environment, seed, episodes)))


def run_one(name: str, environment: str, steps: int, seed: int, episodes: int) -> dict:
    if name.startswith("surefoot"):
        seconds, mean = run_surefoot(environment, steps, seed, episodes)
    else:
        seconds, mean = run_sb3(environment, steps, seed, episodes, contrib=name == "sb3-contrib-trpo")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"steps_per_second": steps / seconds, "return": mean, "peak_memory_mib": peak, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--only", choices=PEERS, help="run one of them in this process")
    arguments = parser.parse_args()
    shared = [arguments.environment, *(f"--{k}={getattr(arguments, k)}" for k in ("steps", "seed", "episodes"))]
    if arguments.only:
        told = run_one(arguments.only, arguments.environment, arguments.steps, arguments.seed, arguments.episodes)
        print(dumps(told))
        return
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in PEERS:
            command = [sys.executable, __file__, *shared, "--only", name]
            surroundings = {**os.environ, "XDG_CACHE_HOME": cache}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
            results[name] = json.loads(done.stdout.strip().splitlines()[-1])
    ours = results["surefoot"]["steps_per_second"]
    results["speed_over_sb3_contrib_trpo"] = ours / results["sb3-contrib-trpo"]["steps_per_second"]
    first = results["surefoot-first-run"]["steps_per_second"]
    results["first_run_speed_over_sb3_contrib_trpo"] = first / results["sb3-contrib-trpo"]["steps_per_second"]
    results["speed_over_sb3_ppo"] = ours / results["sb3-ppo"]["steps_per_second"]
    if arguments.json:
        print(dumps({"environment": arguments.environment, "steps": arguments.steps, **results}))
    else:
        for name, value in results.items():
            print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
