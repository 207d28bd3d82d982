"""Certificates from samples: against the exact engine, on updates that did harm, and on noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from models import mixed, random_policy
from surefoot import config, history
from surefoot.batch import reweighted, sampled_batch
from surefoot.bounds import CATALOGUE, Discounted
from surefoot.calibration import calibrate
from surefoot.guard import careful, did_harm, next_share
from surefoot.iteration import begin, iterate, settled
from surefoot.rules import RULES, Rule, UpdateReport
from surefoot.sampled_certificate import (
    Moved,
    Sums,
    advantage_change,
    discounted_rows,
    effective_horizon,
    estimated_bounds,
    held_out_gain,
    movement_from_start,
    over_environments,
    realised_gain,
    sampled_certificate,
)
from surefoot.sources import make_source
from surefoot.tabular import MDP
from surefoot.tabular.simulation import visited_states
from surefoot.training import make_rule


def decisions(rng, ending):
    """An MDP of six states, with or without an end that every action may lead to, and two policies."""
    transition = rng.dirichlet(np.ones(6), size=(6, 3))
    reward = rng.standard_normal((6, 3))
    if ending:
        transition[:5, :, 5] += 0.2
        transition /= transition.sum(axis=-1, keepdims=True)
        transition[5], reward[5] = np.eye(6)[5], 0
    mdp = MDP(transition, reward, 0.9, np.array([0.5, 0.5, 0, 0, 0, 0]))
    old = rng.dirichlet(np.ones(3), size=6)
    return mdp, old, mixed(old, rng.dirichlet(np.ones(3), size=6), 0.5)


def temporal_differences(mdp, critic):
    """delta_f(s, a, s') of every transition, [S, A, S]."""
    transition = mdp.matrix.reshape(mdp.states, mdp.actions, mdp.states)
    return transition, mdp.reward[..., None] + mdp.discount * critic - critic[:, None, None]


def live_sums(mdp, policy, critic, ending, scale):
    """What an endless batch of one environment would add up to, its live states only."""
    account = mdp.evaluate(policy)
    transition, delta = temporal_differences(mdp, critic)
    live = np.arange(mdp.states) < (5 if ending else 6)
    weight = scale * np.where(live, account.visitation, 0)[:, None, None] * policy[..., None] * transition
    ends = np.arange(mdp.states) == (5 if ending else -1)
    mass = np.sum(weight * np.where(ends, 1, 1 - mdp.discount))
    return np.sum(weight * delta), mass


@pytest.mark.parametrize("ending", [False, True])
def test_the_realised_gain_is_the_true_one_for_any_critic(ending, rng):
    mdp, old, new = decisions(rng, ending)
    critic = rng.standard_normal(6) * (np.arange(6) < 5 if ending else 1)
    before, after = (
        Sums(*np.array([live_sums(mdp, policy, critic, ending, scale) for scale in rng.uniform(1, 2, 9)]).T)
        for policy in (old, new)
    )
    gain = mdp.evaluate(new).expected_return - mdp.evaluate(old).expected_return
    estimate = realised_gain(before, after, 0.95)
    np.testing.assert_allclose([estimate.value, estimate.lower, estimate.upper], gain, rtol=1e-9)


def test_the_interval_of_the_realised_gain_holds_the_true_one_as_often_as_it_says(rng):
    mdp, old, new = decisions(rng, ending=False)
    critic = mdp.evaluate(old).value + rng.standard_normal(6)
    transition, delta = temporal_differences(mdp, critic)
    gain = mdp.evaluate(new).expected_return - mdp.evaluate(old).expected_return
    environments, rows, repeats = 32, 16, 200

    def drawn(policy):
        state = visited_states(mdp, policy, repeats * environments * rows, rng)
        pairs = (policy[..., None] * transition).reshape(6, 18)
        pick = np.array([rng.choice(18, p=row, size=np.sum(state == s)) for s, row in enumerate(pairs)], object)
        value = np.empty(state.size)
        for s in range(6):
            value[state == s] = delta[s].reshape(18)[pick[s].astype(int)]
        return value.reshape(repeats, environments, rows).sum(axis=-1)

    mass = np.full(environments, rows * (1 - mdp.discount))
    told = [realised_gain(Sums(a, mass), Sums(b, mass), 0.9) for a, b in zip(drawn(old), drawn(new), strict=True)]
    held = np.mean([estimate.lower <= gain <= estimate.upper for estimate in told])
    assert 0.8 < held < 0.97  # .9, less what 32 environments cost, and 3 standard errors of 200 repeats
    spread = np.std([estimate.value for estimate in told]) / np.sqrt(repeats)
    assert abs(np.mean([estimate.value for estimate in told]) - gain) < 4.5 * spread


def test_what_cannot_be_said_is_null_with_a_reason():
    few, none = Sums(np.ones(7), np.ones(7)), Sums(np.zeros(7), np.zeros(7))
    assert realised_gain(few, few, 0.95) == (0.0, None, None, "7 environments are too few to resample (at least 8)")
    assert realised_gain(few, none, 0.95).reason == "a batch without experience"
    assert held_out_gain(none, 0.95).reason == "a batch without experience"
    wild = Sums(np.full(9, np.inf), np.ones(9))
    assert realised_gain(wild, wild, 0.95) == (None, None, None, "the values are not finite")
    assert held_out_gain(wild, 0.95) == (None, None, None, "the values are not finite")


def test_rows_of_no_weight_and_terminations_in_the_sums():
    value = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])
    weight = jnp.array([[0.25, 0.0], [0.25, 0.5]])
    total, mass = over_environments(value, weight, jnp.array([[False, True], [True, False]]), 0.9)
    np.testing.assert_allclose(total, [1.0, 2.5])
    np.testing.assert_allclose(mass, [0.25 * 0.1 + 0.25, 0.5 * 0.1], rtol=1e-6)
    assert effective_horizon(0.9, 0.0) == pytest.approx(10)
    assert effective_horizon(0.9, 1.0) == pytest.approx(1)


