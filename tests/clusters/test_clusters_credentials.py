"""Credentials: nobody else can read them, expired ones are refused, and intruders stay outside."""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from distributed import Client, Scheduler, Security

from dlpr.clusters import credentials as module
from dlpr.clusters.credentials import LONGEST, Credentials, make_credentials, open_credentials
from dlpr.errors import ClusterError

DAY = timedelta(days=1)
FILES = {"ca.pem", "cert.pem", "key.pem"}
PATIENCE = "1.5s"
"""How long an intruder tries; a client that may enter needs some hundredths of a second."""


@pytest.fixture
def own(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path / "own", DAY)


@pytest.fixture
def other(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path / "other", DAY)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def turn_clock(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    monkeypatch.setattr(module, "_now", lambda: datetime.now(UTC) + by)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o377])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        made = make_credentials(tmp_path / "cluster", DAY)
    assert mode(made.folder) == 0o700
    assert {path.name: mode(path) for path in made.folder.iterdir()} == dict.fromkeys(FILES, 0o600)


def test_files_are_private_from_the_moment_of_creation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    fchmod = os.fchmod

    def look_then_fchmod(descriptor: int, wanted: int) -> None:
        status = os.fstat(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen[name] = stat.S_IMODE(status.st_mode), status.st_size
        fchmod(descriptor, wanted)

    monkeypatch.setattr(os, "fchmod", look_then_fchmod)
    with umask(0):
        make_credentials(tmp_path / "cluster", DAY)
    assert seen == dict.fromkeys(FILES, (0o600, 0))


def test_a_folder_of_the_user_alone_is_taken(tmp_path: Path) -> None:
    tmp_path.joinpath("cluster").mkdir(mode=0o700)
    made = make_credentials(tmp_path / "cluster", DAY)
    assert {path.name for path in made.folder.iterdir()} == FILES
    assert made == open_credentials(tmp_path / "cluster")


@pytest.mark.parametrize("wide", [0o750, 0o705, 0o710, 0o777])
def test_a_folder_that_others_can_enter_is_refused(
    tmp_path: Path, own: Credentials, wide: int
) -> None:
    folder = tmp_path / "my cluster"
    folder.mkdir()
    folder.chmod(wide)
    with pytest.raises(ClusterError, match=f"chmod 700 '{folder}'"):
        make_credentials(folder, DAY)
    assert list(folder.iterdir()) == []
    own.folder.chmod(wide)
    with pytest.raises(ClusterError, match=f"mode {wide:04o}.*chmod 700 {own.folder}"):
        open_credentials(own.folder)


def test_another_users_folder_is_refused(
    tmp_path: Path, own: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("cluster").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ClusterError, match=f"user with id {os.getuid()}"):
        make_credentials(tmp_path / "cluster", DAY)
    assert list(tmp_path.joinpath("cluster").iterdir()) == []
    with pytest.raises(ClusterError, match=f"user with id {os.getuid()}"):
        open_credentials(own.folder)


def test_a_link_is_refused(tmp_path: Path, own: Credentials) -> None:
    (tmp_path / "link").symlink_to(own.folder)
    for use in (open_credentials, lambda folder: make_credentials(folder, DAY)):
        with pytest.raises(ClusterError, match="not a link"):
            use(tmp_path / "link")
    key = own.folder / "key.pem"
    key.rename(tmp_path / "elsewhere.pem")
    key.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ClusterError, match=r"key\.pem is no file"):
        open_credentials(own.folder)


def test_credentials_are_not_replaced(own: Credentials) -> None:
    before = {path.name: path.read_bytes() for path in own.folder.iterdir()}
    with pytest.raises(ClusterError, match="dlpr cluster stop"):
        make_credentials(own.folder, DAY)
    (own.folder / "ca.pem").unlink()
    with pytest.raises(ClusterError, match=r"cert\.pem exists"):
        make_credentials(own.folder, DAY)
    del before["ca.pem"]
    assert {path.name: path.read_bytes() for path in own.folder.iterdir()} == before


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    (tmp_path / "cluster").mkdir(mode=0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ClusterError, match="Disk quota exceeded"):
            make_credentials(tmp_path / "cluster", DAY)
    assert list((tmp_path / "cluster").iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="cannot write credentials"):
        make_credentials(tmp_path / "file" / "cluster", DAY)


