"""Annealing: what is left of the trust region as a run goes on, and what the rules make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surefoot as sf
from surefoot import config, history
from surefoot.annealing import annealed, remaining
from surefoot.compiled import numbers_of
from surefoot.errors import SettingError
from surefoot.rules import NPG, PG, PI, PPO, TRPO, Dual, KLPenalty


@pytest.mark.parametrize(
    ("anneal", "begins", "steps", "left"),
    [
        (0.05, 0.4, 0, 1),
        (0.05, 0.4, 400, 1),
        (0.05, 0.4, 700, 0.525),
        (0.05, 0.4, 1000, 0.05),
        (0.05, 0.4, 1020, 0.05),  # the last update may go beyond the run's steps
        (0.5, 0.0, 500, 0.75),
        (1.0, 0.4, 900, 1),
    ],
)
def test_what_is_left_falls_on_a_line(anneal, begins, steps, left):
    run = config.make_run(steps=1000, anneal=anneal, anneal_from=begins)
    assert remaining(run, steps) == pytest.approx(left)
    traced = jax.jit(remaining)(numbers_of(TRPO(), run, np.float32).run, jnp.asarray(steps, jnp.int32))
    assert float(traced) == pytest.approx(left, rel=1e-6)


@given(
    st.floats(1e-3, 1), st.floats(0, 0.99), st.integers(1, 2**40), st.lists(st.floats(0, 1.5), min_size=2, max_size=9)
)
def test_it_never_grows_and_never_vanishes(anneal, begins, steps, shares):
    run = config.make_run(steps=steps, anneal=anneal, anneal_from=begins)
    left = [remaining(run, int(share * steps)) for share in sorted(shares)]
    assert left == sorted(left, reverse=True)
    assert all(anneal * (1 - 1e-9) <= each <= 1 for each in left)


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        (TRPO(radius=0.02), {"radius": 0.005}),
        (NPG(eta=0.1), {"radius": 0.005, "eta": 0.05}),
        (PG(radius=0.02), {"radius": 0.005}),
        (KLPenalty(radius=0.02, step_size=1e-3), {"radius": 0.005, "step_size": 5e-4}),
        (Dual(radius=0.02, step_size=1e-3), {"radius": 0.005, "step_size": 5e-4}),
        (PPO(step_size=1e-3), {"step_size": 5e-4}),
    ],
)
def test_a_radius_shrinks_with_the_share_and_a_step_with_its_root(rule, lengths):
    run = config.make_run(steps=100, anneal=0.25, anneal_from=0.5)
    late = annealed(rule, remaining(run, 100))
    assert {name: float(getattr(late, name)) for name in lengths} == pytest.approx(lengths)
    assert annealed(rule, remaining(run, 50)).settings() == rule.settings()


def test_a_rule_without_a_length_stays_as_it_is():
    rule = PI()
    assert annealed(rule, 0.05) is rule


@pytest.mark.parametrize(("name", "value"), [("anneal", 0), ("anneal", 1.1), ("anneal_from", 1), ("anneal_from", -0.1)])
def test_shares_are_between_nothing_and_all(name, value):
    with pytest.raises(SettingError, match=f"{name} must be"):
        config.make_run(**{name: value})


def test_every_update_of_a_run_has_the_radius_that_its_steps_leave_it(tmp_path):
    tiny = {"envs": 2, "horizon": 16, "hidden": (4,), "critic_hidden": (4,), "evaluation_episodes": 1}
    run = sf.train("CartPole-v1", TRPO(radius=0.01), steps=300, out=tmp_path / "run", progress=False, **tiny)
    told = history.read(run.path)
    plan = config.make_run(steps=300, **tiny)
    before = np.concatenate([[0], told.column("steps")[:-1]])
    wanted = [0.01 * remaining(plan, int(steps)) for steps in before]
    assert wanted[-1] < 0.002
    np.testing.assert_allclose(told.column("radius"), wanted, rtol=1e-6)
    assert np.all(told.column("kl") <= told.column("radius") * 1.001)
