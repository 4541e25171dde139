"""The command line: the app, and the one place where exceptions become exit codes.

0 ok · 1 finding · 2 usage · 3 bad bundle or input · 4 environment · 70 our bug · 130 Ctrl-C
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from . import __version__
from .commands import _output
from .commands._options import Grouped
from .errors import EnvironmentProblem, MserveError

COMMANDS = (
    "export",
    "inspect",
    "diff",
    "gate",
    "validate",
    "run",
    "list",
    "gc",
    "label",
    "bench",
    "tune",
    "serve",
    "top",
    "explain",
    "doctor",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"mserve {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Take a trained model to production: export it, check it, measure it, serve it."""


def build() -> typer.Typer:
    """The app with every subcommand; their modules import nothing heavy."""
    app = typer.Typer(
        name="mserve",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for name in COMMANDS:
        app.command(name, cls=Grouped)(importlib.import_module(f"mserve.commands.{name}").command)
    return app


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_QPS_VALUE = re.compile(rf"auto|{_NUMBER}(?::{_NUMBER}:{_NUMBER}|[a-zA-Z]{{1,3}})?")


def with_qps_value(arguments: Sequence[str]) -> list[str]:
    """The command line with each bare `--qps` of bench made `--qps auto`.

    Typer has no option with an optional value. What follows `--qps` is its value only if
    it reads as one: a number, LO:HI:STEP or auto; or as meant for one, such as 1k, which is refused later.
    """
    result: list[str] = []
    bench = False
    for index, argument in enumerate(arguments):
        if argument == "--":
            return result + list(arguments[index:])
        result.append(argument)
        bench = bench or argument == "bench"
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if bench and argument == "--qps" and not _QPS_VALUE.fullmatch(following):
            result.append("auto")
    return result


def with_explain_value(arguments: Sequence[str]) -> list[str]:
    """The command line with a bare `--explain` of gate, with no name behind it, made `--explain all`."""
    if "gate" not in arguments[:2] or "--explain" not in arguments:
        return list(arguments)
    at = arguments.index("--explain") + 1
    bare = at == len(arguments) or arguments[at].startswith("-")
    return [*arguments[:at], *(["all"] if bare else []), *arguments[at:]]


def main() -> None:
    """Run the command line; never returns."""
    arguments = with_explain_value(with_qps_value(sys.argv[1:]))
    _make_output_bearable()
    with suppress(RuntimeError, ValueError, OSError, AttributeError):  # there may be no stderr
        faulthandler.enable()  # a model may crash the engine, and with it the process: not without a word
    try:
        build()(args=arguments, prog_name="mserve", standalone_mode=True)
    except MserveError as error:
        _fail(error, arguments)
    except BrokenPipeError:
        # Whoever read the output has had enough; nothing more can be written, nor need be.
        _discard_output()
        sys.exit(1)
    except Exception as error:
        _fail(_word(error), arguments, error)


def _word(error: Exception) -> MserveError:
    """What nobody deeper has put into words: the operating system's refusals, and our bugs."""
    if isinstance(error, PermissionError):
        return EnvironmentProblem(
            "permission denied", where=error.filename or "", hint="check who owns the file"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO) and not error.filename:
        return EnvironmentProblem("the output cannot be written", found=error.strerror)
    return MserveError(
        f"mserve failed: {type(error).__name__}: {error}",
        hint="this is our bug; run again with `mserve --debug ...` and report what it prints",
    )


def _make_output_bearable() -> None:
    """Text that the terminal's encoding lacks is escaped; a closed standard output swallows."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(error: MserveError, arguments: Sequence[str], cause: Exception | None = None) -> NoReturn:
    """Tell the error, as text and, where asked, as JSON; exit with its code."""
    if "--debug" in arguments:
        raise cause or error
    _report(error)
    try:
        if "--json" in arguments and not _output.emitted():
            _output.emit_json("error", {"exit_code": error.exit_code, "error": error.to_json()})
        sys.stdout.flush()
    except OSError:
        _discard_output()
    sys.exit(error.exit_code)


def _discard_output() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _report(error: MserveError) -> None:
    """The error's parts, one to a line, on stderr."""
    lines = [f"mserve: {error.what}", *(f"  {label}: {text}" for label, text in error.facts())]
    if error.hint:
        lines.append(f"  next: {error.hint}")
    print("\n".join(lines), file=sys.stderr)
