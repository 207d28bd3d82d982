"""Networks for images: convolutions before a perceptron, as products of patches with matrices."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.arrays import generator, namespace
from surefoot.errors import SettingError
from surefoot.networks import Function, Perceptron, activation_of, orthogonal
from surefoot.spaces import WIDEST, Encoder


class Layer(NamedTuple):
    """A convolution without padding: a square kernel of so many pixels each way, moved by `stride` pixels."""

    channels: int
    kernel: int
    stride: int


_FEW_PIXELS = (Layer(16, 3, 1),)  # usual for MinAtar (Young & Tian 2019)
_MANY_PIXELS = (Layer(32, 8, 4), Layer(64, 4, 2), Layer(64, 3, 1))  # Mnih et al. 2015, methods
_SMALLEST_CONVOLVED = 5  # pixels each way; in fewer a kernel of 3 hardly moves
_SMALLEST_OF_MANY = 36  # the least that leaves the third layer of _MANY_PIXELS a pixel


class Convolution(eqx.Module):
    """Convolutions of images [height, width, channels] that come and go as vectors, of any leading axes.

    A kernel is a matrix from patches to channels, its rows ordered by row, column and channel of the patch. Such
    products keep their speed in derivatives and under `vmap` over the weights, where convolutions proper become
    grouped ones. Weights are orthogonal with gain sqrt(2), biases zero; an activation follows every layer.
    """

    weights: list[Float[Array, "patch channels"]]
    biases: list[Float[Array, " channels"]]
    image: tuple[int, int, int] = eqx.field(static=True)
    layers: tuple[Layer, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        image: tuple[int, int, int],
        layers: tuple[Layer, ...],
        activation: str,
        *,
        key: PRNGKeyArray,
        dtype: np.dtype | type = np.float32,
    ):
        """`image` is (height, width, channels) of what comes in."""
        chance = generator(key)
        shapes = _kernel_shapes(image, layers)
        self.weights = [jax.device_put((np.sqrt(2) * orthogonal(chance, *shape)).astype(dtype)) for shape in shapes]
        self.biases = [jax.device_put(np.zeros(channels, dtype)) for _, channels in shapes]
        self.image, self.layers, self.activation = image, layers, activation


class ConvolutionalNetwork(eqx.Module):
    """Convolutions of an image, then a perceptron."""

    convolution: Convolution
    dense: Perceptron

    def __call__(self, x: Float[Array, "... fan_in"]) -> Float[Array, "... fan_out"]:
        """The outputs for images as vectors, of any leading axes."""
        return self.function()(x)

    def function(self) -> Function:
        """What calling it does, without Equinox's attributes."""
        front = self.convolution
        seen = partial(
            convolved,
            weights=front.weights,
            biases=front.biases,
            image=front.image,
            layers=front.layers,
            activation=front.activation,
        )
        judged = self.dense.function()
        return lambda x: judged(seen(x))


Network = Perceptron | ConvolutionalNetwork


def convolved(
    x: Any, weights: list, biases: list, image: tuple[int, int, int], layers: tuple[Layer, ...], activation: str
) -> Any:
    """The last layer's channels [..., places * channels] of images [..., pixels]; NumPy's if the weights are."""
    apply = activation_of(activation, weights[0])
    x = x.reshape(*x.shape[:-1], *image)
    for weight, bias, layer in zip(weights, biases, layers, strict=True):
        x = apply(patches(x, layer.kernel, layer.stride) @ weight + bias)
    return x.reshape(*x.shape[:-3], -1)


def patches(x: Any, kernel: int, stride: int) -> Any:
    """What the kernel covers at each place: [..., height, width, C] to [..., places, places, kernel * kernel * C].

    A patch is ordered by row, column and channel.
    """
    xp = namespace(x)
    rows, columns = (_places(size, kernel, stride) for size in x.shape[-3:-1])
    reach = stride * (columns - 1) + 1
    # One axis after the other: twice as many slices as the kernel is wide, not its square.
    x = xp.concatenate([x[..., j : j + reach : stride, :] for j in range(kernel)], axis=-1)
    reach = stride * (rows - 1) + 1
    return xp.concatenate([x[..., i : i + reach : stride, :, :] for i in range(kernel)], axis=-1)


