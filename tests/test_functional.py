"""Environments written in JAX: the adapters tell ends apart, and what is wrong with one is said in a line."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import functional_probes
import surefoot as sf
from surefoot import config
from surefoot.policy import make_policy
from surefoot.record import new_run_folder
from surefoot.sources import brax as brax_adapter
from surefoot.sources import functional_environment, make_source
from surefoot.sources import gymnax as gymnax_adapter
from surefoot.sources.contract import checked
from surefoot.sources.environments import environment_name
from surefoot.sources.functional import FunctionalEnvironment, FunctionalSource, Transition, fit_to_learn_from

TINY = {"envs": 2, "horizon": 8, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 1}
KEY = jax.random.key(0)
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
DOCUMENT = Path(__file__).parents[1] / "docs" / "environments.md"

# The example of the documentation, and a FunctionalEnvironment itself.


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    """The module that docs/environments.md shows."""
    folder = tmp_path_factory.mktemp("documented")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (folder / "drift.py").write_text(code)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("drift")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["drift"]


class Told(Exception):
    """Ends a run where it tells something, before anything is compiled."""


def test_training_says_at_its_start_what_an_environment_cannot_tell(drift, tmp_path):
    def told(line):
        raise Told(line)

    blind = dataclasses.replace(drift.drift(), tells_truncation=False)
    with pytest.raises(Told, match=r"does not tell a time limit from a real end: .*[^\n]*$"):
        sf.train(blind, "pg", out=tmp_path / "run", progress=False, told=told, **TINY)


@pytest.mark.long
def test_the_documented_environment_is_trained_on(drift, tmp_path):
    run = sf.train(drift.drift(limit=6), "pg", out=tmp_path / "run", steps=16, progress=False, **TINY)
    assert run.steps == 14 + 14  # a row of each environment and collection straddles a reset
    assert run.evaluation["length"]["mean"] == 6


@pytest.mark.parametrize("how", ["by name", "itself", "partial"])
def test_a_callable_whose_annotation_says_so_is_stepped_by_jax(drift, how):
    given = {"by name": "drift:drift", "itself": drift.drift, "partial": functools.partial(drift.drift, limit=3)}[how]
    source = make_source(given, config.Collection(envs=2, horizon=3))
    assert source.name == "drift:drift"
    state = source.reset(KEY)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))  # or the next step would compile anew
    made = functional_environment(given)
    inner, shown = made.reset(KEY)
    times = [made.step(KEY, {**inner, "time": time}, jnp.zeros(1)) for time in (1, 2, 98, 99)]
    assert [bool(step.truncated) for step in times] == [False, how == "partial", how == "partial", True]
    aground = made.step(KEY, {**inner, "place": jnp.float32(1.99), "speed": jnp.float32(1)}, jnp.ones(1))
    assert bool(aground.terminated)
    assert shown.shape == (2,)
    assert aground.observation[0] > 2


# What is wrong with one.


def still(**changes: Any) -> FunctionalEnvironment:
    """Nothing moves; the parts that are named are other ones."""

    def reset(key):
        return {"x": jnp.zeros(2), "time": 0}, jnp.zeros(2)

    def step(key, state, action):
        return Transition(state, jnp.zeros(2), 1.0, False, jnp.zeros((), bool))

    return FunctionalEnvironment(
        **{"reset": reset, "step": step, "observation_space": BOX, "action_space": spaces.Discrete(2), **changes}
    )


def giving(**fields: Any) -> FunctionalEnvironment:
    """One whose step gives other fields; a function of the state is asked."""

    def step(key, state, action):
        told = {name: field(state) if callable(field) else field for name, field in fields.items()}
        return Transition(**{**still().step(key, state, action)._asdict(), **told})

    return still(step=step)


def branching(key, state, action):
    return still().step(key, state, action)._replace(reward=1.0 if state["x"][0] > 0 else 0.0)


def looping(key, state, action):
    return still().step(key, state, action)._replace(reward=np.sqrt(state["x"])[0])


def failing(*arguments):
    raise ZeroDivisionError("on purpose\nin two lines")


BOTH = {"a": jnp.zeros(2), "b": jnp.zeros((), int)}
DICT = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
WRONG = {
    "another dtype": (giving(state=lambda s: {**s, "time": 0.5}), ["state['time']", "int32[]", "float32[]"]),
    "another shape": (giving(state=lambda s: {**s, "x": jnp.zeros(3)}), ["state['x']", "float32[2]", "float32[3]"]),
    "a part missing": (giving(state=lambda s: {"x": s["x"]}), ["state['time']", "without it"]),
    "a part more": (giving(state=lambda s: {**s, "y": 1}), ["state['y']", "without it", "int32[]"]),
    "another container": (
        still(reset=lambda key: ((jnp.zeros(2),), jnp.zeros(2)), step=giving(state=[jnp.zeros(2)]).step),
        ["state", "both must"],
    ),
    "a state of text": (still(reset=lambda key: ({"x": "here"}, jnp.zeros(2))), ["reset", "state['x']", "str"]),
    "observation too long": (still(reset=lambda key: ({"x": 0}, jnp.zeros(3))), ["reset", "float32[3]", "[2]"]),
    "later too long": (giving(observation=jnp.zeros((2, 1))), ["step", "float32[2,1]", "[2]"]),
    "observation of none": (giving(observation=None), ["step", "observation"]),
    "observation of another type": (giving(observation=jnp.zeros(2, int)), ["observation", "int32[2]", "float32[2]"]),
    "no dictionary": (still(observation_space=DICT), ["observation", "one array", "['a']"]),
    "a number that is not whole": (
        still(observation_space=DICT, reset=lambda key: ({}, {**BOTH, "b": 0.5})),
        ["observation['b']", "float32[]", "whole numbers"],
    ),
    "reset gives one thing": (still(reset=lambda key: jnp.zeros(2)), ["reset", "state and an observation"]),
    "a plain tuple": (still(step=lambda *_: (1, 2, 3, 4)), ["surefoot.Transition", "tuple of 4"]),
    "a field missing": (still(step=lambda *_: Transition(1, 2, 3)), ["step raised TypeError", "terminated"]),
    "a reward a dimension": (giving(reward=jnp.zeros(2)), ["reward", "float32[2]", "one number"]),
    "no reward": (giving(reward=None), ["reward", "NoneType"]),
    "done as a number": (giving(terminated=lambda s: s["x"][0]), ["terminated", "float32[]", "bool[]"]),
    "a cut as a whole number": (giving(truncated=1), ["truncated", "int32[]", "bool[]"]),
    "no end": (giving(terminated=None), ["terminated", "NoneType"]),
    "if on an array": (still(step=branching), ["step", "jnp.where"]),
    "NumPy on an array": (still(step=looping), ["step", "jax.numpy"]),
    "raises": (still(step=failing), ["step raised ZeroDivisionError: on purpose in two lines"]),
    "reset raises": (still(reset=failing), ["reset raised ZeroDivisionError"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_environment_is_one_line_that_names_it(name):
    environment, words = WRONG[name]
    with pytest.raises(sf.EnvironmentFault) as fault:
        checked(environment, "mine:still")
    line = str(fault.value)
    assert line.startswith("mine:still: ")
    assert "\n" not in line
    assert len(line) < 400
    assert [word for word in words if word not in line] == []


def test_numbers_and_bools_of_python_are_taken_as_arrays():
    made = checked(giving(state=lambda s: {**s, "time": s["time"] + 1}, reward=True, terminated=True), "mine")
    state, _ = made.reset(KEY)
    step = made.step(KEY, state, jnp.zeros((), int))
    assert [leaf.dtype for leaf in (step.reward, step.terminated, step.state["time"])] == [np.float32, bool, np.int32]
    assert (int(step.state["time"]), bool(step.terminated), float(step.reward)) == (1, True, 1.0)


@pytest.mark.parametrize(
    ("environment", "told", "folder"),
    [
        (still(), "<FunctionalEnvironment>", "FunctionalEnvironment-pg-s0"),
        (still(name="v1.still-water_2"), "<v1.still-water_2>", "v1.still-water_2-pg-s0"),
        (functional_probes.walk, "functional_probes:walk", "functional_probes-walk-pg-s0"),
        (functools.partial(functional_probes.walk, limit=3), "functional_probes:walk", "functional_probes-walk-pg-s0"),
        ("gymnax:CartPole-v1", "gymnax:CartPole-v1", "gymnax-CartPole-v1-pg-s0"),
    ],
)
def test_what_an_environment_and_its_runs_are_called(environment, told, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment_name(environment) == told
    assert [str(new_run_folder(None, f"{told}-pg-s0")) for _ in range(2)] == [f"runs/{folder}", f"runs/{folder}-2"]


@pytest.mark.parametrize("name", ["", "two words", "a/b", "../up", ".hidden", "a" * 101, "one\n", 3])
def test_a_name_that_is_no_plain_one_is_refused(name):
    with pytest.raises(sf.SettingError, match=r"^name must be a letter or digit and .* came$"):
        still(name=name)


INT8 = spaces.Box(0, 1, (2,), np.int8)


@pytest.mark.parametrize(
    ("space", "fit", "unfit"),
    [
        (BOX, [1e30, -2.5], [np.nan, np.inf, -np.inf]),
        (spaces.Discrete(3), [0, 2], [-1, 3]),
        (spaces.Discrete(3, start=5), [5, 7], [4, 8]),
        (spaces.MultiDiscrete([2, 300]), [[0, 299]], [[2, 0], [0, -1], [0, 300]]),
        (spaces.MultiBinary(2), [[0, 1]], [[2, 0], [0, -1]]),
        (INT8, [-128, 127], [128, -129]),  # a Box's bounds are not checked, but its type's
        (INT8, [2.0, -128.0], [0.5, 128.0, np.nan, -np.inf]),
        (spaces.Box(0, 9, (1,), np.uint8), [0, 255], [256, -1]),
        (spaces.Box(0, 9, (1,), np.uint32), [0, 2**31 - 1], [-1]),
        # Bounds that JAX takes no whole number to compare with.
        (spaces.Box(0, 10, (2,), np.int64), [2.0, -3.0], [0.5, np.nan, np.inf, 1e30]),
        (spaces.Box(0, 10, (2,), np.uint32), [2.0, 3e9], [0.5, -1.0, 1e10]),
        (spaces.Box(0, 10, (2,), np.uint64), [2.0, 1e19], [-1.0, np.nan, 1e30]),
    ],
    ids=str,
)
def test_an_observation_that_its_space_cannot_hold_is_found(space, fit, unfit):
    for values, expected in ((fit, True), (unfit, False)):
        for value in values:
            (each,) = fit_to_learn_from(jnp.asarray(value), space)
            assert bool(each.all()) is expected, value


@pytest.mark.parametrize(
    ("leaf", "space"),
    [
        (jnp.zeros(2, jnp.int32), BOX),
        (jnp.zeros(2, jnp.int8), INT8),
        (jnp.zeros(2, bool), INT8),
        (jnp.zeros(2, jnp.int32), spaces.Box(0, 1, (2,), np.int64)),
        (jnp.zeros((3, 3), jnp.uint8), spaces.Box(0, 255, (3, 3), np.uint8)),
        (jnp.zeros(2, bool), spaces.MultiBinary(2)),
    ],
)
def test_nothing_is_computed_where_every_number_of_the_type_will_do(leaf, space):
    assert fit_to_learn_from(leaf, space) == [None]


def counting(first: int) -> FunctionalEnvironment:
    """Its observation b counts up from `first` in a space of three."""

    def show(time):
        return {"a": jnp.zeros(2), "b": time}

    def step(key, time, action):
        return Transition(time + 1, show(time + 1), 1.0, False, False)

    return still(reset=lambda key: (jnp.asarray(first), show(jnp.asarray(first))), step=step, observation_space=DICT)


@pytest.mark.parametrize(
    ("first", "said"),
    [(1, r"step 1: environment 0"), (7, "reset")],
)
def test_whole_numbers_outside_their_space_are_refused(first, said):
    environment = checked(counting(first), "counting")
    source = FunctionalSource(environment, name="counting", envs=2, horizon=3)
    policy = make_policy(DICT, spaces.Discrete(2), config.Network(hidden=(2,)), KEY)
    wrong = r"returned observation\['b'\] with a value that its space Discrete\(3\) cannot hold"
    with pytest.raises(sf.EnvironmentFault, match=f"^counting: {said} {wrong}$"):
        source.collect(policy, source.reset(KEY), KEY)


def says_otherwise() -> FunctionalEnvironment:
    return 3


def cannot_be_made() -> FunctionalEnvironment:
    raise ZeroDivisionError("on purpose")


def not_annotated():
    return functional_probes.walk()


@pytest.mark.parametrize(
    ("environment", "error", "words"),
    [
        (says_otherwise, sf.EnvironmentFault, ["says_otherwise", "a int"]),
        (cannot_be_made, sf.EnvironmentFault, ["cannot_be_made", "ZeroDivisionError: on purpose"]),
        (not_annotated, sf.EnvironmentNotFound, ["not_annotated", "-> FunctionalEnvironment"]),
        (still(observation_space=None), sf.UnsupportedSpace, ["observation_space None"]),
        (still(action_space=spaces.Text(3)), sf.UnsupportedSpace, ["action space"]),
        ("gymnax:CartPol-v1", sf.EnvironmentNotFound, ["'CartPol-v1'", "'CartPole-v1'"]),
        ("gymnax:", sf.EnvironmentNotFound, ["gymnax has no environment ''"]),
        ("gymnax:SimpleBandit-bsuite", sf.EnvironmentFault, ["gymnax:SimpleBandit-bsuite", "step raised IndexError"]),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else None),
)
def test_what_cannot_be_made_is_one_line(environment, error, words):
    if str(environment).startswith("gymnax:"):
        pytest.importorskip("gymnax")
    with pytest.raises(error) as refused:
        make_source(environment, config.Collection(envs=2, horizon=2))
    assert "\n" not in str(refused.value)
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize("library", ["gymnax", "brax"])
def test_a_library_that_is_not_installed_is_named_with_what_installs_it(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(sf.EnvironmentNotFound, match=rf"pip install 'surefoot\[{library}\]'"):
        functional_environment(f"{library}:anything")


# gymnax.


def stepped(environment: FunctionalEnvironment, action: Any, steps: int) -> list[Transition]:
    """What so many steps from a reset give."""
    state, _ = environment.reset(KEY)
    given = []
    for key in jax.random.split(KEY, steps):
        given.append(environment.step(key, state, action))
        state = given[-1].state
    return given


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Breakout-MinAtar"])
def test_the_step_that_reaches_the_limit_is_truncated_and_not_terminated(name):
    gymnax = pytest.importorskip("gymnax")
    made, parameters = gymnax.make(name)
    environment = gymnax_adapter.adapt(made, parameters)
    assert environment.tells_truncation
    state, _ = jax.jit(environment.reset)(KEY)
    action = jnp.zeros(environment.action_space.shape, jnp.int32 if environment.action_space.dtype == int else float)
    limit = int(parameters.max_steps_in_episode)

    @jax.jit
    def step(state):
        return environment.step(KEY, state, action), made.step_env(KEY, state, action, parameters)

    for time in (limit - 2, limit - 1):
        ours, (shown, _, reward, ended, _) = step(state.replace(time=jnp.int32(time)))
        # 0.x calls it an end like any other.
        assert (bool(ours.terminated), bool(ours.truncated), bool(ended)) == (False, *[time + 1 == limit] * 2)
        assert np.array_equal(ours.observation, shown)
        assert ours.reward == reward


def test_a_fall_is_terminated_also_at_the_limit_and_shows_where_it_fell():
    gymnax = pytest.importorskip("gymnax")
    environment = gymnax_adapter.adapt(*gymnax.make("CartPole-v1"))
    state, _ = environment.reset(KEY)
    for time in (10, 499):
        fallen = environment.step(KEY, state.replace(theta=0.2, theta_dot=1.0, time=time), 1)
        assert (bool(fallen.terminated), bool(fallen.truncated)) == (True, False)
        assert fallen.observation[2] == pytest.approx(0.22)


def test_what_jax_warns_of_in_gymnaxs_own_code_does_not_reach_who_trains():
    gymnax = pytest.importorskip("gymnax")
    made, parameters = gymnax.make("Breakout-MinAtar")
    state = jax.eval_shape(made.reset_env, KEY, parameters)[1]
    with pytest.warns(FutureWarning, match="scatter inputs"):  # or there is nothing to keep back any more
        jax.eval_shape(lambda *given: made.step_env(*given, parameters), KEY, state, 0)
    ours = gymnax_adapter.adapt(made, parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(ours.step, KEY, jax.eval_shape(ours.reset, KEY)[0], 0)


def test_a_board_is_shown_as_one_vector():
    pytest.importorskip("gymnax")
    environment = functional_environment("gymnax:Catch-bsuite")
    assert environment.observation_space.shape == (50,)
    steps = stepped(environment, 1, 9)
    assert [bool(step.terminated) for step in steps] == [False] * 8 + [True]
    assert {(step.observation.shape, float(step.observation.sum())) for step in steps[:-1]} == {((50,), 2.0)}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of the stand-in for gymnax 1.x."""

    max_steps_in_episode: int = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    x: Any
    time: Any


