"""Action distributions against enumeration, quadrature, SciPy and their own derivatives."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.flatten_util import ravel_pytree
from scipy import integrate, optimize, stats
from scipy.special import erf, expit, rel_entr

from surefoot.distributions import Bernoulli, Categorical, DiagGaussian, MultiCategorical

INF = np.inf
TOLERANCE = {np.dtype("float32"): 2e-6, np.dtype("float64"): 1e-13}


class Discrete(NamedTuple):
    """A discrete family, and what NumPy in float64 says of it.

    Parameters stay NumPy arrays until a compiled function takes them: eager JAX would compile each operation.
    """

    kind: type
    sizes: tuple[int, ...]
    mask: tuple[bool, ...] | None = None

    @property
    def width(self) -> int:
        return len(self.sizes) if self.kind is Bernoulli else sum(self.sizes)

    def __call__(self, logits):
        if self.kind is Bernoulli:
            return Bernoulli(logits)
        mask = None if self.mask is None else np.broadcast_to(self.mask, logits.shape)
        return Categorical(logits, mask) if self.kind is Categorical else MultiCategorical(logits, mask, self.sizes)

    def factors(self, logits) -> list[np.ndarray]:
        """The probabilities of each choice, [..., choices] each."""
        logits = np.asarray(logits, np.float64)
        if self.kind is Bernoulli:
            return [np.stack([expit(-z), expit(z)], axis=-1) for z in np.moveaxis(logits, -1, 0)]
        if self.mask is not None:
            logits = np.where(self.mask, logits, -INF)
        parts = np.split(logits, np.cumsum(self.sizes)[:-1], axis=-1)
        powers = [np.exp(part - part.max(axis=-1, keepdims=True)) for part in parts]
        return [power / power.sum(axis=-1, keepdims=True) for power in powers]

    def joint(self, logits) -> np.ndarray:
        """The probability of every joint action, [..., joint actions], in the order of `actions`."""
        return reduce(
            lambda left, right: (left[..., :, None] * right[..., None, :]).reshape(*left.shape[:-1], -1),
            self.factors(logits),
        )

    @property
    def actions(self) -> np.ndarray:
        table = np.array(list(product(*map(range, self.sizes))), np.int32)
        return table[:, 0] if self.kind is Categorical else table

    def index(self, actions) -> np.ndarray:
        """Which row of `actions` each sampled action is."""
        actions = np.asarray(actions)
        digits = actions[..., None] if self.kind is Categorical else actions
        return np.ravel_multi_index(tuple(np.moveaxis(digits, -1, 0)), self.sizes)


# Compiled once for each family, type and shape, whichever test asks.
log_prob = jax.jit(lambda distribution, action: distribution.log_prob(action))
sampled = jax.jit(lambda distribution, key: distribution.sample(key))
mode = jax.jit(lambda distribution: distribution.mode())
entropy = jax.jit(lambda distribution: distribution.entropy())
kl = jax.jit(lambda old, new: old.kl(new))
tv = jax.jit(lambda old, new: old.tv(new))
metric = jax.jit(lambda distribution, tangent: distribution.metric(tangent))

DISCRETE = {
    "categorical": Discrete(Categorical, (4,)),
    "masked": Discrete(Categorical, (5,), (True, False, True, True, False)),
    "multi": Discrete(MultiCategorical, (2, 3)),
    "multi-masked": Discrete(MultiCategorical, (2, 4), (True, False, True, False, True, True)),
    "bernoulli": Discrete(Bernoulli, (2, 2, 2)),
}
FAMILIES = [*DISCRETE, "gaussian"]
# Enough where a test compiles much: the masked ones are the plain ones and more.
EDGE_FAMILIES = ["categorical", "masked", "multi-masked", "bernoulli", "gaussian"]
FEW_FAMILIES = ["masked", "multi-masked", "bernoulli", "gaussian"]


@pytest.fixture(params=DISCRETE)
def family(request) -> Discrete:
    return DISCRETE[request.param]


def make(name: str, vector, dtype):
    """A distribution of any family from one vector of 6 numbers a row (of which it may use fewer)."""
    vector = np.asarray(vector, dtype)
    if name == "gaussian":
        return DiagGaussian(vector[..., :3], vector[..., 3:])
    return DISCRETE[name](vector[..., : DISCRETE[name].width])


def flat(distribution):
    """(parameters as one vector, vector -> distribution)."""
    parameters, rest = eqx.partition(distribution, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(parameters)
    return vector, lambda v: eqx.combine(unravel(v), rest)


# Log probability, sampling, mode, entropy


def test_log_probabilities_are_those_of_enumeration_and_sum_to_one(family, dtype, rng):
    logits = rng.normal(size=(3, family.width), scale=1.5).astype(dtype)
    repeated = np.repeat(logits[:, None], len(family.actions), axis=1)
    actions = np.broadcast_to(family.actions, (3, *family.actions.shape))
    probability = np.exp(np.asarray(log_prob(family(repeated), actions)))
    assert probability.dtype == dtype
    np.testing.assert_allclose(probability, family.joint(logits), atol=TOLERANCE[dtype], rtol=10 * TOLERANCE[dtype])
    np.testing.assert_allclose(probability.sum(axis=-1), 1, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (-3.0, 1.0), (2.0, -4.0)])
def test_one_dimensional_gaussian_density_integrates_to_one(mean, log_std, dtype):
    grid = mean + np.exp(log_std) * np.linspace(-10, 10, 4001)
    distribution = DiagGaussian(np.full((4001, 1), mean, dtype), np.full((4001, 1), log_std, dtype))
    density = np.exp(np.asarray(log_prob(distribution, grid[:, None].astype(dtype)), np.float64))
    assert integrate.trapezoid(density, grid) == pytest.approx(1, rel=1e-5 if dtype == np.float32 else 1e-12)


def test_gaussian_log_density_is_the_sum_of_scipys_over_dimensions(dtype, rng):
    mean, log_std, action = rng.normal(size=(3, 5, 4)).astype(dtype)
    truth = stats.norm.logpdf(action.astype(float), mean.astype(float), np.exp(log_std.astype(float))).sum(axis=-1)
    told = log_prob(DiagGaussian(mean, log_std), action)
    np.testing.assert_allclose(told, truth, rtol=2e-5 if dtype == np.float32 else 1e-13)


def test_sample_frequencies_match_probabilities(family, key, rng):
    count = 20_000
    logits = rng.normal(size=family.width).astype(np.float32)
    sample = np.asarray(sampled(family(np.broadcast_to(logits, (count, family.width))), key))
    assert sample.shape == (count, *family.actions.shape[1:])
    assert np.issubdtype(sample.dtype, np.integer)
    truth = family.joint(logits)
    frequency = np.bincount(family.index(sample), minlength=truth.size) / count
    assert np.all(np.abs(frequency - truth) <= 5 * np.sqrt(truth * (1 - truth) / count))


def test_gaussian_samples_follow_the_normal_law_independently_in_each_dimension(key):
    mean, log_std = np.array([1.0, -2.0]), np.array([-1.0, 0.5])
    tile = lambda row: np.broadcast_to(np.asarray(row, np.float32), (20_000, 2))  # noqa: E731
    sample = np.asarray(sampled(DiagGaussian(tile(mean), tile(log_std)), key), np.float64)
    for i in range(2):
        assert stats.kstest(sample[:, i], "norm", (mean[i], np.exp(log_std[i]))).pvalue > 1e-4
    assert abs(np.corrcoef(sample.T)[0, 1]) < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_sampling_one_key_twice_gives_one_sample_and_two_keys_two(name, key):
    distribution = make(name, np.zeros((50, 6)), np.float32)
    first, again, other = (sampled(distribution, k) for k in (key, key, jax.random.fold_in(key, 1)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mode_is_the_most_probable_joint_action(family, dtype, rng):
    logits = rng.normal(size=(20, family.width)).astype(dtype)
    assert np.array_equal(family.index(mode(family(logits))), family.joint(logits).argmax(axis=-1))


@pytest.mark.parametrize("name", ["masked", "multi-masked"])
def test_mode_and_samples_avoid_masked_actions_whatever_their_logits(name, key):
    family = DISCRETE[name]
    logits = np.where(family.mask, 0.0, 1e30).astype(np.float32)
    distribution = family(np.broadcast_to(logits, (500, family.width)))
    impossible = family.joint(logits) == 0
    assert impossible.any()
    for actions in (sampled(distribution, key), mode(distribution)):
        assert not impossible[family.index(actions)].any()
    assert np.all(np.asarray(log_prob(distribution, sampled(distribution, key))) > -10)


def test_gaussian_mode_is_the_mean(rng):
    mean = rng.normal(size=(4, 2)).astype(np.float32)
    assert np.array_equal(mode(DiagGaussian(mean, np.zeros((4, 2), np.float32))), mean)


def test_entropy_is_that_of_enumeration(family, dtype, rng):
    logits = rng.normal(size=(6, family.width), scale=2).astype(dtype)
    truth = stats.entropy(family.joint(logits), axis=-1)
    np.testing.assert_allclose(entropy(family(logits)), truth, atol=2 * TOLERANCE[dtype], rtol=1e-12)


def test_gaussian_entropy_is_scipys_summed_over_dimensions(dtype, rng):
    log_std = rng.normal(size=(5, 3)).astype(dtype)
    truth = stats.norm.entropy(scale=np.exp(log_std.astype(float))).sum(axis=-1)
    told = entropy(DiagGaussian(np.zeros_like(log_std), log_std))
    np.testing.assert_allclose(told, truth, atol=5 * TOLERANCE[dtype])


# Kullback-Leibler divergence


def test_kl_is_that_of_enumeration_over_joint_actions_both_ways(family, dtype, rng):
    old, new = rng.normal(size=(2, 6, family.width), scale=1.5).astype(dtype)
    p, q = family.joint(old), family.joint(new)
    tolerance = {"atol": 3 * TOLERANCE[dtype], "rtol": 1e-12 if dtype == np.float64 else 2e-6}
    np.testing.assert_allclose(kl(family(old), family(new)), rel_entr(p, q).sum(axis=-1), **tolerance)
    np.testing.assert_allclose(kl(family(new), family(old)), rel_entr(q, p).sum(axis=-1), **tolerance)


def test_gaussian_kl_is_the_sum_of_integrated_divergences_of_the_dimensions(dtype, rng):
    mean, new_mean = rng.normal(size=(2, 3)).astype(dtype)
    log_std, new_log_std = rng.uniform(-0.7, 0.7, size=(2, 3)).astype(dtype)

    def integrated(m, ls, n, ns):
        old, new = stats.norm(float(m), np.exp(float(ls))), stats.norm(float(n), np.exp(float(ns)))
        reach = 12 * np.exp(float(ls))
        integrand = lambda x: old.pdf(x) * (old.logpdf(x) - new.logpdf(x))  # noqa: E731
        return integrate.quad(integrand, m - reach, m + reach, epsabs=1e-13, limit=200)[0]

    truth = sum(integrated(*row) for row in zip(mean, log_std, new_mean, new_log_std, strict=True))
    back = sum(integrated(*row) for row in zip(new_mean, new_log_std, mean, log_std, strict=True))
    old, new = (DiagGaussian(np.asarray(m), np.asarray(s)) for m, s in ((mean, log_std), (new_mean, new_log_std)))
    np.testing.assert_allclose([kl(old, new), kl(new, old)], [truth, back], rtol=5e-6 if dtype == np.float32 else 1e-10)


ONE_DIMENSION = {  # one action dimension: old and new parameters
    "multi": (lambda z, d: MultiCategorical(np.tile(z, d), None, (3,) * d), [0.0, 1.0, -1.0], [1.0, 0.0, 0.5]),
    "bernoulli": (lambda z, d: Bernoulli(np.tile(z, d)), [0.3], [-1.0]),
    "gaussian": (lambda z, d: DiagGaussian(np.full(d, z[0]), np.full(d, z[1])), [0.0, 0.1], [0.4, -0.2]),
}


@pytest.mark.parametrize("name", ONE_DIMENSION)
@pytest.mark.parametrize("dimensions", [2, 6])
def test_kl_and_entropy_of_d_equal_dimensions_are_d_times_those_of_one(name, dimensions):
    build, old, new = ONE_DIMENSION[name]
    (one_old, one_new), (old, new) = (
        [build(np.asarray(z, np.float32), d) for z in (old, new)] for d in (1, dimensions)
    )
    assert float(kl(old, new)) == pytest.approx(dimensions * float(kl(one_old, one_new)), rel=1e-5)
    assert float(entropy(old)) == pytest.approx(dimensions * float(entropy(one_old)), rel=1e-5)


DIRECTED = {  # old, new, KL(old || new), KL(new || old), from the definitions by hand
    "categorical": (np.log([0.5, 0.5]), np.log([0.9, 0.1]), -0.5 * np.log(0.36), 0.9 * np.log(1.8) + 0.1 * np.log(0.2)),
    "bernoulli": ([0.0], [np.log(9)], -0.5 * np.log(0.36), 0.9 * np.log(1.8) + 0.1 * np.log(0.2)),
    "multi": (np.log([0.5, 0.5]), np.log([0.9, 0.1]), -0.5 * np.log(0.36), 0.9 * np.log(1.8) + 0.1 * np.log(0.2)),
    "gaussian": ([0.0, 0.0], [0.0, np.log(2)], np.log(2) - 3 / 8, 3 / 2 - np.log(2)),
}


@pytest.mark.parametrize("name", DIRECTED)
def test_kl_of_old_to_new_is_the_expectation_under_old(name, dtype):
    old, new, forward, backward = DIRECTED[name]
    build = {
        "categorical": Categorical,
        "bernoulli": Bernoulli,
        "multi": lambda z: MultiCategorical(z, None, (2,)),
        "gaussian": lambda z: DiagGaussian(z[:1], z[1:]),
    }[name]
    old, new = build(np.asarray(old, dtype)), build(np.asarray(new, dtype))
    assert abs(forward - backward) > 0.1
    assert float(kl(old, new)) == pytest.approx(forward, rel=2e-6)
    assert float(kl(new, old)) == pytest.approx(backward, rel=2e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_kl_and_tv_are_exactly_zero_at_coincidence(name, dtype, rng):
    distribution = make(name, rng.normal(size=(6, 6), scale=3), dtype)
    assert np.all(np.asarray(kl(distribution, distribution)) == 0)
    assert np.all(np.asarray(tv(distribution, distribution)) == 0)


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_gradient_of_kl_vanishes_at_coincidence_and_not_elsewhere(name, x64, rng):
    @jax.jit
    def gradient(old, new):
        vector, rebuild = flat(new)
        return jax.grad(lambda v: jnp.sum(old.kl(rebuild(v))))(vector)

    here, there = (make(name, rng.normal(size=(6, 6)), np.float64) for _ in range(2))
    np.testing.assert_allclose(gradient(here, here), 0, atol=1e-14)
    assert np.linalg.norm(gradient(here, there)) > 0.1


@jax.jit
def _divergences(pairs):
    return [(kl(old, new), kl(new, old), tv(old, new), tv(new, old)) for old, new in pairs]


PARAMETERS = hnp.arrays(np.float64, (2, 6), elements=st.floats(-12, 12))
PRECISIONS = ["float32", "float64"]


def _pair(vectors, distance, precision):
    old, direction = vectors
    new = old + distance * direction
    return [tuple(make(name, vector, precision) for vector in (old, new)) for name in FAMILIES]


@pytest.mark.parametrize("precision", PRECISIONS)
@given(vectors=PARAMETERS, exponent=st.floats(-10, 0))
@example(vectors=np.array([[0.3, -1.2, 0.7, 0.1, -0.4, 0.2], [1.0, 0.3, -0.2, 0.5, 0.9, -1.0]]), exponent=-4.0)
@settings(max_examples=60)
def test_kl_is_never_negative(precision, vectors, exponent):
    with jax.enable_x64(precision == "float64"):
        for name, divergences in zip(FAMILIES, _divergences(_pair(vectors, 10**exponent, precision)), strict=True):
            forward, backward, *_ = map(float, divergences)
            assert forward >= 0, name
            assert backward >= 0, name


def leaves(distribution) -> list[np.ndarray]:
    """The parameters in float64."""
    return [
        np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(eqx.filter(distribution, eqx.is_inexact_array_like))
    ]


def inner(left, right) -> np.ndarray:
    """Row-wise inner products of two tangents."""
    return sum(np.sum(a * b, axis=-1) for a, b in zip(leaves(left), leaves(right), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_kl_is_never_negative_and_averages_right_however_small_the_step(name, dtype, rng):
    for distance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8):
        before = rng.normal(size=(2000, 6)).astype(dtype)
        after = before + (distance * rng.normal(size=before.shape)).astype(dtype)
        old, new, step = (make(name, vector, dtype) for vector in (before, after, after - before))
        told = np.asarray(kl(old, new), np.float64)
        assert told.min() >= 0, distance
        # Below, the parameters' own rounding decides.
        if distance >= (1e-3 if dtype == np.float32 else 1e-6):
            model = 0.5 * inner(step, metric(old, step))
            assert told.mean() == pytest.approx(model.mean(), rel=max(3 * distance, 0.01)), distance


# Total variation


def test_tv_is_that_of_enumeration_over_joint_actions_both_ways(family, dtype, rng):
    old, new = rng.normal(size=(2, 6, family.width), scale=1.5).astype(dtype)
    truth = 0.5 * np.abs(family.joint(old) - family.joint(new)).sum(axis=-1)
    assert truth.mean() > 0.05
    np.testing.assert_allclose(tv(family(old), family(new)), truth, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(tv(family(new), family(old)), truth, atol=TOLERANCE[dtype])


def _scipy_tv(mean, std, new_mean, new_std):
    """TV of two normal distributions in one dimension: SciPy's masses between the crossings of its densities."""
    old, new = stats.norm(mean, std), stats.norm(new_mean, new_std)
    gap = lambda x: old.logpdf(x) - new.logpdf(x)  # noqa: E731
    grid = np.unique([m + s * np.linspace(-40, 40, 40_001) for m, s in ((mean, std), (new_mean, new_std))])
    sign = np.sign(gap(grid))
    crossings = [
        optimize.brentq(gap, grid[i], grid[i + 1], xtol=1e-15) for i in np.flatnonzero(sign[1:] * sign[:-1] < 0)
    ]
    ends = np.concatenate([[-INF], crossings, grid[sign == 0], [INF]])
    return 0.5 * np.abs(np.diff(old.cdf(np.sort(ends)) - new.cdf(np.sort(ends)))).sum()


