"""Identities, shift and bounds: worked cases, naive sums, and thousands of generated MDPs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import surefoot as sf
from models import mixed, problems, random_model, random_policy, rollout_law
from surefoot import bounds
from surefoot.certificate import certify
from surefoot.divergences import bretagnolle_huber, kl, pinsker, total_variation
from surefoot.tabular import (
    identities,
    library,
    maximal_coupling,
    mistake_law,
    sample_coupled,
    state_shift,
)

TOLERANCE = 1e-10


def equality_case(x):
    mdp = library.equality()
    return mdp, np.array([[1.0, 0.0]] * 2), np.array([[1 - x, x]] * 2)


@pytest.mark.parametrize(("x", "gain", "surrogate"), [(0.1, 0.0526315789473684, 1.0), (0.2, -0.5714285714285714, 2.0)])
def test_worked_case_1_gain_and_surrogate(x, gain, surrogate):
    mdp, old, new = equality_case(x)
    certificate = certify(old, new, mdp)
    assert certificate.gain == pytest.approx(gain, abs=1e-12)
    assert certificate.gain == pytest.approx(x * (0.1 - 0.9 * x) / (0.1 * (0.1 + 0.9 * x)), abs=1e-12)
    assert certificate.surrogate_gain == pytest.approx(surrogate, abs=1e-12)
    assert certificate.identity_residual < 1e-12


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("exact", 0.0526315789473684),
        ("tv", 0.0526315789473684),
        ("overlap", 0.0526315789473684),
        ("geometric", 0.0526315789473684),
        ("kakade-langford", 0.0526315789473684),
        ("mean-tv", -0.8),
        ("max-tv", -0.8),
        ("trpo", -2.6),
        ("chain-kl", -0.377131),
        ("achiam-kl", -np.inf),
        ("lecture", -179.0),
    ],
)
def test_worked_case_1_every_bound(name, lower):
    mdp, old, new = equality_case(0.1)
    interval = certify(old, new, mdp).bounds[name]
    assert interval.lower == pytest.approx(lower, abs=1e-6)
    assert interval.valid == (name != "lecture")


def test_worked_case_1_the_best_bound_proves_the_improvement_and_refuses_the_other():
    mdp, old, new = equality_case(0.1)
    better = certify(old, new, mdp)
    assert (better.best, better.proves_improvement) == ("geometric", True)
    assert better.best_bound == pytest.approx(better.gain)
    worse = certify(old, equality_case(0.2)[2], mdp)
    assert worse.surrogate_gain > 0 > worse.gain
    assert not worse.proves_improvement
    assert all(interval.lower <= worse.gain + 1e-12 for interval in worse.bounds.values() if interval.valid)


def test_every_bound_is_the_formula_of_its_row(rng):
    """Each penalty again, from its own definition, for random policies of full support."""
    for _ in range(20):
        mdp = random_model(rng, fewest_actions=2, discounts=[0.3, 0.9, 0.99])
        old, new = (rng.dirichlet(np.ones(mdp.actions), size=mdp.states) for _ in range(2))
        g = mdp.discount
        before, after = mdp.evaluate(old), mdp.evaluate(new)
        expected = np.array(
            [sum(new[s, a] * before.advantage[s, a] for a in range(mdp.actions)) for s in range(mdp.states)]
        )
        a = 0.5 * np.abs(old - new).sum(axis=1)
        forward, backward = (old * np.log(old / new)).sum(axis=1), (new * np.log(new / old)).sum(axis=1)
        d, odds, am = before.visitation, g / (1 - g), a.max()
        span, largest = expected.max() - expected.min(), np.abs(expected).max()
        transition = mdp.matrix.reshape(mdp.states, mdp.actions, mdp.states)
        shared = np.einsum("sa,sat->st", np.minimum(old, new), transition)
        kept = (1 - g) * mdp.start @ np.linalg.inv(np.eye(mdp.states) - g * shared)
        x = odds * d @ forward
        shrink = g * am / (1 - g + g * am)
        rows = {
            "exact": (d - after.visitation) @ expected,
            "tv": 0.5 * np.abs(d - after.visitation).sum() * span,
            "overlap": (1 - kept.sum()) * span,
            "chain-kl": min(np.sqrt(x / 2), np.sqrt(1 - np.exp(-x))) * span,
            "mean-tv": min(1, odds * d @ a) * span,
            "geometric": shrink * span,
            "max-tv": min(1, odds * am) * span,
            "achiam": 2 * odds * (d @ a) * largest,
            "kakade-langford": 2 * shrink * largest,
            "achiam-kl": 2 * odds * np.sqrt(d @ backward / 2) * largest,
            "trpo": 4 * odds * am**2 * np.abs(before.advantage).max(),
            "trpo-kl": 4 * odds * np.abs(before.advantage).max() * forward.max(),
            "lecture": 2 * odds * am * np.abs(mdp.reward).max() / (1 - g),
        }
        certificate = certify(old, new, mdp)
        assert list(certificate.bounds) == list(rows) == [bound.id for bound in bounds.CATALOGUE]
        for name, pen in rows.items():
            interval = certificate.bounds[name]
            tolerance = TOLERANCE * mdp.scale
            assert interval.penalty == pytest.approx(pen / (1 - g), abs=tolerance, rel=1e-9), name
            if name != "exact":
                assert interval.lower == pytest.approx(
                    certificate.surrogate_gain - pen / (1 - g), abs=tolerance, rel=1e-9
                )
                assert interval.upper == pytest.approx(
                    certificate.surrogate_gain + pen / (1 - g), abs=tolerance, rel=1e-9
                )


def test_every_bound_with_a_horizon_is_the_formula_of_its_row(rng):
    for _ in range(20):
        mdp = random_model(rng, horizon=int(rng.integers(1, 6)), fewest_actions=2)
        old, new = (rng.dirichlet(np.ones(mdp.actions), size=mdp.policy_shape[:2]) for _ in range(2))
        before = mdp.evaluate(old)
        laws, moved = rollout_law(mdp, old, mdp.horizon), rollout_law(mdp, new, mdp.horizon)
        shared = rollout_law(mdp, np.minimum(old, new), mdp.horizon)
        a = 0.5 * np.abs(old - new).sum(axis=-1)
        forward = (old * np.log(old / new)).sum(axis=-1)
        expected = (new * before.advantage).sum(axis=-1)
        rows = dict.fromkeys(["exact", "tv", "overlap", "chain-kl", "mean-tv", "geometric", "lecture"], 0.0)
        for t in range(mdp.horizon):
            weight = mdp.discount**t
            span = expected[t].max() - expected[t].min()
            rows["exact"] += weight * (laws[t] - moved[t]) @ expected[t]
            rows["tv"] += weight * 0.5 * np.abs(laws[t] - moved[t]).sum() * span
            rows["overlap"] += weight * (1 - shared[t].sum()) * span
            rows["mean-tv"] += weight * min(1, sum(laws[k] @ a[k] for k in range(t))) * span
            rows["geometric"] += weight * (1 - (1 - a.max()) ** t) * span
            rows["chain-kl"] += weight * min(1, np.sqrt(sum(laws[k] @ forward[k] for k in range(t)) / 2)) * span
            rows["lecture"] += weight * 2 * a.max() * t * mdp.horizon * np.abs(mdp.reward).max()
        certificate = certify(old, new, mdp)
        assert set(certificate.bounds) == set(rows)
        for name, penalty in rows.items():
            assert certificate.bounds[name].penalty == pytest.approx(penalty, abs=TOLERANCE * mdp.scale, rel=1e-9), name


def assert_sound(mdp, old, new, certificate):
    """No valid bound is violated, and the order of the catalogue holds."""
    tolerance = TOLERANCE * mdp.scale
    assert certificate.identity_residual < tolerance
    for name, interval in certificate.bounds.items():
        numbers = [interval.penalty, interval.lower, interval.upper]
        assert not np.isnan(numbers).any(), name
        if interval.valid:
            assert interval.lower <= certificate.gain + tolerance, name
            assert interval.upper >= certificate.gain - tolerance, name
    for tighter, looser in bounds.ORDER:
        if looser in certificate.bounds:
            assert certificate.bounds[tighter].penalty <= certificate.bounds[looser].penalty + tolerance, (
                tighter,
                looser,
            )
    if certificate.proves_improvement:
        assert certificate.gain > 0
    assert certificate.best not in ("exact", "tv", "overlap")


def test_no_valid_bound_is_violated_and_the_order_holds_in_2000_cases(rng):
    proven = vacuous = 0
    for case in range(2000):
        mdp = random_model(rng, horizon=int(rng.integers(1, 7)) if case % 4 == 0 else None)
        old, other = random_policy(rng, mdp.policy_shape), random_policy(rng, mdp.policy_shape)
        new = mixed(old, other, rng.choice([1.0, 0.1, 1e-3]))
        certificate = certify(old, new, mdp)
        assert_sound(mdp, old, new, certificate)
        proven += certificate.proves_improvement
        vacuous += certificate.vacuous
    # Cases that prove nothing at all would test nothing.
    assert proven > 20
    assert vacuous > 20


@given(problem=problems())
def test_bounds_hold_and_keep_their_order(problem):
    mdp, old, new = problem
    assert_sound(mdp, old, new, certify(old, new, mdp))


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_identities_hold_to_rounding(problem, seed):
    mdp, old, new = problem
    rng = np.random.default_rng(seed)
    tolerance = TOLERANCE * mdp.scale
    f = rng.standard_normal(mdp.policy_shape[:-1]) * mdp.scale
    assert identities.telescoping(mdp, old) < tolerance
    assert identities.zero_mean_advantage(mdp, old) < tolerance
    assert identities.performance_difference(mdp, old, new) < tolerance
    assert identities.performance_difference_with(mdp, old, new, f) < tolerance * 10
    assert identities.surrogate_error(mdp, old, new) < tolerance


@pytest.mark.parametrize("horizon", [None, pytest.param(3, marks=pytest.mark.long)])
def test_the_surrogate_is_zero_and_right_to_first_order_at_the_old_policy(horizon, rng):
    for discount in (0.0, 0.9, 0.99):
        mdp = library.garnet(5, 3, 2, discount, seed=int(rng.integers(2**31))).with_horizon(horizon)
        policy = rng.dirichlet(np.ones(mdp.actions), size=mdp.policy_shape[:-1])
        assert identities.surrogate_at_old(mdp, policy) < TOLERANCE * mdp.scale
        assert identities.gradient_difference(mdp, policy) < TOLERANCE * mdp.scale


def test_identities_are_not_met_by_wrong_values(monkeypatch, rng):
    """The residuals can fail: a value function off by a state's worth of reward is noticed."""
    mdp = library.garnet()
    old, new = mdp.uniform(), random_policy(rng, mdp.policy_shape)
    right = identities.evaluate

    def wrong(mdp, policy):
        account = right(mdp, policy)
        return account._replace(advantage=account.advantage + 0.01, expected_return=account.expected_return + 0.01)

    monkeypatch.setattr(identities, "evaluate", wrong)
    assert identities.telescoping(mdp, old) > 1e-3
    assert identities.zero_mean_advantage(mdp, old) > 1e-3
    assert identities.performance_difference(mdp, old, new) > 1e-3


