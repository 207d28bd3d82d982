"""Images: what is one, how it is convolved, and that everything works through a convolution."""

from __future__ import annotations

import argparse
import json
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from gymnasium import spaces
from scipy.signal import correlate2d

import surefoot as sf
from runs import TINY, after, policy, rows
from surefoot import agent as artefact
from surefoot import config, geometry, history
from surefoot.batch import sampled_batch
from surefoot.cli import train as train_command
from surefoot.convolution import Convolution, ConvolutionalNetwork, Layer, convolutions, layer_shapes, make_network
from surefoot.critic import fit, make_critic
from surefoot.errors import RunError, SettingError, Stopped, UnsupportedSpace
from surefoot.networks import Perceptron
from surefoot.policy import HostPolicy, flatten, make_policy
from surefoot.settings import digest, dumps
from surefoot.spaces import describe, make_encoder, parse
from surefoot.training import resume, train

INF = np.inf
SMALL = spaces.Box(0, 1, (5, 6, 2), np.float32)
DISCRETE = spaces.Discrete(3)


def image(*shape, low=0, high=1, dtype=np.float32):
    return spaces.Box(low, high, shape, dtype)


# What an image is.


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 10, 4), (10, 10, 4)),
        ((10, 10, 10), (10, 10, 10)),
        ((10, 10, 16), (10, 10, 16)),
        ((4, 84, 84), (84, 84, 4)),
        ((16, 10, 10), (10, 10, 16)),
        ((210, 60, 3), (210, 60, 3)),
        ((3, 210, 60), (210, 60, 3)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_which_axis_has_the_channels(shape, expected):
    assert make_encoder(image(*shape)).image == expected


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (9,)),
        spaces.Dict({"picture": image(9, 9, 3), "number": spaces.Discrete(2)}),
        spaces.Tuple([image(9, 9, 3), image(9, 9, 3)]),
    ],
    ids=["vector", "dict", "tuple"],
)
def test_what_is_no_image_alone_meets_a_perceptron(space):
    encoder = make_encoder(space)
    assert encoder.image is None
    assert isinstance(make_network(encoder, config.Network(), 2, final_gain=1, key=jax.random.key(0)), Perceptron)


def test_channels_come_last_in_the_features(rng):
    picture = rng.integers(0, 256, (3, 2, 5, 6), np.uint8)
    first = make_encoder(image(2, 5, 6, high=255, dtype=np.uint8))
    last = make_encoder(image(5, 6, 2, high=255, dtype=np.uint8))
    for given in (picture, jnp.asarray(picture)):
        np.testing.assert_allclose(first(given), last(np.moveaxis(picture, 1, 3)), rtol=1e-6)
    np.testing.assert_allclose(first(picture)[0, :2], picture[0, :, 0, 0] / np.float32(255), rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "values", "features", "normalised"),
    [
        (image(1, 2, 1, high=255, dtype=np.uint8), [0, 255], [0, 1], False),
        (image(1, 2, 1, dtype=bool), [True, False], [1, 0], False),
        (image(1, 2, 1), [0.25, 1], [0.25, 1], False),
        (image(1, 2, 1, low=-1), [-1, 0.5], [0, 0.75], False),
        (image(1, 2, 1, low=-INF, high=INF), [-3, 40], [-3, 40], True),
        (image(1, 2, 1, high=1e30), [3, 40], [3, 40], True),
        (image(1, 2, 1, low=0, high=0), [0, 0], [0, 0], True),
    ],
    ids=["bytes", "bool", "shares", "signed", "unbounded", "bounds that are none", "constant"],
)
def test_the_bounds_are_the_scale(space, values, features, normalised):
    encoder = make_encoder(space)
    np.testing.assert_allclose(encoder(np.asarray(values, space.dtype).reshape(space.shape)), features)
    assert encoder.normalised.tolist() == [normalised] * 2


def test_a_description_of_an_image_is_short_and_takes_no_more_memory_than_is_meant():
    space = image(84, 84, 4, high=255, dtype=np.uint8)
    assert len(dumps(describe(space))) < 200
    assert parse(describe(space)) == space
    shaded = spaces.Box(np.zeros((2, 2, 1)), np.arange(4.0).reshape(2, 2, 1) + 1, dtype=np.float64)
    assert parse(describe(shaded)) == shaded
    with pytest.raises(UnsupportedSpace, match="more than"):
        parse(describe(space) | {"shape": [10**5, 10**5, 10**5]})
    with pytest.raises(UnsupportedSpace):
        parse({"type": "Box", "low": 0, "high": 1, "shape": [2], "dtype": "float32"})


