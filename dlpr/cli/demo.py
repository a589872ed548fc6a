"""The command that shows what the program is for."""

from __future__ import annotations

import time
from pathlib import Path

import click


def _default_workers() -> int:
    from dlpr.job.cluster import n_cores

    return min(4, n_cores())


@click.command(epilog="Example:  dlpr demo --output /tmp/dlpr-demo")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("dlpr-demo"),
    show_default=True,
    help="Folder for the jobs, the data, the results and the pictures.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=_default_workers,
    show_default="one per core, up to 4",
    help="Worker processes.",
)
def demo(output: Path, workers: int) -> None:
    """Show silicon's rigidities before and after its training set gains what it lacks.

    Two jobs, under a minute: one trained on crystals and perfect amorphous networks, one also on
    defects and surfaces. Run again, it continues. The job files are there to be read and changed.
    """
    from rich.console import Console

    from dlpr.api import run
    from dlpr.cli.report import ProgressLines, show
    from dlpr.demo import plots, story

    start = time.perf_counter()
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)

    paths = story.write_jobs(output, workers)
    stores = {}
    with story.shared_client(paths) as client:
        for name, path in paths.items():
            say(f"{name} ({path}): {story.JOBS[name]}")
            with ProgressLines(console) as lines:
                result = run(path, client=client, listeners=(lines,))
            stores[output / name / result.path.name] = f"rigidities {name}"
    sets = story.read_sets(output)
    show(console, story.comparison_table(sets))
    for line in story.story_lines(sets):
        say(f"\n{line}")
    written = {
        plots.plot_violins(output / "rigidity.png", sets): "LPR per test set, before and after",
        plots.plot_slab(output / "slab.png", sets["surface"]): "a slab, its atoms coloured by LPR",
        story.write_slab(output / "slab.extxyz", sets["surface"]): "the same for OVITO",
        **dict.fromkeys(paths.values(), "a job; change it and `dlpr run` it"),
        **stores,
    }
    say(f"\nWritten in {time.perf_counter() - start:.0f} s:")
    width = max(len(str(path)) for path in written)
    for path, what in written.items():
        say(f"  {path!s:<{width}}  {what}")
    say("\nNext, every atom of a test set with its LPR, for OVITO:")
    command = f"dlpr export {output / 'after'} --set liquid --to {output / 'liquid.extxyz'}"
    say(f"  {command}")
