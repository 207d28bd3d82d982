"""One iteration of the loop: collect, judge the update before, estimate, update, certify, fit the critic."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from surefoot import config
from surefoot.annealing import annealed, remaining
from surefoot.arrays import namespace
from surefoot.batch import Batch, Trajectory
from surefoot.critic import Critic, CriticReport, CriticState, make_critic
from surefoot.guard import did_harm, next_share
from surefoot.kept import Inputs, due
from surefoot.policy import NeuralPolicy, make_policy
from surefoot.rules import Memory, Rule, UpdateReport
from surefoot.sampled_certificate import (
    Estimate,
    Moved,
    Sums,
    discounted_rows,
    effective_horizon,
    held_out_gain,
    realised_gain,
    sampled_certificate,
)
from surefoot.sharding import placed, replicated
from surefoot.sources.base import Source
from surefoot.stages import (
    Estimates,
    Updated,
    critic_stage,
    estimate_stage,
    frozen_error,
    movement_stage,
    seen_stage,
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
        steps: of experience so far, int32; stops at 2^31 - 1.
        key: split once an update, never reused.
    """

    policy: NeuralPolicy
    memory: Memory
    critic: CriticState
    returns: Float[Array, " N"]
    previous: Previous
    share: Float[Array, ""]
    steps: Int[Array, ""]
    key: PRNGKeyArray


class Iteration(NamedTuple):
    """What one iteration tells.

    Attributes:
        row: its metrics; the critic's are promises until `settled`, and `judgement` of the next one completes it.
        returns: of the episodes that ended in it.
        judgement: what this iteration's batch says of the update before, as metrics of that update.
        inputs: of its update, where they are to be kept.
    """

    row: dict[str, Any]
    returns: np.ndarray
    judgement: dict[str, Any]
    inputs: Inputs | None = None


def begin(source: Source, rule: Rule, run: config.Run, dtype: np.dtype | type = np.float32) -> tuple[Learner, Any]:
    """A fresh learner of this floating-point type and the source's first state, from the run's seed alone."""
    policy_key, critic_key, source_key, key = split_keys(jax.random.key(run.seed), 4)
    policy = make_policy(source.observation_space, source.action_space, run.network, policy_key, dtype)
    memory = rule.init(policy)
    critic = make_critic(source.observation_space, run.critic, critic_key, normalise=run.network.normalise, dtype=dtype)
    nothing = jax.device_put(np.zeros(source.envs, dtype))
    one = jax.device_put(np.ones((), dtype))
    previous = Previous(policy, memory, critic.critic, nothing, nothing)
    none = jax.device_put(np.zeros((), np.int32))
    return Learner(policy, memory, critic, nothing, previous, one, none, key), source.reset(source_key)


class Told(NamedTuple):
    """What an iteration leaves for its account, on the device or fetched from it.

    Attributes:
        flags: reset, terminated, truncated and time of the trajectory, [T, N] each.
        estimates: of it.
        before, after: `Sums` of the temporal differences of the critic that the previous update used, in the batch of
            that update and in this one, [N] each.
        report: the rule's.
        radius: of the update; NaN for a rule without one.
        held_out: `Sums` over the rows that the step did not see, [N] each; None without a holdout.
        moved: how the policy moved under discounted weights; None where that was not asked.
        normaliser_kl, smallest_std: as in `Updated`.
    """

    flags: tuple[Array, Array, Array, Array]
    estimates: Estimates
    before: tuple[Array, Array]
    after: tuple[Array, Array]
    report: UpdateReport
    radius: Array | float
    held_out: tuple[Array, Array] | None
    moved: Moved | None
    normaliser_kl: Array
    smallest_std: Array | None