# Which convolutions there are.

FEW, MANY = ((16, 3, 1),), ((32, 8, 4), (64, 4, 2), (64, 3, 1))


@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ((10, 10, 4), {}, FEW),
        ((5, 5, 1), {}, FEW),
        ((4, 9, 1), {}, ()),
        ((35, 90, 3), {}, FEW),
        ((36, 36, 1), {}, MANY),
        ((4, 84, 84), {}, MANY),
        ((10, 10, 4), {"convolution": False}, ()),
        ((10, 10, 4), {"channels": ()}, ()),
        ((10, 10, 4), {"channels": (8,)}, ((8, 3, 1),)),
        ((4, 4, 4), {"channels": (8,)}, ((8, 3, 1),)),
        ((10, 10, 4), {"channels": (8, 5), "strides": (2, 1)}, ((8, 3, 2), (5, 3, 1))),
        ((10, 10, 4), {"kernels": (5,)}, ((16, 5, 1),)),
        ((84, 84, 4), {"channels": (16, 32, 32)}, ((16, 8, 4), (32, 4, 2), (32, 3, 1))),
        ((84, 84, 4), {"channels": (16, 32), "kernels": (8, 4), "strides": (4, 2)}, ((16, 8, 4), (32, 4, 2))),
    ],
)
def test_the_settings_and_the_image_say_which_convolutions(shape, settings, expected):
    for kind in (config.Network, config.Critic):
        assert convolutions(make_encoder(image(*shape)), kind(**settings)) == expected


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((10, 10, 4), {"kernels": (3, 3)}, "kernels must be one a convolution, of which there are 1, but (3, 3)"),
        ((84, 84, 4), {"strides": (2,)}, "strides must be one a convolution, of which there are 3, but (2,)"),
        ((10, 10, 4), {"kernels": (11,)}, "kernels must fit into what they convolve, but one of 11 came for 10 x 10"),
        ((10, 10, 4), {"channels": (8, 8), "strides": (4, 1)}, "one of 3 came for 2 x 2"),
        ((10, 10, 4), {"channels": (4096,)}, "channels must leave at most 65,536 numbers"),
        ((10,), {"channels": (8,)}, "channels must be None where observations are no image, but (8,) came"),
    ],
)
def test_convolutions_that_there_is_no_room_for_are_refused_in_one_line(shape, settings, said):
    with pytest.raises(SettingError) as raised:
        make_policy(image(*shape), DISCRETE, config.Network(**settings), jax.random.key(0))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_line_has_the_settings():
    commands = argparse.ArgumentParser().add_subparsers()
    train_command.add(commands)
    policys, critics = "--channels 8 4 --kernels 3 5 --no-convolution", "--critic-channels 2 --critic-strides 3"
    told = vars(commands.choices["train"].parse_args(["x", *policys.split(), *critics.split()]))
    given = {name.removeprefix("run."): value for name, value in told.items() if name.startswith("run.")}
    run = config.make_run(**given)
    assert (run.network.channels, run.network.kernels, run.network.strides) == ((8, 4), (3, 5), None)
    assert (run.network.convolution, run.critic.convolution) == (False, True)
    assert (run.critic.channels, run.critic.strides) == ((2,), (3,))


