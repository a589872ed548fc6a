"""Named clusters on this machine: started, attached to, kept from others, stopped, forgotten."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from waiting import until

import dlpr
from dlpr.clusters import registry
from dlpr.clusters.registry import ClusterFolder, cluster_folder, create
from dlpr.clusters.start import start
from dlpr.errors import ClusterError
from dlpr.job.cluster import Cluster

LOCAL = {"workers": 1, "memory_per_worker": "1GiB"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("clusters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(registry.VARIABLE, str(home))
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        yield home


def started(name: str, **changes: Any) -> ClusterFolder:
    folder = cluster_folder(name)
    start(folder, Cluster.model_validate({"local": {**LOCAL, **changes}}))
    until(folder.scheduler)
    return folder


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[ClusterFolder]:
    folder = started("one")
    yield folder
    command(home, "stop", "one")


def command(home: Path, *arguments: str, code: int = 0) -> str:
    """What `dlpr cluster` says."""
    done = subprocess.run(
        [sys.executable, "-m", "dlpr", "cluster", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def processes(folder: ClusterFolder) -> list[psutil.Process]:
    """The scheduler's process and all that it has started."""
    found = folder.scheduler()
    assert found is not None
    first = psutil.Process(found["pid"])
    return [first, *first.children(recursive=True)]


def test_only_its_owner_can_read_its_folder(cluster: ClusterFolder) -> None:
    assert stat.S_IMODE(cluster.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(cluster.tls.stat().st_mode) == 0o700
    assert [stat.S_IMODE(p.stat().st_mode) for p in cluster.tls.iterdir()] == [0o600] * 3


def test_every_socket_is_on_loopback_and_speaks_tls_or_is_an_empty_web_server(
    cluster: ClusterFolder,
) -> None:
    until(lambda: cluster.state().get("workers"))
    ports = {
        one.laddr.port: one.laddr.ip
        for process in processes(cluster)
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    scheduler = cluster.scheduler()
    assert scheduler is not None
    assert set(ports.values()) == {"127.0.0.1"}
    assert len(ports) == 2 + 2 + 1  # scheduler and its dashboard; worker and its; nanny
    kinds = Counter(spoken_at(port, cluster) for port in ports)
    assert kinds == {"tls": 3, "404": 1, "200": 1}
    assert spoken_at(int(scheduler["dashboard"].rpartition(":")[2]), cluster) == "200"


def spoken_at(port: int, cluster: ClusterFolder) -> str:
    """What a port speaks: "tls", or the status of a web server's answer."""
    context = ssl.create_default_context(cafile=str(cluster.tls / "ca.pem"))
    context.check_hostname = False
    context.load_cert_chain(cluster.tls / "cert.pem", cluster.tls / "key.pem")
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=2) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        return "tls" if wrapped.version() in ("TLSv1.2", "TLSv1.3") else "old"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/info/main/workers.html")
    with closing(connection):
        return str(connection.getresponse().status)


def test_clients_come_and_go_and_the_cluster_stays(cluster: ClusterFolder) -> None:
    for _ in range(2):
        with dlpr.connect("one") as client:
            client.wait_for_workers(1, timeout=PATIENCE)
            assert client.submit(os.getpid, pure=False).result(PATIENCE) != os.getpid()
            assert client.security.require_encryption
    assert cluster.is_alive()


def test_another_process_elsewhere_attaches_by_name(cluster: ClusterFolder, tmp_path: Path) -> None:
    code = "import dlpr\nwith dlpr.connect('one') as c: print(c.submit(sum, [20, 22]).result(60))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "42"


def test_through_a_tunnel(cluster: ClusterFolder) -> None:
    """Anything that forwards a port will do; ssh -L does."""
    found = cluster.scheduler()
    assert found is not None
    target = int(found["address"].rpartition(":")[2])
    door = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.close()

    def forward() -> None:
        while True:
            try:
                near, _ = door.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", target))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=_quietly, args=(pump, *pair), daemon=True).start()

    threading.Thread(target=forward, daemon=True).start()
    with dlpr.connect("one", f"tls://127.0.0.1:{door.getsockname()[1]}") as client:
        assert client.submit(sum, [1, 2]).result(PATIENCE) == 3
    door.close()


def _quietly(work: Callable[..., None], *arguments: object) -> None:
    with suppress(OSError):
        work(*arguments)


def test_credentials_of_another_cluster_open_nothing(cluster: ClusterFolder, home: Path) -> None:
    other = cluster_folder("other")
    create(other, Cluster.model_validate({"local": LOCAL}))
    found = cluster.scheduler()
    assert found is not None
    other.say("scheduler", found)
    with pytest.raises(ClusterError, match="does not answer"):
        dlpr.connect("other", timeout=3)
    other.remove()


def test_a_second_of_the_same_name_is_refused(cluster: ClusterFolder) -> None:
    with pytest.raises(ClusterError, match="is alive"):
        start(cluster_folder("one"), Cluster.model_validate({"local": LOCAL}))
    assert cluster.is_alive()


def test_the_command_line_from_start_to_stop(home: Path) -> None:
    profiles = home / "config" / "dlpr" / "clusters.yaml"
    profiles.parent.mkdir(parents=True)
    profiles.write_text(yaml.safe_dump({"here": {"local": LOCAL}}))
    command(home, "start", "two", "--profile", "here")
    folder = cluster_folder("two")
    assert folder.is_alive()
    assert "two" in command(home, "list")
    command(home, "scale", "two", "2")
    until(lambda: len(folder.state().get("workers", [])) == 2)
    assert "127.0.0.1" in command(home, "status", "two")
    family = processes(folder)
    command(home, "stop", "two")
    assert not folder.path.exists()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert "no cluster 'two'" in command(home, "status", "two", code=6)
    assert "PROFILE" in command(home, "stop", "two", code=6)


def test_an_idle_cluster_ends_itself(home: Path) -> None:
    folder = started("idle", idle_timeout="2s")
    family = processes(folder)
    until(lambda: not folder.is_alive())
    assert not (folder.path / "scheduler.json").exists()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    with pytest.raises(ClusterError, match="idle"):
        dlpr.connect("idle")
    again = started("idle")  # the dead one's place is free
    assert again.is_alive()
    command(home, "stop", "idle")


def test_names_that_are_none(home: Path) -> None:
    for name in ("", "../x", ".hidden", "a b", "a/b"):
        with pytest.raises(ClusterError, match="needs letters"):
            cluster_folder(name)
    with pytest.raises(ClusterError, match=r"no cluster 'nobody'.*start nobody"):
        dlpr.connect("nobody")
