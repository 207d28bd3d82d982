"""One iteration of the loop: collect, judge the update before, estimate, update, certify, fit the critic."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch, Trajectory
from surefoot.critic import Critic, CriticState, make_critic
from surefoot.guard import careful, did_harm, next_share
from surefoot.policy import NeuralPolicy, make_policy
from surefoot.rules import Memory, Rule, UpdateReport
from surefoot.sampled_certificate import (
    Estimate,
    Sums,
    discounted_rows,
    effective_horizon,
    held_out_gain,
    realised_gain,
    sampled_certificate,
)
from surefoot.sources.base import Source
from surefoot.stages import (
    Estimates,
    Updated,
    critic_stage,
    estimate_stage,
    frozen_error,
    movement_stage,
    split_keys,
    update_stage,
)


class Previous(NamedTuple):
    """What judging an update from the next batch takes.

    Attributes:
        policy: the one before the update.
        memory: the rule's before it.
        critic: the one whose advantages the update used, frozen.
        total, mass: `Sums` of its temporal differences over that batch, [N]; all 0 where there is nothing to judge.
    """

    policy: NeuralPolicy
    memory: Memory
    critic: Critic
    total: Float[Array, " N"]
    mass: Float[Array, " N"]


class Learner(NamedTuple):
    """Everything that learning changes, as one tree.

    Attributes:
        policy: with its normaliser.
        memory: the rule's.
        critic: with its optimiser.
        returns: return so far of each environment's running episode, [N].
        previous: the last update, not judged yet.
        share: of the trust region that the guard leaves, in (0, 1].
        key: split once an update, never reused.
    """

    policy: NeuralPolicy
    memory: Memory
    critic: CriticState
    returns: Float[Array, " N"]
    previous: Previous
    share: Float[Array, ""]
    key: PRNGKeyArray


class Iteration(NamedTuple):
    """What one iteration tells.

    Attributes:
        row: its metrics; the critic's are promises until `settled`, and `judgement` of the next one completes it.
        returns: of the episodes that ended in it.
        judgement: what this iteration's batch says of the update before, as metrics of that update.
    """

    row: dict[str, Any]
    returns: np.ndarray
    judgement: dict[str, Any]


def begin(source: Source, rule: Rule, run: config.Run) -> tuple[Learner, Any]:
    """A fresh learner and the source's first state, from the run's seed alone."""
    policy_key, critic_key, source_key, key = split_keys(jax.random.key(run.seed), 4)
    policy = make_policy(source.observation_space, source.action_space, run.network, policy_key)
    memory = rule.init(policy)
    critic = make_critic(source.observation_space, run.critic, critic_key, normalise=run.network.normalise)
    nothing = jax.device_put(np.zeros(source.envs, np.float32))
    one = jax.device_put(np.ones((), np.float32))
    previous = Previous(policy, memory, critic.critic, nothing, nothing)
    return Learner(policy, memory, critic, nothing, previous, one, key), source.reset(source_key)


def iterate(
    source: Source, rule: Rule, run: config.Run, learner: Learner, state: Any
) -> tuple[Learner, Any, Iteration]:
    """One iteration of the loop; an update is judged by the batch of the next.

    The critic's fit is begun and not waited for: nothing needs the critic before the next estimate, so it
    is fitted while the next experience is collected. Until `settled`, its figures in the row are promises.
    """
    key, collect_key, update_key, critic_key = split_keys(learner.key, 4)
    started = time.perf_counter()
    trajectory, state = source.collect(learner.policy, state, collect_key)
    collected = time.perf_counter()
    jax.block_until_ready(learner.critic)
    waited = time.perf_counter()
    trajectory = jax.device_put(trajectory)
    batch, estimates = estimate_stage(learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
    jax.block_until_ready(estimates)
    estimated = time.perf_counter()
    judgement, undone = judge(learner.previous, trajectory, batch, run)
    judged = time.perf_counter()

    share = float(learner.share)
    rule = careful(rule, share) if run.certification.guard else rule
    updated = update_stage(
        rule,
        learner.policy,
        learner.memory,
        trajectory,
        batch,
        update_key,
        discount=run.estimator.discount,
        held=run.held_out,
        idle=undone,
    )
    report, normaliser_kl, smallest_std = jax.device_get((updated.report, updated.normaliser_kl, updated.smallest_std))
    if undone:  # also where a rule moves on advantages of 0: nothing of it is kept
        report = report._replace(accepted=np.bool_(False))
    moved = time.perf_counter()
    account = certify_stage(report, updated, trajectory, batch, estimates, run)
    certified = time.perf_counter()
    fitted, critic_report = critic_stage(learner.critic, run.critic, trajectory, batch, estimates.target, critic_key)

    told = jax.device_get(estimates)
    flags = jax.device_get((trajectory.reset, trajectory.terminated, trajectory.truncated, trajectory.time))
    reset, terminated, truncated, age = flags
    ended = (terminated | truncated) & ~reset
    returns = told.episode_return[ended]
    row = {
        "experience": int(np.sum(~reset)),
        "collect_seconds": collected - started,
        "critic_seconds": waited - collected,
        "update_seconds": (estimated - waited) + (moved - judged),
        "certify_seconds": (judged - estimated) + (certified - moved),
        **_episode_metrics(returns, age[ended] + 1),
        "terminations": int(np.sum(terminated & ~reset)),
        "truncations": int(np.sum(truncated & ~terminated & ~reset)),
        "radius": float(getattr(rule, "radius", np.nan)),
        **_plain(report),
        **account,
        **critic_report._asdict(),
        **{name: float(getattr(told, name)) for name in _CHECKS},
        "normaliser_kl": float(normaliser_kl),
        "smallest_std": None if smallest_std is None else float(smallest_std),
        "discarded": undone,
    }
    made = updated._replace(policy=learner.previous.policy, memory=learner.previous.memory) if undone else updated
    learner = Learner(
        policy=made.policy,
        memory=made.memory,
        critic=learner.critic if undone else fitted,
        returns=jax.device_put(told.episode_return[-1]),
        previous=_to_be_judged(learner, estimates, report),
        share=jax.device_put(np.float32(next_share(share, undone=undone))),
        key=key,
    )
    return learner, state, Iteration(row, returns, judgement)


_NO_STEP = "no step was taken"
_CHECKS = ("reward_mean", "reward_std", "reward_largest", "first_ratio_error", "action_saturation")


def _to_be_judged(learner: Learner, estimates: Estimates, report: UpdateReport) -> Previous:
    """What the next iteration judges this one's update by; nothing where nothing moved."""
    sums = estimates.sums if report.accepted else jax.tree.map(jnp.zeros_like, estimates.sums)
    return Previous(learner.policy, learner.memory, learner.critic.critic, *sums)