def test_dropping_the_discount_from_state_weights_flips_the_gradients_sign():
    mdp = library.dropped_discount()
    uniform = mdp.uniform()
    # One shared logit moves both states' second action: its gradient is the sum of theirs.
    true = identities.return_gradient(mdp, uniform)[:2, 1].sum()
    assert true == pytest.approx(0.0625)
    account = mdp.evaluate(uniform)
    laws = rollout_law(mdp, uniform, 1)
    dropped = sum(laws[t, s] * 0.25 * np.diff(account.action_value[s])[0] for t in range(2) for s in range(2))
    assert dropped == pytest.approx(-0.125)


# State shift


@given(problem=problems())
def test_the_shift_of_state_laws_stays_inside_every_bound(problem):
    mdp, old, new = problem
    shift = state_shift(mdp, old, new)
    steps = 20 if mdp.horizon is None else mdp.horizon
    assert all(len(column) == steps + 1 for column in shift)
    laws, moved = rollout_law(mdp, old, steps), rollout_law(mdp, new, steps)
    np.testing.assert_allclose(shift.tv, 0.5 * np.abs(laws - moved).sum(axis=1), atol=1e-12)
    shared = rollout_law(mdp, np.minimum(old, new), steps)
    np.testing.assert_allclose(shift.overlap, 1 - shared.sum(axis=1), atol=1e-12)
    assert (shared <= np.minimum(laws, moved) + 1e-12).all()
    assert (shift.tv <= shift.overlap + 1e-12).all()
    assert (shift.overlap <= shift.mean_tv + 1e-12).all()
    assert (shift.overlap <= shift.geometric + 1e-12).all()
    assert (shift.geometric <= shift.linear + 1e-12).all()
    assert (shift.tv <= shift.chain_kl + 1e-12).all()