NORMAL_PAIRS = [
    (0.0, 1.0, 1.0, 1.0),
    (0.0, 1.0, 1e-3, 1.0),
    (0.0, 1.0, 0.0, 2.0),
    (0.0, 1.0, 0.0, 0.5),
    (0.0, 1.0, -1.5, 0.3),
    (0.0, 1.0, 0.7, 3.0),
    (0.0, 1.0, 0.5, 1.001),
    (0.0, 1.0, -0.5, 1 / 1.001),
    (0.0, 1.0, 0.01, 1.000001),
    (2.0, 0.5, 2.1, 0.55),
    (-1.0, 1e-3, -1.0005, 2e-3),
    (0.0, 1.0, 8.0, 1.5),
    (0.0, 1.0, 0.0, 1e-4),
    (0.0, 1.0, 3.0, 1e-3),
]


@pytest.mark.parametrize("pair", NORMAL_PAIRS)
def test_one_dimensional_gaussian_tv_is_scipys_mass_between_the_crossings_both_ways(pair, dtype):
    mean, log_std, new_mean, new_log_std = (
        np.asarray(x, dtype) for x in (pair[0], np.log(pair[1]), pair[2], np.log(pair[3]))
    )
    old = DiagGaussian(np.asarray([mean]), np.asarray([log_std]))
    new = DiagGaussian(np.asarray([new_mean]), np.asarray([new_log_std]))
    truth = _scipy_tv(*(float(x) for x in (mean, np.exp(float(log_std)), new_mean, np.exp(float(new_log_std)))))
    tolerance = 1e-6 if dtype == np.float32 else 1e-10
    assert float(tv(old, new)) == pytest.approx(truth, abs=tolerance)
    assert float(tv(new, old)) == pytest.approx(truth, abs=tolerance)


