"""A connection between a worker and a proxy that share a secret: mutually authenticated, with tamper-proof frames.

On the wire, with mac(key, label, data) = HMAC-SHA256(key, "swarmstep" 0 label 0 data)::

    both      GREETING, 32 random bytes; those of the worker, then those of the proxy, are `nonces`
    worker    mac(secret, "worker", nonces)
    proxy     mac(secret, "proxy", nonces); 32 zeros if it refuses
    both      frames: length of data (4 bytes, big-endian), mac(key, "frame", number (8 bytes) length data), data

The worker's key is mac(secret, "to the proxy", nonces), the proxy's mac(secret, "to the worker", nonces); each
numbers its frames from 0. A frame that is out of order, repeated, altered or reflected ends the connection.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets

from swarmstep.comm.secure.auth import ADVICE, MAC, NONCE, mac
from swarmstep.errors import CommError

GREETING = b"swarmstep/proxy2"  # with the version of this protocol
REFUSAL = bytes(MAC)
CHUNK = 1 << 16  # bytes in a frame, at most


class Channel:
    """One end of an authenticated connection.

    Args:
        reader: of the connection.
        writer: of the connection.
        send_key: of the frames that this end sends.
        receive_key: of the frames that the other end sends.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, send_key: bytes, receive_key: bytes
    ) -> None:
        self._reader, self._writer = reader, writer
        self._send_key, self._receive_key = send_key, receive_key
        self._sent = self._received = 0

    async def send(self, data: bytes) -> None:
        """Send `data`, 1 to CHUNK bytes, as a frame."""
        size = len(data).to_bytes(4, "big")
        frame_mac = mac(self._send_key, b"frame", self._sent.to_bytes(8, "big") + size + data)
        self._writer.write(size + frame_mac + data)
        self._sent += 1
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Return the next frame's data.

        Raises:
            asyncio.IncompleteReadError: the connection was closed.
            CommError: this is not the frame that the other end sent next.
        """
        size = await self._reader.readexactly(4)
        received_mac = await self._reader.readexactly(MAC)
        length = int.from_bytes(size, "big")
        data = await self._reader.readexactly(length) if length <= CHUNK else b""
        expected = mac(self._receive_key, b"frame", self._received.to_bytes(8, "big") + size + data)
        if not hmac.compare_digest(received_mac, expected):
            raise CommError("sent a frame that is not authentic: altered on the way, repeated or out of order")
        self._received += 1
        return data


async def _exchange_greetings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """Return this end's nonce and the other's."""
    own = secrets.token_bytes(NONCE)
    writer.write(GREETING + own)
    if await reader.readexactly(len(GREETING)) != GREETING:
        raise CommError("does not speak the protocol of this version of swarmstep")
    return own, await reader.readexactly(NONCE)


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> Channel:
    """Authenticate a worker that has connected, as the proxy.

    Raises:
        CommError: it is not a worker, or does not know the secret.
        asyncio.IncompleteReadError: it closed the connection.
    """
    own_nonce, worker_nonce = await _exchange_greetings(reader, writer)
    nonces = worker_nonce + own_nonce
    if not hmac.compare_digest(await reader.readexactly(MAC), mac(secret, b"worker", nonces)):
        writer.write(REFUSAL)
        raise CommError("does not know the secret")
    writer.write(mac(secret, b"proxy", nonces))
    return Channel(reader, writer, mac(secret, b"to the worker", nonces), mac(secret, b"to the proxy", nonces))


async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> Channel:
    """Authenticate to a proxy, as a worker, and have it do the same; the worker first: strangers learn nothing.

    Raises:
        CommError: it is not a proxy, or refuses the secret, or does not know it itself.
        asyncio.IncompleteReadError: it closed the connection.
    """
    nonces = b"".join(await _exchange_greetings(reader, writer))
    writer.write(mac(secret, b"worker", nonces))
    proof = await reader.readexactly(MAC)
    if proof == REFUSAL:
        raise CommError(f"refused the secret of this worker; {ADVICE}")
    if not hmac.compare_digest(proof, mac(secret, b"proxy", nonces)):
        raise CommError(f"does not know the secret itself: it is not the intended proxy, or {ADVICE}")
    return Channel(reader, writer, mac(secret, b"to the proxy", nonces), mac(secret, b"to the worker", nonces))
