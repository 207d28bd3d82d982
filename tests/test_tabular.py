"""The exact engine's model, evaluation and files, against naive loops, known answers and real environments."""

import json
import types

import gymnasium
import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given

import surefoot as sf
from models import DISCOUNTS, problems, random_model, random_policy, rollout_law, summed_return
from surefoot.errors import EnvironmentNotFound, ModelError
from surefoot.tabular import MDP, TabularPolicy, evaluate, library, state_laws
from surefoot.tabular.toy_text import TOY_TEXT, from_gymnasium, load

STAY = np.eye(2)[:, None, :]


def as_sparse(mdp):
    return MDP(sparse.csr_array(mdp.matrix), mdp.reward, mdp.discount, mdp.start, mdp.horizon)


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("horizon", [None, 1, 7])
def test_evaluation_agrees_with_sums_over_time(discount, horizon, rng):
    for _ in range(5):
        mdp = random_model(rng, horizon, discounts=[discount])
        policy = random_policy(rng, mdp.policy_shape)
        account = evaluate(mdp, policy)
        expected_return, visitation = summed_return(mdp, policy)
        tolerance = 1e-11 * mdp.scale
        assert abs(account.expected_return - expected_return) < tolerance
        law = account.visitation if horizon is None else account.visitation.sum(axis=0)
        np.testing.assert_allclose(law, visitation, atol=1e-11)
        np.testing.assert_allclose(account.visitation.sum(), 1, rtol=1e-12)
        np.testing.assert_allclose(np.sum(policy * account.advantage, axis=-1), 0, atol=tolerance)
        np.testing.assert_allclose(state_laws(mdp, policy, horizon or 9), rollout_law(mdp, policy, horizon or 9))


def test_worked_case_3_indexes_time_from_the_start():
    mdp = library.three_decisions()
    old, new = np.full((2, 2), 0.5), np.array([[0.2, 0.8], [0.9, 0.1]])
    account = mdp.evaluate(old)
    np.testing.assert_allclose(account.value, [[2.5, 3.5], [1.5, 2.5], [0.5, 1.5]])
    certificate = sf.certify(old, new, mdp)
    assert certificate.old_return == pytest.approx(2.5)
    assert certificate.new_return == pytest.approx(4.8)
    assert certificate.gain == pytest.approx(2.3)
    assert certificate.surrogate_gain == pytest.approx(1.25)
    expected = np.sum((new - old) * account.advantage, axis=-1)
    each = np.sum(rollout_law(mdp, new, 2) * expected, axis=1)
    np.testing.assert_allclose(each, [0, 1.28, 1.02], atol=1e-12)


@given(problem=problems())
def test_sparse_and_dense_models_give_the_same(problem):
    mdp, old, new = problem
    one, other = mdp.evaluate(new), as_sparse(mdp).evaluate(new)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11 * mdp.scale)
    first, second = sf.certify(old, new, mdp), sf.certify(old, new, as_sparse(mdp))
    assert first.gain == pytest.approx(second.gain, abs=1e-10 * mdp.scale)


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.999])
def test_large_models_are_solved_to_rounding_without_factorising(discount, monkeypatch):
    import scipy.sparse.linalg

    def refused(*_):
        raise AssertionError("factorised")

    monkeypatch.setattr(scipy.sparse.linalg, "splu", refused)
    for mdp in (library.garnet(3000, 3, 3, discount), library.grid(60, discount=discount)):
        account = mdp.evaluate(mdp.uniform())
        step = mdp.under(mdp.uniform())
        target = mdp.reward.mean(axis=1) + discount * (step @ account.value)
        assert np.max(np.abs(target - account.value)) < 1e-10 * mdp.scale * (1 - discount)
        flow = (1 - discount) * mdp.start + discount * (account.visitation @ step)
        assert np.sum(np.abs(flow - account.visitation)) < 1e-10


