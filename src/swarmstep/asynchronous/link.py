"""One connection of a node: one thread sends what is queued, another receives."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

import torch

from swarmstep.asynchronous.contract import Message
from swarmstep.comm.pair import Pair
from swarmstep.errors import UsageError

NUMBERS = 8  # at most, in a message
HEADER = 3 + NUMBERS  # float64: count of numbers, or END or ALIVE; size of x; index of its dtype; numbers
END, ALIVE = -1, -2
DTYPES = (torch.float32, torch.float64)
TAGS = (0, 1)  # of headers, and of what follows them
QUEUED = 64  # messages, after which posting waits for the link


def check_message(to: int, message: Message) -> None:
    """Raise UsageError if a message does not fit into the format."""
    if len(message.numbers) > NUMBERS or message.x.dtype not in DTYPES:
        found = f"{len(message.numbers)} numbers, {message.x.dtype}"
        raise UsageError(f"message to {to}: expected up to {NUMBERS} numbers, float32 or float64; found {found}")


class Link:
    """One connection to a peer.

    Receiving goes on all the time, so that a sender never waits for what the receiver computes. Where nothing is
    to be sent, a sign of life is, four times in `silence`.

    Args:
        pair: the connection.
        peer: to whom.
        silence: seconds without a sign of life, or for a message to be taken, after which it is lost.
    """

    def __init__(self, pair: Pair, peer: int, silence: float) -> None:
        self._pair, self._peer, self._silence = pair, peer, silence
        self._queue: queue.Queue[Message | None] = queue.Queue(QUEUED)
        self._over = threading.Event()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._sender.start()

    def put(self, message: Message | None) -> None:
        """Queue a message, or None as the last; wait while QUEUED others are, unless the connection is lost."""
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(message, timeout=0.05)
                return

    def listen(self, arrived: Callable[[Message], None]) -> None:
        """Receive until the peer has nothing more to send; then tell it the same.

        Raises:
            RuntimeError: the connection is lost; of a message that was under way nothing has been given out.
        """
        while True:
            header = torch.zeros(HEADER, dtype=torch.float64)
            self._pair.receive(header, TAGS[0], self._silence)
            count, size, kind, *numbers = header.tolist()
            if count == END:
                break
            if count == ALIVE:
                continue
            x = torch.empty(int(size), dtype=DTYPES[int(kind)])
            if size:
                self._pair.receive(x, TAGS[1], self._silence)
            arrived(Message(self._peer, tuple(numbers[: int(count)]), x))
        self.put(None)
        self._sender.join(2 * self._silence)

    def close(self) -> None:
        """End the connection at once; the peer finds this node lost, unless it has been told of the end."""
        self._over.set()
        self._pair.close()

    def _send_all(self) -> None:
        """Send what is queued, in its order, up to the last; runs in a thread."""
        try:
            while not self._over.is_set():
                try:
                    message = self._queue.get(timeout=self._silence / 4)
                except queue.Empty:
                    self._send([ALIVE])
                    continue
                if message is None:
                    self._send([END])
                    break
                x = message.x.detach().cpu().contiguous()
                self._send([len(message.numbers), x.numel(), DTYPES.index(x.dtype), *message.numbers])
                if x.numel():
                    self._pair.send(x, TAGS[1], self._silence)
        except RuntimeError:
            self._pair.close()  # whoever listens then learns of it
        self._over.set()

    def _send(self, numbers: list[float]) -> None:
        header = torch.zeros(HEADER, dtype=torch.float64)
        header[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        self._pair.send(header, TAGS[0], self._silence)