@pytest.mark.parametrize(
    ("mean", "log_std"),
    [(1.0, -20.0), (1e4, -20.0), (100.0, -12.0), (1.0, -40.0), (1.0, -60.0), (1e30, 0.0), (30.0, 1.0)],
)
def test_tv_of_distant_or_very_unequal_gaussians_is_one_both_ways(mean, log_std, dtype):
    old = DiagGaussian(np.zeros(1, dtype), np.zeros(1, dtype))
    new = DiagGaussian(np.full(1, mean, dtype), np.full(1, log_std, dtype))
    assert float(tv(old, new)) == pytest.approx(1, abs=2e-4)
    assert float(tv(new, old)) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_gaussian_tv_at_equal_deviations_is_the_error_function_of_the_distance(dimensions, dtype, rng):
    mean, new_mean, log_std = rng.normal(size=(3, 4, dimensions)).astype(dtype)
    distance = np.linalg.norm((mean - new_mean) / np.exp(log_std.astype(float)), axis=-1)
    told = tv(DiagGaussian(mean, log_std), DiagGaussian(new_mean, log_std))
    np.testing.assert_allclose(told, erf(distance / (2 * np.sqrt(2))), atol=2 * TOLERANCE[dtype])


GAUSSIAN_PLANES = [  # mean, std, new mean, new std of two dimensions
    ([0, 0], [1, 1], [0.2, -0.1], [1.1, 0.9]),
    ([0, 0], [1, 2], [1.0, 0.0], [0.5, 2.5]),
    ([1, -1], [0.3, 0.4], [1.1, -0.8], [0.45, 0.4]),
    ([0, 0], [1, 1], [0.0, 0.0], [1.05, 1.05]),
]