class Discrete:
    """Spaces are known by the names of their classes."""

    def __init__(self, n: int):
        self.n = n


class Box:
    low, high, shape, dtype = 0, 9, (1,), jnp.float32


class Dict:
    spaces = {"x": Box(), "odd": Discrete(2)}  # noqa: RUF012


class Bare:
    """What gymnax 1.x lets be registered: `reset`, and the `step` of six values that resets itself.

    It goes to the right by the action, and ends beyond 6; an episode is cut after four steps.
    """

    def reset(self, key, params):
        return self.show(Place(0.0, 0)), Place(0.0, 0)

    def step(self, key, state, action, params):
        place = Place(state.x + action, state.time + 1)
        terminated, truncated = place.x > 6, place.time >= params.max_steps_in_episode
        over = jnp.logical_or(terminated, truncated)
        shown, begun = self.reset(key, params)
        kept = jax.tree.map(lambda old, new: jnp.where(over, new, old), (place, self.show(place)), (begun, shown))
        return kept[1], kept[0], place.x, terminated, truncated, {"final_observation": self.show(place)}

    def show(self, state):
        return {"x": jnp.reshape(jnp.asarray(state.x, float), (1,)), "odd": jnp.asarray(state.time % 2)}

    def observation_space(self, params):
        return Dict()

    def action_space(self, params):
        return Discrete(4)