def test_states_that_are_never_met_have_visitation_zero_exactly(rng):
    for discount in DISCOUNTS:
        transition = np.zeros((6, 2, 6))
        transition[:3, :, :3] = rng.dirichlet(np.ones(3), size=(3, 2))
        transition[3:] = rng.dirichlet(np.ones(6), size=(3, 2))
        mdp = MDP(transition, rng.standard_normal((6, 2)), discount, 0)
        assert (mdp.evaluate(mdp.uniform()).visitation[3:] == 0).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MDP(STAY[:, :, :1], [[1], [1]], 0.9, 0), "transition must be [S, A, S], but [2, 1, 1] came"),
        (lambda: MDP(STAY * 0.5, [[1], [1]], 0.9, 0), "transition from state 0 with action 0 sums to 0.5"),
        (
            lambda: MDP([[[1.5, -0.5]], [[0, 1]]], [[1], [1]], 0.9, 0),
            "transition from state 0 with action 0 has the probability -0.5",
        ),
        (lambda: MDP([[[1, 0]], [[np.nan, 1]]], [[1], [1]], 0.9, 0), "from state 1 with action 0 has the probability"),
        (lambda: MDP("abc", [[1], [1]], 0.9, 0), "transition must be an array of numbers"),
        (lambda: MDP(sparse.csr_array((3, 2)), [[1], [1]], 0.9, 0), "sparse matrix must be [S*A, S], but [3, 2] came"),
        (lambda: MDP(sparse.csr_array([[1.0, 0], [0, 0.5]]), [[1], [1]], 0.9, 0), "from state 1 with action 0 sums"),
        (lambda: MDP(STAY, [1, 1], 0.9, 0), "reward must be [2, 1] or [2, 1, 2] to fit transition, but [2] came"),
        (lambda: MDP(STAY, [[1], [np.inf]], 0.9, 0), "reward from state 1 with action 0 is inf"),
        (lambda: MDP(STAY, [[1], [1]], 1.0, 0), "discount must be at least 0 and below 1 without a horizon, but 1"),
        (lambda: MDP(STAY, [[1], [1]], 1.1, 0, horizon=3), "discount must be at least 0 and at most 1, but 1.1 came"),
        (lambda: MDP(STAY, [[1], [1]], np.nan, 0), "discount must be"),
        (lambda: MDP(STAY, [[1], [1]], "high", 0), "discount must be a number, but 'high' came"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, 2), "start must be one of the states 0 to 1"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, [0.5, 0.2]), "start sums to 0.7"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, [1.5, -0.5]), "start gives state 1 the probability -0.5"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, [1]), "start must be [2] to fit transition, but [1] came"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, 0, horizon=0), "horizon must be a whole number, at least 1"),
        (lambda: MDP(STAY, [[1], [1]], 0.9, 0, horizon=2.5), "horizon must be a whole number, at least 1"),
        (lambda: library.equality().evaluate(np.ones((2, 2))), "policy in state 0 sums to 2"),
        (lambda: library.equality().evaluate(np.ones((2, 3))), "policy must be [2, 2] for this MDP, but [2, 3] came"),
        (lambda: library.three_decisions().evaluate(np.ones(2)), "policy must be [2, 2] or [3, 2, 2] for this MDP"),
        (
            lambda: library.three_decisions().evaluate([[[1, 0], [1, 0]], [[1, 0], [2, -1]], [[1, 0], [1, 0]]]),
            "policy gives action 1 in state 1 at time 1 the probability -1",
        ),
        (lambda: sf.certify(np.eye(2), np.ones((2, 2)), library.equality()), "new in state 0 sums to 2"),
        (lambda: sf.certify(np.eye(2), np.eye(2), None), "evidence must be a surefoot.tabular.MDP"),
        (lambda: library.garnet(3, 2, 4), "branching must be at least 1 and at most the 3 states, but 4 came"),
    ],
)
def test_what_is_no_model_or_policy_is_refused_and_names_the_place(make, words):
    with pytest.raises(ModelError) as refusal:
        make()
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_rewards_by_successor_are_their_expectation(rng):
    mdp = random_model(rng)
    by_successor = rng.standard_normal((mdp.states, mdp.actions, mdp.states))
    transition = mdp.matrix.reshape(by_successor.shape)
    expected = np.einsum("sat,sat->sa", transition, by_successor)
    impossible = np.where(transition > 0, by_successor, np.inf)
    for reward in (by_successor, impossible):
        made = MDP(transition, reward, 0.5, mdp.start)
        np.testing.assert_allclose(made.reward, expected, atol=1e-12)
    rows = (sparse.csr_array(a.reshape(-1, mdp.states)) for a in (transition, by_successor))
    np.testing.assert_allclose(MDP(*rows, 0.5, mdp.start).reward, expected, atol=1e-12)


