"""What an etcd with TLS asks of those who use it: certificates, and a name with a password."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Mapping
from typing import NamedTuple

from swarmstep.errors import UsageError


class Access(NamedTuple):
    """How an etcd is reached.

    Args:
        context: of TLS (None: plain HTTP).
        user: a name and a password, if etcd asks for them.
    """

    context: ssl.SSLContext | None = None
    user: tuple[str, str] | None = None

    def connection(self, endpoint: str, timeout: float) -> http.client.HTTPConnection:
        """Return a connection to HOST:PORT, which is made with the first request; seconds for each answer."""
        host, _, port = endpoint.rpartition(":")
        host = host.strip("[]")
        if self.context is None:
            return http.client.HTTPConnection(host, int(port), timeout=timeout)
        return http.client.HTTPSConnection(host, int(port), timeout=timeout, context=self.context)


def tls_access(environ: Mapping[str, str]) -> Access:
    """Return the access by TLS 1.3 that the environment describes, in the variables of `etcdctl`.

    Args:
        environ: ETCDCTL_CACERT names a file of the certificates that are trusted (default: those of the system),
            ETCDCTL_CERT and ETCDCTL_KEY the files of a client's certificate and its key, and ETCDCTL_USER is
            NAME:PASSWORD.

    Raises:
        UsageError: a file cannot be used, or one of two that belong together is not given.
    """
    authority, certificate, key, user = (
        environ.get(f"ETCDCTL_{name}") or None for name in ("CACERT", "CERT", "KEY", "USER")
    )
    name, colon, password = (user or "").partition(":")
    if bool(certificate) != bool(key) or (user and not (name and colon)):
        raise UsageError(
            "etcds: expected ETCDCTL_CERT and ETCDCTL_KEY, or neither, and ETCDCTL_USER as NAME:PASSWORD, or none"
        )
    try:
        context = ssl.create_default_context(cafile=_expanded(authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate:
            context.load_cert_chain(os.path.expanduser(certificate), _expanded(key), password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"etcds: ETCDCTL_CACERT={authority or ''}, ETCDCTL_CERT={certificate or ''}, ETCDCTL_KEY={key or ''}: "
            f"{getattr(error, 'strerror', None) or error}; expected files in the form of PEM, without a password"
        ) from None
    return Access(context, (name, password) if user else None)


def _expanded(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)
