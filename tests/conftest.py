"""What every test shares: random keys that can be repeated, and both floating-point types."""

import os
import zlib
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")
# What earlier runs compiled must not decide what a test sees.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# The tests compile hundreds of small programs once each: compiling is what they spend their time on, and
# LLVM's optimiser is most of that. Timings are measured in benchmarks/, with the optimiser on.
# Two devices, so that what is spread over them is: all else stays on the first.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_force_host_platform_device_count=2",
)

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import ray_nodes

# Compilation makes the first example slow; that says nothing about the property. The same code is given the same
# examples, so that a change is judged by itself and not by chance; SUREFOOT_TEST_EXPLORE=1 draws new ones.
settings.register_profile(
    "surefoot",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize="SUREFOOT_TEST_EXPLORE" not in os.environ,
)
settings.load_profile("surefoot")


_MOST_MAPPED = 30_000  # of the 65,530 that Linux lets a process map by default


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Forget what was compiled before it is too much: each program is mapped, and LLVM crashes past the limit."""
    mapped = Path("/proc/self/maps")
    if mapped.exists() and mapped.read_bytes().count(b"\n") > _MOST_MAPPED:
        jax.clear_caches()


@pytest.fixture
def seed(request) -> int:
    """A seed of the test's own, printed when the test fails; SUREFOOT_TEST_SEED sets another."""
    default = zlib.crc32(request.node.nodeid.encode())
    value = int(os.environ.get("SUREFOOT_TEST_SEED", default))
    print(f"seed {value} (repeat with SUREFOOT_TEST_SEED={value})")
    return value


@pytest.fixture
def key(seed):
    """A JAX key from the test's seed."""
    return jax.random.key(seed)


@pytest.fixture
def rng(seed) -> np.random.Generator:
    """A NumPy generator from the test's seed."""
    return np.random.default_rng(seed)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each floating-point type in turn; 64 bits are on while the test runs with float64."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    """64-bit arrays inside the test."""
    with jax.enable_x64(True):
        yield


def pytest_sessionfinish():
    ray_nodes.end()
