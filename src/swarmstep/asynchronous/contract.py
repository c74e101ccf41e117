"""The contract of asynchronous methods: nodes with mailboxes, and no rounds.

A node is a worker, 0 to W-1, or the SERVER of methods that have one. A node does something at three events only:
it has finished a step of its own, a message has arrived, or a timer that it asked for has run out. Whatever
delivers messages and says when a step or a timer has ended is a backend: the simulator's virtual time, threads, or
real processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from swarmstep.cards import Card
from swarmstep.errors import PeerLost

SERVER = -1


class Message(NamedTuple):
    """What one node sends to another.

    Args:
        source: the node that sends it.
        numbers: up to 8, what they mean is the method's; whole numbers are exact up to 2**53.
        x: a flat vector, float32 or float64. Nobody changes it after it was posted.
    """

    source: int
    numbers: tuple[float, ...]
    x: Tensor


class Timer(NamedTuple):
    """What a node waits for beside messages: that some time passes.

    Args:
        number: which timer it is. One with another number is a new one; no number is used again.
        seconds: from its start until `Method.on_timer`, at least 0; virtual or real.
    """

    number: int
    seconds: float


class Mailbox(Protocol):
    """A node's: messages from one node to another arrive in the order in which they were posted."""

    def post(self, to: int, message: Message) -> None:
        """Send a message to the node `to`; does not wait for anything that `to` computes."""
        ...

    def poll(self) -> Message | None:
        """Return the next message that has arrived, None if there is none now."""
        ...


class NodeState(Protocol):
    """A dataclass of tensors, numbers, strings, and lists, tuples and dictionaries of these; `node` is whose."""

    node: int


State = TypeVar("State", bound=NodeState)


class Method(ABC, Generic[State]):
    """An asynchronous method: hyper-parameters, and what a node does with its state at an event.

    All that a node remembers is in its state, which `on_step`, `on_message` and `on_timer` change. They depend on
    nothing else: the same events in the same order give the same states bit for bit, on every backend. Random
    numbers are functions of a seed and of counts in the state.
    """

    card: ClassVar[Card]
    has_server: ClassVar[bool] = False
    may_lose: ClassVar[bool] = False  # whether the method goes on when messages are lost
    workers: int  # W

    @property
    def nodes(self) -> tuple[int, ...]:
        """The workers, 0 to W-1, and then the SERVER if there is one."""
        return (*range(self.workers), *([SERVER] if self.has_server else []))

    @property
    def steps(self) -> int:
        """How many local steps a worker takes between `ready` and `on_step`, for the clock."""
        return 1

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters, numbers and strings, as a checkpoint keeps and compares them."""

    @abstractmethod
    def init(self, node: int, x: Tensor) -> State:
        """Return a node's state at the common start x [P]; keeps no reference to x."""

    def start(self, state: State, box: Mailbox) -> None:
        """Post what starts the others; called once for each node, in the order of `nodes`."""
        return

    @abstractmethod
    def ready(self, state: State) -> bool:
        """Return whether the node has something to compute. `on_step` follows when it is done."""

    @abstractmethod
    def on_step(self, state: State, box: Mailbox) -> None:
        """Compute, and post the result; called only where `ready`."""

    @abstractmethod
    def on_message(self, state: State, message: Message, box: Mailbox) -> None:
        """Take a message in; may post others."""

    def timer(self, state: State) -> Timer | None:
        """Return the timer that is to run, None for none; asked after each event of the node.

        As long as its number stays the same it goes on; it is forgotten at an answer of None or another number.
        """
        return None

    def on_timer(self, state: State, box: Mailbox) -> None:
        """Do what is due when the timer has run out; may post messages."""

    def enter(self, node: int, x: Tensor) -> State:
        """Return the state of a node that comes, or comes back, when others have begun; as `init`."""
        return self.init(node, x)

    def given(self, state: State) -> int:
        """Return up to which number the server has given this worker jobs, as it tells when it comes back."""
        return 0

    def on_left(self, state: State, node: int, box: Mailbox) -> None:
        """Go on without another node: it is lost, and so are the messages under way from and to it.

        A server that comes back from a checkpoint is told its own name: it has lost all others.

        Raises:
            PeerLost: the method does not go on without it, as here.
        """
        raise PeerLost(
            f"{self.card.name}: node {node} is lost, and this method does not go on without it; start all anew"
        )

    def on_joined(self, state: State, node: int, given: int, box: Mailbox) -> None:
        """Go on with a node that has come or come back with `enter`; `given` is what it tells by that name."""
        return

    @abstractmethod
    def result(self, states: Mapping[int, State]) -> Tensor:
        """Return the model [P] that the nodes have at this time, a new tensor."""
