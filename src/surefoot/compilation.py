"""Compiled programs are kept between processes, so that only the first run of a kind waits for the compiler."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Turn JAX's persistent compilation cache on, in the user's cache folder.

    Leaves JAX as it is where the user has said anything about the cache: JAX_COMPILATION_CACHE_DIR or
    jax.config's jax_compilation_cache_dir name another folder, JAX_ENABLE_COMPILATION_CACHE=false turns it
    off. A folder that cannot be made is done without.
    """
    known = jax.config.values
    if known["jax_compilation_cache_dir"] is None and known["jax_enable_compilation_cache"]:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot" / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX by default keeps only what took a second to compile; ten programs of half a second count too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
