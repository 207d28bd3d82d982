"""Runs that do not leave the compiler: the same iterations as on the host, whatever the chunks."""

import jax
import numpy as np
import pytest

import functional_probes
import surefoot as sf
from surefoot import compiled, config, history
from surefoot.compiled import copied, fetched, how_many, iterations, numbers_of, program
from surefoot.errors import EnvironmentFault, Stopped
from surefoot.iteration import begin, iterate, settled
from surefoot.sources import make_source
from surefoot.training import make_rule, resume, train

TIMES = {"seconds", "collect_seconds", "update_seconds", "certify_seconds", "critic_seconds"}
TINY = {"envs": 8, "horizon": 16, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 3}


def told(run):
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in history.read(run).rows]
    return rows, (run / "policy" / "policy.safetensors").read_bytes()


def close(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-2, atol=1e-4, equal_nan=True))
    return one == other


@pytest.mark.parametrize(("name", "rule"), [("walk", "trpo"), pytest.param("push", "ppo", marks=pytest.mark.long)])
def test_a_chunk_is_the_iterations_that_the_host_makes(name, rule):
    run = config.make_run(**{**TINY, "holdout": 0.25, "steps": 1000, "anneal_from": 0.0})
    source, rule = make_source(f"functional_probes:{name}", run.collection), make_rule(rule)
    learner, state = begin(source, rule, run)
    begun = copied((learner, state))
    chunk = program(source.environment, source.envs, source.horizon)
    made = fetched("walk", chunk, numbers_of(rule, run, np.float32), *begun, 3, 3)
    for mine in iterations(made, rule, run):
        learner, state, hosts = iterate(source, rule, run, learner, state)
        one, other = (settled(made.row) | made.judgement for made in (mine, hosts))
        assert {key for key in one if key not in TIMES and not close(one[key], other[key])} == set()
        assert one["radius"] == pytest.approx(other["radius"], rel=1e-6, nan_ok=True)
        assert all(one[key] is None for key in TIMES & one.keys())
        np.testing.assert_allclose(mine.returns, hosts.returns, rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("compiled") / "whole"
    return train("functional_probes:walk", out=run, steps=4000, progress=False, **TINY)


def test_a_run_is_whole_and_learns(whole):
    rows, _ = told(whole.path)
    assert [row["update"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["steps"] == whole.steps >= 4000 > rows[-2]["steps"]
    assert rows[-1]["steps"] == sum(row["experience"] for row in rows)
    seconds = [row["seconds"] for row in history.read(whole.path).rows]
    assert seconds == sorted(seconds)
    first = next(row["return_mean"] for row in rows if row["episodes"])
    assert whole.evaluation["return"]["mean"] > first + 5
    assert whole.evaluation["length"]["mean"] <= 20
    assert whole.evaluation["cut"] == 0
    assert (whole.path / "report.html").exists()


def test_bits_do_not_depend_on_where_chunks_end_nor_on_stops(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "CAPACITY", 3)
    asked = iter(range(100))
    with pytest.raises(Stopped):
        train(
            "functional_probes:walk",
            out=tmp_path / "parts",
            steps=4000,
            progress=False,
            stop=lambda: next(asked) == 3,
            **TINY,
        )
    begun = history.read(tmp_path / "parts").rows
    assert 3 < len(begun) < len(told(whole.path)[0])
    resume(tmp_path / "parts", progress=False, allow_env=True)
    assert told(tmp_path / "parts") == told(whole.path)


def test_the_program_is_compiled_once(whole, tmp_path):
    source = make_source("functional_probes:walk", config.make_run(**TINY).collection)
    run, rule = config.make_run(seed=3, discount=0.9, **TINY), sf.TRPO(radius=0.1)
    chunk, numbers = program(source.environment, source.envs, source.horizon), numbers_of(rule, run, np.float32)
    learner, state = copied(begin(source, rule, run))
    compiled_before = chunk._cache_size()
    for count in (1, 2, 5):
        made = chunk(numbers, learner, state, count, count)
        learner, state = made.learner, made.state
        assert int(made.count) == count
    assert chunk._cache_size() == compiled_before  # that of `whole`, whose numbers are others


def test_a_failing_environment_is_named_and_what_was_learned_until_then_is_kept(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"spoiled_walk: step \d+: environment \d+ returned reward"):
        train("functional_probes:spoiled_walk", out=tmp_path / "run", steps=100_000, progress=False, **TINY)
    rows, _ = told(tmp_path / "run")
    assert rows == [] or rows[-1]["update"] == len(rows)
    sf.load(tmp_path / "run").act(np.zeros(3, np.float32))


@pytest.mark.long
def test_with_the_guard_iterations_are_made_one_at_a_time(tmp_path):
    run = train("functional_probes:walk", "npg", out=tmp_path / "run", steps=600, guard=True, progress=False, **TINY)
    assert all(row["collect_seconds"] > 0 for row in history.read(run.path).rows)


@pytest.mark.parametrize(
    ("steps", "per_iteration", "pace", "expected"),
    [(1, 128, 5.0, 1), (128, 128, 5.0, 1), (129, 128, 5.0, 2), (10**9, 128, None, 2), (10**9, 128, 7.9, 7),
     (10**9, 128, 0.1, 1), (10**9, 128, 1e9, compiled.CAPACITY)],
)  # fmt: skip
def test_how_many_iterations_the_next_chunk_has(steps, per_iteration, pace, expected):
    assert how_many(steps, per_iteration, pace) == expected


def test_an_environment_itself_and_a_callable_are_understood():
    for environment in (functional_probes.walk, functional_probes.walk(), "functional_probes:push"):
        source = make_source(environment, config.Collection(envs=2, horizon=3))
        assert source.observation_space.shape == (3,) or source.observation_space.shape == (2,)
        state = source.reset(jax.random.key(0))
        arrays, facts = source.pack(state)
        again = source.unpack(arrays, facts, source.reset(jax.random.key(1)))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True))


def test_the_report_says_that_a_compiled_run_has_no_times_of_its_stages(whole):
    assert "The run did not leave the compiler" in (whole.path / "report.html").read_text()