def judge(previous: Previous, trajectory: Trajectory, batch: Batch, run: config.Run) -> tuple[dict[str, Any], bool]:
    """What a batch says of the update before it: metrics of that update, and whether the guard takes it back."""
    settings = run.certification
    before = _sums(previous.total, previous.mass)
    if not before.mass.any():
        return unjudged(_NO_STEP), False
    after = _sums(*frozen_error(previous.critic, trajectory, batch.weight, run.estimator.discount))
    undone = settings.guard and did_harm(before, after, settings.guard_confidence)
    estimate = realised_gain(before, after, settings.confidence)
    return _estimate_metrics("realised_gain", estimate) | {"undone": undone}, undone


def _sums(total: Array, mass: Array) -> Sums:
    return Sums(np.asarray(total, np.float64), np.asarray(mass, np.float64))


def unjudged(reason: str) -> dict[str, Any]:
    """The judgement of an update of which no batch says anything."""
    return _estimate_metrics("realised_gain", Estimate(reason=reason)) | {"undone": False}


def _estimate_metrics(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        name: estimate.value,
        f"{name}_lower": estimate.lower,
        f"{name}_upper": estimate.upper,
        f"{name}_reason": estimate.reason,
    }


def certify_stage(
    report: UpdateReport, updated: Updated, trajectory: Trajectory, batch: Batch, estimates: Estimates, run: config.Run
) -> dict[str, Any]:
    """The update's certificate from its own batch, as metrics."""
    discount = run.estimator.discount
    horizon = effective_horizon(discount, float(estimates.terminating))
    time, reset, terminated = jax.device_get((trajectory.time, trajectory.reset, trajectory.terminated))
    rows, reason = discounted_rows(time, ~reset, terminated, discount)
    if not report.accepted:
        reason = _NO_STEP
    moved = None
    if reason is None:
        moved = jax.device_get(movement_stage(updated.policy, trajectory, batch, estimates, discount))
    held = Estimate(reason="no environment was held out" if updated.held_out is None else _NO_STEP)
    if updated.held_out is not None and report.accepted:
        held = held_out_gain(_sums(*updated.held_out), run.certification.confidence)
    certificate = sampled_certificate(report, horizon, rows, reason, moved, discount)
    return certificate._asdict() | _estimate_metrics("held_out_gain", held)


def settled(row: dict[str, Any]) -> dict[str, Any]:
    """The row as plain numbers, once the critic's fit is done."""
    return {name: value.item() if isinstance(value, jax.Array) else value for name, value in row.items()}


def _episode_metrics(returns: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    none = len(returns) == 0
    returns = returns.astype(np.float64)  # squares of what 32 bits hold
    return {
        "episodes": len(returns),
        "return_mean": None if none else float(returns.mean()),
        "return_std": None if none else float(returns.std()),
        "return_min": None if none else float(returns.min()),
        "return_max": None if none else float(returns.max()),
        "length_mean": None if none else float(lengths.mean()),
    }


def _plain(report: NamedTuple) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in report._asdict().items()}
