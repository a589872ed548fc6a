"""Commands for clusters that stay: start, look at, scale, stop."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console

from dlpr.cli.report import show
from dlpr.errors import ClusterError
from dlpr.tables import TextTable
from dlpr.units import format_bytes, parse_seconds

_NAME = click.argument("name")
_PROFILE = click.option(
    "--profile",
    "-p",
    required=True,
    help="Of clusters.yaml in $XDG_CONFIG_HOME/dlpr (~/.config/dlpr).",
)


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return parse_seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(
    epilog="Example:  dlpr cluster start carbon --profile site --jobs 8   (then, in a notebook: "
    'client = dlpr.connect("carbon"))'
)
def cluster() -> None:
    """Clusters that stay: workers as SLURM jobs, a scheduler that notebooks and runs attach to."""


@cluster.command(epilog="Example:  dlpr cluster start carbon --profile site --jobs 8 --idle 2h")
@_NAME
@_PROFILE
@click.option("--jobs", "-n", type=click.IntRange(1), help="Workers, in place of the profile's.")
@click.option("--idle", type=_Seconds(), help="Time without tasks after which it ends; 0: never.")
@click.option("--wait", type=_Seconds(), default="1min", show_default=True, help="For it to be up.")
def start(name: str, profile: str, jobs: int | None, idle: int | None, wait: int) -> None:
    """Start a cluster called NAME that outlives this terminal.

    Its scheduler is a SLURM job of its own, or a process here if the profile says `scheduler:
    {place: process}`. It speaks TLS, with credentials that only you can read.
    """
    from dlpr.clusters.registry import cluster_folder
    from dlpr.clusters.start import start as begin
    from dlpr.job.cluster import Cluster, load_profile

    found = load_profile(profile)
    changes = {"idle_timeout": idle, "workers" if found.kind == "local" else "jobs": jobs}
    spec = found.spec.model_dump() | {k: v for k, v in changes.items() if v is not None}
    folder = cluster_folder(name)
    started = begin(folder, Cluster.model_validate({found.kind: spec}))
    until = time.monotonic() + wait
    while folder.scheduler() is None and time.monotonic() < until:
        failure = folder.state().get("failure")
        if failure:
            raise ClusterError(f"cluster {name!r} could not be started: {failure}")
        time.sleep(0.2)
    scheduler = folder.scheduler()
    if scheduler is None:
        click.echo(
            f"{started} of cluster {name} is there, its scheduler is not up yet: "
            f"`dlpr cluster status {name}` says why."
        )
        return
    click.echo(
        f"cluster {name} is up: {started}, scheduler {scheduler['address']} on "
        f"{scheduler['host']}.\n"
        f'Attach:  dlpr.connect("{name}")   or   dlpr run JOB --cluster {name}\n'
        f"Stop:    dlpr cluster stop {name}"
    )


@cluster.command("list", epilog="Example:  dlpr cluster list")
def list_all() -> None:
    """List your clusters."""
    from dlpr.clusters.registry import clusters_home, folders

    rows = []
    for folder in folders():
        alive, scheduler = folder.is_alive(), folder.scheduler()
        state = ("up" if scheduler else "starting") if alive else "waiting or dead"
        n_workers = len(folder.state().get("workers", [])) if alive else 0
        where = f"{scheduler['address']} on {scheduler['host']}" if scheduler and alive else "-"
        rows.append([folder.name, state, where, str(n_workers)])
    columns = ("cluster", "state", "scheduler", "workers")
    show(Console(), TextTable(str(clusters_home()), columns, 3, rows))


@cluster.command(epilog="Example:  dlpr cluster status carbon")
@_NAME
def status(name: str) -> None:
    """Say how NAME fares: workers, jobs in SLURM's own words, memory, tasks, dashboard."""
    from dlpr.clusters import queue
    from dlpr.clusters.registry import cluster_folder

    folder = cluster_folder(name)
    record, state, scheduler = folder.record(), folder.state(), folder.scheduler()
    lines = []
    if not folder.is_alive():
        lines.append(f"the scheduler of {name} is not alive")
        scheduler = None
    if record.get("job"):
        job = queue.jobs([record["job"]]).get(record["job"])
        advice = f": {job.advice}" if job is not None and job.advice else ""
        lines.append(f"scheduler's {job}{advice}" if job else "SLURM knows no job of its scheduler")
    if scheduler is None:
        lines += [str(state.get("explanation", "")), _log_tail(folder.logs)]
    else:
        host, web = scheduler["host"], scheduler["dashboard"]
        lines += [
            f"scheduler {scheduler['address']}, process {scheduler['pid']} on {scheduler['host']}",
            f"dashboard (needs bokeh) http://{web}/status on {host} alone: "
            f"ssh -L 8787:{web} {host}",
            f"credentials valid until {folder.credentials().expires:%Y-%m-%d %H:%M} UTC",
            f"tasks {state.get('tasks', 0)}, clients {state.get('clients', 0)}",
        ]
        if not state.get("workers") and state.get("explanation"):
            lines.append(f"no workers: {state['explanation']}")
    rows = [
        [
            one["name"],
            one["address"],
            str(one["threads"]),
            str(one["executing"]),
            f"{format_bytes(one['resident_nbytes'])} of {format_bytes(one['limit_nbytes'])}",
        ]
        for one in state.get("workers", [])
        if scheduler is not None
    ]
    console = Console()
    columns = ("worker", "address", "threads", "tasks", "memory")
    show(console, TextTable(f"Cluster {name}", columns, 2, rows))
    for line in [*lines, *state.get("jobs", [])]:
        if line:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _log_tail(logs: Path) -> str:
    from dlpr.clusters import queue

    newest = sorted(logs.glob("*"), key=lambda path: path.stat().st_mtime)[-1:]
    return "\n".join(f"{path.name}:\n{queue.tail(path)}" for path in newest)


