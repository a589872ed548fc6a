"""The command line: thin commands over the Python interface."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import click

from dlpr.errors import DlprError

COMMANDS = {
    "run": "dlpr.cli.job",
    "plan": "dlpr.cli.job",
    "ingest": "dlpr.cli.job",
    "featurize": "dlpr.cli.job",
    "hessian": "dlpr.cli.job",
    "rigidity": "dlpr.cli.job",
    "work": "dlpr.cli.folder",
    "status": "dlpr.cli.folder",
    "clean": "dlpr.cli.folder",
    "info": "dlpr.cli.folder",
    "export": "dlpr.cli.export",
    "save": "dlpr.cli.model",
    "predict": "dlpr.cli.model",
    "calibrate": "dlpr.cli.calibrate",
    "scan": "dlpr.cli.scan",
    "audit": "dlpr.cli.audit",
    "cluster": "dlpr.cli.cluster",
    "demo": "dlpr.cli.demo",
    "bench": "dlpr.cli.bench",
}
"""Where each command lives; it is imported when it is called."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name]), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from difflib import get_close_matches

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `dlpr demo`. Then write a job file (README.md shows one) and `dlpr run` it.",
)
@click.version_option(package_name="dlpr")
@click.option("--verbose", is_flag=True, help="Log what the program does.")
def cli(verbose: bool) -> None:
    """Local prediction rigidities of atomistic models, at any scale."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logger = logging.getLogger("dlpr")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def main() -> None:
    """Run the command line; errors meant for users become one message and an exit code."""
    try:
        cli(standalone_mode=False)
    except DlprError as error:
        _leave(f"Error: {error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _leave("Interrupted. Finished tasks are kept: the same command continues.", 130)
    except BrokenPipeError:
        sys.exit(141)


def _leave(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