def test_a_table_of_logits_is_the_policy_of_its_probabilities(rng):
    probabilities = random_policy(rng, (5, 3))
    np.testing.assert_allclose(TabularPolicy.of(probabilities).probabilities(), probabilities, atol=1e-15)
    mdp = MDP(np.full((5, 3, 5), 0.2), np.zeros((5, 3)), 0.5, 0)
    np.testing.assert_allclose(mdp.probabilities(TabularPolicy.of(probabilities)), probabilities, atol=1e-15)


# Files


@pytest.mark.parametrize("horizon", [None, 4])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_saved_model_comes_back_bit_for_bit(kind, horizon, rng, tmp_path):
    mdp = random_model(rng, horizon)
    mdp = as_sparse(mdp) if kind == "sparse" else mdp
    sf.tabular.save_mdp(mdp, tmp_path / "mdp.npz")
    back = load(str(tmp_path / "mdp.npz"))
    assert sparse.issparse(back.matrix) == (kind == "sparse")
    for one, other in ((mdp.matrix, back.matrix), (mdp.reward, back.reward), (mdp.start, back.start)):
        np.testing.assert_allclose(*((m.toarray() if sparse.issparse(m) else m) for m in (one, other)), rtol=1e-15)
    assert (back.discount, back.horizon) == (mdp.discount, mdp.horizon)


