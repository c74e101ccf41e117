"""TLS 1.3 between machines that share a secret: both ends show one certificate, which follows from the secret.

The certificate is self-signed, and its Ed25519 key is HKDF-SHA256(secret). Both ends trust it alone, and both
require it of the other: so each has proved to know the secret before anything else is said. What is sent is
encrypted, and what was altered, repeated or left out on the way ends the connection.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import secrets
import socket
import ssl
import tempfile
from typing import Any, NamedTuple

from swarmstep.comm.secure.auth import ADVICE, checked_secret
from swarmstep.errors import CommError
from swarmstep.optional_imports import library

NAME = "swarmstep"  # of whoever knows the secret, in the certificate
DOOR = b"swarmstep door"  # what the key is for, in HKDF
WELCOME = b"1"  # the door's first byte: it has verified the other end, which TLS 1.3 does not tell that end
# From before any clock that is set, to the end of time (RFC 5280): the secret is replaced, not the certificate.
FIRST, LAST = datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Contexts(NamedTuple):
    """TLS 1.3 as it is used on the two sides of a door."""

    door: ssl.SSLContext
    worker: ssl.SSLContext


def derived_key(secret: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that follow from the secret, others for each purpose: HKDF-SHA256 (RFC 5869) without salt.

    Raises:
        UsageError: the extra `secure` is not installed.
    """
    hashes, hkdf = _cryptography("hazmat.primitives.hashes"), _cryptography("hazmat.primitives.kdf.hkdf")
    return hkdf.HKDF(hashes.SHA256(), 32, None, purpose).derive(secret)


def contexts(secret: bytes) -> Contexts:
    """Return the contexts for all who know this secret.

    Raises:
        UsageError: the secret is too short, or the extra `secure` is not installed.
    """
    private = _cryptography("hazmat.primitives.asymmetric.ed25519").Ed25519PrivateKey
    key = private.from_private_bytes(derived_key(checked_secret(secret, "the secret"), DOOR))
    encoded = _certificate(key)
    made = Contexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    made.door.num_tickets = 0  # no session outlives its connection
    for context in made:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=encoded.decode())
        _load(context, key, encoded)
    return made


def _certificate(key: Any) -> bytes:
    """Return the certificate of a key, PEM; the same bytes on every machine."""
    x509 = _cryptography("x509")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, FIRST, LAST)
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
    encoding = _cryptography("hazmat.primitives.serialization").Encoding.PEM
    return made.sign(key, None).public_bytes(encoding)


def _load(context: ssl.SSLContext, key: Any, certificate: bytes) -> None:
    """Have a context show a certificate. Python takes keys from files only: this one is encrypted, and removed."""
    forms, password = _cryptography("hazmat.primitives.serialization"), secrets.token_hex(32)
    locked = forms.BestAvailableEncryption(password.encode())
    data = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, locked)
    handle, path = tempfile.mkstemp()
    try:
        with open(handle, "wb") as file:
            file.write(data + certificate)
        context.load_cert_chain(path, password=password)
    finally:
        os.unlink(path)


async def accept(connection: socket.socket, context: ssl.SSLContext) -> Streams:
    """Authenticate a worker that has connected, as the door.

    Raises:
        CommError: it does not know the secret, or does not speak TLS 1.3.
        OSError: it closed the connection.
    """
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
    except ssl.SSLError as error:
        who = ("CERTIFICATE", "UNKNOWN_CA")  # none or a wrong one; or it did not take ours
        if any(word in (error.reason or "") for word in who):
            raise CommError("does not know the secret") from None
        raise CommError(f"does not speak TLS 1.3 as this version does ({error.reason})") from None
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    writer.write(WELCOME)
    return reader, writer


async def connect(connection: socket.socket, context: ssl.SSLContext) -> Streams:
    """Authenticate to a door, and have it do the same.

    Raises:
        CommError: it does not know the secret, or refuses it, or is no door.
        OSError, EOFError: it closed the connection.
    """
    try:
        streams = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=NAME)
    except ssl.SSLCertVerificationError:
        raise CommError(f"does not know the secret of this worker; {ADVICE}") from None
    except ssl.SSLError as error:
        raise CommError(f"does not speak TLS 1.3 as this version of swarmstep does ({error.reason})") from None
    try:
        await streams[0].readexactly(1)
    except ssl.SSLError:
        raise CommError(f"refused the secret of this worker; {ADVICE}") from None
    except BaseException:
        streams[1].transport.abort()
        raise
    return streams


async def dial(address: tuple[str, int]) -> socket.socket:
    """Return a connection to an address; raise OSError without one."""
    loop, refused = asyncio.get_running_loop(), OSError("the name stands for no address")
    for family, kind, number, _, where in await loop.getaddrinfo(*address, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, number)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, where)
            return connection
        except OSError as error:
            connection.close()
            refused = error
        except BaseException:
            connection.close()
            raise
    raise refused


def _cryptography(module: str) -> Any:
    return library(f"cryptography.{module}", "secure", "connections between machines need")
