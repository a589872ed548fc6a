"""The credentials of a cluster: an authority of its own and one key pair for all its parts.

Whoever holds the key may run code as the cluster's owner. distributed accepts every certificate of
the configured authority and looks at no host name [1]_, so an authority signs one certificate, and
its private key is never written.

References
----------
.. [1] `Security._get_tls_context` in distributed/security.py (2026.8): ``check_hostname = False``.
.. [2] RFC 5280, sections 4.1.2 and 4.2.1: the fields of a certificate and its extensions.
"""

from __future__ import annotations

import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dlpr.errors import ClusterError
from dlpr.store.files import fsync_directory, look_again, make_folder

if TYPE_CHECKING:
    from distributed import Security

AUTHORITY, CERTIFICATE, KEY = "ca.pem", "cert.pem", "key.pem"
LONGEST = timedelta(days=365)
"""Credentials are valid for no longer."""
CLOCKS_DIFFER = timedelta(hours=1)
"""Certificates are valid from this long before they are made: clocks of hosts may be behind."""


@dataclass(frozen=True)
class Credentials:
    """The credentials of one cluster, on disk.

    Attributes
    ----------
    folder : Path
        Absolute; holds the certificates of authority and cluster, and the cluster's key.
    expires : datetime
        In UTC.
    """

    folder: Path
    expires: datetime

    def security(self) -> Security:
        """What scheduler, workers and clients of this cluster are started with."""
        from distributed import Security

        certificate, key = str(self.folder / CERTIFICATE), str(self.folder / KEY)
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.folder / AUTHORITY),
            tls_scheduler_cert=certificate,
            tls_scheduler_key=key,
            tls_worker_cert=certificate,
            tls_worker_key=key,
            tls_client_cert=certificate,
            tls_client_key=key,
        )


def make_credentials(folder: Path, valid: timedelta) -> Credentials:
    """Make an authority and a key pair for a new cluster.

    Parameters
    ----------
    folder : Path
        Made with mode 0700 where it is absent. The files have mode 0600 from the start.
    valid : timedelta
        From now on, at most `LONGEST`.

    Raises
    ------
    ClusterError
        If the folder is not this user's alone, holds credentials already or cannot be written, or
        if ``valid`` is out of range.
    """
    if not timedelta() < valid <= LONGEST:
        raise ClusterError(
            f"credentials cannot be valid for {valid}: choose a time above 0 and of at most "
            f"{LONGEST.days} days, longer than the cluster is to live."
        )
    folder = folder.absolute()
    written: list[Path] = []
    with _explained("write", folder):
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(0o700)
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o700)  # the umask may take bits
        _check_private(folder, is_folder=True)
        try:
            for name, content in _sign(_now(), valid).items():
                with _create_private(folder / name) as file:
                    written.append(folder / name)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # a full quota shows itself here
            fsync_directory(folder)
            return open_credentials(folder)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise


def open_credentials(folder: Path) -> Credentials:
    """The credentials that `make_credentials` wrote, if they may be used.

    Raises
    ------
    ClusterError
        If they are absent, damaged, of another user, open to others, or outside their time.
    """
    folder = folder.absolute()
    with _explained("read", folder):
        look_again(folder)
        _check_private(folder, is_folder=True)
        content = {}
        for name in (AUTHORITY, CERTIFICATE, KEY):
            _check_private(folder / name, is_folder=False)
            content[name] = (folder / name).read_bytes()
    try:
        authority = x509.load_pem_x509_certificate(content[AUTHORITY])
        certificate = x509.load_pem_x509_certificate(content[CERTIFICATE])
        key = load_pem_private_key(content[KEY], password=None)
        certificate.verify_directly_issued_by(authority)
        if key.public_key() != certificate.public_key():
            raise ValueError("the key is of another certificate")
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise ClusterError(
            f"the credentials in {folder} are damaged or of different clusters "
            f"({str(error) or 'the authority did not sign the certificate'}). `dlpr cluster stop` "
            f"this cluster; `dlpr cluster start` makes new ones."
        ) from error
    begins, expires = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = _now()
    if now >= expires:
        raise ClusterError(
            f"the credentials in {folder} expired on {expires:%Y-%m-%d %H:%M} UTC (this host's "
            f"clock says {now:%Y-%m-%d %H:%M}) and are never used again. `dlpr cluster start` "
            f"starts a cluster with new ones."
        )
    if now < begins:
        raise ClusterError(
            f"the credentials in {folder} are valid from {begins:%Y-%m-%d %H:%M} UTC on, and this "
            f"host's clock says {now:%Y-%m-%d %H:%M}: have its clock set, or use another host."
        )
    return Credentials(folder, expires)