class Whole(Bare):
    """As gymnax 1.x's own are: beside these a step that does not reset, whose end is no limit, and `is_truncated`."""

    def reset_env(self, key, params):
        return self.reset(key, params)

    def step_env(self, key, state, action, params):
        place = Place(state.x + action, state.time + 1)
        return self.show(place), place, place.x, place.x > 6, {}

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode


@pytest.mark.parametrize("kind", [Bare, Whole])
@pytest.mark.parametrize(
    ("action", "ends"), [(1, [(0, 0)] * 3 + [(0, 1)]), (3, [(0, 0)] * 2 + [(1, 0)]), (2, [(0, 0)] * 3 + [(1, 0)])]
)
def test_gymnax_of_the_six_values_is_understood_and_its_true_final_observation_kept(kind, action, ends):
    environment = checked(gymnax_adapter.adapt(kind(), Parameters()), "one")
    assert environment.tells_truncation
    steps = stepped(environment, action, len(ends))
    assert [(int(step.terminated), int(step.truncated)) for step in steps] == ends
    expected = [action * (number + 1) for number in range(len(ends))]
    assert [float(step.observation["x"][0]) for step in steps] == [float(step.reward) for step in steps] == expected


class Old(Whole):
    """As gymnax 0.x's are, but without a limit among its parameters: what ended it cannot be told."""

    is_truncated = property()


