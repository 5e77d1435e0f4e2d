"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def cluster(nodes: int = 2) -> Iterator[Any]:
    """A ray.cluster_utils.Cluster of that many nodes beside a head, which takes no task; one core each."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            found.add_node(num_cpus=1)
        yield found
    finally:
        found.shutdown()


def kill(cluster: Any) -> None:
    """Kill a node at once, with all that it measures."""
    cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0], allow_graceful=False)
