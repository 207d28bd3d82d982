"""Advantages, targets and weights against explicit sums over each episode."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.advantage import estimate, generalised_advantage, state_weight
from surefoot.batch import Batch, Trajectory, sampled_batch, standardised
from surefoot.distributions import Categorical

GOING, TERMINATED, TRUNCATED, BOTH = range(4)

gae = jax.jit(generalised_advantage)
estimated = jax.jit(estimate, static_argnames="weighting")
weights = jax.jit(state_weight, static_argnames="weighting")
standardise = jax.jit(standardised)


class Story(NamedTuple):
    """T steps of N environments, as a source with next-step autoreset tells them."""

    reward: np.ndarray
    value: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reset: np.ndarray
    time: np.ndarray

    def trajectory(self) -> Trajectory:
        steps, envs = self.reward.shape
        return Trajectory(
            observation=np.zeros((steps + 1, envs, 2)),
            mask=None,
            action=np.zeros((steps, envs), np.int32),
            log_prob=np.full((steps, envs), np.log(0.5)),
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated,
            reset=self.reset,
            time=self.time,
        )

    @property
    def old(self) -> Categorical:
        return Categorical(np.zeros((*self.reward.shape, 2)))


def tell(events, starts_with_reset, start_time, rng) -> Story:
    """A story of these events [T, N], where what would follow an end is a reset instead."""
    events = np.array(events)
    steps, envs = events.shape
    reset, time = np.zeros((steps, envs), bool), np.zeros((steps, envs), np.int32)
    for n in range(envs):
        ended, clock = bool(starts_with_reset[n]), int(start_time[n])
        for t in range(steps):
            if ended:
                reset[t, n], events[t, n], ended, clock = True, GOING, False, 0
                continue
            time[t, n] = clock
            clock += 1
            ended = events[t, n] != GOING
    reward = np.where(reset, 0, rng.normal(size=(steps, envs)))
    return Story(
        reward=reward,
        value=rng.normal(size=(steps + 1, envs), scale=3),
        terminated=np.isin(events, (TERMINATED, BOTH)),
        truncated=np.isin(events, (TRUNCATED, BOTH)),
        reset=reset,
        time=time,
    )


def reference(story: Story, discount: float, gae_lambda: float) -> np.ndarray:
    """GAE as the lambda-weighted mean of n-step advantages within each episode; NaN in reset rows.

    A = (1 - lambda) sum_{n < K} lambda^(n-1) A_n + lambda^(K-1) A_K, with K the steps that are left and
    A_n = sum_{i < n} discount^i r_{t+i} + discount^n V(where that led, 0 if it terminated) - V_t.
    """
    steps, envs = story.reward.shape
    result = np.full((steps, envs), np.nan)
    for n in range(envs):
        for t in range(steps):
            if story.reset[t, n]:
                continue
            last = t
            while not (story.terminated[last, n] or story.truncated[last, n] or last == steps - 1):
                last += 1
            n_step = []
            for k in range(1, last - t + 2):
                total = sum(discount**i * story.reward[t + i, n] for i in range(k))
                if not story.terminated[t + k - 1, n]:
                    total += discount**k * story.value[t + k, n]
                n_step.append(total - story.value[t, n])
            share = [(1 - gae_lambda) * gae_lambda**i for i in range(len(n_step) - 1)] + [
                gae_lambda ** (len(n_step) - 1)
            ]
            result[t, n] = np.dot(share, n_step)
    return result


def advantages(story: Story, discount: float, gae_lambda: float) -> np.ndarray:
    """What the library says, NaN in reset rows."""
    told = gae(*story[:4], discount=discount, gae_lambda=gae_lambda)
    return np.where(story.reset, np.nan, told)


SHAPES = [(1, 1), (2, 1), (7, 2), (12, 3)]
FACTORS = st.sampled_from([0.0, 0.3, 0.9, 0.99]) | st.floats(0, 0.999)


@st.composite
def stories(draw) -> Story:
    steps, envs = draw(st.sampled_from(SHAPES))
    events = [
        [draw(st.sampled_from([GOING, GOING, GOING, TERMINATED, TRUNCATED, BOTH])) for _ in range(envs)]
        for _ in range(steps)
    ]
    starts = [draw(st.booleans()) for _ in range(envs)]
    times = [draw(st.integers(0, 50)) for _ in range(envs)]
    return tell(events, starts, times, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))


@given(story=stories(), discount=FACTORS, gae_lambda=FACTORS | st.just(1.0))
@settings(max_examples=120)
def test_advantages_are_the_weighted_n_step_advantages_of_each_episode(story, discount, gae_lambda):
    with jax.enable_x64(True):
        told = advantages(story, discount, gae_lambda)
        np.testing.assert_allclose(told, reference(story, discount, gae_lambda), rtol=1e-10, atol=1e-12)


LONG = [
    [GOING, GOING],
    [TERMINATED, GOING],
    [GOING, TRUNCATED],
    [GOING, GOING],
    [GOING, GOING],
    [TRUNCATED, BOTH],
    [GOING] * 2,
]


@pytest.fixture
def story(x64, rng) -> Story:
    return tell(LONG, [False, True], [4, 0], rng)


def test_lambda_zero_gives_one_step_errors(story):
    expected = story.reward + 0.9 * np.where(story.terminated, 0, story.value[1:]) - story.value[:-1]
    np.testing.assert_allclose(advantages(story, 0.9, 0.0), np.where(story.reset, np.nan, expected), rtol=1e-12)


def test_lambda_one_gives_the_discounted_return_to_the_end_less_the_value(story):
    told = advantages(story, 0.9, 1.0)
    r, v = story.reward[:, 0], story.value[:, 0]
    assert told[0, 0] == pytest.approx(r[0] + 0.9 * r[1] - v[0], rel=1e-12)  # terminated after row 1
    assert told[1, 0] == pytest.approx(r[1] - v[1], rel=1e-12)
    cut = r[3] + 0.9 * r[4] + 0.81 * r[5] + 0.729 * v[6] - v[3]  # row 2 is a reset, row 5 was truncated
    assert told[3, 0] == pytest.approx(cut, rel=1e-12)


def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not(story):
    told = advantages(story, 0.9, 0.95)
    moved = story._replace(value=story.value + np.r_[np.zeros((6, 2)), np.ones((1, 2)), np.zeros((1, 2))])
    change = advantages(moved, 0.9, 0.95) - told
    # Row 6 is a reset after row 5: environment 0 was truncated there, environment 1 terminated (and truncated).
    assert change[5, 0] == pytest.approx(0.9, rel=1e-12)
    assert change[4, 0] == pytest.approx(0.9 * (0.9 * 0.95), rel=1e-12)
    assert np.all(change[:6, 1][~story.reset[:6, 1]] == 0)
    terminated = story._replace(terminated=story.terminated | story.truncated, truncated=np.zeros_like(story.truncated))
    assert np.nanmax(np.abs(advantages(terminated, 0.9, 0.95) - told)) > 0.1


def test_the_last_row_of_an_unfinished_episode_bootstraps_from_where_it_led(x64, rng):
    story = tell([[GOING], [GOING]], [False], [0], rng)
    told = advantages(story, 0.9, 0.95)
    assert told[1, 0] == pytest.approx(story.reward[1, 0] + 0.9 * story.value[2, 0] - story.value[1, 0], rel=1e-12)


def test_nothing_crosses_from_one_environment_to_another(story, rng):
    told = advantages(story, 0.9, 0.95)
    other = story._replace(reward=story.reward * [1, -5], value=story.value + np.array([0, 7]))
    changed = advantages(other, 0.9, 0.95)
    np.testing.assert_array_equal(changed[:, 0], told[:, 0])
    assert np.nanmin(np.abs(changed[:, 1] - told[:, 1])) > 1e-6


@given(story=stories(), field=st.sampled_from(["reward", "value", "action", "log_prob", "old", "time"]))
@settings(max_examples=60)
def test_reset_rows_have_weight_zero_and_no_value_in_them_matters(story, field):
    with jax.enable_x64(True):
        trajectory, value, old = story.trajectory(), story.value, story.old
        reset = story.reset
        if field == "reward":
            trajectory = _with(trajectory, reward=np.where(reset, 1e9, trajectory.reward))
        elif field == "value":
            # A reset row's own value is that of the final observation: only truncation may look at it.
            after_truncation = np.r_[np.zeros_like(reset[:1]), story.truncated & ~story.terminated][:-1]
            value = value + np.r_[np.where(reset & ~after_truncation, 1e9, 0), np.zeros_like(value[:1])]
        elif field == "action":
            trajectory = _with(trajectory, action=np.where(reset, 1, trajectory.action))
        elif field == "log_prob":
            trajectory = _with(trajectory, log_prob=np.where(reset, np.nan, trajectory.log_prob))
        elif field == "old":
            old = Categorical(np.where(reset[..., None], np.nan, old.logits))
        else:
            trajectory = _with(trajectory, time=np.where(reset, 10**6, trajectory.time))
        setting = {"discount": 0.97, "gae_lambda": 0.9, "weighting": "discounted"}
        (clean, clean_target), (dirty, dirty_target) = (
            estimated(*parts, **setting)
            for parts in ((story.trajectory(), story.value, story.old), (trajectory, value, old))
        )
        real = ~reset.ravel()
        for batch in (clean, dirty):
            assert np.all(np.asarray(batch.weight)[~real] == 0)
            assert np.all(np.asarray(batch.weight)[real] > 0)
            assert np.all(np.isneginf(np.asarray(batch.log_base)[~real]))
            assert np.all(np.asarray(batch.advantage)[~real] == 0)
        for name in ("weight", "log_base", "advantage"):
            np.testing.assert_array_equal(getattr(dirty, name), getattr(clean, name), err_msg=name)
        np.testing.assert_array_equal(np.asarray(dirty_target)[real], np.asarray(clean_target)[real])


def _with(trajectory: Trajectory, **changes) -> Trajectory:
    return Trajectory(**{**{name: getattr(trajectory, name) for name in Trajectory.__dataclass_fields__}, **changes})


# The batch


def test_batch_rows_are_time_outermost_with_targets_advantage_plus_value(story, rng):
    steps, envs = story.reward.shape
    trajectory = _with(
        story.trajectory(),
        observation={"x": np.arange((steps + 1) * envs).reshape(steps + 1, envs, 1).astype(float)},
        mask=rng.random((steps + 1, envs, 2)) < 0.5,
        action=np.arange(steps * envs, dtype=np.int32).reshape(steps, envs) % 2,
    )
    old = Categorical(rng.normal(size=(steps, envs, 2)))
    batch, target = estimated(trajectory, story.value, old, discount=0.9, gae_lambda=0.8)
    real = ~story.reset.ravel()
    assert batch.size == steps * envs
    np.testing.assert_array_equal(np.asarray(batch.observation["x"])[real, 0], np.arange(steps * envs)[real])
    np.testing.assert_array_equal(np.asarray(batch.mask)[real], trajectory.mask[:-1].reshape(-1, 2)[real])
    np.testing.assert_array_equal(batch.action, trajectory.action.ravel())
    np.testing.assert_array_equal(batch.old.logits, old.logits.reshape(-1, 2))
    advantage = reference(story, 0.9, 0.8).ravel()
    np.testing.assert_allclose(np.asarray(batch.advantage)[real], advantage[real], rtol=1e-11)
    np.testing.assert_allclose(np.asarray(target)[real], (advantage + story.value[:-1].ravel())[real], rtol=1e-11)
    log_prob = np.take_along_axis(old.logits, trajectory.action[..., None], -1)[..., 0] - np.logaddexp(
        *np.moveaxis(old.logits, -1, 0)
    )
    expected = np.log(1 / real.sum()) - log_prob.ravel()[real]
    np.testing.assert_allclose(np.asarray(batch.log_base)[real], expected, rtol=1e-11)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_discounted_weights_are_the_discount_to_the_steps_since_the_start(discount, story):
    trajectory = story.trajectory()
    expected = np.where(story.reset, 0, discount ** story.time.astype(float))
    np.testing.assert_allclose(weights(trajectory, discount=discount, weighting="discounted"), expected, rtol=1e-12)
    equal = weights(trajectory, discount=discount, weighting="undiscounted")
    np.testing.assert_array_equal(equal, np.where(story.reset, 0, 1))
    if discount:
        batch, _ = estimated(
            trajectory, story.value, story.old, discount=discount, gae_lambda=0.9, weighting="discounted"
        )
        np.testing.assert_allclose(batch.weight, (expected / expected.sum()).ravel(), rtol=1e-12)


@given(story=stories(), weighting=st.sampled_from(["undiscounted", "discounted"]))
@settings(max_examples=40)
def test_weights_sum_to_one_wherever_there_is_experience(story, weighting):
    with jax.enable_x64(True):
        batch, _ = estimated(
            story.trajectory(), story.value, story.old, discount=0.97, gae_lambda=0.9, weighting=weighting
        )
        expected = 0 if story.reset.all() else 1
        assert float(jnp.sum(batch.weight)) == pytest.approx(expected, abs=1e-12)
        assert np.all(np.isfinite(batch.advantage))


def test_the_sign_of_the_gradient_can_depend_on_the_discounted_weights(x64):
    """theory.md section 1: s0 leads to s1 whatever the action; r(s0, b) = 1, r(s1, b) = -1.5, one shared logit at 0."""
    advantage = np.array([0.5, -0.5, -0.75, 0.75])  # (s0, b), (s0, a), (s1, b), (s1, a), each half of the time
    score = np.array([0.5, -0.5, 0.5, -0.5])
    slope = {}
    for weighting in ("discounted", "undiscounted"):
        trajectory = Trajectory(None, None, *([None] * 5), reset=np.zeros((1, 4), bool), time=np.array([[0, 0, 1, 1]]))
        trajectory = _with(trajectory, log_prob=np.zeros((1, 4)))
        weight = np.asarray(weights(trajectory, discount=0.5, weighting=weighting))[0] / 2
        slope[weighting] = float(weight @ (advantage * score))
    assert slope == {"discounted": pytest.approx(0.0625), "undiscounted": pytest.approx(-0.125)}


def test_a_batch_of_one_transition_gives_no_nan_and_a_standardised_advantage_of_zero(dtype):
    trajectory = Trajectory(
        observation=np.zeros((2, 1, 2), dtype),
        mask=None,
        action=np.zeros((1, 1), np.int32),
        log_prob=np.full((1, 1), np.log(0.5), dtype),
        reward=np.full((1, 1), 3.0, dtype),
        terminated=np.zeros((1, 1), bool),
        truncated=np.zeros((1, 1), bool),
        reset=np.zeros((1, 1), bool),
        time=np.zeros((1, 1), np.int32),
    )
    value, old = np.array([[1.0], [2.0]], dtype), Categorical(np.zeros((1, 1, 2), dtype))
    batch, target = estimated(trajectory, value, old, discount=0.9, gae_lambda=0.95)
    assert float(batch.advantage[0]) == pytest.approx(3 + 0.9 * 2 - 1, rel=1e-6)
    assert float(target[0]) == pytest.approx(3 + 0.9 * 2, rel=1e-6)
    assert float(batch.weight[0]) == 1
    result, scale = standardise(batch)
    assert float(result.advantage[0]) == 0
    assert float(scale) == 1


# Standardisation


def batch_of(advantage, weight, dtype) -> Batch:
    rows = len(advantage)
    return sampled_batch(
        jnp.zeros((rows, 1), dtype),
        None,
        jnp.zeros(rows, jnp.int32),
        jnp.asarray(advantage, dtype),
        Categorical(jnp.zeros((rows, 2), dtype)),
        jnp.asarray(weight, dtype),
    )


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-4, 0.0), (1e5, 3e5), (0.01, 1.0)])
def test_standardised_advantages_have_mean_zero_deviation_one_and_the_scale_divided_by(scale, offset, dtype, rng):
    weight = np.r_[rng.uniform(0.5, 2, size=30), np.zeros(10)]
    advantage = (scale * rng.normal(size=40) + offset).astype(dtype)
    batch = batch_of(advantage, weight, dtype)
    result, unit = standardise(batch)
    seen, weight = advantage[:30].astype(np.float64), weight[:30] / weight.sum()
    mean = weight @ seen
    std = np.sqrt(weight @ (seen - mean) ** 2)
    tolerance = 2e-4 if dtype == np.float32 else 1e-12
    assert float(unit) == pytest.approx(std, rel=tolerance)
    told = np.asarray(result.advantage)
    np.testing.assert_allclose(told[:30], (seen - mean) / std, atol=tolerance)
    assert np.all(told[30:] == 0)
    assert weight @ told[:30] ** 2 == pytest.approx(1, rel=tolerance)
    for name in ("weight", "log_base", "action"):
        assert np.array_equal(getattr(result, name), getattr(batch, name))


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1e6, 1e6 / 3, -1e-6 / 3, 12345.678])
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_constant_advantages_become_exactly_zero_in_single_precision(constant, rows):
    real = np.arange(1000) < rows
    result, scale = standardise(batch_of(np.full(1000, constant), real, np.float32))
    assert np.all(np.asarray(result.advantage) == 0)
    assert float(scale) == 1


def test_small_differences_on_a_large_offset_are_still_told_from_rounding(rng):
    advantage = np.where(np.arange(1000) % 2 == 0, 1e6, 1e6 + 100)
    result, scale = standardise(batch_of(advantage, np.ones(1000), np.float32))
    assert float(scale) == pytest.approx(50, rel=0.05)
    np.testing.assert_allclose(np.abs(result.advantage), 1, rtol=0.05)


def test_standardising_twice_changes_nothing_more(rng):
    once, _ = standardise(batch_of(rng.normal(size=50, loc=4, scale=9), np.ones(50), np.float32))
    twice, scale = standardise(once)
    assert float(scale) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(twice.advantage, once.advantage, atol=1e-5)
