"""A connection between two who share a secret: each has proved it to the other, and nobody changes what passes.

On the wire, with mac(key, label, data) = HMAC-SHA256(key, "swarmstep" 0 label 0 data)::

    both      GREETING, 32 random bytes; those of the worker, then those of the door, are `nonces`
    worker    mac(secret, "worker", nonces)
    door      mac(secret, "door", nonces); 32 zeros if it refuses
    both      frames: length of data (4 bytes, big-endian), mac(key, "frame", number (8 bytes) length data), data

The worker's key is mac(secret, "to the door", nonces), the door's mac(secret, "to the worker", nonces); each
numbers its frames from 0. A frame that is out of order, repeated, altered or sent back ends the connection.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets

from swarmstep.comm.secure.auth import ADVICE, MAC, NONCE, mac
from swarmstep.errors import CommError

GREETING = b"swarmstep door 1"
REFUSAL = bytes(MAC)
CHUNK = 1 << 16  # bytes in a frame at most


class Channel:
    """One end of a connection whose two ends know each other: data in authenticated frames.

    Args:
        reader: of the connection.
        writer: of the connection.
        own_key: of the frames that this end sends.
        their_key: of the frames that the other end sends.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, own_key: bytes, their_key: bytes
    ) -> None:
        self._reader, self._writer = reader, writer
        self._own_key, self._their_key = own_key, their_key
        self._sent = self._received = 0

    async def send(self, data: bytes) -> None:
        """Send `data`, 1 to CHUNK bytes, as a frame."""
        size = len(data).to_bytes(4, "big")
        self._writer.write(size + mac(self._own_key, b"frame", self._sent.to_bytes(8, "big") + size + data) + data)
        self._sent += 1
        await self._writer.drain()

    async def receive(self) -> bytes:
        """Return the next frame's data.

        Raises:
            asyncio.IncompleteReadError: the connection has ended.
            CommError: this is not the next frame that the other end has sent.
        """
        size = await self._reader.readexactly(4)
        their_mac = await self._reader.readexactly(MAC)
        length = int.from_bytes(size, "big")
        data = await self._reader.readexactly(length) if length <= CHUNK else b""
        expected = mac(self._their_key, b"frame", self._received.to_bytes(8, "big") + size + data)
        if not hmac.compare_digest(their_mac, expected):
            raise CommError("what arrived is not what the other end has sent: something on the way changes it")
        self._received += 1
        return data


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """Exchange greetings; return this end's nonce and the other's."""
    own = secrets.token_bytes(NONCE)
    writer.write(GREETING + own)
    if await reader.readexactly(len(GREETING)) != GREETING:
        raise CommError("it does not speak as a swarmstep of this version")
    return own, await reader.readexactly(NONCE)


async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> Channel:
    """Let a worker in that proves itself, as the door.

    Raises:
        CommError: it is none, or does not know the secret.
        asyncio.IncompleteReadError: it has left.
    """
    own, theirs = await _greet(reader, writer)
    nonces = theirs + own
    if not hmac.compare_digest(await reader.readexactly(MAC), mac(secret, b"worker", nonces)):
        writer.write(REFUSAL)
        raise CommError("it does not know the secret")
    writer.write(mac(secret, b"door", nonces))
    return Channel(reader, writer, mac(secret, b"to the worker", nonces), mac(secret, b"to the door", nonces))


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> Channel:
    """Prove oneself to a door that does the same, as a worker; who comes first: a door tells strangers nothing.

    Raises:
        CommError: it is none, or refuses the secret, or does not know it itself.
        asyncio.IncompleteReadError: it hung up.
    """
    nonces = b"".join(await _greet(reader, writer))
    writer.write(mac(secret, b"worker", nonces))
    proof = await reader.readexactly(MAC)
    if proof == REFUSAL:
        raise CommError(f"refused the secret of this worker; {ADVICE}")
    if not hmac.compare_digest(proof, mac(secret, b"door", nonces)):
        raise CommError(f"does not know the secret itself: it is not the one that was meant, or {ADVICE}")
    return Channel(reader, writer, mac(secret, b"to the door", nonces), mac(secret, b"to the worker", nonces))