def test_without_a_limit_among_its_parameters_an_environment_of_0_x_tells_no_truncation():
    environment = gymnax_adapter.adapt(Old(), object())
    assert not environment.tells_truncation
    assert not any(step.truncated for step in stepped(environment, 3, 3))


# Brax, by a stand-in: it takes a minute to install and another to compile.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    """The fields of Brax's."""

    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


class Slide:
    """A point pushed along a line that ends beyond 1; its state holds a name, Python's numbers, None and metrics."""

    action_size = 2

    def __init__(self, named: bool):
        self.named = named

    def reset(self, rng):
        place, done = 0.01 * jax.random.normal(rng), jnp.zeros(())
        metrics, info = {"speed": done}, {"name": "slide", "weight": 2, "contact": None}
        return State({"q": place}, self.show(place), done, done, metrics, info)

    def step(self, state, action):
        place = state.pipeline_state["q"] + action[0]
        state.metrics.update(speed=action[0])
        assert state.info["name"] == "slide"
        done = jnp.where(place > 1, 1.0, 0.0)
        return dataclasses.replace(state, pipeline_state={"q": place}, obs=self.show(place), reward=place, done=done)

    def show(self, place):
        return {"q": place[None]} if self.named else jnp.stack([place, 2 * place])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("push", "ends"), [(0.1, [(0, 0)] * 4 + [(0, 1)]), (0.3, [(0, 0)] * 3 + [(1, 0)]), (0.22, [(0, 0)] * 4 + [(1, 0)])]
)  # fmt: skip
def test_brax_is_cut_by_its_limit_and_ended_by_its_done(named, push, ends):
    environment = checked(brax_adapter.adapt(Slide(named), 5), "slide")
    assert environment.action_space == spaces.Box(-1, 1, (2,), np.float32)
    steps = stepped(environment, jnp.array([push, 0]), len(ends))
    assert [(int(step.terminated), int(step.truncated)) for step in steps] == ends
    last = steps[-1]
    shown = last.observation["q"] if named else last.observation
    assert shown[0] == last.reward == pytest.approx(push * len(ends), abs=0.05)
    assert float(last.state[0].metrics["speed"]) == pytest.approx(push)