STAGGERED = (np.arange(64)[None] + np.arange(32)[:, None]) % 64  # episodes of 64 steps, one begun at each
TIMES = [  # times [T, N], discount, start of the reason or None
    (np.tile(np.arange(100), (64, 1)).T, 0.9, None),
    (np.zeros((8, 8), int), 0.99, "the batch's times cover 1%"),
    (STAGGERED, 0.9, None),
    (STAGGERED + 1, 0.9, "no episode begins"),
    (np.arange(20)[:, None], 0.9, "14.9 effective rows are too few"),
    (np.tile(np.arange(32), (64, 1)).T, 0.99, "the batch's times cover 28%"),
    # The end of long episodes and the start of the next: what lies between is missing.
    (np.tile(np.r_[990:1000, 0:22], (64, 1)).T, 0.99, "the batch's times cover 20%"),
]


@pytest.mark.parametrize(("time", "discount", "reason"), TIMES)
def test_when_a_batch_stands_for_the_discounted_visitation(time, discount, reason):
    nowhere, everywhere = np.zeros(time.shape, bool), np.ones(time.shape, bool)
    rows, told = discounted_rows(time, everywhere, nowhere, discount)
    weight = discount ** time.astype(float)
    assert rows == pytest.approx(weight.sum() ** 2 / np.sum(weight**2))
    assert told is None if reason is None else told.startswith(reason)
    assert discounted_rows(time, nowhere, nowhere, discount) == (0.0, "a batch without experience")
    # Episodes that terminate leave nothing out, however short they are.
    ends = time == time.max()
    assert (
        reason is None
        or "cover 20%" in reason
        or "too few" in reason
        or not (time == 0).any()
        or (discounted_rows(time, everywhere, ends, discount)[1] is None)
    )


def enumerated(mdp, old, ending):
    """Every transition out of a live state as a sampled batch of the weight that endless sampling would give it."""
    account, transition = mdp.evaluate(old), mdp.matrix.reshape(6, 3, 6)
    state, action, later = (a.ravel() for a in np.indices((5 if ending else 6, 3, 6)))
    weight = account.visitation[state] * old[state, action] * transition[state, action, later]
    advantage = jnp.asarray(account.advantage[state, action])
    distributions = sf.TabularPolicy.of(jnp.asarray(old))(jnp.asarray(state))
    batch = sampled_batch(jnp.asarray(state), None, jnp.asarray(action), advantage, distributions, jnp.asarray(weight))
    return batch, state, action, ending & (later == 5), account


