"""The secret that workers on several machines share: where it is given, where it is required, and proof of it."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import stat
from collections.abc import Mapping

import torch

from swarmstep.comm.base import Comm
from swarmstep.errors import CommError, UsageError

NONCE = MAC = 32  # bytes
LEAST = 16  # bytes of a secret
ADVICE = "give all machines the same secret, with SWARMSTEP_SECRET_FILE"


def mac(key: bytes, label: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA256 of `data`, which is different for each label (that holds no zero byte)."""
    return hmac.digest(key, b"\0".join((b"swarmstep", label, data)), "sha256")


def checked_secret(secret: bytes, where: str) -> bytes:
    """Return the secret if it is long enough, else raise UsageError, which tells where it is from but not what."""
    if len(secret) < LEAST:
        raise UsageError(
            f"{where}: expected a secret of at least {LEAST} bytes, found {len(secret)}; "
            "make one with: (umask 077; openssl rand -hex 32 > FILE)"
        )
    return secret


def secret_of(environ: Mapping[str, str]) -> bytes | None:
    """Return the secret that the environment gives, stripped of white space, or None.

    Args:
        environ: SWARMSTEP_SECRET_FILE names a file that only its owner can read. Without it, SWARMSTEP_SECRET is
            the secret itself, which others may see (in `docker inspect`, in a job's description).

    Raises:
        UsageError: the file cannot be read, or is accessible to others than its owner, or the secret is too short.
    """
    path = environ.get("SWARMSTEP_SECRET_FILE")
    if path is None:
        value = environ.get("SWARMSTEP_SECRET")
        return None if value is None else checked_secret(value.strip().encode(), "SWARMSTEP_SECRET")
    try:
        with open(os.path.expanduser(path), "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read().strip()
    except OSError as error:
        raise UsageError(f"SWARMSTEP_SECRET_FILE: {path}: {error.strerror}") from None
    if mode & 0o077:
        raise UsageError(
            f"SWARMSTEP_SECRET_FILE: {path} has mode {mode:03o}, so others than its owner may use it; "
            "chmod 600 it, and make a new secret if others may have read it"
        )
    return checked_secret(secret, f"SWARMSTEP_SECRET_FILE: {path}")


def is_loopback(host: str) -> bool:
    """Return whether `host` can only be reached from this machine: localhost, 127.x.x.x or ::1.

    Other names are not looked up: the answer must be the same on all machines, whatever their name servers say.
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, secret: bytes | None) -> None:
    """Raise UsageError if workers would meet at `host`, which is not a loopback address, without a secret."""
    if secret is None and not is_loopback(host):
        raise UsageError(
            f"{host!r} is not a loopback address and there is no secret: set SWARMSTEP_SECRET_FILE to a file of "
            f"at least {LEAST} bytes, the same on all machines, that only its owner can read; on one machine, use "
            "127.0.0.1, or set LOCAL_WORLD_SIZE as torchrun does"
        )


def prove(comm: Comm, secret: bytes) -> None:
    """Prove to all other members of a group that this one knows the secret, and have them prove it. Collective.

    A rank that passes is a member that knows the secret, or somebody who relays everything that such a member
    sends. What follows on this group is not protected.

    Args:
        comm: the group.
        secret: at least 16 bytes.

    Raises:
        CommError: a member does not know it.
        UsageError: it is too short.
    """
    checked_secret(secret, "prove")
    nonces = comm.gather(_row(secrets.token_bytes(NONCE))).numpy().tobytes()

    def proof(rank: int) -> bytes:
        return mac(secret, b"member", rank.to_bytes(8, "big") + nonces)

    proofs = comm.gather(_row(proof(comm.rank)))
    wrong = [r for r in range(comm.size) if not hmac.compare_digest(proofs[r].numpy().tobytes(), proof(r))]
    if wrong:
        who = f"rank{'s' if len(wrong) > 1 else ''} {', '.join(map(str, wrong))}"
        raise CommError(f"rank {comm.rank}: {who} did not prove to know the secret of this rank; {ADVICE}")


def _row(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
