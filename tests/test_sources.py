"""What every source of experience must do, whichever library steps its environments.

A new source is one more row of SOURCES. The first part asks only for the interface `Source` and for tasks
whose dynamics are known, so that any source that has them can be asked; the second runs the Python probes of
probes.py and asks the rows that can run them; the third asks whole runs.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import probes
import ray_nodes
import surefoot as sf
from surefoot import config, history
from surefoot.batch import Trajectory
from surefoot.policy import NeuralPolicy, make_policy
from surefoot.sources import make_source
from surefoot.sources.base import Source


def made(options: dict[str, Any], environment: Any, envs: int, horizon: int, restart_every: int | None) -> Source:
    """The source that `make_source` makes with these settings."""
    return make_source(
        environment, config.Collection(envs=envs, horizon=horizon, restart_every=restart_every, **options)
    )


def made_of_workers(options: dict[str, Any], *arguments: Any) -> Source:
    """As `made`, by two workers on the two nodes of a Ray cluster."""
    ray_nodes.two_nodes()
    return made({"workers": 2, **options}, *arguments)


@dataclass(frozen=True)
class Row:
    """A source under test.

    Attributes:
        build: (environment, envs, horizon, restart_every) to the source; None leaves the restarts to it.
        tasks: what it calls the tasks of TASKS.
        probes: whether it can run the environments of probes.py.
        twin: the row whose very bits it must give.
    """

    build: Callable[[Any, int, int, int | None], Source]
    tasks: dict[str, str]
    probes: bool = False
    twin: str | None = None


GYMNASIUM = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1"}
SOURCES = {
    "gymnasium-sync": Row(partial(made, {"source": "gymnasium", "vectorisation": "sync"}), GYMNASIUM, probes=True),
    "gymnasium-async": Row(
        partial(made, {"source": "gymnasium", "vectorisation": "async"}), GYMNASIUM, probes=True, twin="gymnasium-sync"
    ),
}
if importlib.util.find_spec("envpool"):  # there is not a wheel for every machine
    SOURCES["envpool"] = Row(partial(made, {"source": "envpool"}), GYMNASIUM)
if importlib.util.find_spec("ray"):
    SOURCES["ray"] = Row(
        partial(made_of_workers, {"source": "gymnasium", "vectorisation": "sync"}), GYMNASIUM, probes=True
    )
if importlib.util.find_spec("gymnax"):
    SOURCES["gymnax"] = Row(partial(made, {}), {"cartpole": "gymnax:CartPole-v1", "pendulum": "gymnax:Pendulum-v1"})


class CartPole:
    """What CartPole does, by Gymnasium's own equations."""

    limit = 500

    def __init__(self):
        self._env = gymnasium.make(GYMNASIUM["cartpole"]).unwrapped

    def given(self, action):
        return action

    def starts(self, observation):
        return bool((np.abs(observation) <= 0.05).all())

    def follow(self, observation, given):
        self._env.reset(seed=0)
        self._env.state = np.asarray(observation, np.float64)
        following, reward, terminated, _, _ = self._env.step(int(given))
        return following, reward, terminated


class Pendulum:
    """What Pendulum does, by Gymnasium's own equations."""

    limit = 200

    def __init__(self):
        self._env = gymnasium.make(GYMNASIUM["pendulum"]).unwrapped

    def given(self, action):
        return np.clip(2 * action, -2, 2)

    def starts(self, observation):
        return bool(np.abs(observation[2]) <= 1)

    def follow(self, observation, given):
        self._env.reset(seed=0)
        cosine, sine, speed = np.asarray(observation, np.float64)
        self._env.state = np.array([np.arctan2(sine, cosine), speed])
        following, reward, terminated, _, _ = self._env.step(np.asarray(given, np.float32))
        return following, reward, terminated


TASKS = {"cartpole": CartPole, "pendulum": Pendulum}