def iterate(
    source: Source, rule: Rule, run: config.Run, learner: Learner, state: Any, steps: int = 0
) -> tuple[Learner, Any, Iteration]:
    """One iteration of the loop, after so many environment steps; an update is judged by the batch of the next.

    The critic's fit is begun and not waited for: nothing needs the critic before the next estimate, so it
    is fitted while the next experience is collected. Until `settled`, its figures in the row are promises.
    """
    learner = replicated(learner)
    key, collect_key, update_key, critic_key = split_keys(learner.key, 4)
    started = time.perf_counter()
    trajectory, state = source.collect(learner.policy, state, collect_key)
    collected = time.perf_counter()
    jax.block_until_ready(learner.critic)
    waited = time.perf_counter()
    trajectory = placed(trajectory)
    batch, estimates = estimate_stage(learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
    jax.block_until_ready(estimates)
    estimated = time.perf_counter()
    discount, previous = run.estimator.discount, learner.previous
    after = jax.device_get(frozen_error(previous.critic, trajectory, batch.weight, discount))
    judgement, undone = judge((previous.total, previous.mass), after, run)
    judged = time.perf_counter()

    share = float(learner.share)
    # Rounded as it is kept, so that a replay of the update takes the same step.
    remains = np.float32(share * remaining(run, int(learner.steps)))
    rule = annealed(rule, float(remains))
    updated = _update(rule, run, learner, trajectory, batch, update_key, idle=undone)
    report = jax.device_get(updated.report)
    moved = time.perf_counter()
    flags = jax.device_get(_flags(trajectory))
    inputs = None
    if due(run, steps, steps + int(np.sum(~flags[0]))):
        seen, key_of_rule = seen_stage(trajectory, batch, update_key, held=run.held_out, idle=undone)
        inputs = Inputs(learner.policy, learner.memory, jnp.asarray(remains), seen, key_of_rule)
    coverage = _coverage(flags, discount)
    movement = None
    if report.accepted and not undone and coverage[1] is None:
        movement = movement_stage(updated.policy, trajectory, batch, estimates, discount)
    told = _told(rule, flags, estimates, previous, after, updated, movement)
    certificate = certify_stage(jax.device_get(told), coverage, run, undone=undone)
    certified = time.perf_counter()
    fitted, critic_report = critic_stage(learner.critic, run.critic, trajectory, batch, estimates.target, critic_key)

    row, returns = account(jax.device_get(told), certificate, critic_report, undone=undone)
    row |= source.told(state) | {
        "collect_seconds": collected - started,
        "critic_seconds": waited - collected,
        "update_seconds": (estimated - waited) + (moved - judged),
        "certify_seconds": (judged - estimated) + (certified - moved),
    }
    taken = jax.device_put(np.int32(_further(np.asarray(learner.steps), row["experience"])))
    learned = _learned(learner, estimates, updated, fitted, key, taken)
    if undone:
        nothing = jnp.zeros_like(previous.total)
        learned = learned._replace(
            policy=previous.policy,
            memory=previous.memory,
            critic=learner.critic,
            previous=learned.previous._replace(total=nothing, mass=nothing),
        )
    share = next_share(share, undone=undone)
    learned = learned._replace(share=jax.device_put(np.float32(share)))
    return learned, state, Iteration(row, returns, judgement, inputs)


def learn(
    rule: Rule, run: config.Run, learner: Learner, trajectory: Trajectory, keys: tuple[PRNGKeyArray, ...]
) -> tuple[Learner, Told, CriticReport]:
    """All of `iterate` between collection and account, for a program that holds it. No update is taken back.

    `keys` are the learner's next one, the update's and the critic's.
    """
    key, update_key, critic_key = keys
    batch, estimates = estimate_stage(learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
    discount, previous = run.estimator.discount, learner.previous
    rule = annealed(rule, remaining(run, learner.steps))
    after = frozen_error(previous.critic, trajectory, batch.weight, discount)
    updated = _update(rule, run, learner, trajectory, batch, update_key)
    movement = movement_stage(updated.policy, trajectory, batch, estimates, discount)
    fitted, critic_report = critic_stage(learner.critic, run.critic, trajectory, batch, estimates.target, critic_key)
    told = _told(rule, _flags(trajectory), estimates, previous, after, updated, movement)
    taken = _further(learner.steps, jnp.sum(~jnp.asarray(trajectory.reset)))
    return _learned(learner, estimates, updated, fitted, key, taken), told, critic_report


def told_of(told: Told, critic_report: CriticReport, rule: Rule, run: config.Run) -> Iteration:
    """The iteration that `learn` made, once it is fetched from the device. Its row has no times."""
    if run.anneal == 1:
        told = told._replace(radius=_radius(rule))  # as it was said, and not as the device rounds it
    judgement, _ = judge(told.before, told.after, run)
    coverage = _coverage(told.flags, run.estimator.discount)
    critic_report = jax.tree.map(float, critic_report)
    row, returns = account(told, certify_stage(told, coverage, run), critic_report)
    return Iteration(row | dict.fromkeys(_TIMES), returns, judgement)


def _update(
    rule: Rule, run: config.Run, learner: Learner, trajectory: Trajectory, batch: Batch, key: Any, idle: bool = False
) -> Updated:
    return update_stage(
        rule,
        learner.policy,
        learner.memory,
        trajectory,
        batch,
        key,
        discount=run.estimator.discount,
        held=run.held_out,
        idle=idle,
    )


def _flags(trajectory: Trajectory) -> tuple[Array, Array, Array, Array]:
    return trajectory.reset, trajectory.terminated, trajectory.truncated, trajectory.time


def _radius(rule: Rule) -> Any:
    return getattr(rule, "radius", np.nan)


def _coverage(flags: tuple[Any, ...], discount: float) -> tuple[float, str | None]:
    reset, terminated, _, age = flags
    return discounted_rows(age, ~reset, terminated, discount)


def _told(
    rule: Rule,
    flags: tuple[Array, Array, Array, Array],
    estimates: Estimates,
    previous: Previous,
    after: tuple[Any, Any],
    updated: Updated,
    moved: Moved | None,
) -> Told:
    nothing = estimates.value[:0]  # what is as large as the batch has served
    return Told(
        flags=flags,
        estimates=estimates._replace(value=nothing, target=nothing, error=nothing),
        before=(previous.total, previous.mass),
        after=after,
        report=updated.report,
        radius=_radius(rule),
        held_out=updated.held_out,
        moved=moved,
        normaliser_kl=updated.normaliser_kl,
        smallest_std=updated.smallest_std,
    )


def _learned(
    learner: Learner, estimates: Estimates, updated: Updated, critic: CriticState, key: Any, steps: Any
) -> Learner:
    """The learner after its update, which the next iteration judges; nothing where nothing moved."""
    sums = jax.tree.map(lambda x: jnp.where(updated.report.accepted, x, 0), estimates.sums)
    return Learner(
        policy=updated.policy,
        memory=updated.memory,
        critic=critic,
        returns=estimates.episode_return[-1],
        previous=Previous(learner.policy, learner.memory, learner.critic.critic, *sums),
        share=learner.share,
        steps=steps,
        key=key,
    )


def _further(steps: Any, experience: Any) -> Any:
    """The steps after so much more experience, but at most the largest number of 32 bits: a longer run anneals no
    further."""
    return steps + namespace(steps).minimum(experience, _MOST_STEPS - steps)


_MOST_STEPS = 2**31 - 1
_NO_STEP = "no step was taken"
_CHECKS = ("reward_mean", "reward_std", "reward_largest", "first_ratio_error", "action_saturation")
_TIMES = ("collect_seconds", "critic_seconds", "update_seconds", "certify_seconds")


def judge(before: tuple[Any, Any], after: tuple[Any, Any], run: config.Run) -> tuple[dict[str, Any], bool]:
    """What a batch says of the update before it: metrics of that update, and whether the guard takes it back."""
    settings = run.certification
    promised, found = _sums(*before), _sums(*after)
    if not promised.mass.any():
        return unjudged(_NO_STEP), False
    undone = settings.guard and did_harm(promised, found, settings.guard_confidence)
    estimate = realised_gain(promised, found, settings.confidence)
    return _estimate_metrics("realised_gain", estimate) | {"undone": undone}, undone


def _sums(total: Any, mass: Any) -> Sums:
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
    told: Told, coverage: tuple[float, str | None], run: config.Run, *, undone: bool = False
) -> dict[str, Any]:
    """The update's certificate from its own batch, as metrics; of an update that the guard left out, nothing."""
    discount = run.estimator.discount
    horizon = effective_horizon(discount, float(told.estimates.terminating))
    rows, reason = coverage
    report = _taken(told.report, undone=undone)
    if not report.accepted:
        reason = _NO_STEP
    held = Estimate(reason="no environment was held out" if told.held_out is None else _NO_STEP)
    if told.held_out is not None and report.accepted:
        held = held_out_gain(_sums(*told.held_out), run.certification.confidence)
    moved = told.moved if reason is None else None
    certificate = sampled_certificate(report, horizon, rows, reason, moved, discount)
    return certificate._asdict() | _estimate_metrics("held_out_gain", held)


def _taken(report: UpdateReport, *, undone: bool) -> UpdateReport:
    """The report; where the guard left the update out, also of a rule that moves on advantages of 0, as refused."""
    return report._replace(accepted=jax.device_put(np.bool_(False))) if undone else report


def account(
    told: Told, certificate: dict[str, Any], critic_report: CriticReport, *, undone: bool = False
) -> tuple[dict[str, Any], np.ndarray]:
    """The iteration's metrics but for its times, and the returns of the episodes that ended in it."""
    reset, terminated, truncated, age = map(np.asarray, told.flags)
    ended = (terminated | truncated) & ~reset
    returns = np.asarray(told.estimates.episode_return)[ended]
    row = {
        "experience": int(np.sum(~reset)),
        **_episode_metrics(returns, age[ended] + 1),
        "terminations": int(np.sum(terminated & ~reset)),
        "truncations": int(np.sum(truncated & ~terminated & ~reset)),
        "radius": float(told.radius),
        **_plain(_taken(told.report, undone=undone)),
        **certificate,
        **critic_report._asdict(),
        **{name: float(getattr(told.estimates, name)) for name in _CHECKS},
        "normaliser_kl": float(told.normaliser_kl),
        "smallest_std": None if told.smallest_std is None else float(told.smallest_std),
        "discarded": undone,
    }
    return row, returns


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
