"""What an update costs over 1, 2 and 4 devices of a CPU: the stages of a TRPO update at HalfCheetah's sizes, in turn.

python benchmarks/devices.py [--json] [--envs N] [--horizon T] [--repeats N]
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np
from gymnasium import spaces
from update import alternating_medians

from surefoot import config
from surefoot.batch import Trajectory
from surefoot.compilation import see_cpu_devices
from surefoot.critic import make_critic
from surefoot.policy import make_policy
from surefoot.rules import TRPO
from surefoot.settings import dumps
from surefoot.sharding import placed, replicated, spread_over
from surefoot.stages import critic_stage, estimate_stage, update_stage

DEVICES = (1, 2, 4)


def half_cheetah_like(envs: int, horizon: int):
    """A policy, a critic and a trajectory with HalfCheetah's sizes."""
    box, run = spaces.Box(-np.inf, np.inf, (17,)), config.make_run(envs=envs, horizon=horizon)
    policy = make_policy(box, spaces.Box(-1, 1, (6,)), run.network, jax.random.key(0))
    critic = make_critic(box, run.critic, jax.random.key(1))
    chance = np.random.default_rng(0)
    observation = chance.normal(size=(horizon + 1, envs, 17)).astype(np.float32)
    old = jax.jit(lambda policy, seen: policy(seen))(policy, observation[:-1])
    action = old.sample(jax.random.key(2))
    none = np.zeros((horizon, envs), bool)
    trajectory = Trajectory(
        observation=observation,
        mask=None,
        action=np.asarray(action),
        log_prob=np.asarray(old.log_prob(action)),
        reward=np.tanh(observation[:-1, :, 0] + np.asarray(action)[..., 0]),
        terminated=none,
        truncated=none,
        reset=none,
        time=np.broadcast_to(np.arange(horizon, dtype=np.int32)[:, None], none.shape),
    )
    return run, policy, critic, trajectory


def stages(devices: int, run: config.Run, *learned: object) -> dict[str, object]:
    """Functions without arguments that make each stage of an update on so many devices."""
    with spread_over(devices):
        policy, critic, nothing, key = replicated(
            (*learned[:2], np.zeros(run.collection.envs, np.float32), jax.random.key(3))
        )
        trajectory = placed(learned[2])
        batch, estimates = estimate_stage(policy, critic.critic, nothing, trajectory, run.estimator)

    def within(stage, *arguments, **named):
        with spread_over(devices):
            return stage(*arguments, **named)

    rule = TRPO()
    return {
        f"estimate, {devices}": partial(
            within, estimate_stage, policy, critic.critic, nothing, trajectory, run.estimator
        ),
        f"update, {devices}": partial(
            within, update_stage, rule, policy, (), trajectory, batch, key, discount=run.estimator.discount
        ),
        f"critic, {devices}": partial(
            within, critic_stage, critic, run.critic, trajectory, batch, estimates.target, key
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    see_cpu_devices(max(DEVICES))
    made = half_cheetah_like(arguments.envs, arguments.horizon)
    functions = {name: stage for devices in DEVICES for name, stage in stages(devices, *made).items()}
    medians = alternating_medians(functions, arguments.repeats)
    if arguments.json:
        print(dumps({"seconds": medians, **vars(arguments)}))
        return
    print(f"{arguments.envs * arguments.horizon} rows; milliseconds by stage and devices")
    for name, seconds in medians.items():
        print(f"{name:<14}{1000 * seconds:>10.1f}")


if __name__ == "__main__":
    main()