@pytest.mark.parametrize("case", GAUSSIAN_PLANES)
def test_gaussian_tv_in_two_dimensions_bounds_the_integral_and_not_by_much(case, x64):
    (m, s, n, t) = (np.asarray(row, np.float64) for row in case)
    axes = [
        np.linspace(min(a - 8 * b, c - 8 * d), max(a + 8 * b, c + 8 * d), 1201)
        for a, b, c, d in zip(m, s, n, t, strict=True)
    ]
    densities = [
        np.outer(*(stats.norm.pdf(axis, mean[i], std[i]) for i, axis in enumerate(axes)))
        for mean, std in ((m, s), (n, t))
    ]
    gap = np.abs(densities[0] - densities[1])
    truth = 0.5 * integrate.trapezoid(integrate.trapezoid(gap, axes[1], axis=1), axes[0])
    old, new = DiagGaussian(np.asarray(m), np.log(s)), DiagGaussian(np.asarray(n), np.log(t))
    for told in (float(tv(old, new)), float(tv(new, old))):
        assert truth - 1e-5 <= told <= min(1, 2 * truth + 1e-5)


def test_gaussian_tv_in_six_dimensions_bounds_a_monte_carlo_estimate(x64, rng):
    mean, new_mean = rng.normal(size=(2, 6), scale=0.1)
    log_std, new_log_std = rng.normal(size=(2, 6), scale=0.1)
    action = mean + np.exp(log_std) * rng.normal(size=(200_000, 6))
    ratio = stats.norm.logpdf(action, new_mean, np.exp(new_log_std)) - stats.norm.logpdf(action, mean, np.exp(log_std))
    excess = np.maximum(1 - np.exp(ratio.sum(axis=-1)), 0)
    truth, error = excess.mean(), excess.std() / np.sqrt(len(excess))
    old, new = (
        DiagGaussian(mean, log_std),
        DiagGaussian(new_mean, new_log_std),
    )
    assert truth - 5 * error <= float(tv(old, new)) <= 1
    assert truth - 5 * error <= float(tv(new, old)) <= 1