def quantities_by_hand(mdp, old, new, account, live, rows):
    """What the bounds are made of, from the model; the ranges over states from the given rows of (ratio - 1) A."""
    tv = np.abs(new - old).sum(axis=1) / 2
    kl, reverse = np.sum(old * np.log(old / new), axis=1), np.sum(new * np.log(new / old), axis=1)
    d = account.visitation
    return Discounted(
        discount=mdp.discount,
        span=rows.max() - rows.min(),
        largest=np.abs(rows).max(),
        largest_advantage=np.abs(account.advantage[:live]).max(),
        mean_tv=d @ tv,
        max_tv=tv.max(),
        mean_kl=d @ kl,
        mean_reverse_kl=d @ reverse,
        max_kl=kl.max(),
        shift=0,
        overlap=0,
        transfer=0,
        least_reward=mdp.reward[:live].min(),
        largest_reward=np.abs(mdp.reward[:live]).max(),
    )


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("ending", [False, True])
def test_estimated_bounds_are_those_of_the_catalogue_where_nothing_is_sampled(ending, positive, x64, rng):
    mdp, old, new = decisions(rng, ending)
    live = 5 if ending else 6
    if positive:
        reward = np.where(np.arange(6)[:, None] < live, np.abs(mdp.reward), 0)
        mdp = MDP(mdp.matrix.reshape(6, 3, 6), reward, mdp.discount, mdp.start)
    new = mixed(old, new, 0.05)
    new[5] = old[5]  # no batch holds what would be done after an end
    batch, state, action, terminated, account = enumerated(mdp, old, ending)
    critic = rng.standard_normal(6) * (np.arange(6) < live)
    _, delta = temporal_differences(mdp, critic)
    told = movement_from_start(
        sf.TabularPolicy.of(jnp.asarray(new)),
        batch,
        batch.weight,
        time=jnp.asarray(np.where(np.isin(state, (0, 1)), 0, 1)),
        terminated=jnp.asarray(terminated),
        reward=jnp.asarray(mdp.reward[state, action]),
        error=jnp.asarray(delta[:live].ravel()),
        value=jnp.asarray(critic[state]),
    )
    told = Moved(*map(float, told))
    assert effective_horizon(0.9, told.terminating) * told.surrogate == pytest.approx(
        sf.certify(old, new, mdp).surrogate_gain
    )
    rows = ((new / old - 1) * account.advantage)[:live].ravel()
    by_hand = quantities_by_hand(mdp, old, new, account, live, np.append(rows, 0) if ending else rows)
    lower, vacuous = estimated_bounds(told, mdp.discount)
    catalogue = {bound.id: bound for bound in CATALOGUE if bound.needs == "samples" and bound.valid(by_hand)}
    assert lower.keys() == catalogue.keys()
    assert ("lecture" in lower) == positive
    gain = sf.certify(old, new, mdp).surrogate_gain
    for name, bound in catalogue.items():
        assert lower[name] == pytest.approx(gain - bound.discounted(by_hand) / (1 - mdp.discount), rel=1e-9), name
    # States 0 and 1 are those of time 0: the return is the critic's value there and what its errors add.
    first = np.isin(state, (0, 1)) & (np.asarray(batch.weight) > 0)
    expected = critic[state[first]].mean() + effective_horizon(0.9, told.terminating) * told.error
    worst = by_hand.least_reward * (1 if ending and positive else 10) - expected
    assert vacuous == (max(lower.values()) <= worst)


@pytest.mark.parametrize("ending", [False, True])
def test_the_held_out_gain_is_the_surrogate_gain_where_nothing_is_sampled(ending, x64, rng):
    mdp, old, new = decisions(rng, ending)
    batch, _, _, terminated, _ = enumerated(mdp, old, ending)
    change = advantage_change(sf.TabularPolicy.of(jnp.asarray(new)), batch)
    sums = over_environments(change[:, None], batch.weight[:, None], terminated[:, None], mdp.discount)
    environments = Sums(*(np.tile(np.asarray(a), 9) for a in sums))
    gain = sf.certify(old, new, mdp).surrogate_gain
    told = held_out_gain(environments, 0.95)
    np.testing.assert_allclose([told.value, told.lower, told.upper], gain, rtol=1e-9)


def test_a_movement_that_is_not_finite_has_no_bounds():
    moved = Moved(*[0.0] * len(Moved._fields))._replace(mean_kl=np.nan)
    report = UpdateReport(*[1.0] * len(UpdateReport._fields))
    told = sampled_certificate(report, 10.0, 50.0, None, moved, 0.9)
    assert (told.estimated_bounds, told.vacuous, told.best_bound) == (None, None, None)
    assert told.estimated_bounds_reason == "the values are not finite"


def test_intervals_of_few_environments_miss_as_often_as_they_say(rng):
    for environments in (8, 16, 64):
        noise = rng.standard_normal((2000, environments))
        harm = np.mean([did_harm(Sums(row * 0, row * 0 + 1), Sums(row, row * 0 + 1), 0.95) for row in noise])
        assert 0.03 < harm < 0.075, environments


