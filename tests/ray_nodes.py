"""A Ray cluster of two nodes on this machine, begun when the first test asks for it."""

from __future__ import annotations

import logging
from typing import Any

_begun: list[Any] = []


def two_nodes() -> Any:
    """The cluster, which this process is then connected to; its nodes have four processors each."""
    if not _begun:
        import ray
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        node = {"num_cpus": 4, "object_store_memory": 2**27}
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
        cluster.add_node(**node)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        _begun.append(cluster)
    return _begun[0]


def end() -> None:
    """Let the cluster go, if there is one."""
    if _begun:
        import ray

        ray.shutdown()
        _begun.pop().shutdown()
