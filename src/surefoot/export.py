"""A trained policy as one ONNX file, for machines that have no Python.

The graph is what `Agent.act` does deterministically: encoding of the observation, normaliser, network, the
most probable allowed action, and its mapping to what the environment takes, number types included.
"""

from __future__ import annotations

import os
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from surefoot._version import __version__
from surefoot.agent import Agent
from surefoot.convolution import patches
from surefoot.errors import SettingError, UnsupportedSpace
from surefoot.files import write_atomically
from surefoot.networks import CLIP
from surefoot.settings import dumps
from surefoot.spaces import affine, describe, one_hot, space_tree

_OPSET = 17
_IR_VERSION = 10
_TYPES = {"bool", "float16", "float32", "float64"} | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


def export_onnx(agent: Agent, file: str | os.PathLike) -> Path:
    """Write the agent as an ONNX file; returns its path.

    Inputs, each with a batch axis first and in its space's own number type: `observation`, or one
    `observation.KEY` for every plain part of a Dict or Tuple; for categorical policies `mask`, bool
    [batch, K], which may be left out. Outputs: `action`, as the environment takes it; and what it was chosen by,
    `logits` [batch, K], or for Box actions `mean` and `std` [batch, D] of what is mapped to the action space.

    `act` refuses an observation that is not finite or no whole number of its space; the file computes on.

    Raises SettingError where `onnx` is not installed, UnsupportedSpace for a number type that ONNX's runtimes
    do not take, RunError where the file cannot be written.
    """
    try:
        import onnx
    except ImportError:
        raise SettingError("export to onnx needs the package onnx: pip install 'surefoot[onnx]'") from None
    model = _model(agent)
    onnx.checker.check_model(model, full_check=True)
    path = Path(file)
    write_atomically(path, model.SerializeToString())
    return path


class _Graph:
    """Nodes in the making: every method takes names or plain arrays, which become constants, and returns a name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any, name: str = "") -> str:
        """A value that is fixed; one with the name of an input is that input's default."""
        from onnx import numpy_helper

        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array), name))
        return name

    def __call__(self, operator: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """An operator of ONNX's default domain."""
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def cast(self, value: str, dtype: Any, name: str = "") -> str:
        """The value in another number type."""
        from onnx import helper

        return self("Cast", value, name=name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def columns(self, value: str) -> str:
        """The value as [batch, numbers]."""
        return self("Reshape", value, np.array([0, -1]))

    def clipped(self, value: str, low: Any, high: Any) -> str:
        """The value inside bounds that may differ by column."""
        return self("Min", self("Max", value, low), high)


def _model(agent: Agent) -> Any:
    from onnx import helper

    graph = _Graph()
    policy = jax.tree.map(np.asarray, agent.policy)
    head, dtype = policy.head, policy.normaliser.mean.dtype
    inputs, features = _observed(graph, agent.observation_space, policy)
    network = policy.network
    seen = features if network is network.dense else _convolved(graph, features, network.convolution)
    outputs = _perceptron(graph, seen, network.dense, "mean" if head.gaussian else "logits")
    action: Any = agent.action_space
    made = [_declared("action", action.dtype, *action.shape), _declared(outputs, dtype, head.outputs)]
    if head.kind.endswith("Categorical"):
        inputs.append(_declared("mask", bool, head.outputs, batch="masks"))
        graph.constant(np.ones((1, head.outputs), bool), "mask")  # where none is given, everything is allowed
    if head.gaussian:
        graph("Identity", np.exp(policy.log_std), name="std")
        made.append(helper.make_tensor_value_info("std", helper.np_dtype_to_tensor_dtype(dtype), [head.outputs]))
    _act(graph, outputs, policy, action)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "surefoot", inputs, made, initializer=graph.constants),
        producer_name="surefoot",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    facts = {
        "environment": agent.environment,
        "observation_space": dumps(describe(agent.observation_space)),
        "action_space": dumps(describe(action)),
    }
    helper.set_model_props(model, facts)
    return model


def _declared(name: str, dtype: Any, *shape: Any, batch: str = "batch") -> Any:
    """An input or output with a batch axis. Raises UnsupportedSpace for a number type without a runtime."""
    from onnx import helper

    if np.dtype(dtype).name not in _TYPES:
        raise UnsupportedSpace(f"{name} has the number type {np.dtype(dtype)}, which ONNX's runtimes do not take")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [batch, *shape])


