"""The conformance suite of the rules: every rule, by every name in RULES, must pass all of it."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from surefoot import config
from surefoot.batch import Batch, sampled_batch
from surefoot.distributions import Categorical
from surefoot.errors import SettingError
from surefoot.policy import Policy, flatten, make_policy
from surefoot.rules import NPG, PG, RULES, TRPO

EVERY_RULE = [name for name, rule in config.RULES.items() if not rule.tabular_only]
# What the penalised rules share is tested of one of them in the quick suite.
SHORT = [pytest.param(name, marks=pytest.mark.long) if name in ("kl-penalty", "dual") else name for name in EVERY_RULE]
NATURAL = ["npg", "trpo"]
# The numeric setting that decides how long a step is.
LEVER = {name: "radius" if name in ("pg", *NATURAL) else "step_size" for name in EVERY_RULE}
ACTIONS = {
    "categorical": spaces.Discrete(3),
    "gaussian": spaces.Box(-1, 1, (2,)),
    "multicategorical": spaces.MultiDiscrete([2, 3]),
    "bernoulli": spaces.MultiBinary(2),
}


def make_batch(key, kind="categorical", size=64, dtype=np.float32, advantage=None):
    """A small network, and a batch sampled from it."""
    policy_key, key = jax.random.split(key)
    policy = make_policy(spaces.Box(-1, 1, (3,)), ACTIONS[kind], config.Network(hidden=(8,)), policy_key, dtype)
    policy, batch = _make_batch(policy, key, size, np.dtype(dtype))
    if advantage is not None:
        batch = eqx.tree_at(lambda b: b.advantage, batch, jnp.asarray(advantage, dtype))
    return policy, batch


@partial(jax.jit, static_argnums=(2, 3))
def _make_batch(policy, key, size, dtype):
    keys = jax.random.split(key, 3)
    # The default initial policy is nearly uniform everywhere; a rougher one is a harder case.
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + 0.3 * jax.random.normal(keys[0], theta.shape, dtype))
    observation = jax.random.normal(keys[1], (size, 3), dtype)
    old = policy(observation)
    action = old.sample(keys[2])
    advantage = jnp.sin(5 * observation[:, 0]) + jnp.cos(jnp.sum(action.reshape(size, -1), axis=-1)) + 3
    return policy, sampled_batch(observation, None, action, advantage.astype(dtype), old, jnp.ones(size, dtype))


@jax.jit
def compare(new, batch):
    """What an update's report claims, taken from the distributions, row by row."""
    after = new(batch.observation)
    return (
        batch.old.kl(after),
        after.kl(batch.old),
        batch.old.tv(after),
        after.entropy(),
        after.log_prob(batch.action) - batch.old.log_prob(batch.action),
    )


def update(rule, policy, batch, memory=None):
    memory = rule.init(policy) if memory is None else memory
    return eqx.filter_jit(rule.update)(policy, memory, batch, jax.random.key(0))


def same_bits(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


# The sums of categoricals have tests of their own in both types.
KINDS = [*((kind, "float32") for kind in ACTIONS), ("categorical", "float64"), ("gaussian", "float64")]


@pytest.mark.parametrize(("kind", "dtype"), KINDS, indirect=["dtype"])
@pytest.mark.parametrize("name", SHORT)
def test_an_update_improves_the_surrogate_and_reports_what_it_did(name, kind, key, dtype):
    policy, batch = make_batch(key, kind, dtype=dtype)
    new, _, report = update(RULES[name](), policy, batch)
    assert report.accepted
    kl, reverse_kl, tv, entropy, log_ratio = (np.asarray(x, np.float64) for x in compare(new, batch))
    weight = np.asarray(batch.weight, np.float64)
    tolerance = 1e-6 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(report.kl, weight @ kl, rtol=tolerance)
    np.testing.assert_allclose(report.reverse_kl, weight @ reverse_kl, rtol=tolerance)
    np.testing.assert_allclose(report.max_kl, kl.max(), rtol=tolerance)
    np.testing.assert_allclose(report.tv, weight @ tv, rtol=tolerance)
    np.testing.assert_allclose(report.max_tv, tv.max(), rtol=tolerance)
    np.testing.assert_allclose(report.entropy, weight @ entropy, rtol=tolerance)
    ratio = np.exp(log_ratio)
    centred = np.asarray(batch.advantage, np.float64) - weight @ np.asarray(batch.advantage, np.float64)
    np.testing.assert_allclose(report.surrogate_gain, weight @ ((ratio - 1) * centred), rtol=50 * tolerance)
    np.testing.assert_allclose(report.effective_sample_size, ratio.sum() ** 2 / (ratio**2).sum(), rtol=tolerance)
    moved = [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, jax.device_get((new, policy))), strict=True)]
    np.testing.assert_allclose(report.step_length, np.linalg.norm(np.concatenate(moved)), rtol=1e-4)
    assert report.surrogate_gain > 0
    assert report.predicted_gain > 0
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize("name", SHORT)
def test_an_update_is_pure(name, key):
    policy, batch = make_batch(key)
    before = jax.tree.map(np.array, (policy, batch))
    first = update(RULES[name](), policy, batch)
    assert same_bits(before, (policy, batch))
    assert same_bits(first, update(RULES[name](), policy, batch))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", SHORT)