@dataclass
class Story:
    """What a policy lived through in one source: collection i went from states[i] with keys[i]."""

    source: Source
    policy: NeuralPolicy
    keys: list[Any]
    states: list[Any]
    parts: list[Trajectory]

    @property
    def whole(self) -> Trajectory:
        """The collections as one trajectory."""
        last = self.parts[-1]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.parts)
        seen = [jax.tree.map(lambda leaf: leaf[:-1], (part.observation, part.mask)) for part in self.parts]
        observation, mask = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *seen, jax.tree.map(lambda x: x[-1:], (last.observation, last.mask))
        )
        names = ("action", "log_prob", "reward", "terminated", "truncated", "reset", "time")
        return Trajectory(observation, mask, *(getattr(joined, name) for name in names))


def lively(source: Source, seed: int) -> NeuralPolicy:
    """A policy that heeds what it sees, with a normaliser that has seen something."""
    network = config.Network(hidden=(8,))
    policy = make_policy(source.observation_space, source.action_space, network, jax.random.key(0))
    rng = np.random.default_rng(seed)
    policy = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(leaf.dtype), policy)
    variance = np.abs(policy.normaliser.variance) + np.float32(0.5)
    policy = eqx.tree_at(lambda p: (p.normaliser.variance, p.normaliser.count), policy, (variance, np.float32(9)))
    return jax.tree.map(jnp.asarray, policy)


def ratio_error(policy: NeuralPolicy, whole: Trajectory) -> float:
    """How far pi(a|s), computed now, is from what was stored as the action was sampled, as a ratio."""
    shown = jax.tree.map(lambda leaf: leaf[:-1], (whole.observation, whole.mask))
    log_prob = eqx.filter_jit(lambda p, shown, action: p(*shown).log_prob(action))(policy, shown, whole.action)
    return float(np.abs(np.expm1(log_prob - whole.log_prob)).max())


_opened: list[Source] = []


def opened(row: str, environment: Any, envs: int, horizon: int, restart_every: int | None = None) -> Source:
    """A source that is closed after each test; the story's are used again by the next."""
    source = SOURCES[row].build(environment, envs, horizon, restart_every)
    _opened.append(source)
    return source


@pytest.fixture(autouse=True)
def _closed_after_each_test():
    yield
    for source in _opened:
        source.close()


def live(source: Source, policy: NeuralPolicy, collections: int) -> Story:
    story = Story(source, policy, [], [source.reset(jax.random.key(5))], [])
    for number in range(collections):
        story.keys.append(jax.random.key(100 + number))
        trajectory, state = source.collect(policy, story.states[-1], story.keys[-1])
        story.parts.append(trajectory)
        story.states.append(state)
    return story


@cache
def story_of(row: str, name: str) -> Story:
    """The story of a task (two collections that together pass the limit of Pendulum) or of a probe, told once."""
    if name in TASKS:
        source = opened(row, SOURCES[row].tasks[name], 3, 110)
        return live(source, lively(source, 1), 2)
    source = opened(row, PROBES[name], 3, 20)
    return live(source, lively(source, 1), 3)


PROBES = {
    "counter": probes.Counter,
    "zoo discrete": partial(probes.Zoo, probes.ACTIONS["discrete"]),
    **{
        f"zoo {name}": partial(probes.Zoo, probes.ACTIONS[name], ("scalar",))
        for name in ("multidiscrete", "multibinary", "mixed (2, 2)")
    },
    "masked": probes.Masked,
    "masked multidiscrete": partial(probes.Masked, probes.Masked.MULTIDISCRETE),
    "masked by a list": partial(probes.Masked, listed=True),
}
ASKED = [pytest.param(row, task, id=f"{row}-{task}") for row in SOURCES for task in SOURCES[row].tasks]
PROBED = [row for row in SOURCES if SOURCES[row].probes]


told_by_all = pytest.mark.parametrize(("row", "task"), ASKED)


def same_bits(one: Any, other: Any) -> bool:
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(ones) == len(others) and all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ones, others, strict=True)
    )


# Every source.