@pytest.mark.parametrize("family", [Discrete(MultiCategorical, (11, 11, 11)), Discrete(Bernoulli, (2,) * 11)])
def test_tv_beyond_1024_joint_actions_is_a_bound_below_the_sum_of_the_parts(family, x64, rng):
    for scale in (0.01, 0.3, 2.0):
        old = rng.normal(size=(5, family.width))
        new = old + scale * rng.normal(size=(5, family.width))
        truth = 0.5 * np.abs(family.joint(old) - family.joint(new)).sum(axis=-1)
        parts = [
            0.5 * np.abs(p - q).sum(axis=-1) for p, q in zip(family.factors(old), family.factors(new), strict=True)
        ]
        told = np.asarray(tv(family(old), family(new)))
        assert np.all(told >= truth - 1e-12)
        assert np.all(told <= np.minimum(1, np.sum(parts, axis=0)) + 1e-12)


@pytest.mark.parametrize("family", [Discrete(MultiCategorical, (32, 32)), Discrete(Bernoulli, (2,) * 10)])
def test_tv_is_exact_up_to_1024_joint_actions(family, x64, rng):
    old, new = rng.normal(size=(2, 3, family.width), scale=0.3)
    truth = 0.5 * np.abs(family.joint(old) - family.joint(new)).sum(axis=-1)
    np.testing.assert_allclose(tv(family(old), family(new)), truth, atol=1e-13)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(vectors=PARAMETERS, exponent=st.floats(-6, 0))