def test_a_bound_below_the_worst_return_is_vacuous():
    moved = Moved(*[0.0] * len(Moved._fields))._replace(least_reward=-1.0, most_reward=1.0, max_tv=0.5, mean_tv=0.5)
    # Nothing is promised and the spread is 0: every bound says 0, where -10 would be the worst.
    assert estimated_bounds(moved, 0.9)[1] is False
    wild = moved._replace(
        smallest=-10.0, largest=10.0, largest_advantage=10.0, mean_kl=1.0, mean_reverse_kl=1.0, max_kl=1.0
    )
    lower, vacuous = estimated_bounds(wild, 0.9)
    assert vacuous
    assert max(lower.values()) < -10


def collected(environment="CartPole-v1", rule="trpo", **settings):
    sizes = {"hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1}
    run = config.make_run(**(sizes | settings))
    source = make_source(environment, run.collection)
    rule = make_rule(rule)
    return source, rule, run, *begin(source, rule, run)


class Holdout(Rule):
    """Moves by npg and reports on the batch that it was given."""

    settings_class = config.PI

    def init(self, policy):
        return ()

    def update(self, policy, memory, batch, key):
        report = RULES["npg"]().update(policy, memory, batch, key)[2]
        seen = jnp.sum(batch.weight.reshape(16, 20) > 0, axis=0)
        return policy, memory, report._replace(multiplier_path=seen, kl=jnp.sum(batch.weight))


@pytest.mark.long
def test_held_out_environments_are_kept_whole_and_drawn_anew():
    source, rule, run, learner, state = collected(rule=Holdout(), envs=20, horizon=16, holdout=0.25)
    kept = []
    for _ in range(3):
        learner, state, told = iterate(source, rule, run, learner, state)
        seen = np.array(told.row["multiplier_path"])
        kept.append(tuple(np.flatnonzero(seen == 0)))
        assert len(kept[-1]) == 5
        assert np.all(seen[seen > 0] > 10)
        assert told.row["kl"] == pytest.approx(1, rel=1e-5)
    assert len(set(kept)) == 3


def test_reweighting_keeps_the_old_policy_s_ratios_at_one(x64, rng):
    table = sf.TabularPolicy.of(jnp.asarray(random_policy(rng, (4, 3))))
    state, action = jnp.array([0, 1, 2, 3]), table(jnp.arange(4)).mode()
    batch = sampled_batch(state, None, action, jnp.ones(4), table(state), jnp.array([1.0, 2.0, 0.0, 1.0]))
    part = reweighted(batch, jnp.array([3.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(part.weight, [0.75, 0, 0, 0.25])
    mass = jnp.exp(part.log_base + table(state).log_prob(action))
    np.testing.assert_allclose(mass, part.weight)


@pytest.mark.long
def test_on_pure_noise_the_step_promises_much_and_gains_nothing_on_held_out_environments(tmp_path):
    run = sf.train(
        "probes:Noise",
        steps=12_000,
        envs=32,
        horizon=16,
        holdout=0.5,
        hidden=(32,),
        critic_hidden=(8,),
        critic_epochs=1,
        evaluation_episodes=1,
        out=tmp_path / "run",
        progress=False,
    )
    read = history.read(run.path)
    promised, held = read.column("promised_gain"), read.column("held_out_gain")
    error = np.std(held) / np.sqrt(len(held))
    assert np.mean(promised) > 8 * error
    assert abs(np.mean(held)) < 4.5 * error
    covered = (read.column("held_out_gain_lower") <= 0) & (read.column("held_out_gain_upper") >= 0)
    assert np.mean(covered) > 0.7


class Worsen(Rule):
    """Climbs down where the memory says so, a long way; up otherwise."""

    settings_class = config.TRPO
    radius: jax.Array

    def init(self, policy):
        return jnp.zeros((), jnp.int32)

    def update(self, policy, memory, batch, key):
        down = memory == 3
        turned = eqx.tree_at(lambda b: b.advantage, batch, jnp.where(down, -1, 1) * batch.advantage)
        rule = RULES["trpo"](radius=jnp.where(down, 1.0, self.radius))
        policy, _, report = rule.update(policy, (), turned, key)
        return policy, memory + 1, report

    def settings(self):
        return config.TRPO()


def test_the_guard_takes_back_an_update_that_did_harm_and_steps_more_carefully():
    rule = Worsen(radius=np.float64(0.05))
    source, rule, run, learner, state = collected(rule=rule, envs=32, horizon=64, guard=True, hidden=(32,))
    learners, rows, judgements = [learner], [], []
    for _ in range(7):
        learner, state, told = iterate(source, rule, run, learner, state)
        learners.append(learner)
        rows.append(settled(told.row))
        judgements.append(told.judgement)
    assert [bool(judgement["undone"]) for judgement in judgements].index(True) == 4
    assert judgements[4]["realised_gain_upper"] < 0
    assert rows[3]["kl"] > 0.05
    for name in ("policy", "memory"):
        assert eqx.tree_equal(getattr(learners[5], name), getattr(learners[3], name)), name
    # Its batch is left unused, by the critic too, and what was not taken is not judged.
    assert not rows[4]["accepted"]
    # With the memory that came back this rule does the same harm again.
    assert [row["discarded"] for row in rows] == [False] * 4 + [True, False, True]
    assert eqx.tree_equal(learners[5].critic, learners[4].critic)
    assert judgements[5]["realised_gain_reason"] == "no step was taken"
    assert rows[5]["radius"] == pytest.approx(0.025)


def test_without_the_guard_the_harm_stays():
    rule = Worsen(radius=np.float64(0.05))
    source, rule, run, learner, state = collected(rule=rule, envs=32, horizon=64, hidden=(32,))
    for _ in range(5):
        learner, state, told = iterate(source, rule, run, learner, state)
    assert told.judgement["realised_gain_upper"] < 0
    assert told.judgement["undone"] is False
    assert float(learner.share) == 1


@pytest.mark.parametrize("name", ["trpo", "npg", "pg", "kl-penalty", "dual", "ppo"])
def test_a_careful_rule_has_less_of_what_sets_its_step(name):
    rule = RULES[name]()
    less = careful(rule, 0.25)
    assert getattr(less, "radius", 0) == 0.25 * getattr(rule, "radius", 0)
    assert getattr(less, "step_size", 0) == 0.5 * getattr(rule, "step_size", 0)
    assert careful(RULES["npg"](eta=2.0), 0.25).eta == 1.0
    with pytest.raises(sf.SettingError, match="guard needs a rule with a radius"):
        careful(Holdout(), 0.25)
    assert jax.tree.structure(less) == jax.tree.structure(rule)


def test_harm_is_told_only_beyond_the_confidence(rng):
    mass, noise = np.ones(64), rng.standard_normal(64)
    before = Sums(noise, mass)
    assert did_harm(before, Sums(noise - 1, mass), 0.99)
    assert not did_harm(before, Sums(noise + 1, mass), 0.99)
    assert not did_harm(before, Sums(rng.permutation(noise), mass), 0.99)
    assert not did_harm(Sums(*(a[:4] for a in before)), Sums(noise[:4] - 1, mass[:4]), 0.99)


def test_the_share_of_the_radius_halves_and_grows_back_to_one():
    assert next_share(1.0, undone=True) == 0.5
    assert next_share(0.5, undone=False) == pytest.approx(0.51)
    assert next_share(0.999, undone=False) == 1.0
    assert next_share(2.0**-10, undone=True) == 2.0**-10


def test_holding_every_environment_out_and_guarding_too_few_are_refused():
    with pytest.raises(sf.SettingError, match="holdout must leave an environment"):
        config.make_run(holdout=0.5, envs=1)
    with pytest.raises(sf.SettingError, match="guard needs at least 8 environments"):
        config.make_run(guard=True, envs=7)


def test_the_certificate_of_a_run(tmp_path):
    run = sf.train(
        "CartPole-v1", steps=4096, envs=16, horizon=64, evaluation_episodes=1, out=tmp_path / "run", progress=False
    )
    rows = history.read(run.path).rows
    for row in rows[:-1]:
        assert row["realised_gain_lower"] <= row["realised_gain"] <= row["realised_gain_upper"]
        assert row["realised_gain_reason"] is None
        assert row["kl_ratio"] == pytest.approx(row["kl"] / (row["scale"] ** 2 * row["predicted_kl"]))
        assert row["best_bound_lower"] == max(row["estimated_bounds"].values())
        assert row["estimated_bounds_reason"] is None
    assert rows[-1]["realised_gain"] is None
    assert rows[-1]["realised_gain_reason"] == "no batch followed"
    told = calibrate(history.read(run.path))
    assert (told.updates, told.judged) == (len(rows), len(rows) - 1)
    assert told.realised == pytest.approx(sum(row["realised_gain"] for row in rows[:-1]))
    assert told.left == 0
    assert told.lowered is not None
    assert UpdateReport._fields[:2] == ("accepted", "scale")
