"""Certificates of authorities that tests make, for servers and clients on loopback."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BEGIN, END = datetime.datetime(2020, 1, 1), datetime.datetime(2200, 1, 1)


class Authority:
    """Signs certificates, and writes them to files of a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, folder.name)])
        made = self._of(self.name, self.key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.certificate = self._write("ca", made.add_extension(usage, critical=True))

    def issue(self, who: str, named: bool = True) -> tuple[Path, Path]:
        """Return the files of a certificate for 127.0.0.1, with or without a common name, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        kind = x509.NameOID.COMMON_NAME if named else x509.NameOID.ORGANIZATION_NAME
        name = x509.Name([x509.NameAttribute(kind, who)])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._write(who, self._of(name, key).add_extension(here, critical=False))
        path = self.folder / f"{who}.key"
        form, open_ = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, open_))
        return certificate, path

    def _of(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> Any:
        number = x509.random_serial_number()
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        made = x509.CertificateBuilder(self.name, name, key.public_key(), number, BEGIN, END)
        return made.add_extension(own, critical=False).add_extension(above, critical=False)

    def _write(self, who: str, certificate: Any) -> Path:
        path = self.folder / f"{who}.pem"
        signed = certificate.sign(self.key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path
