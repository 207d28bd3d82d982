"""An update's rows over several devices: which device has which rows, and how they are reached without leaving it.

Environments are dealt out in blocks, one a device, and each row of a batch lies where its environment does. Inside
`spread_over` a batch's rows are in blocks too: those of the first device in time's order, then those of the second.
So merging [T, N] to [T * N], picking rows and cutting chunks are each device's own affair, and what crosses between
devices are sums. Outside of it, and with one device, there is one block: every function here is then the plain
operation on the whole array, and the programs are those that they would be without this file.

What a program is for is the mesh that it is traced under, which JAX compiles a program of its own for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from surefoot.arrays import bits, is_key
from surefoot.errors import SettingError

AXIS = "batch"


def mesh_of(devices: int) -> Mesh:
    """The first so many devices, of every process, as a mesh of the one axis "batch". Raises SettingError where there
    are fewer."""
    found = jax.devices()
    if devices > len(found):
        plural = "" if len(found) == 1 else "s"
        more = (
            "; jax_num_cpu_devices, set before JAX is used, makes more of a CPU" if found[0].platform == "cpu" else ""
        )
        raise SettingError(
            f"devices must be at most {len(found)}, as JAX sees {len(found)} {found[0].platform} device{plural}, "
            f"but {devices} came{more}"
        )
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=found[:devices])


def check_devices(devices: int | None) -> None:
    """Refuse a run over more devices than there are, or one that is a part of several processes. Raises SettingError.

    It looks for JAX's devices, and only where more than one is wanted.
    """
    if devices is None or devices == 1:
        return
    if jax.process_count() > 1:
        raise SettingError(
            f"devices must be those of one process, but JAX runs in {jax.process_count()} and {devices} came; "
            "the stages of an update run in several, a whole run does not"
        )
    mesh_of(devices)


def spread_over(devices: int | None) -> contextlib.AbstractContextManager[Any]:
    """Within it rows are spread over so many devices; with one, or None, nothing is changed. Raises SettingError."""
    if devices is None or devices == 1:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh_of(devices))


def blocks() -> int:
    """Over how many devices rows are spread here; 1 outside `spread_over`."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def replicated(tree: Any) -> Any:
    """The tree with all of it on every device. Where there are several processes, each has to give the same."""
    return tree if blocks() == 1 else _put(tree, _sharding())


def placed(tree: Any, axis: int = 1) -> Any:
    """The tree on the devices, its leaves' `axis` in one block a device: environments are axis 1, rows axis 0.

    Where there are several processes, each gives its own environments, those of its devices.
    """
    if blocks() == 1:
        return jax.device_put(tree)
    return _put(tree, _sharding(*(None,) * axis, AXIS))


def merged(leaf: Array) -> Array:
    """[T, N, ...] as rows [T * N, ...]."""
    count = blocks()
    if count == 1:
        return leaf.reshape(-1, *leaf.shape[2:])
    steps, rest = leaf.shape[0], leaf.shape[2:]
    by_block = jnp.swapaxes(leaf.reshape(steps, count, -1, *rest), 0, 1)
    return _constrained(by_block.reshape(-1, *rest), AXIS)


def unmerged(leaf: Array, shape: tuple[int, ...]) -> Array:
    """Rows [T * N] as `shape`, [T, N]."""
    count = blocks()
    if count == 1:
        return leaf.reshape(shape)
    return _constrained(jnp.swapaxes(leaf.reshape(count, shape[0], -1), 0, 1).reshape(shape), None, AXIS)


def taken(leaf: Array, index: Any) -> Array:
    """The rows of [B, ...] with these numbers, [K]. Over D devices, [K/D] of each block or [D, K/D] numbers within
    the blocks."""
    count = blocks()
    if count == 1:
        return leaf[index]
    each = jnp.broadcast_to(index, (count, index.shape[-1]))
    picked = jax.vmap(lambda block, numbers: block[numbers])(_in_blocks(leaf), _constrained(each, AXIS))
    return _constrained(picked.reshape(-1, *leaf.shape[1:]), AXIS)


def block_size(rows: int) -> int:
    """How many of so many rows one block has."""
    return rows // blocks()


def minibatch_size(wanted: int, rows: int) -> int:
    """Rows of a minibatch, at most all: over several devices as many of each, and at least one."""
    count = blocks()
    return max(min(wanted, rows) // count, 1) * count


def split(order: Array, count: int, size: int) -> Int[Array, "count ..."]:
    """The order [K] of a pass, or [D, K/D] over D devices, as that of `count` minibatches of `size` rows: [count, size]
    or [count, D, size/D]. What does not fill a minibatch is left out."""
    devices = blocks()
    if devices == 1:
        return order[: count * size].reshape(count, size)
    return jnp.swapaxes(order[:, : count * size // devices].reshape(devices, count, -1), 0, 1)


def in_minibatches(leaf: Array, count: int) -> Array:
    """Rows [K, ...] that were taken in the order of a pass, as the pass's minibatches [count, K/count, ...]."""
    devices, rest = blocks(), leaf.shape[1:]
    if devices == 1:
        return leaf.reshape(count, -1, *rest)
    each = jnp.swapaxes(leaf.reshape(devices, count, -1, *rest), 0, 1)
    return _constrained(each.reshape(count, -1, *rest), None, AXIS)


def cut(leaf: Array, begin: Any, length: int) -> Array:
    """`length` rows of each block of [B, ...], from `begin` on."""
    if blocks() == 1:
        return jax.lax.dynamic_slice_in_dim(leaf, begin, length)
    part = jax.lax.dynamic_slice_in_dim(_in_blocks(leaf), begin, length, axis=1)
    return _constrained(part.reshape(-1, *leaf.shape[1:]), AXIS)


def put(whole: Array, part: Array, begin: Any) -> Array:
    """[B, ...] with the rows of `part` where `cut` has them from."""
    if blocks() == 1:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, begin, 0)
    written = jax.lax.dynamic_update_slice_in_dim(_in_blocks(whole), _in_blocks(part), begin, 1)
    return _constrained(written.reshape(whole.shape), AXIS)


def in_every_block(leaf: Array) -> Array:
    """What holds of the rows [K] of one block, for the rows of all."""
    return leaf if blocks() == 1 else _constrained(jnp.tile(leaf, blocks()), AXIS)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def made(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf  # it is on the devices of all processes already
        whole = jax.make_array_from_process_local_data(sharding, bits(leaf))
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(leaf)) if is_key(leaf) else whole

    return jax.tree.map(made, tree)


def _in_blocks(leaf: Array) -> Array:
    return _constrained(leaf.reshape(blocks(), -1, *leaf.shape[1:]), AXIS)


def _constrained(leaf: Array, *axes: str | None) -> Array:
    # Said and not left to the compiler, which is free to gather what it is not sure of.
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*axes))


def _sharding(*axes: str | None) -> NamedSharding:
    return NamedSharding(jax.sharding.get_mesh(), PartitionSpec(*axes))