@cluster.command(epilog="Example:  dlpr cluster scale carbon 16")
@_NAME
@click.argument("jobs", type=click.IntRange(0))
def scale(name: str, jobs: int) -> None:
    """Have NAME keep so many worker JOBS."""
    from dlpr.clusters.registry import cluster_folder

    folder = cluster_folder(name)
    folder.record()
    folder.want(jobs=jobs)
    click.echo(f"{name} will keep {jobs} workers")


@cluster.command(epilog="Example:  dlpr cluster logs carbon --lines 50")
@_NAME
@click.option("--lines", type=click.IntRange(1), default=20, show_default=True)
def logs(name: str, lines: int) -> None:
    """Show the ends of NAME's logs, the newest last."""
    from dlpr.clusters import queue
    from dlpr.clusters.registry import cluster_folder

    folder = cluster_folder(name)
    folder.record()
    for path in sorted(folder.logs.glob("*"), key=lambda path: path.stat().st_mtime):
        text = queue.tail(path, lines)
        if text:
            click.echo(f"== {path}\n{text}")


@cluster.command(epilog="Example:  dlpr cluster stop carbon")
@_NAME
def stop(name: str) -> None:
    """Stop NAME: its workers, its scheduler, and its credentials."""
    from dlpr.clusters.registry import cluster_folder
    from dlpr.clusters.server import stop as end

    by_itself = end(cluster_folder(name))
    click.echo(f"{name} is stopped" + ("" if by_itself else "; its jobs had to be cancelled"))


@cluster.command(epilog="Example:  dlpr cluster script site > worker.sh")
@click.argument("profile")
@click.option("--scheduler", is_flag=True, help="The scheduler's job in place of a worker's.")
def script(profile: str, scheduler: bool) -> None:
    """Print the job script that PROFILE would submit. Needs no SLURM."""
    from dlpr.clusters.registry import clusters_home
    from dlpr.clusters.script import ask, scheduler_script, worker_preview
    from dlpr.job.cluster import load_profile

    found = load_profile(profile)
    if found.kind != "slurm":
        raise ClusterError(f"profile {profile!r} is of kind {found.kind}: it has no job script")
    folder = clusters_home() / "NAME"
    make = scheduler_script if scheduler else worker_preview
    click.echo(make(ask(found.spec), folder, "NAME"), nl=False)


@cluster.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def serve(folder: Path) -> None:
    """Be the scheduler of the cluster in FOLDER; `dlpr cluster start` calls this."""
    from dlpr.clusters.registry import ClusterFolder
    from dlpr.clusters.server import serve as be

    be(ClusterFolder(folder.absolute()))
