"""Surrogate, Fisher operator and divergences over a batch, against explicit Jacobians, Hessians and NumPy."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats
from scipy.special import expit, rel_entr

from surefoot import config, geometry
from surefoot.batch import Batch, sampled_batch
from surefoot.policy import NeuralPolicy, TabularPolicy, flatten, make_policy
from surefoot.steps import conjugate_gradients

ROWS = 9
MASK = np.array([[True, True, False, True], [True, False, True, True], [False, True, True, True]])
ACTIONS = {
    "categorical": spaces.Discrete(3),
    "masked": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([2, 3]),
    "bernoulli": spaces.MultiBinary(2),
    "gaussian": spaces.Box(-1, 1, (2,)),
}
HEADS = list(ACTIONS)

make_batch = jax.jit(sampled_batch)
distribution = jax.jit(lambda policy, observation, mask: policy(observation, mask))
sample = jax.jit(lambda policy, observation, mask, key: policy(observation, mask).sample(key))
surrogate = jax.jit(geometry.surrogate)
gradient = jax.jit(geometry.surrogate_gradient, static_argnames="chunk")
movement = jax.jit(geometry.movement, static_argnames="chunk")
fisher_quadratic = jax.jit(geometry.fisher_quadratic, static_argnames="chunk")


@jax.jit
def fisher_matrix(policy, batch):
    theta, _ = flatten(policy)
    return jax.vmap(geometry.fisher_operator(policy, batch), out_axes=1)(jnp.eye(theta.size, dtype=theta.dtype))


@cache
def fresh_policy(head: str) -> NeuralPolicy:
    with jax.enable_x64(True):
        network = config.Network(hidden=(4,), log_std=-0.3)
        return make_policy(spaces.Box(-1, 1, (3,)), ACTIONS[head], network, jax.random.key(0), np.float64)


@jax.jit
def shifted(policy: NeuralPolicy, step) -> NeuralPolicy:
    theta, rebuild = flatten(policy)
    return rebuild(theta + step)


flat = jax.jit(lambda policy: flatten(policy)[0])


class Problem(NamedTuple):
    """An old policy, a new one, and what a batch is made of."""

    policy: NeuralPolicy
    new: NeuralPolicy
    rows: dict[str, Any]

    @property
    def batch(self) -> Batch:
        return make_batch(**self.rows)


@pytest.fixture
def problem(x64, rng, key):
    """A function: head -> Problem, whose fifth row has weight 0."""

    def build(head: str) -> Problem:
        size = flat(fresh_policy(head)).size
        policy = shifted(fresh_policy(head), 0.7 * rng.normal(size=size))
        observation = rng.normal(size=(ROWS, 3))
        mask = np.resize(MASK, (ROWS, 4)) if head == "masked" else None
        weight = rng.uniform(0.5, 2, size=ROWS)
        weight[4] = 0
        rows = {
            "observation": observation,
            "mask": mask,
            "action": sample(policy, observation, mask, key),
            "advantage": rng.normal(size=ROWS),
            "old": distribution(policy, observation, mask),
            "weight": weight,
        }
        return Problem(policy, shifted(policy, 0.2 * rng.normal(size=size)), rows)

    return build


def normalised(weight) -> np.ndarray:
    return np.asarray(weight) / np.sum(weight)


# The surrogate


@pytest.mark.parametrize("head", ["masked", "multi", "bernoulli", "gaussian"])
def test_surrogate_gradient_is_the_importance_weighted_score_function_gradient(head, problem):
    policy, new, rows = problem(head)
    batch = make_batch(**rows)

    @jax.jit
    def scores(policy):
        theta, rebuild = flatten(policy)
        log_prob = lambda t: rebuild(t)(rows["observation"], rows["mask"]).log_prob(rows["action"])  # noqa: E731
        return log_prob(theta), jax.jacrev(log_prob)(theta)

    old_log_prob, old_score = map(np.asarray, scores(policy))
    new_log_prob, new_score = map(np.asarray, scores(new))
    weighted = normalised(rows["weight"]) * rows["advantage"]
    np.testing.assert_allclose(gradient(policy, batch), weighted @ old_score, rtol=1e-10, atol=1e-13)
    ratio = np.exp(new_log_prob - old_log_prob)
    np.testing.assert_allclose(gradient(new, batch), (weighted * ratio) @ new_score, rtol=1e-10, atol=1e-13)
    assert float(surrogate(policy, batch)) == pytest.approx(weighted.sum(), rel=1e-12)
    assert float(surrogate(new, batch)) == pytest.approx(weighted @ ratio, rel=1e-12)


@pytest.mark.parametrize("head", ["masked", "gaussian"])
def test_the_old_policy_has_not_moved_at_all(head, problem):
    policy, _, rows = problem(head)
    batch = make_batch(**rows)
    told = movement(policy, batch)
    for field in ("surrogate_gain", "kl", "reverse_kl", "max_kl", "tv", "max_tv"):
        assert float(getattr(told, field)) == pytest.approx(0, abs=1e-14), field
    for moved, unmoved in zip(told, geometry.unmoved(batch), strict=True):
        np.testing.assert_allclose(moved, unmoved, rtol=1e-12, atol=1e-14)
    ratio_mass = normalised(rows["weight"])
    assert float(told.effective_sample_size) == pytest.approx(1 / np.sum(ratio_mass**2), rel=1e-12)


# The Fisher matrix


def head_metrics(head: str, old) -> np.ndarray:
    """M of every row in closed form, [B, K, K], by NumPy: for the parameters in the order in which they lie."""
    if head == "gaussian":
        precision = np.exp(-2 * np.asarray(old.log_std))
        return np.stack([np.diag(np.r_[row, 2 * np.ones_like(row)]) for row in precision])
    logits = np.asarray(old.logits)
    if head == "bernoulli":
        return np.stack([np.diag(row * (1 - row)) for row in expit(logits)])
    allowed = np.ones_like(logits, bool) if old.mask is None else np.asarray(old.mask)
    parts = [(0, 2), (2, 5)] if head == "multi" else [(0, logits.shape[-1])]
    metrics = np.zeros((*logits.shape, logits.shape[-1]))
    for low, high in parts:
        power = np.exp(logits[:, low:high]) * allowed[:, low:high]
        p = power / power.sum(axis=-1, keepdims=True)
        metrics[:, low:high, low:high] = np.einsum("bk,kl->bkl", p, np.eye(high - low)) - p[:, :, None] * p[:, None, :]
    return metrics


@pytest.mark.parametrize("head", HEADS)
def test_fisher_operator_is_sum_JMJ_and_the_hessian_of_the_mean_kl(head, problem):
    policy, _, rows = problem(head)
    batch = make_batch(**rows)
    weight = normalised(rows["weight"])

    @jax.jit
    def derivatives(policy, old, batch):
        theta, rebuild = flatten(policy)
        at = lambda t: rebuild(t)(rows["observation"], rows["mask"])  # noqa: E731

        def parameters(t):
            return jnp.concatenate(jax.tree.leaves(eqx.filter(at(t), eqx.is_inexact_array)), axis=-1)

        hessian = jax.hessian(lambda t: jnp.sum(weight * old.kl(at(t))))(theta)
        quadratics = jax.vmap(lambda v: geometry.fisher_quadratic(policy, batch, v))(jnp.eye(theta.size))
        return jax.jacfwd(parameters)(theta), hessian, quadratics

    jacobian, hessian, quadratics = map(np.asarray, derivatives(policy, rows["old"], batch))
    explicit = np.einsum("b,bkp,bkl,blq->pq", weight, jacobian, head_metrics(head, rows["old"]), jacobian)
    matrix = np.asarray(fisher_matrix(policy, batch))
    assert np.linalg.norm(explicit) > 0.1
    np.testing.assert_allclose(matrix, explicit, atol=1e-12)
    np.testing.assert_allclose(matrix, hessian, atol=1e-11)
    np.testing.assert_allclose(quadratics, np.diag(matrix), atol=1e-12)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
    assert np.linalg.eigvalsh(matrix).min() > -1e-13


@pytest.mark.parametrize("head", ["masked", "gaussian"])
def test_fisher_products_are_linear_and_fisher_quadratic_is_vFv(head, problem, rng):
    policy, _, rows = problem(head)
    batch = make_batch(**rows)
    matrix = np.asarray(fisher_matrix(policy, batch))
    operator = jax.jit(geometry.fisher_operator(policy, batch))
    for _ in range(3):
        v = rng.normal(size=len(matrix))
        np.testing.assert_allclose(operator(v), matrix @ v, atol=1e-12)
        np.testing.assert_allclose(operator(-3 * v), -3 * matrix @ v, atol=1e-12)
        assert float(fisher_quadratic(policy, batch, v)) == pytest.approx(v @ matrix @ v, rel=1e-11)


@pytest.mark.parametrize("head", ["multi", "gaussian"])
def test_mean_kl_of_a_small_step_is_half_its_fisher_quadratic(head, problem, rng):
    policy, _, rows = problem(head)
    batch = make_batch(**rows)
    h = 1e-3
    step = rng.normal(size=flat(policy).size)
    quadratic = 0.5 * float(fisher_quadratic(policy, batch, step))
    moved = [movement(shifted(policy, sign * h * step), batch) for sign in (1, -1)]
    assert sum(float(m.kl) for m in moved) / (2 * h**2) == pytest.approx(quadratic, rel=1e-4)
    assert sum(float(m.reverse_kl) for m in moved) / (2 * h**2) == pytest.approx(quadratic, rel=1e-4)


def test_fisher_matrix_of_a_gaussian_is_twice_the_identity_in_its_log_deviations(problem):
    policy, _, rows = problem("gaussian")
    where = np.flatnonzero(
        np.asarray(flat(eqx.tree_at(lambda p: p.log_std, policy, policy.log_std + 1))) != flat(policy)
    )
    assert len(where) == 2
    matrix = np.asarray(fisher_matrix(policy, make_batch(**rows)))
    np.testing.assert_allclose(matrix[np.ix_(where, where)], 2 * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.delete(matrix[where], where, axis=1), 0, atol=1e-12)


def test_trainable_parameters_are_the_network_and_log_std_without_the_normaliser(problem, rng):
    policy, _, _ = problem("gaussian")
    policy = policy.observed(rng.normal(size=(50, 3), loc=3), np.ones(50, bool))
    theta, rebuild = flatten(policy)
    assert theta.size == (3 * 4 + 4) + (4 * 2 + 2) + 2
    moved = rebuild(theta + 1)
    np.testing.assert_allclose(moved.log_std, policy.log_std + 1)
    for before, after in zip(jax.tree.leaves(policy.network), jax.tree.leaves(moved.network), strict=True):
        np.testing.assert_allclose(after, before + 1)
    for before, after in zip(jax.tree.leaves(policy.normaliser), jax.tree.leaves(moved.normaliser), strict=True):
        assert np.array_equal(before, after)
    assert float(policy.normaliser.count) == 50
    assert flatten(fresh_policy("categorical"))[0].size == (3 * 4 + 4) + (4 * 3 + 3)


# Chunks


def _everything(policy, new, batch, v, chunk):
    return (
        geometry.surrogate_gradient(new, batch, chunk=chunk),
        geometry.fisher_operator(policy, batch, chunk=chunk)(v),
        geometry.fisher_quadratic(policy, batch, v, chunk=chunk),
        geometry.movement(new, batch, chunk=chunk),
    )


in_chunks = jax.jit(_everything, static_argnums=4)


@pytest.mark.parametrize(
    ("head", "chunk"),
    [("masked", 1), ("masked", 3), ("masked", 4), ("masked", 8), ("masked", 50), ("gaussian", 4), ("gaussian", 7)],
)
def test_chunks_of_any_size_give_what_the_whole_batch_gives(head, chunk, problem, rng):
    policy, new, rows = problem(head)
    batch = make_batch(**rows)
    v = rng.normal(size=flat(policy).size)
    whole = in_chunks(policy, new, batch, v, 0)
    parts = in_chunks(policy, new, batch, v, chunk)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.all(np.isfinite(one))
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)


def test_chunks_under_vmap_give_what_each_policy_gives_alone(problem, rng):
    policy, _, rows = problem("gaussian")
    batch = make_batch(**rows)
    steps = 0.2 * rng.normal(size=(3, flat(policy).size))
    together = jax.jit(jax.vmap(lambda new, v: _everything(new, new, batch, v, 4)))(
        jax.vmap(shifted, (None, 0))(policy, steps), steps
    )
    for lane, step in enumerate(steps):
        new = shifted(policy, step)
        for one, other in zip(
            jax.tree.leaves(in_chunks(new, new, batch, step, 0)), jax.tree.leaves(together), strict=True
        ):
            np.testing.assert_allclose(one, other[lane], rtol=1e-11, atol=1e-14)


CHUNKED = {
    "gradient": lambda policy, batch, v: geometry.surrogate_gradient(policy, batch, chunk=32),
    "product": lambda policy, batch, v: geometry.fisher_operator(policy, batch, chunk=32)(v),
    "empirical product": lambda policy, batch, v: geometry.empirical_fisher_operator(policy, batch, chunk=32)(v),
}


@pytest.mark.parametrize("name", CHUNKED)
def test_memory_of_sums_over_chunks_does_not_grow_with_the_batch(name, problem):
    policy, _, rows = problem("gaussian")
    batch = make_batch(**rows)
    v = flat(policy)
    temporary = []
    for size in (300, 1200):
        longer = jax.tree.map(lambda leaf, size=size: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
        told = jax.jit(CHUNKED[name]).lower(policy, longer, v).compile().memory_analysis()
        if told is None:
            pytest.skip("the compiler of this platform does not say what memory a program takes")
        temporary.append(told.temp_size_in_bytes)
    assert 0 < temporary[1] < 1.2 * temporary[0]


# Rows that are not experience


GARBAGE = {
    "huge advantage": {"advantage": 1e300},
    "nan advantage": {"advantage": np.nan},
    "infinite advantage": {"advantage": np.inf},
    "lost support": {"logits": [-np.inf, 0.0, -np.inf]},
    "far observation": {"observation": 1e6},
    "nan observation": {"observation": np.nan, "logits": np.nan},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_rows_of_weight_zero_change_nothing_whatever_they_hold(name, problem, rng):
    policy, new, rows = problem("categorical")
    keep = 6
    rows["weight"] = np.r_[rng.uniform(0.5, 2, size=keep), np.zeros(ROWS - keep)]
    dirty = jax.tree.map(lambda leaf: np.array(leaf), rows)
    for field, value in GARBAGE[name].items():
        if field == "logits":
            dirty["old"].logits[keep:] = value
            dirty["action"][keep:] = 0  # impossible under it
        else:
            dirty[field][keep:] = value
    v = rng.normal(size=flat(policy).size)
    first = jax.tree.map(lambda leaf: leaf[:keep], dirty)
    clean = in_chunks(policy, new, make_batch(**first), v, 0)
    told = in_chunks(policy, new, make_batch(**dirty), v, 0)
    for one, other in zip(jax.tree.leaves(clean), jax.tree.leaves(told), strict=True):
        assert np.all(np.isfinite(other))
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_rows_of_weight_zero_do_not_enter_the_mean_or_the_largest_divergence(problem):
    """A far-away padding row once lowered the mean KL of a peer, and would raise the largest one here."""
    _, new, rows = problem("gaussian")
    before = movement(new, make_batch(**rows))
    rows["old"] = eqx.tree_at(lambda d: d.mean, rows["old"], rows["old"].mean.at[4].set(1e3))
    rows["weight"] = np.where(np.arange(ROWS) == 4, 0, rows["weight"])
    after = movement(new, make_batch(**rows))
    for one, other in zip(before, after, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-12)


def test_a_batch_without_experience_gives_zeros_and_no_nan(problem, rng):
    policy, new, rows = problem("categorical")
    rows["weight"] = np.zeros(ROWS)
    rows["advantage"] = np.full(ROWS, np.nan)
    batch = make_batch(**rows)
    told = in_chunks(policy, new, batch, rng.normal(size=flat(policy).size), 0)
    for leaf in jax.tree.leaves(told):
        assert np.all(np.asarray(leaf) == 0)


# Subsample


@pytest.mark.parametrize(("share", "stride"), [(1.0, 1), (0.5, 2), (0.3, 3), (0.25, 4), (0.1, 10)])
def test_subsample_takes_one_row_of_every_k_with_weights_that_sum_to_one(share, stride, problem):
    _, _, rows = problem("gaussian")
    batch = make_batch(**rows)
    part = geometry.subsample(batch, share)
    index = [min(first + number % stride, batch.size - 1) for number, first in enumerate(range(0, batch.size, stride))]
    expected = np.asarray(batch.weight)[index]
    assert part.size == len(expected)
    np.testing.assert_allclose(part.weight, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_array_equal(part.observation, np.asarray(batch.observation)[index])
    np.testing.assert_array_equal(part.old.mean, np.asarray(rows["old"].mean)[index])


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
@pytest.mark.parametrize("fewest", [1, 5, 17, 1000])
def test_a_subsample_keeps_at_least_the_rows_that_it_is_asked_to(share, fewest, problem):
    _, _, rows = problem("gaussian")
    batch = make_batch(**rows)
    part = geometry.subsample(batch, share, fewest=fewest)
    assert min(fewest, batch.size) <= part.size <= batch.size
    if fewest == 1:
        assert part.size == geometry.subsample(batch, share).size


@pytest.mark.parametrize("environments", [4, 5, 6, 10, 64])
def test_a_subsample_takes_every_environment_in_turn(environments):
    # Rows are laid out time outermost: always the first of five would be the same environments for ever.
    size = environments * 60
    environment = jnp.arange(size) % environments
    policy = TabularPolicy(jnp.zeros((environments, 2)))
    old = policy(environment)
    batch = sampled_batch(environment, None, 0 * environment, jnp.ones(size), old, jnp.ones(size))
    seen = np.bincount(geometry.subsample(batch, 0.2).observation, minlength=environments)
    assert seen.min() >= 6
    assert seen.max() <= 20


def test_fisher_matrix_of_a_subsample_is_that_of_its_rows_alone(problem):
    policy, _, rows = problem("categorical")
    part = geometry.subsample(make_batch(**rows), 0.5)
    index = [min(first + number % 2, ROWS - 1) for number, first in enumerate(range(0, ROWS, 2))]
    alone = make_batch(**jax.tree.map(lambda leaf: leaf[np.array(index)], rows))
    np.testing.assert_allclose(fisher_matrix(policy, part), fisher_matrix(policy, alone), atol=1e-13)


# Movement


def test_movement_of_a_categorical_policy_is_numpys(problem):
    policy, new, rows = problem("masked")
    power = [
        np.exp(np.asarray(distribution(p, rows["observation"], rows["mask"]).logits)) * rows["mask"]
        for p in (policy, new)
    ]
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in power)
    chosen = np.asarray(rows["action"])
    row = np.arange(ROWS)
    _check_movement(
        movement(new, make_batch(**rows)),
        rows,
        ratio=q[row, chosen] / p[row, chosen],
        kl=rel_entr(p, q).sum(axis=-1),
        reverse_kl=rel_entr(q, p).sum(axis=-1),
        tv=0.5 * np.abs(p - q).sum(axis=-1),
        entropy=stats.entropy(q, axis=-1),
    )


def test_movement_of_a_gaussian_policy_is_numpys(problem):
    _, new, rows = problem("gaussian")
    old, after = rows["old"], distribution(new, rows["observation"], None)
    m, s, n, t = (np.asarray(x) for x in (old.mean, np.exp(old.log_std), after.mean, np.exp(after.log_std)))
    kl = lambda m, s, n, t: np.sum(np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5, axis=-1)  # noqa: E731
    log_ratio = stats.norm.logpdf(rows["action"], n, t) - stats.norm.logpdf(rows["action"], m, s)
    _check_movement(
        movement(new, make_batch(**rows)),
        rows,
        ratio=np.exp(log_ratio.sum(axis=-1)),
        kl=kl(m, s, n, t),
        reverse_kl=kl(n, t, m, s),
        tv=np.asarray(old.tv(after)),
        entropy=stats.norm.entropy(scale=t).sum(axis=-1),
    )


def _check_movement(told, rows, *, ratio, kl, reverse_kl, tv, entropy):
    weight = normalised(rows["weight"])
    seen = weight > 0
    expected = geometry.Movement(
        surrogate_gain=weight @ ((ratio - 1) * rows["advantage"]),
        kl=weight @ kl,
        reverse_kl=weight @ reverse_kl,
        max_kl=kl[seen].max(),
        max_reverse_kl=reverse_kl[seen].max(),
        tv=weight @ tv,
        max_tv=tv[seen].max(),
        entropy=weight @ entropy,
        effective_sample_size=np.sum(weight * ratio) ** 2 / np.sum((weight * ratio) ** 2),
    )
    assert expected.kl > 1e-3
    assert abs(expected.kl - expected.reverse_kl) > 1e-6
    for field, value in expected._asdict().items():
        assert float(getattr(told, field)) == pytest.approx(value, rel=1e-10), field


def test_effective_sample_size_is_the_number_of_real_rows_when_nothing_moved_and_less_after(problem):
    policy, new, rows = problem("gaussian")
    rows["weight"] = np.where(np.arange(ROWS) < 2, 0.0, 3.0)
    batch = make_batch(**rows)
    assert float(movement(policy, batch).effective_sample_size) == pytest.approx(ROWS - 2, rel=1e-12)
    assert 1 <= float(movement(new, batch).effective_sample_size) < ROWS - 2


# Enumerated rows of a finite problem


class Tabular(NamedTuple):
    policy: NeuralPolicy
    batch: Batch
    states: np.ndarray
    probability: np.ndarray
    advantage: np.ndarray


@pytest.fixture
def tabular(x64, rng) -> Tabular:
    """Three states, four actions; one row for each pair, with base d(s) and weight d(s)/4."""
    network = config.Network(hidden=())
    policy = make_policy(spaces.Discrete(3), spaces.Discrete(4), network, jax.random.key(0), np.float64)
    policy = shifted(policy, rng.normal(size=flat(policy).size))
    states, pairs = np.array([0.5, 0.3, 0.2]), np.indices((3, 4)).reshape(2, -1)
    advantage = rng.normal(size=(3, 4))
    old = distribution(policy, pairs[0], None)
    batch = Batch(
        observation=jnp.asarray(pairs[0]),
        mask=None,
        action=jnp.asarray(pairs[1]),
        advantage=jnp.asarray(advantage.ravel()),
        old=old,
        weight=jnp.asarray(states[pairs[0]] / 4),
        log_base=jnp.log(states[pairs[0]]),
    )
    return Tabular(policy, batch, states, np.asarray(old.probs())[::4], advantage)


def test_surrogate_of_enumerated_rows_is_the_exact_expectation(tabular, rng):
    policy, batch, states, p, advantage = tabular
    new = shifted(policy, rng.normal(size=flat(policy).size))
    q = np.asarray(distribution(new, batch.observation, None).probs())[::4]
    assert float(surrogate(policy, batch)) == pytest.approx(states @ (p * advantage).sum(axis=-1), rel=1e-12)
    told = movement(new, batch)
    assert float(told.surrogate_gain) == pytest.approx(states @ ((q - p) * advantage).sum(axis=-1), rel=1e-12)
    assert float(told.kl) == pytest.approx(states @ rel_entr(p, q).sum(axis=-1), rel=1e-12)
    assert float(told.tv) == pytest.approx(states @ np.abs(p - q).sum(axis=-1) / 2, rel=1e-12)


def test_natural_gradient_is_the_regression_of_advantages_on_compatible_features(tabular):
    policy, batch, states, p, advantage = tabular

    @jax.jit
    def solved(policy, batch):
        theta, rebuild = flatten(policy)
        score = jax.jacrev(lambda t: rebuild(t)(batch.observation).log_prob(batch.action))(theta)
        found = conjugate_gradients(
            geometry.fisher_operator(policy, batch),
            geometry.surrogate_gradient(policy, batch),
            iterations=30,
            tolerance=1e-13,
        )
        return score, found

    score, found = solved(policy, batch)
    assert bool(found.converged)
    root = np.sqrt(states[:, None] * p).ravel()
    regression, *_ = np.linalg.lstsq(root[:, None] * np.asarray(score), root * advantage.ravel(), rcond=1e-10)
    np.testing.assert_allclose(found.x, regression, rtol=1e-9, atol=1e-10)
    # A policy with a free logit for each pair leaves of the advantage only its mean over each state's actions.
    fitted = (np.asarray(score) @ np.asarray(found.x)).reshape(3, 4)
    np.testing.assert_allclose(fitted, advantage - (p * advantage).sum(axis=-1, keepdims=True), atol=1e-9)