@pytest.mark.parametrize("valid", [timedelta(), -DAY, LONGEST + DAY, timedelta.max])
def test_odd_times_are_refused(tmp_path: Path, valid: timedelta) -> None:
    with pytest.raises(ClusterError, match="cannot be valid for"):
        make_credentials(tmp_path / "cluster", valid)
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("wide", [0o640, 0o604, 0o620])
def test_a_file_open_to_others_is_refused(own: Credentials, name: str, wide: int) -> None:
    path = own.folder / name
    path.chmod(wide)
    with pytest.raises(ClusterError, match=f"chmod 600 {path}"):
        open_credentials(own.folder)
    path.chmod(0o600)
    assert open_credentials(own.folder) == own


@pytest.mark.parametrize("name", [*sorted(FILES), ""])
def test_what_is_absent_is_named(tmp_path: Path, own: Credentials, name: str) -> None:
    (own.folder / name).rename(tmp_path / "gone")
    with pytest.raises(ClusterError, match=f"{own.folder / name} is absent.*dlpr cluster list"):
        open_credentials(own.folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_and_mixtures_are_refused(own: Credentials, other: Credentials, name: str) -> None:
    path, foreign = own.folder / name, other.folder / name
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], foreign.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ClusterError, match=r"damaged or of different clusters.*start"):
            open_credentials(own.folder)