def test_brax_is_collected_from_in_one_program(monkeypatch):
    library = types.ModuleType("brax")
    library.envs = types.SimpleNamespace(_envs={"slide": Slide}, get_environment=lambda name: Slide(named=False))
    monkeypatch.setitem(sys.modules, "brax", library)
    with pytest.raises(sf.EnvironmentNotFound, match=r"brax has no environment 'slid' \(did you mean 'slide'\?\)"):
        functional_environment("brax:slid")
    source = make_source("brax:slide", config.Collection(envs=2, horizon=3))
    assert (source.name, source.observation_space.shape) == ("brax:slide", (2,))
    state = source.reset(KEY)
    arrays, facts = source.pack(state)
    again = source.unpack(arrays, facts, state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True))


# The libraries whole: minutes.


@pytest.mark.long
def test_every_task_of_gymnax_tells_its_limit_from_an_end():
    gymnax = pytest.importorskip("gymnax")
    from gymnax.registration import registered_envs

    ends, refused = {}, {}
    for name in registered_envs:
        try:
            environment = checked(gymnax_adapter.adapt(*gymnax.make(name)), name)
            made, parameters = gymnax.make(name)
            short = gymnax_adapter.adapt(
                made, parameters.replace(max_steps_in_episode=type(parameters.max_steps_in_episode)(4))
            )
        except Exception as error:
            refused[name] = type(error).__name__
            continue
        assert environment.tells_truncation
        given = jnp.zeros(environment.action_space.shape, jnp.int32 if environment.action_space.dtype == int else float)
        step, (state, _) = jax.jit(short.step), short.reset(KEY)
        told = []
        for key in jax.random.split(KEY, 4):
            taken = step(key, state, given)
            told.append((bool(taken.terminated), bool(taken.truncated)))
            state = taken.state
        ends[name] = told
    assert refused.pop("SimpleBandit-bsuite") == "EnvironmentFault"
    refused.pop("MNISTBandit-bsuite", None)  # it downloads its pictures
    assert refused == {}
    documented = DOCUMENT.read_text()
    assert [name for name in registered_envs if name not in documented] == []
    for name in ends.keys() - {"MNISTBandit-bsuite"}:
        assert ends[name] == [(False, False)] * 3 + [(False, True)], name


@pytest.mark.long
@pytest.mark.parametrize("name", ["fast", "inverted_pendulum"])
def test_a_task_of_brax_is_trained_on(name, tmp_path):
    pytest.importorskip("brax")
    run = sf.train(f"brax:{name}", "pg", out=tmp_path / "run", steps=64, progress=False, **TINY)
    assert run.updates >= 4
    assert run.evaluation["length"]["mean"] <= brax_adapter.LIMIT
    assert run.evaluation["cut"] == 0
