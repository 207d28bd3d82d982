"""The rules on exact batches: closed forms, policy iteration, sampled against exact, the commands."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from models import random_model, random_policy
from surefoot import cli, config
from surefoot.distributions import Categorical
from surefoot.errors import SettingError
from surefoot.geometry import movement
from surefoot.rules import RULES
from surefoot.tabular import TabularPolicy, exact_batch, library, load, penalty, tabular_policy, update
from surefoot.tabular.simulation import sample_batch, visited_states

NATURAL = ["npg", "trpo"]
TOY = ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4"]


def step(mdp, name, policy=None, **settings):
    """One exact update: (probabilities before and after, report)."""
    policy = mdp.uniform() if policy is None else policy
    rule = sf.exact_rule(name, **settings)
    new, _, report = update(rule, policy, rule.init(tabular_policy(policy)), exact_batch(mdp, policy))
    return mdp.probabilities(policy), mdp.probabilities(new), report


def random_case(rng, horizon=None):
    """Of one size, so that each rule is compiled once."""
    mdp = library.garnet(6, 3, 2, 0.9, seed=int(rng.integers(2**31))).with_horizon(horizon)
    return mdp, rng.dirichlet(np.ones(3), size=mdp.policy_shape[:-1])


# Closed forms


@pytest.mark.parametrize("horizon", [None, 4])
def test_the_natural_step_to_a_radius_is_the_exponential_of_the_advantages(horizon, rng):
    for _ in range(5):
        mdp, policy = random_case(rng, horizon)
        account = mdp.evaluate(policy)
        second = np.sum(account.visitation * np.sum(policy * account.advantage**2, axis=-1))
        alpha = np.sqrt(2 * 1e-3 / second)
        expected = policy * np.exp(alpha * account.advantage)
        expected /= expected.sum(axis=-1, keepdims=True)
        met = account.visitation > 0
        _, new, report = step(mdp, "npg", policy, radius=1e-3)
        np.testing.assert_allclose(new[met], expected[met], atol=1e-9)
        np.testing.assert_allclose(new[~met], policy[~met], rtol=1e-14)
        assert report.predicted_kl == pytest.approx(1e-3, rel=1e-9)
        assert report.predicted_gain * mdp.effective_horizon == pytest.approx(
            alpha * second * mdp.effective_horizon, rel=1e-9
        )


@pytest.mark.parametrize("name", NATURAL)
def test_conjugate_gradients_without_damping_agree_with_the_closed_form(name, rng):
    mdp = library.garnet(5, 3, 5, 0.5, seed=int(rng.integers(1000)))
    policy = 0.5 * mdp.uniform() + 0.5 * rng.dirichlet(np.ones(3), size=5)
    _, closed, _ = step(mdp, name, policy)
    _, solved, report = step(mdp, name, policy, solver="cg", iterations=50, tolerance=1e-12)
    np.testing.assert_allclose(solved, closed, atol=1e-9)
    assert report.solver_iterations > 2


def test_damping_turns_the_natural_step_towards_the_euclidean_one(rng):
    mdp, policy = library.grid(5), None
    moves = {}
    for label, settings in {"natural": {}, "damped": {"solver": "cg", "damping": 10.0, "iterations": 200}}.items():
        old, new, _ = step(mdp, "npg", policy, radius=1e-8, **settings)
        moves[label] = (new - old).ravel()
    old, new, _ = step(mdp, "pg", policy, radius=1e-10)
    euclidean = (new - old).ravel()

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(moves["damped"], euclidean) > 0.999
    assert cosine(moves["natural"], euclidean) < 0.95


@pytest.mark.parametrize("eta", [1e-6, 0.1, 3.0, 1e4])
def test_a_step_of_length_eta_goes_from_no_move_to_greedy(eta, rng):
    mdp, policy = random_case(rng)
    account = mdp.evaluate(policy)
    exponent = eta * account.advantage * mdp.effective_horizon
    expected = policy * np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    expected /= expected.sum(axis=-1, keepdims=True)
    met = account.visitation > 0
    _, new, _ = step(mdp, "npg", policy, eta=eta * mdp.effective_horizon)
    np.testing.assert_allclose(new[met], expected[met], atol=1e-8)
    old, same, report = step(mdp, "npg", policy, eta=0.0)
    np.testing.assert_allclose(old, same, rtol=1e-15)
    assert not report.accepted


def test_the_limit_of_large_eta_is_greedy_with_ties_in_the_policys_proportions():
    mdp = library.bandit((1.0, 1.0, -4.0))
    policy = np.array([[[0.5, 0.3, 0.2]]])
    _, soft, _ = step(mdp, "npg", policy, eta=1e9)
    _, jump, report = step(mdp, "pi", policy)
    np.testing.assert_allclose(soft[0, 0], [0.625, 0.375, 0], atol=1e-12)
    np.testing.assert_allclose(jump[0, 0], [0.625, 0.375, 0], atol=1e-12)
    assert report.reverse_kl == pytest.approx(0.223144, abs=1e-6)
    assert report.kl == np.inf


def test_actions_of_probability_zero_stay_at_zero_under_every_soft_rule(rng):
    mdp = random_model(rng, fewest_actions=3, discounts=[0.9])
    policy = rng.dirichlet(np.ones(mdp.actions), size=mdp.states)
    policy[:, 0] = 0
    policy /= policy.sum(axis=1, keepdims=True)
    for name in ("pg", "npg", "trpo"):
        _, new, report = step(mdp, name, policy)
        assert (new[:, 0] == 0).all()
        assert np.isfinite(report.kl)


def test_worked_case_2_the_bandits_step_on_the_exact_engine():
    mdp, policy = library.bandit(), np.array([[[0.5, 0.3, 0.2]]])
    _, new, report = step(mdp, "npg", policy, radius=0.01)
    np.testing.assert_allclose(new[0, 0], [0.570243, 0.257854, 0.171903], atol=1e-6)
    assert report.reverse_kl == pytest.approx(0.009901, abs=1e-6)
    assert report.kl == pytest.approx(0.009967, abs=1e-6)


def test_worked_case_5_the_damped_step_is_scaled_by_the_true_metric():
    mdp, policy = library.bandit(), np.array([[[0.5, 0.3, 0.2]]])
    _, _, report = step(mdp, "npg", policy, radius=0.01, solver="cg", damping=0.1, iterations=20, tolerance=1e-12)
    assert report.reverse_kl == pytest.approx(0.009899, abs=1e-6)


def test_natural_steps_of_fixed_length_keep_their_published_rate(rng):
    """r in [0, 1], uniform start: gap <= ln|A|/(eta n) + 1/((1-g)^2 n), and every step gains at least
    (1-g)/eta E_mu log Z >= 0 (Agarwal et al. 2021, theorem 16 and lemma 17)."""
    for _ in range(3):
        model = library.garnet(8, 3, 3, 0.9, seed=int(rng.integers(1000)))
        reward = rng.random(model.reward.shape)
        mdp = sf.tabular.MDP(model.transition, reward, 0.9, model.start)
        best, eta = mdp.policy_iteration().expected_return, 0.5
        policy = mdp.uniform()
        for n in range(1, 30):
            account = mdp.evaluate(policy)
            log_z = np.log(np.sum(policy * np.exp(eta * account.advantage * mdp.effective_horizon), axis=1))
            assert log_z.min() > -1e-12
            _, policy, _ = step(mdp, "npg", policy, eta=eta * mdp.effective_horizon)
            now = mdp.evaluate(policy).expected_return
            assert now - account.expected_return >= (1 - mdp.discount) / eta * (mdp.start @ log_z) - 1e-10
            assert best - now <= np.log(mdp.actions) / (eta * n) + 1 / ((1 - mdp.discount) ** 2 * n) + 1e-10


# Conformance on exact batches: every rule, whatever its settings


@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_reports_what_its_update_did(name, horizon, rng):
    mdp, policy = random_case(rng, horizon)
    old, new, report = step(mdp, name, policy)
    certificate = sf.certify(old, new, mdp)
    assert report.accepted
    assert report.surrogate_gain * mdp.effective_horizon == pytest.approx(certificate.surrogate_gain, rel=1e-6)
    assert report.surrogate_gain > 0
    assert report.kl == pytest.approx(certificate.mean_kl, rel=1e-6)
    assert report.max_kl <= certificate.max_kl * (1 + 1e-6)
    assert all(np.asarray(value).dtype in (np.float64, np.int32, bool) for value in report)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_pure_and_repeats_its_bits(name, rng):
    mdp, policy = random_case(rng)
    table, batch = tabular_policy(policy), exact_batch(mdp, policy)
    rule = sf.exact_rule(name)
    before = jax.tree.map(np.array, (table, batch))
    first = update(rule, table, rule.init(table), batch)
    second = update(rule, table, rule.init(table), batch)
    for one, other in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*map(jax.tree.leaves, (before, (table, batch))), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_refuses_a_non_finite_step_and_changes_no_bit(name, bad, rng):
    mdp = library.garnet(seed=int(rng.integers(1000)))
    batch = exact_batch(mdp, mdp.uniform())
    advantage = np.array(batch.advantage)
    advantage[3] = bad
    batch = dataclasses.replace(batch, advantage=advantage)
    table = tabular_policy(mdp.uniform())
    rule = sf.exact_rule(name)
    new, _, report = update(rule, table, rule.init(table), batch)
    assert not report.accepted
    np.testing.assert_array_equal(new.logits, table.logits)
    assert report.kl == report.surrogate_gain == report.step_length == 0


@pytest.mark.parametrize("name", RULES)
def test_nothing_to_gain_moves_nothing(name):
    mdp = sf.tabular.MDP(np.full((3, 2, 3), 1 / 3), np.ones((3, 2)), 0.9, 0)
    old, new, report = step(mdp, name)
    np.testing.assert_allclose(old, new, rtol=1e-15)
    assert not report.accepted


def test_the_exact_engine_never_standardises(rng):
    mdp, policy = random_case(rng)
    for scale in (1.0, 1000.0):
        scaled = sf.tabular.MDP(mdp.transition, mdp.reward * scale, mdp.discount, mdp.start)
        table, batch = tabular_policy(policy), exact_batch(scaled, policy)
        plain = update(sf.NPG(damping=0.0, solver="tabular", standardise=False), table, (), batch)
        asked = update(sf.NPG(damping=0.0, solver="tabular"), table, (), batch)
        np.testing.assert_array_equal(plain[0].logits, asked[0].logits)


def test_exact_work_is_float64_whatever_jax_is_set_to_and_leaves_it_so(rng):
    mdp, policy = random_case(rng)
    assert not jax.config.jax_enable_x64
    _, new, report = step(mdp, "trpo", policy)
    assert new.dtype == report.kl.dtype == np.float64
    assert not jax.config.jax_enable_x64
    assert jnp.asarray(1.0).dtype == jnp.float32


def test_an_exact_batch_lists_every_pair_and_averages_over_visitation(rng, x64):
    mdp, policy = random_case(rng)
    account, batch = mdp.evaluate(policy), exact_batch(mdp, policy)
    assert batch.size == mdp.states * mdp.actions
    np.testing.assert_allclose(batch.weight.sum(), 1)
    new = rng.dirichlet(np.ones(mdp.actions), size=mdp.states)
    moved = movement(tabular_policy(new), batch)
    kl = np.asarray(Categorical(jnp.log(policy)).kl(Categorical(jnp.log(new))))
    np.testing.assert_allclose(moved.kl, account.visitation @ kl, rtol=1e-9)
    np.testing.assert_allclose(
        moved.surrogate_gain * mdp.effective_horizon, sf.certify(policy, new, mdp).surrogate_gain, rtol=1e-9
    )


# Policy iteration


@pytest.mark.parametrize("name", TOY)
def test_policy_iteration_as_a_rule_reaches_the_optimum_and_then_refuses(name):
    mdp = load(name)
    steps = list(sf.improve(mdp, sf.exact_rule("pi"), updates=30))
    returns = [s.certificate.new_return for s in steps]
    assert returns[-1] == pytest.approx(mdp.policy_iteration().expected_return, abs=1e-9)
    assert (np.diff(returns) >= -1e-9).all()
    assert not steps[-1].report.accepted
    assert steps[0].report.accepted


def test_policy_iteration_improves_states_that_are_not_met_too():
    # From state 0 action 0 stays; action 1 leads to 1, which is worth 10 a step, but only to who leaves it by 1.
    mdp = library.deterministic([[0, 1], [0, 1]], [[1.0, 0.0], [0.0, 10.0]], 0.9, 0)
    policy = np.array([[1.0, 0.0], [1.0, 0.0]])
    for _ in range(3):
        _, policy, _ = step(mdp, "pi", policy)
    np.testing.assert_array_equal(policy, [[0, 1], [0, 1]])


def test_policy_iteration_keeps_tied_actions_and_ends():
    mdp = library.deterministic([[0, 0, 0]], [[1.0, 1.0, 0.0]], 0.9, 0)
    _, new, report = step(mdp, "pi", np.array([[0.2, 0.6, 0.2]]))
    np.testing.assert_allclose(new, [[0.25, 0.75, 0]])
    assert report.accepted
    _, same, report = step(mdp, "pi", new)
    np.testing.assert_allclose(same, new)
    assert not report.accepted


def test_policy_iteration_with_a_horizon_reaches_the_optimum(rng):
    mdp = random_model(rng, 5, fewest_actions=2)
    last = list(sf.improve(mdp, sf.exact_rule("pi"), updates=8))[-1]
    assert last.certificate.new_return == pytest.approx(mdp.policy_iteration().expected_return, abs=1e-9 * mdp.scale)


@pytest.mark.parametrize("name", ["pg", "npg", "trpo"])
def test_exact_updates_of_soft_rules_climb_on_frozen_lake(name):
    mdp = load("FrozenLake-v1")
    steps = list(sf.improve(mdp, sf.exact_rule(name), updates=20))
    gains = np.array([s.certificate.gain for s in steps])
    assert (gains > -1e-12).all()
    assert steps[-1].certificate.new_return > (0.5 if name != "pg" else 0.0125)
    for s in steps:
        assert s.certificate.best_bound <= s.certificate.gain + 1e-9


def test_a_refused_update_is_repeated_and_not_computed_again(monkeypatch):
    mdp, calls = library.deterministic([[0, 0]], [[1.0, 0.0]], 0.9, 0), []
    import surefoot.improvement as improvement

    real = improvement.update
    monkeypatch.setattr(improvement, "update", lambda *a: calls.append(1) or real(*a))
    steps = list(sf.improve(mdp, sf.exact_rule("pi"), updates=50))
    assert len(steps) == 50
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["npg", "trpo"])
def test_the_closed_form_is_refused_for_a_network(name):
    from gymnasium import spaces

    from surefoot.policy import make_policy

    network = make_policy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), config.Network(hidden=(4,)), jax.random.key(0))
    for rule in (RULES[name](solver="tabular"), sf.PI()):
        with pytest.raises(SettingError, match="finite MDPs, but a NeuralPolicy came"):
            rule.init(network)


# Sampled against exact


def test_sampled_states_have_the_law_of_the_visitation(rng):
    mdp = library.garnet(seed=int(rng.integers(1000)))
    policy, count = random_policy(rng, (8, 3)), 100_000
    drawn = np.bincount(visited_states(mdp, policy, count, rng), minlength=8) / count
    d = mdp.evaluate(policy).visitation
    assert (np.abs(drawn - d) < 5 * np.sqrt(d * (1 - d) / count) + 1e-12).all()


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param("pg", None, marks=pytest.mark.long),
        pytest.param("npg", "tabular", marks=pytest.mark.long),
        pytest.param("npg", "cg", marks=pytest.mark.long),
        ("trpo", "tabular"),
    ],
)
def test_sampled_updates_converge_to_the_exact_one_at_the_rate_of_samples(name, solver, rng):
    """Errors over N = 200 to 200,000 fall like N^-1/2: the slope of the logarithms is -.5 within .12.

    TRPO is compared where it takes the same share of its step as the exact update; which share that is
    jumps where the KL crosses the radius.
    """
    mdp = library.garnet(6, 3, 3, 0.9, seed=int(rng.integers(1000)))
    policy = 0.5 * mdp.uniform() + 0.5 * rng.dirichlet(np.ones(3), size=6)
    settings = {"radius": 0.05 if name == "trpo" else 1e-3} | ({"solver": solver} if solver else {})
    if solver == "cg":
        settings |= {"iterations": 40, "tolerance": 1e-10, "damping": 1e-6}
    rule = sf.exact_rule(name, **settings)
    table = tabular_policy(policy)

    def updated(batch):
        new, _, report = update(rule, table, (), batch)
        return mdp.probabilities(new) - policy, report

    exact, report = updated(exact_batch(mdp, policy))
    assert report.accepted
    sizes, errors = np.array([200, 2000, 20_000, 200_000]), []
    for size, repeats in zip(sizes, (40, 40, 20, 10), strict=True):
        updates = [updated(sample_batch(mdp, policy, int(size), rng)) for _ in range(repeats)]
        moves = [move for move, sampled in updates if sampled.backtracks == report.backtracks]
        assert len(moves) > repeats / 4
        errors.append(np.sqrt(np.mean([np.sum((move - exact) ** 2) for move in moves])) / np.linalg.norm(exact))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.62 < slope < -0.38
    assert errors[-1] < 0.05


# The penalised step in closed form


BANDIT = np.array([0.5, 0.3, 0.2]), np.array([1.0, -1.0, -1.0])


def best_by_search(objective, rng, count=200_000):
    candidates = rng.dirichlet(np.ones(3), size=count)
    return max(objective(candidates))


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 5.0])
def test_the_softened_policy_maximises_the_penalised_gain(multiplier, rng):
    old, advantage = BANDIT
    from surefoot.divergences import kl

    new = penalty.softened(old, advantage, multiplier)
    value = new @ advantage - multiplier * kl(new, old)
    assert value == pytest.approx(penalty.softened_value(old, advantage, multiplier), abs=1e-12)
    assert value >= best_by_search(lambda p: p @ advantage - multiplier * kl(p, old), rng) - 1e-12
    covering = penalty.mode_covering(old, advantage, multiplier)
    assert covering.sum() == pytest.approx(1)
    value = covering @ advantage - multiplier * kl(old, covering)
    assert value >= best_by_search(lambda p: p @ advantage - multiplier * kl(old, p), rng) - 1e-12


def test_mass_goes_to_a_better_action_outside_the_support():
    old, advantage = np.array([0.5, 0.5, 0.0]), np.array([0.0, -1.0, 10.0])
    new = penalty.mode_covering(old, advantage, 0.5)
    np.testing.assert_allclose(new[:2], 0.5 * old[:2] / (10 - advantage[:2]))
    assert new[2] == pytest.approx(1 - new[:2].sum())


@pytest.mark.parametrize(("radius", "iterations"), [(1e-4, 4), (0.1, 11), (0.5, 42)])
def test_worked_case_6_the_multiplicative_dual_reaches_its_fixed_point_in_the_stated_time(radius, iterations):
    old, advantage = BANDIT
    path = penalty.dual_ascent(old, advantage, radius, iterations=300)
    fixed = path.multipliers[-1]
    assert path.kls[-1] == pytest.approx(radius, rel=1e-9)
    reached = int(np.argmax(np.abs(path.multipliers / fixed - 1) < 1e-10))
    assert abs(reached - iterations) <= 2
    if radius == 0.1:
        assert fixed == pytest.approx(2.119895, abs=1e-6)
        assert path.probabilities[0] == pytest.approx(0.719795, abs=1e-6)


def test_worked_case_6_the_additive_dual_agrees_where_it_is_stable_and_only_there():
    old, advantage = BANDIT
    new = penalty.softened(old, advantage, 2.119895)
    largest = 2 * 2.119895**3 / (new @ advantage**2 - (new @ advantage) ** 2)
    stable = penalty.dual_ascent(old, advantage, 0.1, start=2.5, eta=0.5 * largest, iterations=400)
    assert stable.multipliers[-1] == pytest.approx(2.119895, abs=1e-6)
    assert (stable.multipliers >= 0).all()
    unstable = penalty.dual_ascent(old, advantage, 0.1, start=2.2, eta=1.3 * largest, iterations=400)
    assert abs(unstable.multipliers[-1] - 2.119895) > 1e-2


def test_worked_case_6_an_inactive_constraint_has_multiplier_zero_and_is_greedy():
    old, advantage = BANDIT
    path = penalty.dual_ascent(old, advantage, 0.8, iterations=2000)
    assert path.multipliers[-1] < 1e-12
    np.testing.assert_allclose(path.probabilities, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(penalty.softened(old, np.array([1.0, 1.0, -4.0]), 0.0), [0.625, 0.375, 0])


# The commands


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("exact") / "run"
    assert cli.main(["exact", "FrozenLake-v1", "--rule", "npg", "--updates", "5", "--json", "--out", str(out)]) == 0
    return out


def test_exact_prints_one_object_with_the_promised_lists(results, capsys, tmp_path):
    arguments = ["exact", "equality", "--rule", "npg", "--updates", "7", "--json", "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["return", "optimal_return", "kl", "gain", "surrogate_gain", "best_bound"]
    assert len(told["return"]) == 8
    assert all(len(told[name]) == 7 for name in ("kl", "gain", "surrogate_gain", "best_bound"))
    np.testing.assert_allclose(np.diff(told["return"]), told["gain"], atol=1e-12)
    assert told["optimal_return"] == pytest.approx(1.0)
    assert told["kl"][0] == pytest.approx(0.02, rel=0.05)


def test_exact_leaves_table_picture_and_policies_that_certify_reads(results, capsys):
    assert {file.name for file in results.iterdir()} == {
        *("config.json", "exact.json", "exact.png", "policy_initial.npy", "policy_final.npy")
    }
    assert (results / "exact.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((results / "exact.json").read_text())
    files = [f"--old={results / 'policy_initial.npy'}", f"--new={results / 'policy_final.npy'}"]
    assert cli.main(["certify", "FrozenLake-v1", *files, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["old_return"] == pytest.approx(result["return"][0])
    assert told["new_return"] == pytest.approx(result["return"][-1])
    assert told["identity_residual"] < 1e-10
    assert len(told["state_shift"]) == 21
    assert cli.main(["certify", "FrozenLake-v1", *files]) == 0
    table = capsys.readouterr().out
    assert "chain-kl" in table
    assert "vacuous" in table


def test_exact_shows_a_table_that_ends_where_nothing_is_left_to_gain(tmp_path, capsys):
    assert cli.main(["exact", "three-decisions", "--rule", "pi", "--updates", "40", "--out", str(tmp_path / "r")]) == 0
    told = capsys.readouterr().out
    assert "optimal return 6" in told
    assert told.count("refused") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exact", "FrozenLake-v1", "--rule", "trpo", "--eta", "1"], "--eta is no option of the rule trpo"),
        (["exact", "FrozenLake-v1", "--rule", "npg", "--eta", "1", "--radius", "1"], "in place of --radius"),
        (["exact", "FrozenLake-v1", "--rule", "npg", "--eta", "-1"], "eta must be a number, at least 0, but -1.0 came"),
        (["exact", "FrozenLake-v1", "--rule", "pi", "--radius", "1"], "--radius is no option of the rule pi"),
        (["exact", "FrozenLake-v1", "--updates", "0"], "updates must be a whole number, at least 1, but 0 came"),
        (["exact", "FrozenLake-v1", "--discount", "1"], "discount must be at least 0 and below 1 without a horizon"),
        (["exact", "FrozenLake-v1", "--horizon", "0"], "horizon must be a whole number"),
        (["exact", "CartPole-v1"], "has no table of transitions"),
        (["exact", "nonsense"], "is no Gymnasium environment"),
        (["exact", "missing.npz"], "missing.npz cannot be read"),
        (["certify", "equality", "--old", "missing.npy", "--new", "missing.npy"], "OLD: missing.npy cannot be read"),
        (["certify", "equality"], "--old, --new is missing"),
        (["train", "FrozenLake-v1", "--rule", "pi"], "the rule pi is for finite MDPs; `surefoot exact` has it"),
        (["train", "CartPole-v1", "--rule", "npg", "--rule.solver", "tabular", "--steps", "64"], "use 'cg'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_model_and_policies_in_files_go_through_the_commands(rng, tmp_path, capsys):
    mdp = random_model(rng, 3, fewest_actions=2)
    sf.tabular.save_mdp(mdp, tmp_path / "m.npz")
    old, new = (rng.dirichlet(np.ones(mdp.actions), size=shape) for shape in ((mdp.states,), (3, mdp.states)))
    np.save(tmp_path / "old.npy", old)
    np.save(tmp_path / "new.npy", new)
    files = ["--old", str(tmp_path / "old.npy"), "--new", str(tmp_path / "new.npy")]
    assert cli.main(["certify", str(tmp_path / "m.npz"), *files, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gain"] == pytest.approx(sf.certify(old, new, mdp).gain)
    assert len(told["state_shift"]) == 4


def test_an_untrained_table_acts_by_its_logits():
    policy = TabularPolicy(jnp.array([[0.0, -jnp.inf], [1.0, 1.0]]))
    np.testing.assert_allclose(policy(jnp.array([1, 0])).probs(), [[0.5, 0.5], [1, 0]], rtol=1e-6)