@told_by_all
def test_shapes_and_types_are_those_of_a_trajectory(row, task):
    story = story_of(row, task)
    source, part = story.source, story.parts[0]
    steps, envs = source.horizon, source.envs
    assert (steps, envs) == (110, 3)
    assert part.observation.shape == (steps + 1, envs, *source.observation_space.shape)
    assert part.mask is None
    floats, bools = ("log_prob", "reward"), ("terminated", "truncated", "reset")
    for names, dtype in ((floats, np.float32), (bools, np.bool_), (("time",), np.int32)):
        for name in names:
            assert getattr(part, name).shape == (steps, envs)
            assert getattr(part, name).dtype == dtype
    action = story.policy(part.observation[:-1]).mode()
    assert (part.action.shape, part.action.dtype) == (action.shape, action.dtype)
    # JAX would turn 64-bit arrays into others with every call.
    assert all(jnp.asarray(leaf).dtype == leaf.dtype for leaf in jax.tree.leaves(part))


@told_by_all
def test_a_collection_begins_where_the_last_one_ended(row, task):
    first, second = story_of(row, task).parts
    assert np.array_equal(second.observation[0], first.observation[-1])
    assert np.array_equal(second.reset[0], first.terminated[-1] | first.truncated[-1])
    assert np.array_equal(
        second.time[0], np.where(second.reset[0], 0, np.where(first.reset[-1], 0, first.time[-1] + 1))
    )


