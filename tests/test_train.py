"""The loop: whole runs, what they record, and that they can be repeated."""

import json
import signal
import subprocess
import sys
import time

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot import config, history
from surefoot.advantage import estimate
from surefoot.batch import Trajectory
from surefoot.distributions import Bernoulli
from surefoot.geometry import surrogate_gradient
from surefoot.iteration import Learner, begin, iterate, settled
from surefoot.policy import Policy
from surefoot.sources import make_source
from surefoot.stages import estimate_stage
from surefoot.training import make_rule

TINY = {
    "envs": 2,
    "horizon": 16,
    "hidden": (8,),
    "critic_hidden": (8,),
    "critic_epochs": 2,
    "evaluation_episodes": 2,
    "progress": False,
}
TIMES = {"seconds", "collect_seconds", "update_seconds", "certify_seconds", "critic_seconds"}


def rows_without_times(path):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history.read(path).rows]


@pytest.mark.parametrize("rule", ["trpo", *(pytest.param(name, marks=pytest.mark.long) for name in ("npg", "pg"))])
def test_every_rule_learns_cartpole(rule, tmp_path):
    steps = 60_000 if rule == "pg" else 30_000  # a radius of .003 that is annealed takes the gradient only so far
    run = sf.train("CartPole-v1", rule, steps=steps, seed=0, out=tmp_path / "run", progress=False)
    told = history.read(run.path)
    early, late = told.column("return_mean")[:2].mean(), np.nanmax(told.column("return_mean")[-8:])
    assert early < 60
    assert late > 150
    assert run.evaluation["return"]["mean"] > 150
    assert told.column("first_ratio_error").max() < 1e-4
    if rule == "trpo":
        assert (told.column("kl") <= told.column("radius")).all()


def test_a_seed_repeats_bit_for_bit_and_another_differs(tmp_path):
    runs = [
        sf.train("CartPole-v1", sf.TRPO(), steps=128, seed=seed, out=tmp_path / name, **TINY)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, again, other = (rows_without_times(run.path) for run in runs)
    assert first == again
    assert first != other
    tensors = [(run.path / "policy" / "policy.safetensors").read_bytes() for run in runs]
    assert tensors[0] == tensors[1] != tensors[2]


@pytest.mark.long
def test_settings_reach_the_run(tmp_path):
    run = sf.train("Pendulum-v1", "pg", steps=64, discount=0.9, log_std=-1.0, out=tmp_path / "run", **TINY)
    told = history.read(run.path)
    assert told.config["discount"] == 0.9
    assert told.config["rule"] == "pg"
    assert told.config["trust_region"] == "euclidean"
    np.testing.assert_allclose(told.rows[0]["entropy"], 0.5 * np.log(2 * np.pi * np.e) - 1, atol=0.1)
    assert told.rows[0]["experience"] == 32
    assert run.steps == told.rows[-1]["steps"] >= 64
    assert run.updates == len(told.rows) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stesp": 5}, "unknown setting 'stesp' \\(did you mean 'steps'"),
        ({"envs": 0}, "envs must be a whole number, at least 1"),
        ({"rule": "tropo"}, "did you mean 'trpo'"),
    ],
)
def test_settings_are_refused_before_anything_is_written(settings, said, tmp_path):
    with pytest.raises(sf.SettingError, match=said):
        sf.train("CartPole-v1", out=tmp_path / "run", progress=False, **settings)
    assert not (tmp_path / "run").exists()


def test_recorded_returns_are_those_of_the_episodes_also_across_restarts(tmp_path):
    """Episodes of CartPole pay 1 a step, so a recorded return is a length, and never above the limit."""
    run = sf.train("CartPole-v1", steps=600, restart_every=32, out=tmp_path / "run", **TINY)
    told = history.read(run.path)
    assert np.nansum(told.column("episodes")) > 5
    np.testing.assert_allclose(told.column("return_mean"), told.column("length_mean"))