def _observed(graph: _Graph, space: gymnasium.Space, policy: Any) -> tuple[list[Any], str]:
    """The graph's inputs, and the normalised feature vectors [batch, width]."""
    dtype = policy.normaliser.mean.dtype
    leaves = jax.tree.leaves_with_path(space_tree(space), is_leaf=lambda node: isinstance(node, gymnasium.Space))
    inputs, encoded = [], []
    for (path, plain), leaf in zip(leaves, policy.encoder.leaves, strict=True):
        name = ".".join(["observation"] + [jax.tree_util.keystr((key,), simple=True) for key in path])
        inputs.append(_declared(name, plain.dtype, *plain.shape))
        laid_out = graph("Transpose", graph.cast(name, dtype), perm=[0, 2, 3, 1]) if leaf.channels_first else name
        flat = graph.columns(laid_out)
        if leaf.sizes is None:
            value = graph.cast(flat, dtype)
            if leaf.scaled:
                shifted = graph("Sub", value, np.array(leaf.offset, dtype))
                value = graph("Div", shifted, np.array(leaf.span, dtype))
            encoded.append(value)
            continue
        which, number = one_hot(leaf.sizes, leaf.start)
        repeated = graph("Gather", graph.cast(flat, np.int64), which, axis=1)
        encoded.append(graph.cast(graph("Equal", repeated, number.astype(np.int64)), dtype))
    features = encoded[0] if len(encoded) == 1 else graph("Concat", *encoded, axis=1)
    active = np.array(policy.normaliser.active)
    if not active.any():
        return inputs, features
    centred = graph("Sub", features, policy.normaliser.mean)
    bound = np.array(CLIP, dtype)
    scaled = graph.clipped(graph("Div", centred, policy.normaliser.std), -bound, bound)
    return inputs, scaled if active.all() else graph("Where", active[None], scaled, features)


def _convolved(graph: _Graph, x: str, convolution: Any) -> str:
    """The last layer's channels as vectors. Patches are gathered, which all number types have, unlike `Conv`."""
    image = convolution.image
    for weight, bias, layer in zip(convolution.weights, convolution.biases, convolution.layers, strict=True):
        index = patches(np.arange(prod(image)).reshape(image), layer.kernel, layer.stride)
        rows, columns, patch = index.shape
        image = rows, columns, layer.channels
        seen = graph("Gather", x, index.reshape(-1, patch), axis=1)
        product = graph("Add", graph("MatMul", seen, weight), bias)
        x = graph.columns(_activated(graph, product, convolution.activation, weight.dtype))
    return x


def _perceptron(graph: _Graph, x: str, network: Any, name: str) -> str:
    last = len(network.weights) - 1
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        product = graph("MatMul", x, weight)
        x = graph("Add", product, bias, name=name if layer == last else "")
        if layer < last:
            x = _activated(graph, x, network.activation, weight.dtype)
    return x


def _activated(graph: _Graph, x: str, activation: str, dtype: np.dtype) -> str:
    zero, one = np.array(0, dtype), np.array(1, dtype)
    if activation == "tanh":
        return graph("Tanh", x)
    if activation == "relu":
        return graph("Max", x, zero)
    if activation == "silu":
        return graph("Mul", x, graph("Sigmoid", x))
    if activation == "elu":  # ONNX's own is for single precision only
        return graph("Where", graph("Greater", x, zero), x, graph("Sub", graph("Exp", graph("Min", x, zero)), one))
    raise SettingError(f"activation {activation!r} has no form in ONNX here")


def _act(graph: _Graph, outputs: str, policy: Any, space: Any) -> None:
    """The most probable action, as the environment takes it: the value `action`."""
    head, mapping, dtype = policy.head, policy.action_map, policy.normaliser.mean.dtype
    if head.gaussian:
        centre, half, low, high = affine(mapping.low, mapping.high, dtype)
        mapped = graph.clipped(graph("Add", graph("Mul", outputs, half), centre), low, high)
        chosen = graph.clipped(graph.cast(mapped, space.dtype), np.ravel(space.low), np.ravel(space.high))
    elif head.kind == "Bernoulli":
        chosen = graph("Greater", outputs, np.array(0, dtype))
    else:
        scores = graph("Where", "mask", outputs, np.array(-np.inf, dtype))
        bounds = np.cumsum([0, *head.sizes])
        parts = [
            graph("ArgMax", graph("Slice", scores, [int(a)], [int(b)], [1]), axis=1, keepdims=1)
            for a, b in pairwise(bounds)
        ]
        chosen = graph("Add", parts[0] if len(parts) == 1 else graph("Concat", *parts, axis=1), np.array(mapping.start))
    graph.cast(graph("Reshape", chosen, np.array([-1, *space.shape])), space.dtype, name="action")


def interface(file: str | os.PathLike) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs and the outputs of an exported file by name: `float32 [batch, 17]`."""
    import onnx

    graph = onnx.load(file).graph
    return _described(graph.input), _described(graph.output)


def _described(values: Any) -> dict[str, str]:
    from onnx import helper

    def shape(kind: Any) -> str:
        return ", ".join(axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim)

    kinds = {value.name: value.type.tensor_type for value in values}
    return {name: f"{helper.tensor_dtype_to_np_dtype(kind.elem_type)} [{shape(kind)}]" for name, kind in kinds.items()}
