"""What encryption costs: a 10 MB all-reduce by gloo between network namespaces, plain and through --tunnel
wireguard, and a request to the store behind the door. Needs root, iproute2, wireguard-tools, and wireguard-go.

    python benchmarks/tunnel.py --workers 2 4 --link 100mbit 1gbit
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time

from torch.distributed import TCPStore

from swarmstep.comm.process_groups import connect, serve_store
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tunnel import open_tunnel
from swarmstep.launch.enter_namespace import inside
from swarmstep.network.link import parse
from swarmstep.network.namespaces import Network
from swarmstep.network.wireguard import PrivateNetwork

SECRET = b"of this measurement only"
TIMES = 15  # all-reduces, the first two of which do not count

WORKER = """
import statistics, sys, time
import torch, torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
data, seconds = torch.ones(2_500_000), []
for _ in range(int(sys.argv[1])):
    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(data)
    seconds.append(time.perf_counter() - started)
if dist.get_rank() == 0:
    print(statistics.median(seconds[2:]))
"""


def seconds(network: Network, interfaces: list[str]) -> float:
    """Return the median seconds of an all-reduce of 10 MB; each worker uses its interface."""
    store, port = inside(network.namespace(0), lambda: serve_store(network.address(0)))
    common = {"WORLD_SIZE": str(network.workers), "MASTER_ADDR": network.address(0), "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    workers = [
        subprocess.Popen(
            network.command(rank, [sys.executable, "-c", WORKER, str(TIMES)]),
            env={**os.environ, **common, "RANK": str(rank), "GLOO_SOCKET_IFNAME": interface},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, interface in enumerate(interfaces)
    ]
    said = [worker.communicate()[0] for worker in workers]
    del store
    return float(said[0])


def compare(network: Network) -> tuple[float, float]:
    """Return the seconds of an all-reduce, plain and through WireGuard."""
    plain = seconds(network, ["eth0"] * network.workers)
    store, port = serve_store()
    with contextlib.ExitStack() as stack:
        interfaces = list[str]()
        for rank in range(network.workers):
            own = connect("127.0.0.1", port, 60.0)
            end = PrivateNetwork(SECRET, rank, network.address(rank), own, lambda _: network.workers)
            end.interface += f"x{rank}"  # wireguard-go's sockets are in one folder for all namespaces
            inside(network.namespace(rank), end.__enter__)
            stack.callback(lambda end=end, rank=rank: inside(network.namespace(rank), end.__exit__))
            interfaces.append(end.interface)
        time.sleep(1.0)  # all have let in all
        tunnelled = seconds(network, interfaces)
    del store
    return plain, tunnelled


def request(store: TCPStore, times: int = 500) -> float:
    """Return the median seconds of a request to a store."""
    found = list[float]()
    for _ in range(times):
        started = time.perf_counter()
        store.add("n", 1)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--link", nargs="+", default=["100mbit", "1gbit"])
    options = parser.parse_args()
    store, port = serve_store()
    with (
        contextlib.closing(Proxy(port, SECRET)) as proxy,
        contextlib.closing(open_tunnel((proxy.host, proxy.port), SECRET)) as tunnel,
    ):
        for name, where in (("on loopback", port), ("behind the door, TLS 1.3", tunnel.port)):
            print(f"a request to the store {name}: {1e3 * request(connect('127.0.0.1', where, 60.0)):.3f} ms")
    del store
    for link in options.link:
        for workers in options.workers:
            with Network(workers, parse(link)) as network:
                plain, tunnelled = compare(network)
            print(
                f"{link}, {workers} machines, 10 MB: plain {plain:.3f} s, WireGuard {tunnelled:.3f} s, "
                f"{plain / tunnelled:.2f} of the throughput",
                flush=True,
            )


if __name__ == "__main__":
    main()