def test_expired_credentials_are_refused(own: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    left = own.expires - datetime.now(UTC)
    assert timedelta(hours=23, minutes=59) < left <= DAY
    turn_clock(monkeypatch, left - timedelta(minutes=1))
    assert open_credentials(own.folder) == own
    turn_clock(monkeypatch, left)
    message = f"expired on {own.expires:%Y-%m-%d %H:%M} UTC.*`dlpr cluster start`"
    with pytest.raises(ClusterError, match=message):
        open_credentials(own.folder)


def test_clocks_may_differ_a_little(own: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_clock(monkeypatch, -timedelta(minutes=55))
    assert open_credentials(own.folder) == own
    turn_clock(monkeypatch, -timedelta(minutes=65))
    with pytest.raises(ClusterError, match="have its clock set"):
        open_credentials(own.folder)


def test_every_cluster_has_its_own_authority(own: Credentials, other: Credentials) -> None:
    for name in FILES:
        assert (own.folder / name).read_bytes() != (other.folder / name).read_bytes()
    authorities = [certificate(each.folder / "ca.pem") for each in (own, other)]
    leaves = [certificate(each.folder / "cert.pem") for each in (own, other)]
    assert len({each.subject for each in authorities + leaves}) == 4
    assert len({each.serial_number for each in authorities + leaves}) == 4
    for leaf, authority, foreign in zip(leaves, authorities, authorities[::-1], strict=True):
        leaf.verify_directly_issued_by(authority)
        with pytest.raises((ValueError, InvalidSignature)):
            leaf.verify_directly_issued_by(foreign)


def test_the_authoritys_key_is_nowhere(own: Credentials) -> None:
    keys = [path for path in own.folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert [path.name for path in keys] == ["key.pem"]
    authority, leaf = (certificate(own.folder / name) for name in ("ca.pem", "cert.pem"))
    assert authority.public_key() != leaf.public_key()
    assert isinstance(key := leaf.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def context(cluster: Credentials, purpose: ssl.Purpose) -> ssl.SSLContext:
    tls = ssl.create_default_context(purpose, cafile=cluster.folder / "ca.pem")
    tls.load_cert_chain(cluster.folder / "cert.pem", cluster.folder / "key.pem")
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_REQUIRED
    tls.verify_flags |= ssl.VERIFY_X509_STRICT
    return tls


def shake_hands(server: Credentials, client: Credentials) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        context(client, ssl.Purpose.SERVER_AUTH).wrap_bio(down, up),
        context(server, ssl.Purpose.CLIENT_AUTH).wrap_bio(up, down, server_side=True),
    ]
    for side in sides * 2:
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert all(side.getpeercert() for side in sides)


def test_openssl_takes_the_own_authority_alone(own: Credentials, other: Credentials) -> None:
    shake_hands(own, own)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(own, other)


def test_security_serves_all_roles_from_files(own: Credentials) -> None:
    security = own.security()
    assert security.require_encryption is True
    for role in ("scheduler", "worker", "client"):
        tls = security.get_tls_config_for_role(role)
        found = {tls["ca_file"], tls["cert"], tls["key"]}
        assert found == {str(own.folder / name) for name in FILES}


class Intruder(Security):
    """A client that believes every scheduler, so that only the scheduler can refuse it."""

    __slots__ = ("pair",)

    def __init__(self, *pair: Path) -> None:
        super().__init__(require_encryption=True)
        self.pair = pair

    def get_connection_args(self, role: str) -> dict[str, Any]:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        if self.pair:
            tls.load_cert_chain(*self.pair)
        return {"ssl_context": tls, "require_encryption": True, "extra_conn_args": {}}


def forge(folder: Path, model: x509.Certificate) -> tuple[Path, Path]:
    """A self-signed pair under the names of a certificate of a cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(model.issuer)
        .issuer_name(model.issuer)
        .public_key(key.public_key())
        .serial_number(model.serial_number)
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    pair = folder / "cert.pem", folder / "key.pem"
    pair[0].write_bytes(forged.public_bytes(Encoding.PEM))
    pair[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pair


async def attach(own: Credentials, protocol: str, security: Security | None) -> None:
    """Attach a client to a scheduler of the cluster ``own``."""
    async with Scheduler(
        protocol="tls://",
        host="127.0.0.1",
        port=0,
        dashboard_address="127.0.0.1:0",
        security=own.security(),
    ) as scheduler:
        assert scheduler.address.startswith("tls://127.0.0.1:")
        strangers = set(scheduler.clients)  # the scheduler has one of its own
        client = Client(
            scheduler.address.replace("tls://", protocol),
            security=security,
            asynchronous=True,
            timeout=PATIENCE,
            set_as_default=False,
        )
        try:
            await client
            assert set(scheduler.clients) == strangers | {client.id}
            assert await client.run_on_scheduler(os.getpid) == os.getpid()
        except (OSError, TypeError):
            assert set(scheduler.clients) == strangers
            raise
        finally:
            await client.close()


def pair(cluster: Credentials) -> tuple[Path, Path]:
    return cluster.folder / "cert.pem", cluster.folder / "key.pem"


def test_a_scheduler_admits_who_has_its_credentials(own: Credentials) -> None:
    asyncio.run(attach(own, "tls://", open_credentials(own.folder).security()))
    asyncio.run(attach(own, "tls://", Intruder(*pair(own))))


REFUSALS = {
    "another cluster's, honest": "UNKNOWN_CA",
    "another cluster's": "CERTIFICATE_VERIFY_FAILED",
    "self-signed": "CERTIFICATE_VERIFY_FAILED",
    "no certificate": "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    "plain tcp": "WRONG_VERSION_NUMBER",
}
"""Intruders, and what the scheduler's log says of them in OpenSSL's words."""


@pytest.mark.parametrize("intruder", REFUSALS)
def test_a_scheduler_refuses_all_others(
    own: Credentials,
    other: Credentials,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    intruder: str,
) -> None:
    security = {
        "another cluster's, honest": other.security(),
        "another cluster's": Intruder(*pair(other)),
        "self-signed": Intruder(*forge(tmp_path / "forged", certificate(pair(own)[0]))),
        "no certificate": Intruder(),
        "plain tcp": None,
    }[intruder]
    with pytest.raises(OSError, match=r"TLS|TCP"):
        asyncio.run(attach(own, "tcp://" if intruder == "plain tcp" else "tls://", security))
    refused = [line for line in caplog.messages if "TLS handshake failed" in line]
    assert refused
    assert all(REFUSALS[intruder] in line for line in refused)


def test_without_settings_a_client_does_not_even_try(own: Credentials) -> None:
    with pytest.raises(TypeError, match="ssl_context"):
        asyncio.run(attach(own, "tls://", None))