def convolutions(encoder: Encoder, settings: config.Network | config.Critic) -> tuple[Layer, ...]:
    """The convolutions that these settings mean for observations of this encoder; none where they are no image.

    Raises SettingError where there are kernels for none, too many or too few of them, or no room for one.
    """
    given = {name: getattr(settings, name) for name in ("channels", "kernels", "strides")}
    if not settings.convolution:
        return ()
    if encoder.image is None:
        for name, value in given.items():
            if value is not None:
                raise SettingError(
                    f"{name} must be None where observations are no image, but {value} came; leave it out"
                )
        return ()
    layers = _layers(encoder.image, **given)
    _check_room(encoder.image, layers)
    return layers


def _layers(image: tuple[int, int, int], channels: Any, kernels: Any, strides: Any) -> tuple[Layer, ...]:
    least = min(image[:2])
    usual: tuple[Layer, ...] = (
        _MANY_PIXELS if least >= _SMALLEST_OF_MANY else _FEW_PIXELS if least >= _SMALLEST_CONVOLVED else ()
    )
    if channels is not None and len(channels) != len(usual):
        usual = _FEW_PIXELS * len(channels)
    for name, value in (("kernels", kernels), ("strides", strides)):
        if value is not None and len(value) != len(usual):
            raise SettingError(f"{name} must be one a convolution, of which there are {len(usual)}, but {value} came")
    usual_channels, usual_kernels, usual_strides = zip(*usual, strict=True) if usual else ((), (), ())
    chosen = channels or usual_channels, kernels or usual_kernels, strides or usual_strides
    return tuple(Layer(*numbers) for numbers in zip(*chosen, strict=True))


def _check_room(image: tuple[int, int, int], layers: tuple[Layer, ...]) -> None:
    height, width, channels = image
    for layer in layers:
        if layer.kernel > min(height, width):
            raise SettingError(
                f"kernels must fit into what they convolve, but one of {layer.kernel} came for {height} x {width} "
                f"pixels; take smaller kernels, smaller strides or fewer channels (one number is one convolution)"
            )
        height, width = (_places(size, layer.kernel, layer.stride) for size in (height, width))
        channels = layer.channels
        if height * width * channels > WIDEST:
            raise SettingError(
                f"channels must leave at most {WIDEST:,} numbers of an image, but {channels} of {height} x {width} "
                f"came; take larger strides or fewer channels"
            )


def layer_shapes(encoder: Encoder, settings: config.Network | config.Critic, outputs: int) -> list[tuple[int, int]]:
    """(fan in, fan out) of every layer of `make_network`'s network, in order. Raises SettingError."""
    layers = convolutions(encoder, settings)
    kernels = _kernel_shapes(encoder.image, layers) if encoder.image else []
    return kernels + list(pairwise(_dense_sizes(encoder, layers, settings, outputs)))


def make_network(
    encoder: Encoder,
    settings: config.Network | config.Critic,
    outputs: int,
    *,
    final_gain: float,
    key: PRNGKeyArray,
    dtype: np.dtype | type = np.float32,
) -> Network:
    """A fresh network from the encoder's features to `outputs` numbers; convolutional where they are an image.

    Raises SettingError for convolutions that the image has no room for.
    """
    layers = convolutions(encoder, settings)
    sizes = _dense_sizes(encoder, layers, settings, outputs)
    dense = Perceptron(sizes, settings.activation, final_gain=final_gain, key=key, dtype=dtype)
    if encoder.image is None or not layers:
        return dense
    key = jax.random.fold_in(key, 1)
    return ConvolutionalNetwork(Convolution(encoder.image, layers, settings.activation, key=key, dtype=dtype), dense)


def _dense_sizes(
    encoder: Encoder, layers: tuple[Layer, ...], settings: config.Network | config.Critic, outputs: int
) -> tuple[int, ...]:
    width = encoder.width
    if encoder.image is not None and layers:
        height, across, _ = encoder.image
        for layer in layers:
            height, across = (_places(size, layer.kernel, layer.stride) for size in (height, across))
        width = height * across * layers[-1].channels
    return width, *settings.hidden, outputs


def _kernel_shapes(image: tuple[int, int, int], layers: tuple[Layer, ...]) -> list[tuple[int, int]]:
    channels = (image[2], *(layer.channels for layer in layers))
    return [
        (layer.kernel**2 * before, after) for layer, (before, after) in zip(layers, pairwise(channels), strict=True)
    ]


def _places(size: int, kernel: int, stride: int) -> int:
    """Where a kernel fits along an axis of so many pixels, `stride` apart."""
    return (size - kernel) // stride + 1