def test_a_non_finite_step_is_refused_and_changes_no_bit(name, bad, key):
    policy, batch = make_batch(key)
    batch = eqx.tree_at(lambda b: b.advantage, batch, batch.advantage.at[3].set(bad))
    rule = RULES[name]()
    memory = rule.init(policy)
    new, after, report = update(rule, policy, batch, memory)
    assert not report.accepted
    assert same_bits((policy, memory), (new, after))
    assert report.kl == report.reverse_kl == report.tv == report.surrogate_gain == report.step_length == 0


def test_trpo_refuses_when_backtracking_fails_and_does_not_report_the_refused_candidate(key):
    policy, batch = make_batch(key)
    free, _, accepted = update(TRPO(radius=0.05, backtracks=0, accept=0.0), policy, batch)
    gain_share = float(accepted.surrogate_gain / accepted.predicted_gain)
    assert accepted.accepted
    assert gain_share < 0.9999
    assert not same_bits(policy, free)
    new, _, report = update(TRPO(radius=0.05, backtracks=0, accept=0.9999), policy, batch)
    assert not report.accepted
    assert same_bits(policy, new)
    assert report.kl == 0
    assert report.surrogate_gain == 0
    np.testing.assert_allclose(report.entropy, np.mean(batch.old.entropy()), rtol=1e-6)


@pytest.mark.parametrize("radius", [1e-3, 1e-2, 0.3])
def test_trpo_never_leaves_its_trust_region(radius, key):
    for lane in jax.random.split(key, 4):
        policy, batch = make_batch(lane, "gaussian")
        _, _, report = update(TRPO(radius=radius), policy, batch)
        assert report.accepted
        assert 0 < report.kl <= radius
        assert report.surrogate_gain > 0


def test_a_step_just_outside_the_radius_leaves_no_third_of_it_unused(key, x64):
    just_outside = 0
    for lane in jax.random.split(key, 8):
        policy, batch = make_batch(lane, "gaussian", dtype=np.float64)
        _, _, source = update(TRPO(radius=1e-4, rescale=False), policy, batch)
        _, _, report = update(TRPO(radius=1e-4), policy, batch)
        assert report.kl <= 1e-4
        if not source.backtracks:
            np.testing.assert_allclose(report.kl, source.kl, rtol=1e-9)
            continue
        just_outside += 1
        np.testing.assert_allclose(source.kl, 0.64e-4, rtol=0.1)
        assert report.kl > 0.95e-4
        assert report.surrogate_gain > source.surrogate_gain
    assert just_outside


@pytest.mark.parametrize("name", NATURAL)
def test_the_radius_is_the_kl_and_not_a_multiplier(name, key, x64):
    policy, batch = make_batch(key, dtype=np.float64)
    rule = RULES[name](radius=1e-5, damping=1e-3, iterations=40)
    _, _, report = update(rule, policy, batch)
    np.testing.assert_allclose(report.predicted_kl, 1e-5, rtol=1e-9)
    np.testing.assert_allclose(report.kl, 1e-5, rtol=0.02)


def test_pg_steps_to_the_edge_of_its_ball(key, x64):
    policy, batch = make_batch(key, dtype=np.float64)
    _, _, report = update(PG(radius=0.04), policy, batch)
    np.testing.assert_allclose(report.step_length, 0.2, rtol=1e-12)
    np.testing.assert_allclose(report.predicted_gain / report.multiplier, 2 * 0.04, rtol=1e-12)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("constant", [0.0, 1.0, -3e7, 1e-20])