@settings(max_examples=60)
def test_tv_is_between_0_and_1_and_obeys_pinsker_and_bretagnolle_huber(precision, vectors, exponent):
    with jax.enable_x64(precision == "float64"):
        rounding = 1e-3 if precision == "float32" else 1e-7
        for name, divergences in zip(FAMILIES, _divergences(_pair(vectors, 10**exponent, precision)), strict=True):
            forward, backward, tv, back = map(float, divergences)
            assert min(tv, back) >= -1e-7, name
            assert max(tv, back) <= 1 + 1e-6, name
            if name == "gaussian":
                continue  # an upper bound on TV; its own test has one dimension
            least = max(min(forward, backward), 0)
            assert tv <= np.sqrt(least / 2) + rounding, name
            assert tv <= np.sqrt(1 - np.exp(-least)) + rounding, name


@pytest.mark.parametrize("precision", PRECISIONS)
@given(pair=hnp.arrays(np.float64, (2, 2), elements=st.floats(-6, 6)))
@settings(max_examples=60)
def test_one_dimensional_gaussian_tv_is_symmetric_and_obeys_pinsker(precision, pair):
    with jax.enable_x64(precision == "float64"):
        old, new = (DiagGaussian(np.asarray(v[:1], precision), np.asarray(v[1:], precision)) for v in pair)
        ((forward, backward, tv, back),) = _divergences([(old, new)])
        rounding = 1e-3 if precision == "float32" else 1e-7
        assert 0 <= float(tv) <= 1
        assert float(tv) == pytest.approx(float(back), abs=1e-3 if precision == "float32" else 1e-9)
        assert float(tv) <= np.sqrt(max(min(float(forward), float(backward)), 0) / 2) + rounding


# The metric