def test_a_deterministic_policy_and_mistakes_mix_to_the_new_state_law(rng):
    for _ in range(30):
        mdp = random_model(rng)
        old = np.eye(mdp.actions)[rng.integers(mdp.actions, size=mdp.states)]
        new = mixed(old, random_policy(rng, old.shape), 0.2)
        law = mistake_law(mdp, old, new, 0.2, steps=10)
        assert law.min() > -1e-12
        np.testing.assert_allclose(law.sum(axis=1), 1, atol=1e-12)
        kept = (0.8 ** np.arange(11))[:, None]
        again = kept * rollout_law(mdp, old, 10) + (1 - kept) * law
        np.testing.assert_allclose(again, rollout_law(mdp, new, 10), atol=1e-12)


def test_for_stochastic_policies_the_same_mixture_need_not_exist(rng):
    negative = 0
    for _ in range(60):
        mdp = library.garnet(seed=int(rng.integers(2**31)))
        old, other = (rng.dirichlet(np.ones(3), size=8) for _ in range(2))
        new = mixed(old, other, 0.3)
        mistake = float(total_variation(old, new).max())
        negative += mistake_law(mdp, old, new, mistake, steps=10).min() < -1e-6
    assert negative > 5


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 6))
def test_the_maximal_coupling_has_its_marginals_and_agrees_as_often_as_can_be(seed, size):
    rng = np.random.default_rng(seed)
    p, q = random_policy(rng, (size,)), random_policy(rng, (size,))
    joint = maximal_coupling(p, q)
    assert joint.min() >= 0
    np.testing.assert_allclose(joint.sum(axis=1), p, atol=1e-12)
    np.testing.assert_allclose(joint.sum(axis=0), q, atol=1e-12)
    np.testing.assert_allclose(np.trace(joint), 1 - total_variation(p, q), atol=1e-12)