def test_advantages_that_say_nothing_move_nothing(name, constant, key, dtype):
    policy, batch = make_batch(key, dtype=dtype, advantage=jnp.full(64, constant, dtype))
    new, _, report = update(RULES[name](), policy, batch)
    assert not report.accepted
    assert same_bits(policy, new)
    told = report._asdict()
    del told["multiplier"], told["multiplier_path"]
    assert all(np.isfinite(value) for value in told.values())


@pytest.mark.parametrize("name", SHORT)
def test_a_batch_of_one_transition_gives_no_nan(name, key):
    policy, batch = make_batch(key, size=1)
    new, _, report = update(RULES[name](), policy, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
    assert not np.isnan(float(report.kl))
    raw = RULES[name](standardise=False)
    new, _, report = update(raw, policy, batch)
    assert report.accepted
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new, report)))


@pytest.mark.parametrize("name", SHORT)
def test_rows_without_weight_do_not_matter_whatever_they_hold(name, key, x64):
    policy, batch = make_batch(key, "gaussian", size=48, dtype=np.float64)
    weight = jnp.where(jnp.arange(48) % 3 == 0, 0, 1.0)
    empty = weight == 0
    clean = sampled_batch(batch.observation, None, batch.action, batch.advantage, batch.old, weight)
    garbage = jnp.where(empty, jnp.nan, batch.advantage)
    far = jnp.where(empty[:, None], 1e6, batch.observation)
    dirty = sampled_batch(far, None, batch.action, garbage, policy(far), weight)
    one, _, clean_report = update(RULES[name](), policy, clean)
    other, _, dirty_report = update(RULES[name](), policy, dirty)
    assert clean_report.accepted
    for a, b in zip(jax.tree.leaves((one, clean_report)), jax.tree.leaves((other, dirty_report)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SHORT)
def test_one_compilation_serves_every_length_of_step(name, key):
    policy, batch = make_batch(key)
    traces = 0

    @jax.jit
    def run(rule, policy, batch):
        nonlocal traces
        traces += 1
        return rule.update(policy, rule.init(policy), batch, jax.random.key(0))

    levels = ({LEVER[name]: level} for level in (1e-4, 1e-3, 1e-2))
    lengths = [float(run(RULES[name](**level), policy, batch)[2].step_length) for level in levels]
    assert traces == 1
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize(
    "name", [name if name == "trpo" else pytest.param(name, marks=pytest.mark.long) for name in EVERY_RULE]
)
def test_each_lane_of_a_vectorised_update_is_that_update_alone(name, key, x64):
    cases = [make_batch(lane, dtype=np.float64) for lane in jax.random.split(key, 16)]
    levels, lever = np.geomspace(1e-4, 1e-2, 16), LEVER[name]

    def run(rule, policy, batch):
        return rule.update(policy, rule.init(policy), batch, jax.random.key(0))

    run_alone = jax.jit(run)
    alone = [
        jax.tree.leaves(run_alone(RULES[name](**{lever: x}), *case)) for x, case in zip(levels, cases, strict=True)
    ]
    none = jax.tree.map(lambda _: None, RULES[name]())
    axes = eqx.tree_at(lambda r: getattr(r, lever), none, 0, is_leaf=lambda x: x is None)
    run_together = jax.jit(jax.vmap(run, in_axes=(axes, 0, 0)))
    # A single lane is a case of its own to the compiler; one rule is enough to show it.
    for lanes in (1, 16) if name == "trpo" else (16,):
        policies, batches = jax.tree.map(lambda *leaves: np.stack(leaves), *cases[:lanes])
        rules = eqx.tree_at(lambda r: getattr(r, lever), RULES[name](), levels[:lanes])
        together = run_together(rules, policies, batches)
        for lane in range(lanes):
            for a, b in zip(alone[lane], jax.tree.leaves(together), strict=True):
                np.testing.assert_allclose(a, b[lane], rtol=1e-6, atol=1e-9)
    # A lane that goes wrong does not harm the others by a bit.
    spoiled = eqx.tree_at(lambda b: b.advantage, batches, jnp.asarray(batches.advantage).at[5, 0].set(jnp.nan))
    _, _, report = harmed = run_together(rules, policies, spoiled)
    assert report.accepted.tolist() == [lane != 5 for lane in range(16)]
    others = np.arange(16) != 5
    assert same_bits(*(jax.tree.map(lambda leaf: np.asarray(leaf)[others], tree) for tree in (together, harmed)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(harmed[0]))


@pytest.mark.parametrize("name", SHORT)
def test_chunks_change_nothing_but_rounding(name, key, x64):
    policy, batch = make_batch(key, dtype=np.float64)
    whole, _, _ = update(RULES[name](), policy, batch)
    chunked, _, _ = update(RULES[name](chunk=7), policy, batch)
    np.testing.assert_allclose(flatten(whole)[0], flatten(chunked)[0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", SHORT)
def test_gains_are_in_reward_units_whatever_is_standardised(name, key, x64):
    policy, batch = make_batch(key, dtype=np.float64)
    million = eqx.tree_at(lambda b: b.advantage, batch, 1e6 * batch.advantage)
    one, _, small = update(RULES[name](), policy, batch)
    other, _, large = update(RULES[name](), policy, million)
    np.testing.assert_allclose(flatten(one)[0], flatten(other)[0], rtol=1e-6, atol=1e-9)
    for field in ("surrogate_gain", "predicted_gain", "multiplier"):
        np.testing.assert_allclose(getattr(large, field), 1e6 * getattr(small, field), rtol=1e-6)


class Table(Policy):
    """Logits of each state, through a change of parameters: logits = phi or a smooth bijection of phi."""

    phi: jax.Array
    warp: bool = eqx.field(static=True)

    def __call__(self, observation, mask=None):
        logits = jnp.sinh(self.phi) + 0.3 * jnp.roll(self.phi, 1, axis=-1) ** 3 if self.warp else self.phi
        return Categorical(logits[observation], mask)

    def trainable(self):
        return jax.tree.map(lambda _: True, self)

    def bounded(self):
        return self


def enumerated(policy, d, advantage) -> Batch:
    """All S * A rows of a finite MDP, base d(s)."""
    states, actions = advantage.shape
    s, a = (jnp.asarray(grid.ravel()) for grid in np.mgrid[:states, :actions])
    return Batch(s, None, a, advantage.ravel(), policy(s), (d / actions)[s], jnp.log(d)[s])


def centred(policy, advantage):
    probs = policy(jnp.arange(len(advantage))).probs()
    return advantage - jnp.sum(probs * advantage, axis=1, keepdims=True)


@pytest.mark.parametrize("name", NATURAL)
def test_natural_steps_do_not_depend_on_the_parametrisation(name, key, x64):
    phi = 0.4 * jax.random.normal(key, (2, 3), jnp.float64)
    curved = Table(phi, True)
    plain = Table(jnp.sinh(phi) + 0.3 * jnp.roll(phi, 1, axis=-1) ** 3, False)
    d = jnp.array([0.3, 0.7])
    advantage = centred(plain, jax.random.normal(jax.random.fold_in(key, 1), (2, 3), jnp.float64))
    options = {"damping": 0.0, "iterations": 6, "tolerance": 1e-12, "standardise": False}
    differences = []
    for radius in (1e-4, 1e-6, 1e-8):
        rule = RULES[name](radius=radius, **options)
        old = np.asarray(plain(jnp.arange(2)).probs())
        moves = [
            np.asarray(update(rule, policy, enumerated(policy, d, advantage))[0](jnp.arange(2)).probs()) - old
            for policy in (plain, curved)
        ]
        differences.append(np.linalg.norm(moves[0] - moves[1]) / np.linalg.norm(moves[0]))
    # First order: the relative difference falls with the step's length, by ten for a hundredth of the KL.
    assert differences[0] < 0.1
    assert differences[1] < 0.15 * differences[0]
    assert differences[2] < 0.15 * differences[1]


def test_the_euclidean_step_does_depend_on_the_parametrisation(x64):
    phi = jnp.array([[2.0, -1.0, 0.3]])
    curved, plain = Table(phi, True), Table(jnp.sinh(phi) + 0.3 * jnp.roll(phi, 1, axis=-1) ** 3, False)
    advantage = centred(plain, jnp.array([[0.5, 1.0, -2.0]]))
    moves = []
    for policy in (plain, curved):
        batch = enumerated(policy, jnp.ones(1), advantage)
        new, _, _ = update(PG(radius=1e-10, standardise=False), policy, batch)
        moves.append(np.asarray(new(jnp.arange(1)).probs() - policy(jnp.arange(1)).probs()))
    assert np.linalg.norm(moves[0] - moves[1]) > 0.5 * np.linalg.norm(moves[0])


BANDIT_PI = np.array([0.5, 0.3, 0.2])
BANDIT_A = np.array([[1.0, -1.0, -1.0]])


@pytest.mark.parametrize("name", NATURAL)
def test_worked_case_2_the_bandits_step(name, x64):
    policy = Table(jnp.log(BANDIT_PI)[None], False)
    batch = enumerated(policy, jnp.ones(1), jnp.asarray(BANDIT_A))
    rule = RULES[name](radius=0.01, damping=0.0, iterations=2, tolerance=0.0, standardise=False)
    new, _, report = update(rule, policy, batch)
    np.testing.assert_allclose(new(jnp.arange(1)).probs()[0], [0.570243, 0.257854, 0.171903], atol=1e-6)
    np.testing.assert_allclose([report.kl, report.reverse_kl], [0.009967, 0.009901], atol=1e-6)
    np.testing.assert_allclose(1 / report.multiplier, 0.141421, atol=1e-6)
    assert report.solver_iterations == 2
    # The closed form of a tabular trust region, pi' proportional to pi exp(alpha A).
    closed = BANDIT_PI * np.exp(0.02**0.5 * BANDIT_A[0])
    np.testing.assert_allclose(new(jnp.arange(1)).probs()[0], closed / closed.sum(), atol=1e-12)


@pytest.mark.parametrize(("damping", "kl"), [(0.1, 0.009899)])
def test_worked_case_5_damping_does_not_shorten_the_step(damping, kl, x64):
    policy = Table(jnp.log(BANDIT_PI)[None], False)
    batch = enumerated(policy, jnp.ones(1), jnp.asarray(BANDIT_A))
    rule = NPG(radius=0.01, damping=damping, iterations=3, tolerance=0.0, standardise=False)
    _, _, report = update(rule, policy, batch)
    np.testing.assert_allclose(report.predicted_kl, 0.01, rtol=1e-9)
    # theory.md's figure is KL(new || old).
    np.testing.assert_allclose(report.reverse_kl, kl, atol=1e-6)


def test_worked_case_4_an_action_of_probability_zero_gives_no_nan(x64):
    logits = jnp.array([[0.0, 0.0, -jnp.inf], [1.0, -jnp.inf, -jnp.inf]])
    policy = Table(logits, False)
    advantage = jnp.array([[1.0, -1.0, 5.0], [0.0, 2.0, 2.0]])
    for rule in (TRPO(standardise=False), NPG(standardise=False), PG(standardise=False)):
        new, _, report = update(rule, policy, enumerated(policy, jnp.array([1.0, 0.0]), advantage))
        probs = np.asarray(new(jnp.arange(2)).probs())
        assert report.accepted
        assert np.isfinite([float(report.kl), float(report.tv), float(report.surrogate_gain)]).all()
        assert probs[0, 0] > 0.5
        assert probs[0, 2] == 0
        np.testing.assert_array_equal(probs[1], [1, 0, 0])


@pytest.mark.parametrize("name", RULES)
def test_settings_and_rule_name_the_same_things_with_the_same_defaults(name):
    rule, plain = RULES[name](), config.RULES[name]()
    assert rule.settings() == plain
    assert {item.name for item in dataclasses.fields(rule)} == {item.name for item in dataclasses.fields(plain)}
    assert {item.name: item.default for item in dataclasses.fields(plain)} == {
        item.name: item.default for item in dataclasses.fields(rule)
    }


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TRPO(radius=-0.01), "radius must be a number, above 0, but -0.01 came"),
        (lambda: NPG(radius=float("nan")), "radius"),
        (lambda: TRPO(damping=-1), "damping"),
        (lambda: TRPO(shrink=1.0), "shrink"),
        (lambda: TRPO(iterations=0), "iterations"),
        (lambda: PG(radius="wide"), "radius"),
        (lambda: NPG(standardise=1), "standardise"),
        (lambda: TRPO(subsample=0.2, damping=0.0), "damping must be above 0 with subsample 0.2"),
    ],
)
def test_absurd_settings_are_refused_by_name(make, named):
    with pytest.raises(SettingError, match=named):
        make()


@pytest.mark.parametrize("rule", [TRPO, NPG])
def test_without_damping_the_fisher_matrix_is_taken_on_every_row(rule):
    assert rule().subsample == rule().settings().subsample == 0.2
    assert rule(damping=0.0).subsample == rule(damping=0.0).settings().subsample == 1.0
    assert rule(subsample=0.5).subsample == 0.5
