"""Which commands are there, and how do they end? With 0, with 2 and one line for what was asked wrongly, with 1 for what failed.

Commands import what they need when they run: `truesparse --help` shall not wait for torch.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from .algorithms import algorithms
from .bench import bench
from .compare import compare, compare_page
from .compress import compress
from .doctor import doctor
from .export import export
from .inspect import inspect
from .lottery import lottery
from .pack import pack
from .prune import prune
from .report import report
from .tour import tour
from .train import train

TRACEBACK = "--traceback"
WITH_OPTIONAL_VALUE = ("--tensorboard", "--mlflow", "--wandb")

app = typer.Typer(
    name="truesparse",
    help="Sparse neural networks that store, train and run only the connections that exist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(compare)
app.command("compare-page")(compare_page)
app.command()(doctor)
app.command()(algorithms)
app.command()(prune)
app.command()(lottery)
app.command()(inspect)
app.command()(pack)
app.command()(compress)
app.command()(export)
app.command()(report)
app.command()(tour)
app.add_typer(bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"truesparse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)] = False,
    traceback: Annotated[bool, typer.Option(TRACEBACK, help="Of an error show where it comes from; may stand anywhere.")] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and leaves the process with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs a command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = TRACEBACK in given
    try:
        given = with_optional_values([argument for argument in given if argument != TRACEBACK])
        return int(app(given, standalone_mode=False, prog_name="truesparse") or 0)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 1
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        if with_traceback:
            traceback.print_exception(error)
        # Typer's errors know a longer form of their message, with the option's name.
        message = error.format_message() if hasattr(error, "format_message") else str(error)  # type: ignore[attr-defined]
        if message:
            print(f"truesparse: {' '.join(message.split())}", file=sys.stderr)
        return code


def with_optional_values(arguments: list[str]) -> list[str]:
    """`--tensorboard` with nothing after it, or another option, as `--tensorboard=`: Typer knows no options whose value may be left out."""
    following = [*arguments[1:], "-"][: len(arguments)]
    return [
        f"{argument}=" if argument in WITH_OPTIONAL_VALUE and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _exit_code(error: Exception) -> int | None:
    """2 for a wrong request, 1 for what failed for a known reason, None for a fault of this program."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's, whichever module of its defines them
        return int(error.exit_code)  # type: ignore[attr-defined]
    if isinstance(error, typer.Abort):
        return 1
    if "truesparse.common.optional" in sys.modules:
        from ..common.optional import MissingLibrary

        if isinstance(error, MissingLibrary):
            return 2
    if "truesparse.runs.errors" in sys.modules:
        from ..data import DataError
        from ..runs import ConfigError, RunError

        if isinstance(error, ConfigError):
            return 2
        if isinstance(error, (RunError, DataError)):
            return 1
    if "truesparse.export.errors" in sys.modules:
        from ..export import FileError

        if isinstance(error, FileError):
            return 1
    return None
