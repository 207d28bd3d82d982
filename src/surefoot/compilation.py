"""Compiled programs are kept between processes, so that only the first run of a kind waits for the compiler.

They are machine code that is run as it is read: whoever can write in their folder runs code as the user.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import jax


def keep_compiled_programs() -> None:
    """Turn JAX's persistent compilation cache on, in the user's cache folder.

    Leaves JAX as it is where the user has said anything about the cache: JAX_COMPILATION_CACHE_DIR or
    jax.config's jax_compilation_cache_dir name another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it
    off. A folder that cannot be made is done without, and so is one that is another's or that others may write in.
    """
    known = jax.config.values
    if known["jax_compilation_cache_dir"] is None and known["jax_enable_compilation_cache"]:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot" / "compiled"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours_alone(folder):
                return
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX by default keeps only what took a second to compile; ten programs of half a second count too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def see_cpu_devices(count: int) -> None:
    """Let JAX see the CPU as so many devices, over which lanes or a batch are spread: for the command's own process.

    Leaves JAX as it is once it has looked for its devices, and where the user has said how many there are.
    """
    said = jax.config.values["jax_num_cpu_devices"] >= 0
    if said or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def cores() -> list[int]:
    """Those of the CPU that this thread, and a process that it begins, may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def of_whole_iterations() -> dict[str, Any] | None:
    """Options to compile programs of whole iterations with, for `jax.jit`'s `compiler_options`.

    On a CPU LLVM's second level of optimisation makes these programs no faster and takes a quarter of the time to
    compile them. Where XLA_FLAGS says anything about that, the user has decided.
    """
    if jax.default_backend() != "cpu" or "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", ""):
        return None
    return {"xla_backend_optimization_level": 1}


def _ours_alone(folder: Path) -> bool:
    """Whether the folder is this user's and nobody else may write in it; where there are no users, it is."""
    found = folder.stat()
    return not hasattr(os, "getuid") or (
        found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