class TwoSteps(gym.Env):
    """One step of reward 1 a third, for telling transitions from resets."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time / 3, np.float32), 1.0, self.time == 2, False, {}


def test_steps_count_transitions_and_not_resets(tmp_path):
    run = sf.train(TwoSteps, steps=40, out=tmp_path / "run", **TINY)
    told = history.read(run.path)
    # Of 16 rows an environment, every third is a reset: 11 transitions, then 10 or 11.
    assert told.column("experience").tolist() == [22, 22]
    assert told.column("return_mean").tolist() == [2, 2]
    assert told.column("effective_sample_size")[0] <= 22.001


class OneParameter(Policy):
    """The same probability of action 1 in every state: sigmoid(theta)."""

    theta: jax.Array

    def __call__(self, observation, mask=None):
        return Bernoulli(jnp.broadcast_to(self.theta, (*observation.shape[:-1], 1)))

    def trainable(self):
        return OneParameter(True)

    def bounded(self):
        return self


@pytest.mark.parametrize(("weighting", "gradient"), [("discounted", 0.0625), ("undiscounted", -0.125)])
def test_dropping_the_discount_from_the_state_weights_flips_the_gradients_sign(weighting, gradient, x64):
    """theory.md section 1: s0 -> s1 -> end, r(s0, b) = 1, r(s1, b) = -1.5, discount 1/2, theta = 0."""
    actions = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])  # the four equally likely episodes
    ends = np.array([[False] * 4, [True] * 4])
    state = np.stack([np.full((4, 1), t, float) for t in range(3)])
    trajectory = Trajectory(
        observation=jnp.asarray(state),
        mask=None,
        action=jnp.asarray(actions)[..., None],
        log_prob=jnp.full((2, 4), np.log(0.5)),
        reward=jnp.asarray(actions * np.array([[1.0], [-1.5]])),
        terminated=jnp.asarray(ends),
        truncated=jnp.zeros((2, 4), bool),
        reset=jnp.zeros((2, 4), bool),
        time=jnp.asarray([[0] * 4, [1] * 4]),
    )
    value = jnp.asarray(np.array([[0.125] * 4, [-0.75] * 4, [7.0] * 4]))
    policy = OneParameter(jnp.zeros(1))
    batch, _ = estimate(
        trajectory, value, policy(trajectory.observation[:-1]), discount=0.5, gae_lambda=0.0, weighting=weighting
    )
    total = 1.5 if weighting == "discounted" else 2  # of the weights of one episode before normalising
    np.testing.assert_allclose(total * surrogate_gradient(policy, batch)[0], gradient, rtol=1e-12)


def collected(**settings):
    run = config.make_run(**{**settings, "hidden": (8,), "critic_hidden": (8,)})
    source = make_source("CartPole-v1", run.collection)
    rule = make_rule("trpo")
    learner, state = begin(source, rule, run)
    return source, rule, run, learner, state


@pytest.mark.long
def test_a_normaliser_that_drifts_within_an_iteration_shows_in_the_first_ratio():
    source, rule, run, learner, state = collected(envs=4, horizon=16)
    learner, state, told = iterate(source, rule, run, learner, state)
    row = told.row
    assert row["first_ratio_error"] < 1e-5
    assert row["normaliser_kl"] > 0
    trajectory, _ = source.collect(learner.policy, state, jax.random.key(1))
    early = learner.policy.observed(trajectory.observation, np.ones((17, 4), bool)).normaliser
    drifted = eqx.tree_at(lambda p: p.normaliser, learner.policy, early)
    for policy, wrong in ((learner.policy, False), (drifted, True)):
        _, estimates = estimate_stage(policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
        assert (float(estimates.first_ratio_error) > 1e-4) == wrong


def test_the_critic_is_fitted_after_the_rule_used_the_old_one():
    source, rule, run, learner, state = collected(envs=4, horizon=16)
    trajectory, _ = source.collect(learner.policy, state, jax.random.split(learner.key, 4)[1])
    batch, _ = estimate_stage(learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
    policy, _, report = eqx.filter_jit(rule.update)(learner.policy, (), batch, learner.key)
    after, _, told = iterate(source, rule, run, learner, state)
    row = told.row
    np.testing.assert_allclose(row["surrogate_gain"], report.surrogate_gain, rtol=1e-4)
    for name in ("weights", "biases"):
        for one, other in zip(getattr(policy.network, name), getattr(after.policy.network, name), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert not np.array_equal(after.critic.critic.network.weights[0], learner.critic.critic.network.weights[0])


def test_a_learner_is_one_tree_of_arrays():
    _, _, _, learner, _ = collected(envs=2, horizon=8)
    assert isinstance(learner, Learner)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(learner))


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_stopped_run_can_be_loaded(sent, code, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "surefoot.cli", "train", "CartPole-v1", "--steps", "10_000_000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "metrics.jsonl").exists():
        time.sleep(0.1)
    while time.monotonic() < deadline and (out / "metrics.jsonl").stat().st_size == 0:
        time.sleep(0.1)
    process.send_signal(sent)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert f"go on with: surefoot resume {out}" in told
    assert len(history.read(out).rows) >= 1
    assert sf.load(out).act(np.zeros(4, np.float32)) in (0, 1)
    assert (out / "learning_curve.png").exists()


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"kl": "inf"}) + "\n" + json.dumps({"kl": None}) + '\n{"kl": 0.')
    told = history.read(tmp_path)
    assert told.column("kl")[0] == np.inf
    assert np.isnan(told.column("kl")[1])
    assert len(told.rows) == 2
    metrics.write_text('{"kl": 0.\n{"kl": 1}\n')
    with pytest.raises(sf.RunError, match="line 1"):
        history.read(tmp_path)
    metrics.write_text('{"kl": 1}\n')
    with pytest.raises(sf.RunError, match="did you mean 'kl'"):
        history.read(tmp_path).column("klo")


def test_fitting_the_critic_behind_the_next_collection_changes_no_bit():
    leaves = []
    for wait in (False, True):
        source, rule, run, learner, state = collected(envs=4, horizon=16)
        rows = []
        for _ in range(3):
            learner, state, told = iterate(source, rule, run, learner, state)
            if wait:
                jax.block_until_ready(learner)
            rows.append(settled(told.row) | told.judgement)
        kept = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        leaves.append(([np.asarray(x) for x in jax.tree.leaves(learner._replace(key=None))], kept))
    for one, other in zip(leaves[0][0], leaves[1][0], strict=True):
        assert one.tobytes() == other.tobytes()
    assert leaves[0][1] == leaves[1][1]
    for row in leaves[0][1]:
        assert all(isinstance(value, float) for value in row.pop("multiplier_path"))
        assert all(isinstance(value, float) for value in (row.pop("estimated_bounds") or {}).values())
        assert all(isinstance(value, (int, float, bool, str, type(None))) for value in row.values())
