"""The Isoflop engine on the command line. The dashboard uses the same engine and the same store.

Commands print text and a progress bar; with --json they print one JSON document, on the last line of stdout.
Exit codes: 0 done, 1 failed, 2 usage error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from engine import __version__
from engine.cli import hardware, infer, race, run, scale, share, store
from engine.cli.common import FAILED, INTERRUPTED, OK, USAGE
from engine.common.errors import ConfigError, DeviceError, EngineError, OutOfMemory, StoreError
from engine.common.jsontext import JSON_ESCAPES, json_text
from engine.common.sanitize import visible
from engine.config.presets import DEFAULT_PRESET, PRESETS, STUDIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of `argv` (default: sys.argv) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on(stream, "replace")
    arguments = build_parser().parse_args(argv)
    if getattr(arguments, "json", False):
        _never_fail_on(sys.stdout, JSON_ESCAPES)
    try:
        code: int = arguments.function(arguments)
        return code
    except (ConfigError, DeviceError, OutOfMemory) as error:
        return _print_error(error, arguments, USAGE)
    except EngineError as error:
        return _print_error(error, arguments, USAGE if isinstance(error, StoreError) else FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # for example, `... | head` closed the pipe
        sys.stderr.close()
        return OK


def _never_fail_on(stream: TextIO, errors: str) -> None:
    """Make the stream write something else for a character that its encoding lacks, such as █ in ASCII."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


def _print_error(error: EngineError, arguments: argparse.Namespace, code: int) -> int:
    print(visible(str(error)), file=sys.stderr)
    if getattr(arguments, "json", False):
        print(json_text({"error": {"type": type(error).__name__, "message": error.message, "fix": error.fix}}))
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(message))  # the message quotes the arguments, which can contain control characters


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = _Parser(add_help=False)
    common.add_argument("--store", help="folder of the store (default $ISOFLOP_HOME or ~/.isoflop)")
    common.add_argument("--json", action="store_true", help="print one JSON document on the last line of stdout")
    config = _Parser(add_help=False)
    config.add_argument("--preset", help=f"one of {', '.join([*PRESETS, *STUDIES])} (default {DEFAULT_PRESET})")
    config.add_argument("--config", help="a JSON file with a configuration")
    config.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a field of the configuration, e.g. batch_size=128",
    )

    parser = _Parser(prog="python -m engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"isoflop {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, function: Any, text: str, *parents: _Parser) -> _Parser:
        command = commands.add_parser(name, help=text, description=text, parents=[common, *parents])
        command.set_defaults(function=function)
        return command

    run.register(add, config)
    race.register(add)
    infer.register(add, config)
    scale.register(add, config)
    store.register(add)
    share.register(add)
    hardware.register(add)
    return parser
