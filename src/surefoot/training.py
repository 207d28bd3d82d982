"""The loop: collect, estimate, update, record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import agent as artefact
from surefoot import config
from surefoot.advantage import estimate
from surefoot.batch import Batch, Trajectory, weighted_sum
from surefoot.compilation import keep_compiled_programs
from surefoot.critic import CriticReport, CriticState, fit, make_critic
from surefoot.errors import SettingError, SurefootError, did_you_mean
from surefoot.evaluation import evaluate
from surefoot.geometry import subsample
from surefoot.policy import NeuralPolicy, make_policy
from surefoot.progress import Progress
from surefoot.record import Recorder, new_run_folder
from surefoot.report.curve import learning_curve
from surefoot.rules import RULES, Memory, Rule, UpdateReport
from surefoot.sources import make_source
from surefoot.sources.base import Source
from surefoot.sources.environments import environment_name

_DRIFT_ROWS = 256  # on which the normaliser's movement is measured


class Learner(NamedTuple):
    """Everything that learning changes, as one tree.

    Attributes:
        policy: with its normaliser.
        memory: the rule's.
        critic: with its optimiser.
        returns: return so far of each environment's running episode, [N].
        key: split once an update, never reused.
    """

    policy: NeuralPolicy
    memory: Memory
    critic: CriticState
    returns: Float[Array, " N"]
    key: PRNGKeyArray


class Estimates(NamedTuple):
    """What the estimate stage knows beside the batch.

    Attributes:
        target: value targets, [B].
        episode_return: return since each episode's start after each row, [T, N].
        first_ratio_error: largest |pi(a|s) / pi_collecting(a|s) - 1| over real rows: 0 but for rounding,
            unless what is updated is not what collected.
        action_saturation: share of the sampled action coordinates that the action bounds cut off.
    """

    target: Float[Array, " B"]
    episode_return: Float[Array, "T N"]
    first_ratio_error: Float[Array, ""]
    action_saturation: Float[Array, ""]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        steps: environment steps taken (real transitions).
        updates: how many updates there were, refused ones included.
        seconds: wall time from the first collection to the last record.
        evaluation: {"return": {"mean", "std", "episodes"}, "length": {"mean"}}, deterministic.
        agent: the trained agent.
    """

    path: Path
    steps: int
    updates: int
    seconds: float
    evaluation: dict[str, Any]
    agent: artefact.Agent