def test_a_small_model_can_be_written_by_hand_as_json(tmp_path):
    file = tmp_path / "mdp.json"
    held = {
        "transition": [[[1, 0], [0, 1]], [[0, 1], [0, 1]]],
        "reward": [[0, 1], [0, -1]],
        "discount": 0.9,
        "start": 0,
    }
    file.write_text(json.dumps(held))
    mdp, known = load(str(file)), library.equality()
    np.testing.assert_array_equal(mdp.matrix, known.matrix)
    np.testing.assert_array_equal(mdp.reward, known.reward)
    assert load(str(file), discount=0.5).discount == 0.5
    assert load(str(file), horizon=3).horizon == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.npz", None, "cannot be read: No such file"),
        ("bad.npz", b"not a zip", "is no .npz archive"),
        ("bad.json", b"{", "is no JSON"),
        ("list.json", b"[]", "must hold a JSON object with transition, reward, discount, start"),
        ("no.json", b'{"transition": [[[1]]], "reward": [[1]], "start": 0}', "has no 'discount'"),
        ("odd.json", b'{"transtion": [[[1]]]}', "'transtion', which is no part of an MDP (did you mean 'transition'"),
        ("off.json", b'{"transition": [[[2]]], "reward": [[1]], "start": 0, "discount": 0.5}', "state 0 with action 0"),
    ],
)
def test_a_file_that_holds_no_model_is_refused_in_one_line(name, content, words, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as refusal:
        load(str(tmp_path / name))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("code ran while loading",)


def test_nothing_in_a_file_is_ever_run(tmp_path):
    trap = np.array([Trap()], dtype=object)
    np.savez(tmp_path / "mdp.npz", transition=trap, reward=trap, discount=0.5, start=0)
    with pytest.raises(ModelError, match="archive of plain arrays"):
        load(str(tmp_path / "mdp.npz"))
    np.save(tmp_path / "policy.npy", trap, allow_pickle=True)
    with pytest.raises(ModelError, match="array of numbers"):
        sf.tabular.read_policy(tmp_path / "policy.npy", library.equality())


# Toy text


@pytest.mark.parametrize("name", [*TOY_TEXT, "CliffWalkingSlippery-v1"])
def test_toy_text_agrees_with_playing_the_real_environment(name, seed):
    """Over 40 steps from a random policy: the discounted return and the share of ended episodes, within 4.5
    standard errors."""
    steps, discount = 40, 0.95
    mdp = load(name, discount=discount, horizon=steps)
    environment = gymnasium.make(name).unwrapped
    assert (mdp.states, mdp.actions) == (environment.observation_space.n, environment.action_space.n)
    rng = np.random.default_rng(seed)
    policy = rng.dirichlet(np.ones(mdp.actions), size=mdp.states)
    episodes = 1500 if name != "Taxi-v4" else 500
    returns, ended = np.zeros(episodes), np.zeros(episodes)
    cumulative = policy.cumsum(axis=1)
    for episode in range(episodes):
        state, _ = environment.reset(seed=seed % 2**31 if episode == 0 else None)
        for t in range(steps):
            action = min(int(np.searchsorted(cumulative[state], rng.random())), mdp.actions - 1)
            state, reward, terminated, _, _ = environment.step(action)
            returns[episode] += discount**t * reward
            if terminated:
                ended[episode] = 1
                break
    exact = mdp.evaluate(policy).expected_return
    error = returns.std() / np.sqrt(episodes) + 1e-9
    assert abs(returns.mean() - exact) < 4.5 * error
    # An end is a state that is never left and earns nothing.
    stay = mdp.matrix.toarray().reshape(mdp.states, mdp.actions, -1)[np.arange(mdp.states), :, np.arange(mdp.states)]
    ends = (stay == 1).all(axis=1) & (mdp.reward == 0).all(axis=1)
    over = state_laws(mdp, policy, steps)[-1][ends].sum()
    assert abs(ended.mean() - over) < 4.5 * np.sqrt(max(over * (1 - over), 1 / episodes) / episodes) + 1e-9


@pytest.mark.parametrize(
    ("name", "optimal"),
    [("FrozenLake-v1", 0.74), ("FrozenLake8x8-v1", 0.8), ("CliffWalking-v1", -13), ("Taxi-v4", 7.9)],
)
def test_the_best_policy_of_toy_text_is_as_good_as_is_known(name, optimal):
    """Undiscounted over the environment's own time limit: 13 steps along the cliff, 7.9 in Taxi, 74% on the ice."""
    horizon = {"FrozenLake-v1": 100, "FrozenLake8x8-v1": 200, "CliffWalking-v1": 200, "Taxi-v4": 200}[name]
    best = load(name, discount=1.0, horizon=horizon).policy_iteration()
    assert best.expected_return == pytest.approx(optimal, abs=0.12 if "8x8" in name or name == "Taxi-v4" else 0.01)


def test_an_end_that_can_be_met_without_ending_becomes_a_state_of_its_own():
    table = {
        0: {0: [(1.0, 1, 5.0, True)], 1: [(1.0, 1, 1.0, False)]},
        1: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 1, 2.0, False)]},
    }
    environment = types.SimpleNamespace(P=table, initial_state_distrib=[1.0, 0.0])
    environment.unwrapped = environment
    mdp = from_gymnasium(environment, discount=0.5)
    assert mdp.states == 3
    np.testing.assert_allclose(mdp.evaluate(np.array([[1, 0], [0, 1], [1, 0]])).value, [5, 4, 0])
    np.testing.assert_allclose(mdp.evaluate(np.array([[0, 1], [0, 1], [1, 0]])).value, [3, 4, 0])


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("CartPole-v1", ModelError, "'CartPole-v1' has no table of transitions"),
        ("FrozenLak-v1", EnvironmentNotFound, "did you mean 'FrozenLake-v1'"),
        ("garnett", EnvironmentNotFound, "did you mean 'garnet'"),
    ],
)
def test_a_name_without_a_finite_model_is_refused_with_the_nearest(name, kind, words):
    with pytest.raises(kind) as refusal:
        load(name)
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", library.LIBRARY)
def test_every_model_of_the_library_can_be_loaded_by_its_name(name):
    mdp = load(name)
    assert np.isfinite(mdp.evaluate(mdp.uniform()).expected_return)


def test_garnet_is_what_its_parameters_say(rng):
    for states in (8, 1500):
        mdp = library.garnet(states, 3, 3, 0.9, seed=int(rng.integers(1000)))
        counts = np.asarray((mdp.matrix > 0).sum(axis=1)).ravel()
        assert (counts == 3).all() if states == 8 else counts.mean() > 2.99
        assert mdp.reward.shape == (states, 3)
