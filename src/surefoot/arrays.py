"""One code for two libraries: what acts on the host is the same function as what learns on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray


def namespace(array: Any) -> Any:
    """`numpy` for a NumPy array, `jax.numpy` for anything else (JAX's arrays and what it traces).

    A policy with NumPy leaves thereby acts in NumPy. For networks of the usual size that costs a fifth of
    what starting a compiled program does, and an environment waits for every one of its actions.
    """
    return np if isinstance(array, np.ndarray) else jnp


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's randomness from a JAX key, for what is drawn on the host."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def bits(leaf: Any) -> np.ndarray:
    """A leaf of a tree as NumPy; a key as its bits."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def from_bits(found: np.ndarray, like: Any) -> Any:
    """The leaf whose `bits` are `found`, of the kind that `like` is: a key, a JAX array, or NumPy's."""
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(like))
    return jax.device_put(found) if isinstance(like, jax.Array) else found


def is_key(leaf: Any) -> bool:
    """Whether it is a JAX key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