def _now() -> datetime:
    return datetime.now(UTC)


def _sign(now: datetime, valid: timedelta) -> dict[str, bytes]:
    """Certificates and key of a new cluster in PEM; the authority's key ends with this call."""
    cluster = f"dlpr cluster {secrets.token_hex(8)}"
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _common_name(f"{cluster} authority")

    def certificate(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, usage: str) -> bytes:
        is_authority = subject == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCKS_DIFFER)
            .not_valid_after(now + valid)
            .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
            .add_extension(_key_usage(usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
                critical=False,
            )
        )
        if not is_authority:
            roles = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    return {
        AUTHORITY: certificate(issuer, authority_key.public_key(), "key_cert_sign"),
        CERTIFICATE: certificate(_common_name(cluster), key.public_key(), "digital_signature"),
        KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


_KEY_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _key_usage(name: str) -> x509.KeyUsage:
    """The one thing that a key is for."""
    return x509.KeyUsage(**{usage: usage == name for usage in _KEY_USAGES})


def _create_private(path: Path) -> BinaryIO:
    """A new file that nobody else can read at any time, whatever the umask."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ClusterError(
            f"{path} exists: its folder holds the credentials of a cluster. `dlpr cluster stop` "
            f"that one, or choose another name for the new one."
        ) from error
    os.fchmod(descriptor, 0o600)  # the umask may take bits
    return os.fdopen(descriptor, "wb")


def _check_private(path: Path, is_folder: bool) -> None:
    """Refuse what is a link, of another user, or open to others."""
    status = path.lstat()
    kind, mode = ("folder", 0o700) if is_folder else ("file", 0o600)
    if not (stat.S_ISDIR if is_folder else stat.S_ISREG)(status.st_mode):
        raise ClusterError(
            f"{path} is no {kind}: credentials are a {kind} of their own, not a link. Choose "
            f"another place for them, or remove it."
        )
    if status.st_uid != os.geteuid():
        raise ClusterError(
            f"{path} belongs to the user with id {status.st_uid}, and you are {os.geteuid()}: "
            f"credentials are used by their owner alone. Choose a {kind} of your own."
        )
    if status.st_mode & 0o077:
        raise ClusterError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, open to other users, who could "
            f"run code in your name. `chmod {mode:o} {shlex.quote(str(path))}` closes it; if "
            f"somebody may have read the key, `dlpr cluster stop` and start anew. Where a file "
            f"system keeps no modes, choose another place for credentials."
        )


@contextmanager
def _explained(verb: str, folder: Path) -> Iterator[None]:
    """Turn the system's refusal into a message for users."""
    try:
        yield
    except FileNotFoundError as error:
        raise ClusterError(
            f"cannot {verb} credentials in {folder}: {error.filename} is absent. The cluster was "
            f"stopped or never started, or this host does not see its folder. `dlpr cluster list` "
            f"names the clusters there are."
        ) from error
    except OSError as error:
        raise ClusterError(
            f"cannot {verb} credentials in {folder}: {error.strerror}. Choose a folder of your own "
            f"that all nodes see, or have what is missing granted."
        ) from error