@told_by_all
def test_each_row_leads_to_the_observation_reward_and_end_that_the_task_says(row, task):
    whole, rules = story_of(row, task).whole, TASKS[task]()
    for step, env in np.argwhere(~whole.reset):
        given = rules.given(whole.action[step, env])
        following, reward, terminated = rules.follow(whole.observation[step, env], given)
        np.testing.assert_allclose(whole.observation[step + 1, env], following, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(whole.reward[step, env], reward, rtol=1e-4, atol=1e-4)
        assert whole.terminated[step, env] == terminated


@told_by_all
def test_the_row_after_an_end_is_no_experience_and_leads_to_a_start(row, task):
    whole, rules = story_of(row, task).whole, TASKS[task]()
    ended = whole.terminated | whole.truncated
    assert ended.any()
    assert not whole.reset[0].any()
    assert np.array_equal(whole.reset[1:], ended[:-1])
    assert not ended[whole.reset].any()
    assert (whole.reward[whole.reset] == 0).all()
    starts = [whole.observation[0, env] for env in range(whole.reset.shape[1])]
    starts += [whole.observation[step + 1, env] for step, env in np.argwhere(whole.reset)]
    assert all(rules.starts(start) for start in starts)
    assert len(np.unique(np.stack(starts), axis=0)) == len(starts)


@told_by_all
def test_termination_and_truncation_are_told_apart(row, task):
    whole, rules = story_of(row, task).whole, TASKS[task]()
    assert not (whole.terminated & whole.truncated).any()
    real = ~whole.reset
    assert np.array_equal(whole.truncated, real & (whole.time + 1 == rules.limit) & ~whole.terminated)
    assert (whole.truncated if task == "pendulum" else whole.terminated).any()
    assert not (whole.terminated if task == "pendulum" else whole.truncated).any()


@told_by_all
def test_time_counts_the_steps_since_the_start(row, task):
    whole = story_of(row, task).whole
    for env in range(whole.time.shape[1]):
        time = 0
        for step in range(len(whole.time)):
            if whole.reset[step, env]:
                time = 0
                continue
            assert whole.time[step, env] == time
            time += 1


@told_by_all
def test_what_is_stored_is_what_was_sampled_with_its_log_probability(row, task):
    story = story_of(row, task)
    whole = story.whole
    assert ratio_error(story.policy, whole) < 1e-5
    if task == "pendulum":
        # A clipped or mapped action would lie in [-1, 1] or [-2, 2].
        assert (np.abs(whole.action) > 2).any()


@pytest.mark.parametrize("row", SOURCES)
def test_every_row_draws_noise_of_its_own(row):
    story = story_of(row, "pendulum")
    whole = story.whole
    distribution = eqx.filter_jit(lambda policy, shown: policy(shown))(story.policy, whole.observation[:-1])
    noise = np.asarray((whole.action - distribution.mean) / np.exp(distribution.log_std))[..., 0]
    count = noise.size
    assert len(np.unique(noise.round(4))) > 0.9 * count
    # Standard normal, and independent of the row before and of the neighbour: four standard deviations.
    bound = 4 / np.sqrt(count)
    moments = (noise.mean(), noise.std() - 1, (noise[1:] * noise[:-1]).mean(), (noise[:, 1:] * noise[:, :-1]).mean())
    assert all(abs(moment) < 1.3 * bound for moment in moments)


@told_by_all
def test_environments_of_one_source_and_of_two_seeds_start_differently(row, task):
    story = story_of(row, task)
    starts = [np.asarray(story.parts[0].observation[0])]
    # Numbers that one another's neighbours are: what users give.
    for seed in (0, 1):
        trajectory, _ = story.source.collect(story.policy, story.source.reset(jax.random.key(seed)), story.keys[0])
        starts.append(np.asarray(trajectory.observation[0]))
    starts = np.concatenate(starts)
    assert len(np.unique(starts, axis=0)) == len(starts)


@pytest.mark.parametrize("row", SOURCES)
def test_collecting_changes_nothing_in_the_policy(row):
    source = story_of(row, "cartpole").source
    policy = lively(source, 3)
    before = jax.tree.map(lambda leaf: np.array(leaf), policy)
    source.collect(policy, source.reset(jax.random.key(0)), jax.random.key(0))
    assert same_bits(before, policy)


@told_by_all
def test_collect_is_a_function_of_its_arguments(row, task):
    story = story_of(row, task)
    source, policy, states, keys = story.source, story.policy, story.states, story.keys
    # From an older state, and on from where that leads; then from the newer one again.
    first, after = source.collect(policy, states[0], keys[0])
    second, _ = source.collect(policy, after, keys[1])
    again, _ = source.collect(policy, states[1], keys[1])
    assert same_bits(first, story.parts[0])
    assert same_bits(second, story.parts[1])
    assert same_bits(again, story.parts[1])


@pytest.mark.parametrize("row", SOURCES)
def test_a_closed_source_can_be_used_again(row):
    story = story_of(row, "cartpole")
    story.source.close()
    again, _ = story.source.collect(story.policy, story.states[1], story.keys[1])
    assert same_bits(again, story.parts[1])
    story.source.close()
    story.source.close()
    restarted, _ = story.source.collect(story.policy, story.source.reset(jax.random.key(5)), story.keys[0])
    assert same_bits(restarted, story.parts[0])


@pytest.mark.parametrize("row", SOURCES)
def test_same_keys_give_the_same_bits_in_another_source_and_other_keys_others(row):
    story = story_of(row, "cartpole")
    source = opened(row, SOURCES[row].tasks["cartpole"], 3, 110)
    start = source.reset(jax.random.key(5))
    same, _ = source.collect(story.policy, start, story.keys[0])
    assert same_bits(same, story.parts[0])
    other, _ = source.collect(story.policy, start, jax.random.key(77))
    assert np.array_equal(other.observation[0], same.observation[0])
    assert not np.array_equal(other.action, same.action)


# Sources that run the probes.


@pytest.mark.parametrize("row", PROBED)
def test_counting_reveals_no_row_out_of_place(row):
    whole = story_of(row, "counter").whole
    time, episode, which, final = np.moveaxis(whole.observation, -1, 0)
    kinds = np.array([kind for kind, _ in probes.Counter.ENDS])[which.astype(int)]
    real = ~whole.reset
    over = final[1:] == 1
    # A row is a reset where what it shows is an end, and only there: so the end's own observation is not lost.
    assert np.array_equal(whole.reset, final[:-1] == 1)
    assert np.array_equal(time[1:], np.where(real, time[:-1] + 1, 0))
    assert np.array_equal(episode[1:], np.where(real, episode[:-1], episode[:-1] + 1))
    assert np.array_equal(whole.reward, np.where(real, 10 * time[:-1] + whole.action, 0))
    assert np.array_equal(whole.terminated, real & over & (kinds[1:] != "truncated"))
    assert np.array_equal(whole.truncated, real & over & (kinds[1:] == "truncated"))
    assert np.array_equal(whole.time[real], time[:-1][real])
    assert {*kinds[1:][real & over]} == {"terminated", "truncated", "both"}
    # Steps the environments really took: the lengths of whole episodes and what was shown of the last.
    taken = 0
    for env in range(whole.reset.shape[1]):
        taken += time[1:, env][over[:, env] & real[:, env]].sum() + (0 if over[-1, env] else time[-1, env])
    assert real.sum() == taken


GIVEN = {
    "zoo discrete": lambda action: action[..., None] - 1,
    "zoo multidiscrete": lambda action: action + np.array([0, 5, -1]),
    "zoo multibinary": lambda action: action,
    "zoo mixed (2, 2)": lambda action: np.stack(
        [
            np.clip(2 + 4 * action[..., 0], -2, 6),
            np.maximum(action[..., 1], 0),
            np.minimum(action[..., 2], 1),
            action[..., 3],
        ],
        axis=-1,
    ),
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("row", PROBED)
def test_every_space_passes_and_the_action_is_mapped_only_on_its_way_out(row, name):
    story = story_of(row, name)
    whole, source = story.whole, story.source
    real = ~whole.reset
    given = whole.observation["given"]
    np.testing.assert_allclose(given[1:][real], GIVEN[name](whole.action)[real], rtol=1e-6)
    assert ratio_error(story.policy, whole) < 1e-5
    if name == "zoo mixed (2, 2)":
        outside = np.abs(whole.action[..., 0]) > 1, whole.action[..., 1] < 0, whole.action[..., 2] > 1
        assert all(some.any() for some in outside)
    assert all(jnp.asarray(leaf).dtype == leaf.dtype for leaf in jax.tree.leaves(whole))
    space = source.observation_space
    for step, env in [(0, 0), (7, 1), (60, 2)]:
        shown = jax.tree.map(lambda leaf, step=step, env=env: leaf[step, env], whole.observation)
        assert space.contains(as_in(space, shown))


def as_in(space: spaces.Space, value: Any) -> Any:
    """`value` with the number types of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: as_in(sub, value[key]) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(as_in(sub, part) for sub, part in zip(space.spaces, value, strict=True))
    return np.asarray(value, space.dtype)


@pytest.mark.parametrize("name", ["masked", "masked multidiscrete", "masked by a list"])
@pytest.mark.parametrize("row", PROBED)
def test_masks_are_kept_with_their_observations_and_obeyed(row, name):
    story = story_of(row, name)
    whole = story.whole
    assert whole.mask.dtype == np.bool_
    assert np.array_equal(whole.mask, whole.observation == 1)
    assert not whole.mask.all()
    sizes = np.array([2, 3, 4] if name == "masked multidiscrete" else [4])
    chosen = whole.action.reshape(*whole.reset.shape, -1) + np.cumsum([0, *sizes[:-1]])
    assert np.take_along_axis(whole.mask[:-1], chosen, axis=-1)[~whole.reset].all()
    assert ratio_error(story.policy, whole) < 1e-5


@pytest.mark.parametrize("row", PROBED)
def test_an_end_in_which_nothing_is_allowed_is_no_fault(row):
    source = opened(row, partial(probes.Masked, closed=True), 2, 13)
    whole = live(source, lively(source, 1), 1).whole
    assert whole.terminated.sum() == 4
    assert np.isfinite(whole.log_prob[~whole.reset]).all()


@pytest.mark.parametrize("row", PROBED)
def test_actions_stay_inside_bounds_that_float32_cannot_write(row):
    # float32(0.1) > 0.1, and an environment may refuse what is outside its space.
    source = opened(row, partial(probes.Strict, spaces.Box(-0.1, 0.1, (2,), np.float64)), 2, 8)
    whole = live(source, lively(source, 1), 1).whole
    assert (whole.action > 1).any()


@pytest.mark.parametrize("row", PROBED)
def test_what_info_holds_beside_a_mask_does_not_matter(row):
    source = opened(row, probes.Chatty, 2, 8)
    assert live(source, lively(source, 1), 1).whole.mask is None


@pytest.mark.parametrize("row", PROBED)
def test_after_restart_every_steps_the_environments_are_made_anew_from_new_seeds(row):
    source = opened(row, partial(probes.Noise, 7), 2, 4, 10)
    story = live(source, lively(source, 1), 7)
    parts, states = story.parts, story.states
    # Twelve steps are the first whole number of collections that is ten or more.
    kept = [getattr(state, "parts", [state])[0].actions for state in states]  # of Ray's workers, those of the first
    assert [sum(len(block) for block in actions) for actions in kept] == [0, 4, 8, 12, 4, 8, 12, 4]
    for number, part in enumerate(parts):
        place = (4 * number + np.arange(4)) % 12 % 8
        assert np.array_equal(part.reset, np.repeat(place[:, None] == 7, 2, axis=1))
        assert np.array_equal(part.time[~part.reset], np.repeat(place[:, None], 2, axis=1)[~part.reset])
        if number:
            goes_on = np.array_equal(part.observation[0], parts[number - 1].observation[-1])
            assert goes_on == (number not in (3, 6))
    starts = np.concatenate([parts[number].observation[0] for number in (0, 3, 6)])
    assert len(np.unique(starts, axis=0)) == len(starts)
    # Up to a restart, across one, and after one.
    for number in (2, 3, 5):
        again, _ = source.collect(story.policy, states[number], story.keys[number])
        assert same_bits(again, parts[number])


@pytest.mark.parametrize("row", PROBED)
def test_a_restart_and_a_reset_leave_nothing_of_the_old_environments(row):
    source = opened(row, partial(probes.Lifetime, 3), 2, 4, 4)
    story = live(source, lively(source, 1), 2)
    assert (story.parts[1].observation[0] == 1).all()
    again, _ = source.collect(story.policy, story.states[2], story.keys[0])
    assert (again.observation[0] == 1).all()
    reset, _ = source.collect(story.policy, source.reset(jax.random.key(5)), story.keys[0])
    assert same_bits(reset, story.parts[0])


@pytest.mark.parametrize("row", PROBED)
def test_environment_streams_are_shared_by_no_two_environments_restarts_or_seeds(row):
    draws = []
    source = opened(row, partial(probes.Noise, 50), 3, 4, 4)
    policy = lively(source, 1)
    for seed in (0, 1):
        state = source.reset(jax.random.key(seed))
        for _ in range(3):
            trajectory, state = source.collect(policy, state, jax.random.key(0))
            draws.append(trajectory.observation[..., 0].ravel())
    draws = np.concatenate(draws)
    assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("row", PROBED)
def test_an_environment_that_does_not_repeat_under_its_seed_is_found_out_on_replay(row):
    source = opened(row, probes.Irreproducible, 2, 4)
    policy = lively(source, 1)
    story = live(source, policy, 2)
    with pytest.raises(sf.EnvironmentFault, match=r"^probes:Irreproducible: .*does not repeat under its seed") as fault:
        source.collect(policy, story.states[1], story.keys[1])
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("row", PROBED)
def test_after_a_fault_the_source_can_be_used_again(row):
    source = opened(row, partial(probes.Faulty, "raises", 5), 2, 4)
    policy = lively(source, 1)
    start = source.reset(jax.random.key(5))
    first, state = source.collect(policy, start, jax.random.key(0))
    with pytest.raises(sf.EnvironmentFault, match=r"step 5: environment [01] raised in step: ZeroDivisionError"):
        source.collect(policy, state, jax.random.key(1))
    anew, _ = source.collect(policy, source.reset(jax.random.key(5)), jax.random.key(0))
    assert same_bits(anew, first)
    with pytest.raises(sf.EnvironmentFault, match="raised in step"):
        source.collect(policy, state, jax.random.key(1))
    again, _ = source.collect(policy, start, jax.random.key(0))
    assert same_bits(again, first)


@pytest.mark.parametrize("name", [*TASKS, *PROBES])
@pytest.mark.parametrize("row", [row for row in SOURCES if SOURCES[row].twin])
def test_a_twin_gives_the_same_bits(row, name):
    assert same_bits(story_of(row, name).parts, story_of(SOURCES[row].twin, name).parts)


def test_a_worker_process_that_dies_is_a_fault_and_leaves_the_source_usable():
    source = opened("gymnasium-async", probes.Dying, 2, 2)
    policy = lively(source, 1)
    story = live(source, policy, 1)
    with pytest.raises(sf.EnvironmentFault, match=r"^probes:Dying: step 2: environment [01] "):
        source.collect(policy, story.states[1], story.keys[0])
    again, _ = source.collect(policy, story.states[0], story.keys[0])
    assert same_bits(again, story.parts[0])


def test_worker_processes_do_without_jax():
    # A second and a hundred megabytes for each environment otherwise.
    source = opened("gymnasium-async", probes.Imports, 2, 2)
    assert (live(source, lively(source, 1), 1).whole.observation == 0).all()


# Whole runs.

TINY = {"envs": 2, "horizon": 8, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 1}


def trained(environment: Any, out: Any, rule: str = "pg", **settings: Any) -> list[dict[str, Any]]:
    """The rows of a tiny run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = sf.train(environment, rule, progress=False, out=out, **{**TINY, **settings})
    rows = history.read(run.path).rows
    assert [row["steps"] for row in rows] == list(np.cumsum([row["experience"] for row in rows]))
    assert run.steps == rows[-1]["steps"]
    return rows


def test_the_first_ratio_of_every_update_is_one_while_the_normaliser_moves_between_them(tmp_path):
    rows = trained(probes.Noise, tmp_path, steps=60)
    assert len(rows) >= 4
    assert max(row["first_ratio_error"] for row in rows) < 1e-5
    assert max(row["normaliser_kl"] for row in rows) > 1e-6


def test_steps_are_real_transitions_and_returns_are_those_of_whole_episodes(tmp_path):
    # Five steps and a reset row, in collections of eight.
    rows = trained(partial(probes.Lengths, (5,)), tmp_path, steps=80)
    assert [row["experience"] for row in rows] == [14, 14, 12] * 2
    assert [row["episodes"] for row in rows] == [2, 2, 4] * 2
    assert {(row["return_min"], row["return_max"], row["length_mean"]) for row in rows} == {(5, 5, 5)}


def test_returns_are_those_of_whole_episodes_across_restarts_too(tmp_path):
    rows = trained(partial(probes.Lengths, (5,)), tmp_path, steps=60, restart_every=8)
    assert [row["experience"] for row in rows] == [14] * 5
    assert {(row["return_min"], row["return_max"], row["length_mean"]) for row in rows} == {(5, 5, 5)}


@pytest.mark.long
def test_a_run_through_ends_in_which_nothing_is_allowed_stays_finite(tmp_path):
    rows = trained(partial(probes.Masked, closed=True), tmp_path, "trpo", steps=40)
    assert any(row["episodes"] for row in rows)
    assert all(row["accepted"] for row in rows)
    skipped = (str, dict, type(None))  # reasons why something is null, bounds by name
    numbers = [value for row in rows for key, value in row.items() if not isinstance(value, skipped)]
    assert np.isfinite(np.concatenate([np.ravel(number).astype(float) for number in numbers])).all()


@pytest.mark.skipif("envpool" not in SOURCES, reason="there is not a wheel of envpool for every machine")
def test_what_was_trained_on_envpool_is_evaluated_on_gymnasium_though_bounds_are_rounded(tmp_path):
    """EnvPool's Humanoid has action bounds of 64 bits, Gymnasium's of 32."""
    run = sf.train("Humanoid-v5", "pg", steps=60, out=tmp_path / "run", progress=False, **TINY)
    assert np.isfinite(run.evaluation["return"]["mean"])