@jax.jit
def _curvatures(distribution):
    """M as a matrix, and the Hessians of the two KLs at coincidence."""
    vector, rebuild = flat(distribution)

    def applied(tangent):
        return flat(distribution.metric(rebuild(tangent)))[0]

    matrix = jax.vmap(applied, out_axes=1)(jnp.eye(vector.size))
    forward = jax.hessian(lambda v: distribution.kl(rebuild(v)))(vector)
    return matrix, forward, jax.hessian(lambda v: rebuild(v).kl(distribution))(vector)


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_metric_is_the_hessian_of_both_kls_at_coincidence(name, x64, rng):
    matrix, forward, backward = _curvatures(make(name, rng.normal(size=6), np.float64))
    assert np.linalg.norm(matrix) > 0.1
    np.testing.assert_allclose(matrix, forward, atol=1e-12)
    np.testing.assert_allclose(matrix, backward, atol=1e-12)


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_metric_is_applied_row_by_row_and_is_positive_semidefinite(name, rng):
    distribution, tangent = (make(name, rng.normal(size=(6, 6)), np.float32) for _ in range(2))
    image = metric(distribution, tangent)
    by_row = jax.jit(jax.vmap(lambda one, other: one.metric(other)))(distribution, tangent)
    for whole, part in zip(leaves(image), leaves(by_row), strict=True):
        np.testing.assert_allclose(whole, part, atol=1e-6, rtol=1e-5)
    assert np.all(inner(image, tangent) > 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_small_steps_have_the_kl_of_the_quadratic_model_both_ways(name, x64, rng):
    h = 1e-3
    here, direction = rng.normal(size=(2, 6, 6))
    old, tangent = make(name, here, np.float64), make(name, direction, np.float64)
    quadratic = 0.5 * inner(tangent, metric(old, tangent))
    moved = [make(name, here + sign * h * direction, np.float64) for sign in (1, -1)]
    for divergences in ([kl(old, new) for new in moved], [kl(new, old) for new in moved]):
        np.testing.assert_allclose(np.sum(divergences, axis=0) / (2 * h**2), quadratic, rtol=1e-4)


# The edges: probability 0, extreme logits, tiny deviations


def test_worked_case_4_of_the_theory(dtype):
    for old, new in (
        (Categorical(np.zeros(2, dtype)), Categorical(np.asarray([0.0, -INF], dtype))),
        (Categorical(np.zeros(2, dtype)), Categorical(np.zeros(2, dtype), np.asarray([True, False]))),
        (
            MultiCategorical(np.zeros(2, dtype), None, (2,)),
            MultiCategorical(np.asarray([0.0, -INF], dtype), None, (2,)),
        ),
        (Bernoulli(np.zeros(1, dtype)), Bernoulli(np.asarray([INF], dtype))),
    ):
        assert float(tv(old, new)) == 0.5
        assert float(tv(new, old)) == 0.5
        assert float(kl(new, old)) == pytest.approx(0.693147, abs=5e-7)
        assert float(kl(old, new)) == INF
        pinsker = np.sqrt(float(kl(new, old)) / 2)
        bretagnolle_huber = np.sqrt(1 - np.exp(-float(kl(new, old))))
        assert pinsker == pytest.approx(0.588705, abs=5e-7)
        assert bretagnolle_huber == pytest.approx(0.707107, abs=5e-7)
        assert float(tv(old, new)) <= min(pinsker, bretagnolle_huber)


EDGES = {  # the first vector's -inf leaves each masked family something to choose
    "minus infinity": [0.0, -INF, 1.0, -INF, 0.5, -1.0],
    "minus infinity, turned": [1.0, 0.0, -INF, 0.3, -INF, 0.2],
    "plain": [0.3, -0.2, 1.0, 0.1, -0.5, 0.2],
    "another": [1.3, 0.2, -1.0, 0.6, 0.5, -0.7],
    "thousands": [1e4, -1e4, 0.0, 1e4, -1e4, 1e4],
    "thousands, turned": [-1e4, 1e4, 1e4, 0.0, 1e4, -1e4],
    "huge": [1e30, -1e30, 0.0, 1e30, -1e30, 1.0],
    "huge, turned": [-1e30, 1e30, 1.0, -1e30, 0.0, 1e30],
}
GAUSSIAN_EDGES = {
    "plain": [0.3, -0.2, 1.0, 0.1, -0.5, 0.2],
    "tiny deviation": [0.3, -0.2, 1.0, -20.0, -20.0, -20.0],
    "tiny deviation, moved": [0.3001, -0.2, 1.1, -19.9, -20.0, -20.1],
    "tinier": [0.3, -0.2, 1.0, -30.0, -30.0, -30.0],
    "wide": [0.3, -0.2, 1.0, 5.0, 5.0, 5.0],
    "far": [1e4, -1e4, 1e4, 0.0, -20.0, 5.0],
}


def _edges(name, dtype):
    table = GAUSSIAN_EDGES if name == "gaussian" else EDGES
    return list(table), make(name, np.array(list(table.values())), dtype)


def _derivatives(function, distribution):
    """Value, gradient and one directional derivative in the distribution's parameters."""
    vector, rebuild = flat(distribution)
    value, gradient = jax.value_and_grad(lambda v: function(rebuild(v)))(vector)
    direction = jnp.linspace(0.5, 1.5, vector.size, dtype=vector.dtype)
    _, slope = jax.jvp(lambda v: function(rebuild(v)), (vector,), (direction,))
    return value, gradient, slope


def assert_no_nan(tree, labels):
    """No NaN in arrays whose first axes are labelled; says where there is one."""
    for leaf in jax.tree.leaves(tree):
        bad = np.isnan(np.asarray(leaf)).reshape(len(labels), -1).any(axis=-1)
        assert not bad.any(), [label for label, is_bad in zip(labels, bad, strict=True) if is_bad]


@pytest.mark.parametrize("name", EDGE_FAMILIES)
def test_no_nan_in_entropy_log_probability_and_metric_at_the_edges(name, dtype, key):
    labels, edges = _edges(name, dtype)
    actions = np.zeros((1, 3), dtype) if name == "gaussian" else DISCRETE[name].actions

    @jax.jit
    @jax.vmap
    def told(distribution):
        by_action = jax.vmap(lambda action: _derivatives(lambda d: d.log_prob(action), distribution))(actions)
        ones = jax.tree.map(jnp.ones_like, distribution)
        return _derivatives(lambda d: d.entropy(), distribution), by_action, distribution.metric(ones)

    of_entropy, of_log_prob, image = told(edges)
    assert_no_nan((of_entropy, of_log_prob, leaves(image)), labels)
    assert_no_nan(log_prob(edges, sampled(edges, key)), labels)
    if name != "gaussian":
        np.testing.assert_allclose(np.exp(of_log_prob[0]).sum(axis=-1), 1, rtol=2e-6)
        assert np.all(np.asarray(log_prob(edges, sampled(edges, key))) > -30)
        assert np.all(np.asarray(of_entropy[0]) >= 0)
        assert np.all(np.asarray(of_entropy[0]) <= np.log(len(actions)) + 1e-6)


@pytest.mark.parametrize("name", EDGE_FAMILIES)
def test_no_nan_in_divergences_and_their_derivatives_at_the_edges(name, dtype):
    labels, edges = _edges(name, dtype)
    pairs = list(product(range(len(labels)), repeat=2))
    labels = [f"{labels[i]} to {labels[j]}" for i, j in pairs]
    old, new = (jax.tree.map(lambda leaf: leaf[np.array(pairs)[:, side]], edges) for side in (0, 1))  # noqa: B023

    @jax.jit
    @jax.vmap
    def told(old, new):
        in_new = _derivatives(lambda d: old.kl(d), new)
        in_old = _derivatives(lambda d: d.kl(new), old)
        return in_new, in_old, old.tv(new)

    in_new, in_old, distance = told(old, new)
    assert_no_nan((in_new, in_old[0], distance), labels)
    assert np.all(np.asarray(in_new[0]) >= 0)
    assert np.all((np.asarray(distance) >= -1e-6) & (np.asarray(distance) <= 1 + 1e-6))
    finite = np.isfinite(in_new[0])  # an infinite divergence has no derivative in the old parameters
    assert finite.any()
    assert_no_nan(jax.tree.map(lambda leaf: leaf[finite], in_old), np.array(labels)[finite])


def test_kl_at_the_edges_is_infinite_exactly_where_support_is_lost(family, x64):
    table = np.array(list(EDGES.values()))[:, : family.width]
    for old, new in product(table, repeat=2):
        p, q = family.joint(old), family.joint(new)
        told = float(kl(family(old), family(new)))
        # Logits of -1e30 underflow to probability 0 in the enumeration only.
        lost = bool(np.any((p > 0) & (family.joint(np.where(np.isinf(new), new, 0.0)) == 0)))
        assert np.isinf(told) == lost
        if np.all(q[p > 0] > 0):
            assert told == pytest.approx(rel_entr(p, q).sum(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", ["masked", "multi-masked"])
def test_masked_logits_have_no_influence_and_no_gradient(name, rng):
    family = DISCRETE[name]
    allowed = np.asarray(family.mask)
    logits, other = rng.normal(size=(2, family.width)).astype(np.float32)
    garbage = np.where(allowed, logits, np.resize([1e30, -INF, -1e4], family.width)).astype(np.float32)
    new = family(other)

    @jax.jit
    def told(z):
        return jnp.stack([family(z).entropy(), family(z).kl(new), new.kl(family(z)), family(z).tv(new)])

    np.testing.assert_array_equal(told(garbage), told(logits))
    gradient = np.asarray(jax.jit(jax.jacrev(told))(garbage))
    assert np.all(gradient[:, ~allowed] == 0)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient[:, allowed] != 0, axis=-1))


def test_different_masks_give_infinite_kl_only_where_support_is_lost(dtype):
    wide = Categorical(np.zeros(3, dtype), np.asarray([True, True, True]))
    narrow = Categorical(np.zeros(3, dtype), np.asarray([True, True, False]))
    assert float(wide.kl(narrow)) == INF
    assert float(narrow.kl(wide)) == pytest.approx(np.log(1.5), rel=1e-6)
    assert float(wide.tv(narrow)) == pytest.approx(1 / 3, rel=1e-6)