def test_coupled_samples_agree_with_probability_one_minus_tv(rng):
    p, q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.3, 0.2, 0.4])
    count = 20_000
    x, y = sample_coupled(p, q, count, rng)
    for drawn, law in ((x, p), (y, q)):
        np.testing.assert_allclose(np.bincount(drawn, minlength=4) / count, law, atol=5 * 0.5 / np.sqrt(count))
    assert abs(np.mean(x == y) - 0.6) < 5 * 0.5 / np.sqrt(count)


# Divergences


def test_worked_case_4_divergences():
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert total_variation(p, q) == 0.5
    assert kl(q, p) == pytest.approx(0.693147, abs=1e-6)
    assert kl(p, q) == np.inf
    assert pinsker(kl(q, p)) == pytest.approx(0.588705, abs=1e-6)
    assert bretagnolle_huber(kl(q, p)) == pytest.approx(0.707107, abs=1e-6)
    apart = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert (total_variation(*apart), kl(*apart), bretagnolle_huber(kl(*apart))) == (1, np.inf, 1)


def test_pinsker_and_bretagnolle_huber_cross_where_is_said():
    crossing = 1.593624
    assert pinsker(crossing) == pytest.approx(bretagnolle_huber(crossing), abs=1e-6)
    assert pinsker(1.5) < bretagnolle_huber(1.5)
    assert pinsker(1.7) > bretagnolle_huber(1.7)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 6), near=st.sampled_from([1.0, 1e-3, 1e-9, 0.0]))
def test_divergences_are_never_nan_nor_negative_and_bound_total_variation(seed, size, near):
    rng = np.random.default_rng(seed)
    p = random_policy(rng, (50, size))
    q = mixed(p, random_policy(rng, (50, size)), near)
    forward, apart = kl(p, q), total_variation(p, q)
    assert (forward >= 0).all()
    assert not np.isnan(forward).any()
    assert (apart <= pinsker(forward) + 1e-12).all()
    assert (apart <= bretagnolle_huber(forward) + 1e-12).all()
    both = (p > 0) & (q > 0)
    naive = np.sum(np.where(both, p * np.log(np.where(both, p, 1) / np.where(both, q, 1)), 0), axis=1)
    finite = np.isfinite(forward)
    np.testing.assert_allclose(forward[finite], naive[finite], atol=1e-12)
    np.testing.assert_array_equal(finite, ~((p > 0) & (q == 0)).any(axis=1))


def test_the_best_bound_breaks_ties_in_the_catalogues_order():
    mdp, old, _ = equality_case(0.1)
    assert certify(old, old, mdp).best == "chain-kl"
    still = certify(old, old, mdp)
    assert (still.gain, still.surrogate_gain, still.best_bound, still.proves_improvement) == (0, 0, 0, False)


def test_a_certificate_is_json_with_the_promised_keys():
    mdp, old, new = equality_case(0.1)
    told = sf.certify(old, new, mdp).as_dict()
    assert list(told) == [
        *("old_return", "new_return", "gain", "surrogate_gain", "identity_residual", "bounds", "best"),
        *("proves_improvement", "state_shift"),
    ]
    assert set(told["bounds"]["tv"]) == {"penalty", "lower", "upper", "valid"}
    assert set(told["best"]) == {"id", "lower"}
    assert len(told["state_shift"]) == 21
    assert len(sf.certify(old, new, mdp.with_horizon(3)).as_dict()["state_shift"]) == 4


def test_every_bound_states_its_formula_and_a_long_sentence_of_its_source():
    for bound in bounds.CATALOGUE:
        assert len(bound.source) > 20
        assert bound.needs in ("new visitation", "dynamics", "samples")
