"""Training in which nobody waits: asynchronous methods, a contract of their own beside the rounds.

::

    work = Displacement(model, loss, steps=16, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    method = AsGrad(workers=4, work=work, outer=Outer(lr=0.7, momentum=0.5, every=4))
    simulator = Simulator(method, Flat(model).read(), seconds=(1, 1, 1, 3))
    simulator.run(until=600)
    simulator.result()
"""

from swarmstep.asynchronous.asgrad import AsGrad, ServerState
from swarmstep.asynchronous.contract import SERVER, Mailbox, Message, Method, Timer
from swarmstep.asynchronous.jobs import Ledger, ServerMethod, WorkerState
from swarmstep.asynchronous.layup import LayUp, LayUpState
from swarmstep.asynchronous.links import Change, Links
from swarmstep.asynchronous.merging import Direction
from swarmstep.asynchronous.nodes import Event, Nodes, replay
from swarmstep.asynchronous.outer import Outer
from swarmstep.asynchronous.pd_asgd import PDASGD, BackwardState, ForwardState
from swarmstep.asynchronous.processes import replay_node, run_peer, run_worker
from swarmstep.asynchronous.quorum import Quorum, QuorumState
from swarmstep.asynchronous.server import Served, run_server
from swarmstep.asynchronous.simulator import Simulator
from swarmstep.asynchronous.threads import Threaded, run_threads
from swarmstep.asynchronous.work import Displacement, Function, Gradient, Work
from swarmstep.network.speeds import Disturbance, Speeds
from swarmstep.runtime.flat import Flat

__all__ = [
    "PDASGD",
    "SERVER",
    "AsGrad",
    "BackwardState",
    "Change",
    "Direction",
    "Displacement",
    "Disturbance",
    "Event",
    "Flat",
    "ForwardState",
    "Function",
    "Gradient",
    "LayUp",
    "LayUpState",
    "Ledger",
    "Links",
    "Mailbox",
    "Message",
    "Method",
    "Nodes",
    "Outer",
    "Quorum",
    "QuorumState",
    "Served",
    "ServerMethod",
    "ServerState",
    "Simulator",
    "Speeds",
    "Threaded",
    "Timer",
    "Work",
    "WorkerState",
    "replay",
    "replay_node",
    "run_peer",
    "run_server",
    "run_threads",
    "run_worker",
]
