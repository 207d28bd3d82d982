"""One update on several devices beside the same on one, as JSON; and one process of two that make an update together.

python spreading.py compare float32
python spreading.py process 0 2 PORT FILE
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from surefoot import config
from surefoot.batch import Batch, Trajectory, rows
from surefoot.geometry import fisher_operator, surrogate_gradient
from surefoot.iteration import Learner, begin
from surefoot.policy import flatten
from surefoot.rules import RULES
from surefoot.sharding import placed, replicated, spread_over
from surefoot.sources import make_source
from surefoot.stages import critic_stage, estimate_stage, frozen_error, movement_stage, update_stage

ENVS, HORIZON, HELD, DEVICES = 16, 64, 4, 4
ROWS = ENVS * HORIZON
_RESULT = re.compile(
    r" = (.*?) (all-gather|all-to-all|all-reduce|collective-\w+|reduce-scatter|ragged-all-to-all)(?:-start)?\("
)
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_RULES = {
    "trpo": ("trpo", {"subsample": 1.0}),
    "trpo in chunks": ("trpo", {"subsample": 1.0, "chunk": 100}),
    "trpo of a subsample": ("trpo", {}),
    "ppo": ("ppo", {"minibatch": 0, "epochs": 3}),
    "ppo in minibatches": ("ppo", {"epochs": 2}),
}
SAMPLED = {"trpo of a subsample", "ppo in minibatches", "critic in minibatches"}
"""What takes other rows together of several devices: its steps are not one device's."""
IN_BLOCKS = np.arange(ROWS).reshape(HORIZON, DEVICES, -1).swapaxes(0, 1).ravel()
"""Of each row in the order of several devices, its number in that of one."""


def collectives(text: str) -> list[tuple[str, int]]:
    """What a compiled program sends between devices: the operation and how many numbers its largest result has."""
    found = []
    for result, kind in _RESULT.findall(text):
        sizes = [math.prod(map(int, shape.split(","))) if shape else 1 for shape in _SHAPE.findall(result)]
        found.append((kind, max(sizes)))
    return found


def settings(**more: Any) -> config.Run:
    return config.make_run(
        envs=ENVS, horizon=HORIZON, hidden=(8,), critic_hidden=(8,), source="gymnasium", vectorisation="sync", **more
    )


def begun(run: config.Run, dtype: Any) -> tuple[Learner, Trajectory]:
    source = make_source("Pendulum-v1", run.collection)
    learner, state = begin(source, RULES["trpo"](), run, dtype)
    trajectory, _ = source.collect(learner.policy, state, jax.random.key(1))
    # Ends and resets, which Pendulum has few of: what each row is must be found again wherever it lies.
    chance = np.random.default_rng(0).random((HORIZON, ENVS))
    # A critic that says 0, as one begins, would say it of every row.
    last = learner.critic.critic.network.dense.weights[-1]
    guess = jnp.asarray(np.random.default_rng(1).normal(size=last.shape), last.dtype)
    critic = eqx.tree_at(lambda c: c.network.dense.weights[-1], learner.critic.critic, guess)
    learner = learner._replace(critic=learner.critic._replace(critic=critic))
    return learner, Trajectory(
        **{
            **vars(trajectory),
            "terminated": np.asarray(chance < 0.02),
            "truncated": np.asarray(chance > 0.98),
            "reset": np.asarray((chance > 0.5) & (chance < 0.52)),
        }
    )


def _fisher_product(policy: Any, batch: Batch, vector: Any) -> Any:
    return fisher_operator(policy, batch)(vector)