# What a convolution computes.


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((6, 5, 3), [(4, 3, 1)]),
        ((7, 9, 1), [(2, 3, 2)]),
        ((5, 5, 2), [(3, 5, 1)]),
        ((9, 8, 2), [(3, 1, 3)]),
        ((12, 11, 2), [(3, 4, 2), (5, 2, 1), (2, 2, 2)]),
    ],
)
def test_convolutions_are_the_correlations_of_each_channel(shape, layers, key, rng, x64):
    made = Convolution(shape, tuple(Layer(*layer) for layer in layers), "tanh", key=key, dtype=np.float64)
    made = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), made)
    network = ConvolutionalNetwork(made, identity(prod_of(made)))
    pictures = rng.normal(size=(2, 3, *shape))
    expected = pictures.reshape(6, *shape)
    for weight, bias, (channels, kernel, stride) in zip(made.weights, made.biases, layers, strict=True):
        weight = np.asarray(weight).reshape(kernel, kernel, -1, channels)
        expected = np.tanh(np.stack([correlated(x, weight, stride) for x in expected]) + np.asarray(bias))
    vectors = pictures.reshape(2, 3, -1)
    for net, given in ((network, jnp.asarray(vectors)), (jax.tree.map(np.asarray, network), vectors)):
        found = net(given)
        assert isinstance(found, np.ndarray) == isinstance(given, np.ndarray)
        np.testing.assert_allclose(found, expected.reshape(2, 3, -1), atol=1e-13)


def correlated(picture, weight, stride):
    """The valid correlation of each channel, summed, every `stride` pixels."""
    whole = [
        sum(correlate2d(picture[..., c], weight[..., c, out], mode="valid") for c in range(picture.shape[-1]))
        for out in range(weight.shape[-1])
    ]
    return np.stack(whole, axis=-1)[::stride, ::stride]


def prod_of(convolution):
    """How many numbers a convolution leaves, by its layers."""
    height, width, _ = convolution.image
    for layer in convolution.layers:
        height, width = (len(range(0, size - layer.kernel + 1, layer.stride)) for size in (height, width))
    return height * width * convolution.layers[-1].channels


def identity(width):
    dense = Perceptron((width, width), "tanh", final_gain=1, key=jax.random.key(0), dtype=np.float64)
    return eqx.tree_at(lambda d: d.weights[0], dense, jnp.eye(width))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 10, 4), [(36, 16), (1024, 64), (64, 64), (64, 3)]),
        ((4, 84, 84), [(256, 32), (512, 64), (576, 64), (3136, 64), (64, 64), (64, 3)]),
        ((36, 37, 1), [(64, 32), (512, 64), (576, 64), (64, 64), (64, 64), (64, 3)]),
        ((4, 4, 3), [(48, 64), (64, 64), (64, 3)]),
    ],
)
def test_shapes_and_first_weights(shape, expected):
    encoder = make_encoder(image(*shape))
    assert layer_shapes(encoder, config.Network(), 3) == expected
    made = make_network(encoder, config.Network(), 3, final_gain=0.01, key=jax.random.key(0))
    parts = [made.dense] if made is made.dense else [made.convolution, made.dense]
    weights, biases = ([leaf for part in parts for leaf in getattr(part, name)] for name in ("weights", "biases"))
    gains = [2**0.5] * (len(expected) - 1) + [0.01]
    for weight, bias, wanted, gain in zip(weights, biases, expected, gains, strict=True):
        assert weight.shape == wanted
        tall = np.asarray(weight if wanted[0] > wanted[1] else weight.T)
        np.testing.assert_allclose(tall.T @ tall, gain**2 * np.eye(min(wanted)), atol=1e-5)
        assert np.array_equal(bias, np.zeros(wanted[1]))


# Policies.


def moved_policy(space, rng, dtype=np.float64, actions=DISCRETE, **network):
    network = config.Network(**({"hidden": (4,)} | network))
    made = make_policy(space, actions, network, jax.random.key(0), dtype)
    theta, rebuild = flatten(made)
    return rebuild(theta + jnp.asarray(0.3 * rng.normal(size=theta.shape), dtype))


@pytest.fixture
def tiny(x64, rng):
    """A policy of few parameters and a batch for it, whose second row has weight 0."""
    made = moved_policy(SMALL, rng, channels=(2,))
    pictures = rng.random((9, *SMALL.shape))
    weight = rng.uniform(0.5, 2, 9)
    weight[1] = 0
    batch = sampled_batch(
        observation=pictures,
        mask=None,
        action=rng.integers(0, 3, 9),
        advantage=rng.normal(size=9),
        old=made(pictures),
        weight=weight,
    )
    return made, batch


