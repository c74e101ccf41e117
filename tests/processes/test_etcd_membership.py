"""Elastic groups whose store is a real etcd of three machines, one of which is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from elastic_world import Plan, World
from etcd_cluster import Cluster, SeparateCluster, needs_etcd
from rights import needs_network

pytestmark = [pytest.mark.slow, needs_etcd]


@pytest.mark.parametrize("fate", ["kill", "stop"])
def test_rounds_go_on_without_the_leader_of_the_store_and_without_any_worker(tmp_path: Path, fate: str) -> None:
    plan = Plan("local-sgd", silence=10.0, patience=200.0, gathering=60.0)
    with Cluster(tmp_path) as cluster, World(plan, cluster.address()) as world:

        def together(*names: str, after: int = 0) -> None:
            world.until(lambda: sorted(world.newest()[2]) == [*names] and world.newest()[0] > after, 180.0)

        world.start("0.0", "1.0", "2.0")
        together("0.0", "1.0", "2.0")
        leader = cluster.leader()
        getattr(cluster, fate)(leader)
        together("0.0", "1.0", "2.0", after=world.newest()[0] + 3)
        world.signals("0.0", signal.SIGKILL)
        world.until(world.ended("0.0"))
        world.declare_dead("0.0")
        together("1.0", "2.0")
        world.start("0.1")
        together("0.1", "1.0", "2.0")
        world.ask("finish")
        world.until(world.ended("0.1", "1.0", "2.0"), 180.0)
        done = [world.told[name].done for name in ("0.1", "1.0", "2.0")]
        assert len({row[:3] for row in done}) == 1
        assert all(torch.equal(row[3], done[0][3]) for row in done)
        assert [row[0] for row in world.told["1.0"].rounds] == list(range(1, done[0][1] + 1))  # none is lost


@needs_network
@pytest.mark.parametrize("way", ["both", "from", "to"])
def test_rounds_go_on_while_the_leader_of_the_store_is_cut_off_from_the_other_machines(
    tmp_path: Path, way: str
) -> None:
    """The workers reach it all the while, and it takes itself for the leader at first."""
    plan = Plan("local-sgd", silence=10.0, patience=200.0, gathering=60.0)
    with SeparateCluster(tmp_path) as cluster, World(plan, cluster.address()) as world:
        assert isinstance(cluster, SeparateCluster)

        def together(*names: str, after: int = 0) -> None:
            world.until(lambda: sorted(world.newest()[2]) == [*names] and world.newest()[0] > after, 180.0)

        world.start("0.0", "1.0", "2.0")
        together("0.0", "1.0", "2.0")
        leader = cluster.leader()
        for other in {0, 1, 2} - {leader}:
            if way in ("both", "from"):
                cluster.drop(leader, other)
            if way in ("both", "to"):
                cluster.drop(other, leader)
        together("0.0", "1.0", "2.0", after=world.newest()[0] + 3)
        world.signals("0.0", signal.SIGKILL)
        world.until(world.ended("0.0"))
        world.declare_dead("0.0")
        world.start("0.1")
        together("0.1", "1.0", "2.0")
        assert cluster.leader(leader) != leader
        cluster.mend()
        together("0.1", "1.0", "2.0", after=world.newest()[0] + 3)
        world.ask("finish")
        world.until(world.ended("0.1", "1.0", "2.0"), 180.0)
        done = [world.told[name].done for name in ("0.1", "1.0", "2.0")]
        assert len({row[:3] for row in done}) == 1
        assert all(torch.equal(row[3], done[0][3]) for row in done)
        assert [row[0] for row in world.told["1.0"].rounds] == list(range(1, done[0][1] + 1))  # none is lost