def update(
    devices: int, dtype: Any, *, rules: Iterable[str] = tuple(_RULES), programs: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one update comes to on so many devices, and what its programs send between them."""
    numbers: dict[str, Any] = {}
    sent: dict[str, Any] = {}
    whole = settings(critic_minibatch=ROWS)
    learner, collected = begun(whole, dtype)

    def made(name: str, stage: Any, *arguments: Any, **named: Any) -> Any:
        if not programs:
            return stage(*arguments, **named)
        program = stage.lower(*arguments, **named).compile()
        sent[name] = collectives(program.as_text())
        return program(*arguments, **{key: value for key, value in named.items() if key != "held"})

    with spread_over(devices):
        one, trajectory, key = replicated(learner), placed(collected), replicated(jax.random.key(3))
        policy, critic = one.policy, one.critic
        discount = whole.estimator.discount
        batch, estimates = made(
            "estimate", estimate_stage, policy, critic.critic, one.returns, trajectory, whole.estimator
        )
        if devices > 1:
            assert len(batch.advantage.sharding.device_set) == devices
            assert batch.advantage.addressable_shards[0].data.shape == (ROWS // devices,)
        numbers["sums"] = estimates.sums
        numbers["returns"] = estimates.episode_return
        numbers["frozen"] = made("frozen", frozen_error, critic.critic, trajectory, batch.weight, discount)
        theta = flatten(policy)[0]
        vector = replicated(jnp.asarray(np.random.default_rng(0).normal(size=theta.shape), theta.dtype))
        numbers["gradient"] = made("gradient", jax.jit(surrogate_gradient), policy, batch)
        numbers["Fisher product"] = made("Fisher product", jax.jit(_fisher_product), policy, batch, vector)
        for name in rules:
            kind, chosen = _RULES[name]
            rule = RULES[kind](**chosen)
            arguments = rule, policy, rule.init(policy), trajectory, batch, key
            done = made(name, update_stage, *arguments, discount=discount, held=HELD)
            assert done.report.accepted
            numbers[name] = flatten(done.policy)[0]
            numbers[f"{name}: step"] = numbers[name] - theta
            numbers[f"{name}: normaliser"] = done.policy.normaliser.mean
            if name not in SAMPLED:
                numbers[f"{name}: held out"] = done.held_out
            if name == "trpo":
                moved = made("movement", movement_stage, done.policy, trajectory, batch, estimates, discount)
                numbers["movement"] = (moved.surrogate, moved.mean_kl, moved.max_kl, moved.error)
        if "trpo of a subsample" in rules:
            # On one device of the rows in the order of several: the subsample is then the same rows.
            ordered = batch if devices > 1 else rows(batch, IN_BLOCKS)
            again, _, _ = jax.jit(RULES["trpo"]().update)(policy, (), ordered, key)
            numbers["subsample in blocks"] = flatten(again)[0] - theta
        for name, run in (("critic", whole), ("critic in minibatches", settings())):
            fitted, report = made(name, critic_stage, critic, run.critic, trajectory, batch, estimates.target, key)
            numbers[name] = flatten_critic(fitted)
            assert np.isfinite(report.loss)
        if programs:
            order = np.random.default_rng(0).permutation(ROWS)
            flat = jax.jit(lambda t: jnp.tanh(t.observation[:-1].reshape(-1, 3)))
            shuffled = jax.jit(lambda b: jnp.tanh(b.observation[order]))
            sent["flattened in time's order"] = collectives(flat.lower(trajectory).compile().as_text())
            sent["rows of everywhere"] = collectives(shuffled.lower(batch).compile().as_text())
        return jax.device_get(numbers), sent


def flatten_critic(fitted: Any) -> Any:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(fitted.critic.network)])


def _difference(one: Any, other: Any) -> float:
    one, other = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def compare(dtype: str) -> dict[str, Any]:
    jax.config.update("jax_enable_x64", dtype == "float64")
    rules = tuple(_RULES) if dtype == "float32" else ("trpo", "ppo")
    one, _ = update(1, np.dtype(dtype), rules=rules)
    several, sent = update(DEVICES, np.dtype(dtype), rules=rules, programs=dtype == "float32")
    learner, _ = begun(settings(), np.dtype(dtype))
    sizes = [flatten(learner.policy)[0].size, sum(x.size for x in jax.tree.leaves(learner.critic.critic))]
    differences = {name: _difference(one[name], several[name]) for name in one}
    return {"differences": differences, "sent": sent, "parameters": max(sizes)}


def process(number: int, count: int, port: int, file: str) -> None:
    """Process `number` of `count`: it has its own share of the environments, and writes what the update came to."""
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, number)
    run = settings(critic_minibatch=ROWS)
    learner, collected = begun(run, np.float32)
    own = slice(number * ENVS // count, (number + 1) * ENVS // count)
    collected = jax.tree.map(lambda leaf: np.asarray(leaf)[:, own], collected)
    rule = RULES["trpo"](subsample=1.0)
    with spread_over(jax.device_count()):
        learner, trajectory, key = replicated(learner), placed(collected), replicated(jax.random.key(3))
        batch, estimates = estimate_stage(
            learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator
        )
        done = update_stage(
            rule, learner.policy, (), trajectory, batch, key, discount=run.estimator.discount, held=HELD
        )
        fitted, _ = critic_stage(learner.critic, run.critic, trajectory, batch, estimates.target, key)
        theta, step = flatten(done.policy)[0], flatten(done.policy)[0] - flatten(learner.policy)[0]
        told = {"theta": theta, "step": step, "kl": done.report.kl, "critic": flatten_critic(fitted)}
        np.savez(file, accepted=done.report.accepted, rows=batch.size, **jax.device_get(told))


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        print(json.dumps(compare(sys.argv[2])))
    else:
        process(*map(int, sys.argv[2:5]), sys.argv[5])