def test_fisher_products_are_those_of_the_dense_matrix_whole_and_in_chunks(tiny, rng):
    made, batch = tiny
    theta, rebuild = flatten(made)
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda t: rebuild(t)(batch.observation).logits))(theta))
    p = np.asarray(batch.old.probs())
    metric = np.einsum("bk,kl->bkl", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    v = rng.normal(size=theta.size)
    for part in (batch, geometry.subsample(batch, 0.5)):
        same = np.asarray(part.observation)[:, None] == np.asarray(batch.observation)
        kept = np.argmax(same.all((2, 3, 4)), axis=1)
        dense = np.einsum("b,bkp,bkl,blq->pq", part.weight, jacobian[kept], metric[kept], jacobian[kept])
        assert np.linalg.norm(dense) > 1e-3
        for chunk in (0, 4) if part is batch else (0,):
            product = jax.jit(partial(fisher_product, chunk=chunk))
            np.testing.assert_allclose(product(made, part, v), dense @ v, atol=1e-12)


def fisher_product(made, batch, v, chunk=0):
    return geometry.fisher_operator(made, batch, chunk=chunk)(v)


def test_the_gradient_is_that_of_finite_differences(tiny, rng):
    made, batch = tiny
    theta, rebuild = flatten(made)
    value = jax.jit(lambda t: geometry.surrogate(rebuild(t), batch))
    gradient = np.asarray(jax.jit(partial(geometry.surrogate_gradient, chunk=4))(made, batch))
    for _ in range(3):
        step = rng.normal(size=theta.size)
        difference = (value(theta + 1e-5 * step) - value(theta - 1e-5 * step)) / 2e-5
        assert float(difference) == pytest.approx(gradient @ step, rel=1e-6)


def test_policies_side_by_side_are_each_alone(tiny, rng):
    made, batch = tiny
    theta, rebuild = flatten(made)
    thetas = theta + 0.2 * rng.normal(size=(3, theta.size))

    def both(t, v):
        there = rebuild(t)
        return there(batch.observation).logits, geometry.fisher_operator(there, batch)(v)

    together = jax.jit(jax.vmap(both))(thetas, thetas)
    alone = jax.jit(both)
    for lane in range(3):
        for one, other in zip(alone(thetas[lane], thetas[lane]), together, strict=True):
            np.testing.assert_allclose(other[lane], one, atol=1e-12)


@pytest.mark.parametrize(
    ("space", "network"),
    [
        (image(10, 10, 4, dtype=bool), {}),
        (image(4, 36, 38, high=255, dtype=np.uint8), {"activation": "relu", "channels": (4, 6, 5)}),
        (image(7, 6, 2, low=-INF, high=INF), {"channels": (3, 5), "activation": "silu"}),
        (image(10, 10, 4), {"convolution": False}),
    ],
    ids=["bool", "bytes, channels first", "unbounded", "flattened"],
)
def test_the_policy_on_the_host_is_the_policy(space, network, rng):
    space.seed(0)
    pictures = np.stack([space.sample() for _ in range(6)]).reshape(2, 3, *space.shape)
    made = moved_policy(space, rng, np.float32, **network).observed(pictures, np.ones((2, 3), bool))
    told = HostPolicy(made).outputs(pictures)
    assert isinstance(told, np.ndarray)
    assert told.dtype == np.float32
    assert np.ptp(told, axis=(0, 1)).min() > 1e-3
    expected = jax.jit(lambda made: made(pictures).logits)(made)
    np.testing.assert_allclose(told, expected, rtol=1e-4, atol=1e-5)


def test_only_an_image_without_bounds_is_normalised(rng):
    pictures = rng.random((20, *SMALL.shape)).astype(np.float32)
    assert not any(moved_policy(SMALL, rng, np.float32).normaliser.active)
    unbounded = moved_policy(image(*SMALL.shape, low=-INF, high=INF), rng, np.float32)
    seen = unbounded.observed(pictures, np.ones(20, bool)).normaliser
    np.testing.assert_allclose(seen.mean, pictures.mean(axis=0).ravel(), rtol=1e-5)


# The critic.


def test_a_critic_fits_what_a_picture_shows_and_keeps_its_function_in_other_units(x64, rng, key):
    settings = config.Critic(hidden=(8,), channels=(4,), epochs=30, minibatch=32, step_size=3e-3)
    state = make_critic(SMALL, settings, key, dtype=np.float64)
    place = rng.integers(0, 5, 128)
    pictures = np.zeros((128, *SMALL.shape))
    pictures[np.arange(128), place, 2, 1] = 1
    target = 100.0 + 10 * place
    state, _ = jax.jit(partial(fit, settings=settings))(
        state, observation=pictures, target=target, weight=np.ones(128), key=key
    )
    critic = state.critic
    left = np.var(target - critic(pictures)) / np.var(target)
    assert left < 0.3
    moved = critic.rescaled(jnp.asarray(-5.0), jnp.asarray(7.0))
    np.testing.assert_allclose(moved(pictures), critic(pictures), rtol=1e-12)


# Runs and artefacts.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("convolution") / "whole"
    return train("functional_probes:dot", "pg", out=out, steps=256, progress=False, **TINY)


def test_a_run_on_pictures_evaluates_and_is_exported_as_it_acts(whole, tmp_path):
    agent = sf.load(whole.path)
    assert isinstance(agent.policy.network, ConvolutionalNetwork)
    assert history.read(whole.path).config["channels"] is None
    pictures = np.zeros((36, 6, 6, 1), bool)
    pictures.reshape(36, 36)[np.arange(36), np.arange(36)] = True
    actions = agent.act(pictures)
    # Both are means of what is right in pictures of a dot anywhere; 2 episodes of 8 tell the one roughly.
    assert whole.evaluation["return"]["mean"] / 8 == pytest.approx((actions == (np.arange(36) < 18)).mean(), abs=0.5)
    file = sf.export_onnx(agent, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    acted, logits = session.run(["action", "logits"], {"observation": pictures})
    np.testing.assert_array_equal(acted, actions)
    np.testing.assert_allclose(logits, agent.policy(pictures).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_run_on_pictures_learns_and_goes_on_as_if_it_had_never_stopped(tmp_path):
    settings = TINY | {"steps": 3000, "progress": False}
    done = train("functional_probes:dot", out=tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        train("functional_probes:dot", out=tmp_path / "parts", stop=after(3), **settings)
    resume(tmp_path / "parts", progress=False, allow_env=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")
    assert done.evaluation["return"]["mean"] > 5


def saved(folder, space=SMALL, **settings):
    network = config.Network(hidden=(4,), **settings)
    agent = sf.Agent(make_policy(space, DISCRETE, network, jax.random.key(0)), space, DISCRETE)
    artefact.save(agent, folder, network)
    return agent


def rewritten(folder, **entries):
    told = json.loads((folder / "policy.json").read_text())
    told["network"] |= entries
    del told["sha256"]
    return told


def test_an_artefact_keeps_its_convolutions(tmp_path):
    agent = saved(tmp_path, channels=(3, 2), kernels=(3, 2))
    again = sf.load(tmp_path)
    assert again.policy.network.convolution.layers == ((3, 3, 1), (2, 2, 1))
    for one, other in zip(jax.tree.leaves(agent.policy), jax.tree.leaves(again.policy), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"channels": [4, 2]}, "'network.convolution.weights.0' is float32[18, 3], but the policy has float32[18, 4]"),
        ({"convolution": False}, "'network."),
        ({"kernels": [9, 2]}, "kernels must fit"),
        ({"channels": [4096, 4096], "kernels": [1, 1]}, "channels must leave at most"),
        ({"channels": [2048, 2000], "kernels": [4, 1]}, "bytes"),
    ],
    ids=repr,
)
def test_an_artefact_of_other_convolutions_is_refused(entries, said, tmp_path):
    saved(tmp_path, channels=(3, 2), kernels=(3, 2))
    told = rewritten(tmp_path, **entries)
    (tmp_path / "policy.json").write_text(json.dumps(told | {"sha256": digest(told)}))
    with pytest.raises(RunError) as raised:
        sf.load(tmp_path)
    assert said in str(raised.value)


def test_an_artefact_from_before_there_were_convolutions_loads(tmp_path):
    space = spaces.Box(-1, 1, (3,))
    agent = saved(tmp_path, space)
    told = rewritten(tmp_path)
    told["network"] = {name: told["network"][name] for name in ("hidden", "activation", "log_std", "normalise")}
    (tmp_path / "policy.json").write_text(json.dumps(told | {"sha256": digest(told)}))
    seen = np.float32([0.1, 0.2, 0.3])
    assert sf.load(tmp_path).act(seen) == agent.act(seen)