def train(
    environment: str | Callable[[], Any],
    rule: Rule | str = "trpo",
    *,
    out: str | os.PathLike | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a policy, evaluate it and leave a run folder.

    Arguments:
        environment: a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
        rule: such as `surefoot.TRPO(radius=0.01)`, or a rule's name for its defaults.
        out: the run's folder; by default a new one under runs/.
        progress: show a panel (or lines, outside a terminal) on standard error.
        settings: any setting of `surefoot.config.Run` and its groups by name, such as `steps`, `seed`,
            `envs`, `horizon`, `discount`; the critic's are `critic_step_size` and so on.

    Raises SettingError, EnvironmentNotFound, UnsupportedSpace, RunError before anything is written, and
    EnvironmentFault while training; what was recorded until then is complete and loadable.
    """
    run = config.make_run(**settings)
    rule = make_rule(rule)
    keep_compiled_programs()
    source = make_source(environment, run.collection)
    try:
        return _train(environment, rule, run, source, out, progress)
    finally:
        source.close()


def make_rule(rule: Rule | str) -> Rule:
    """The rule itself, or a rule of this name with its defaults. Raises SettingError."""
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str) or rule not in RULES:
        raise SettingError(f"rule must be one of {', '.join(RULES)}, but {rule!r} came{did_you_mean(str(rule), RULES)}")
    return RULES[rule]()


def begin(source: Source, rule: Rule, run: config.Run) -> tuple[Learner, Any]:
    """A fresh learner and the source's first state, from the run's seed alone."""
    policy_key, critic_key, source_key, key = _four_keys(jax.random.key(run.seed))
    policy = make_policy(source.observation_space, source.action_space, run.network, policy_key)
    critic = make_critic(source.observation_space, run.critic, critic_key, normalise=run.network.normalise)
    learner = Learner(policy, rule.init(policy), critic, jax.device_put(np.zeros(source.envs, np.float32)), key)
    return learner, source.reset(source_key)


def _train(
    environment: str | Callable[[], Any], rule: Rule, run: config.Run, source: Source, out: Any, progress: bool
) -> Run:
    name, rule_name = environment_name(environment), rule.settings_class.name
    learner, state = begin(source, rule, run)
    folder = new_run_folder(out, f"{name}-{rule_name}-s{run.seed}")
    recorder = Recorder(folder, configuration(name, rule, run))
    title = f"{name} · {rule_name} · seed {run.seed}"
    steps = updates = 0
    begun = time.perf_counter()
    unrecorded: list[tuple[dict[str, Any], np.ndarray]] = []  # the last update, whose critic is being fitted

    def record(view: Progress) -> None:
        while unrecorded:
            row, returns = unrecorded.pop()
            row = settled(row)
            recorder.append(row)
            view.show(row, returns)

    try:
        with Progress(title, run.steps, trust_region=rule.settings_class.trust_region, shown=progress) as view:
            try:
                while steps < run.steps:
                    learner, state, row, returns = iterate(source, rule, run, learner, state)
                    record(view)
                    steps, updates = steps + row["experience"], updates + 1
                    row = {"update": updates, "steps": steps, "seconds": time.perf_counter() - begun, **row}
                    unrecorded.append((row, returns))
            finally:
                record(view)
    except SurefootError as error:
        _save(learner, source, name, run, folder)
        raise type(error)(f"{error} (what was recorded until then is in {folder})") from error
    except BaseException:
        _save(learner, source, name, run, folder)
        raise
    finally:
        recorder.close()
    seconds = time.perf_counter() - begun
    trained = _save(learner, source, name, run, folder)
    result = evaluate(trained, environment, episodes=run.evaluation_episodes, seed=run.seed)
    recorder.write("evaluation.json", result)
    return Run(folder, steps, updates, seconds, result, trained)


def configuration(environment: str, rule: Rule, run: config.Run) -> dict[str, Any]:
    """Everything needed to run it again, as config.json has it."""
    plain = {
        name: getattr(getattr(run, group) if group else run, item)
        for name, (group, item) in config.run_options().items()
    }
    return {
        "environment": environment,
        "rule": rule.settings_class.name,
        "trust_region": rule.settings_class.trust_region,
        "rule_settings": config.as_json(rule.settings()),
        **config.as_json(plain),
    }


def _save(learner: Learner, source: Source, name: str, run: config.Run, folder: Path) -> artefact.Agent:
    agent = artefact.Agent(learner.policy, source.observation_space, source.action_space, name)
    artefact.save(agent, folder / "policy", run.network)
    learning_curve(folder)
    return agent


def iterate(
    source: Source, rule: Rule, run: config.Run, learner: Learner, state: Any
) -> tuple[Learner, Any, dict[str, Any], np.ndarray]:
    """One iteration: collect, estimate, update, fit the critic; its metrics row and the returns that ended in it.

    The critic's fit is begun and not waited for: nothing needs the critic before the next estimate, so it
    is fitted while the next experience is collected. Until `settled`, its figures in the row are promises.
    """
    key, collect_key, update_key, critic_key = _four_keys(learner.key)
    started = time.perf_counter()
    trajectory, state = source.collect(learner.policy, state, collect_key)
    collected = time.perf_counter()
    jax.block_until_ready(learner.critic)
    waited = time.perf_counter()
    trajectory = jax.device_put(trajectory)
    batch, estimates = estimate_stage(learner, trajectory, run.estimator)
    policy, memory, report, normaliser_kl = update_stage(
        rule, learner.policy, learner.memory, trajectory, batch, update_key
    )
    critic, critic_report = critic_stage(learner.critic, run.critic, trajectory, batch, estimates.target, critic_key)
    report, estimates, normaliser_kl = jax.device_get((report, estimates, normaliser_kl))
    updated = time.perf_counter()

    learner = Learner(policy, memory, critic, jax.device_put(estimates.episode_return[-1]), key)
    reset, terminated, truncated, age = jax.device_get(
        (trajectory.reset, trajectory.terminated, trajectory.truncated, trajectory.time)
    )
    ended = (terminated | truncated) & ~reset
    returns = estimates.episode_return[ended]
    row = {
        "experience": int(np.sum(~reset)),
        "collect_seconds": collected - started,
        "critic_seconds": waited - collected,
        "update_seconds": updated - waited,
        **_episode_metrics(returns, age[ended] + 1),
        "radius": float(getattr(rule, "radius", np.nan)),
        **_plain(report),
        **critic_report._asdict(),
        "first_ratio_error": float(estimates.first_ratio_error),
        "action_saturation": float(estimates.action_saturation),
        "normaliser_kl": float(normaliser_kl),
    }
    return learner, state, row, returns


@jax.jit
def _four_keys(key: PRNGKeyArray) -> tuple[PRNGKeyArray, ...]:
    return tuple(jax.random.split(key, 4))


def settled(row: dict[str, Any]) -> dict[str, Any]:
    """The row as plain numbers, once the critic's fit is done."""
    return {name: value.item() if isinstance(value, jax.Array) else value for name, value in row.items()}


@partial(jax.jit, static_argnames="settings")
def estimate_stage(learner: Learner, trajectory: Trajectory, settings: config.Estimator) -> tuple[Batch, Estimates]:
    """Values in one batched call, advantages, and checks on what was collected."""
    policy = learner.policy
    before = jax.tree.map(lambda leaf: leaf[:-1], (trajectory.observation, trajectory.mask))
    old = policy(*before)
    batch, target = estimate(
        trajectory,
        learner.critic.critic(trajectory.observation),
        old,
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        weighting=settings.state_weighting,
    )
    real = ~trajectory.reset
    ratio_error = jnp.abs(jnp.expm1(old.log_prob(trajectory.action) - trajectory.log_prob))
    cut = policy.action_map.saturated(trajectory.action)
    cut = jnp.mean(cut.reshape(*real.shape, -1), axis=-1)
    return batch, Estimates(
        target=target,
        episode_return=_returns_so_far(trajectory, learner.returns),
        first_ratio_error=jnp.max(jnp.where(real, ratio_error, 0)),
        action_saturation=jnp.sum(cut * real) / jnp.maximum(jnp.sum(real), 1),
    )


@jax.jit
def update_stage(
    rule: Rule, policy: NeuralPolicy, memory: Memory, trajectory: Trajectory, batch: Batch, key: PRNGKeyArray
) -> tuple[NeuralPolicy, Memory, UpdateReport, Array]:
    """The rule's update, then this iteration's observations into the normaliser, and the mean KL that that took."""
    updated, memory, report = rule.update(policy, memory, batch, key)
    assert isinstance(updated, NeuralPolicy)
    observed = updated.observed(_before(trajectory), ~trajectory.reset)
    part = subsample(batch, _DRIFT_ROWS / batch.size)
    drift = updated(part.observation, part.mask).kl(observed(part.observation, part.mask))
    return observed, memory, report, weighted_sum(part.weight, drift)


@partial(jax.jit, static_argnames="settings")
def critic_stage(
    critic: CriticState,
    settings: config.Critic,
    trajectory: Trajectory,
    batch: Batch,
    target: Array,
    key: PRNGKeyArray,
) -> tuple[CriticState, CriticReport]:
    """The critic's fit, after the rule has used the old one's advantages, and then its normaliser."""
    fitted, report = fit(critic, settings, batch.observation, target, batch.weight, key)
    return fitted._replace(critic=fitted.critic.observed(_before(trajectory), ~trajectory.reset)), report


def _before(trajectory: Trajectory) -> Any:
    """What each row's action was chosen on."""
    return jax.tree.map(lambda leaf: leaf[:-1], trajectory.observation)


def _returns_so_far(trajectory: Trajectory, carried: Float[Array, " N"]) -> Float[Array, "T N"]:
    def forward(total, row):
        reward, reset, time = row
        # Not every episode begins with a reset row: a restarted source just begins anew.
        total = jnp.where(reset, 0, jnp.where(time == 0, reward, total + reward))
        return total, total

    rows = (trajectory.reward, jnp.asarray(trajectory.reset), jnp.asarray(trajectory.time))
    return jax.lax.scan(forward, carried, rows)[1]


def _episode_metrics(returns: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    none = len(returns) == 0
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
