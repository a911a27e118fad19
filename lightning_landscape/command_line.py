"""A command line from functions: subcommands, options and their help are names, annotations and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

PROGRAM = "lightning-landscape"
Command = Callable[..., None]


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and where help is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(
            2,
            f"{PROGRAM}: {' '.join(message.split()).rstrip('.')}; {PROGRAM} --help shows what is supported\n",
        )


def parse(
    commands: Sequence[Command], text: str | None, arguments: Sequence[str] | None
) -> tuple[Command, dict[str, Any]]:
    """Return the command that a line names, and its arguments.

    Args:
        commands: functions with annotated arguments and Google docstrings; required ones are positional, unless they are
            keyword-only.
        text: what the program is, for its help.
        arguments: the line; by default the process's own.

    Raises:
        SystemExit: after help was shown, and with status 2 after a line that cannot be read.
    """
    program = _parser(PROGRAM, inspect.cleandoc(text or "").split("\n")[0].replace("``", ""))
    subcommands = program.add_subcommands(required=True, dest="command")
    for command in commands:
        described = docstring_parser.parse(inspect.getdoc(command) or "")
        name = command.__name__
        parser = _parser(f"{PROGRAM} {name}", described.description or "")
        for argument in described.params:
            _add(parser, command, argument.arg_name, " ".join((argument.description or "").split()))
        subcommands.add_subcommand(name, parser, help=described.short_description)
    found = program.parse_args(None if arguments is None else list(arguments))
    chosen = next(command for command in commands if command.__name__ == found.command)
    values: Namespace = found[found.command]
    return chosen, {name: values[name] for name in inspect.signature(chosen).parameters}


def _parser(program: str, text: str) -> ArgumentParser:
    parser = _Parser(prog=program, description=text, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with arguments.")
    return parser


def _add(parser: ArgumentParser, command: Command, name: str, text: str) -> None:
    parameter, kind = inspect.signature(command).parameters[name], get_type_hints(command)[name]
    spellings = dict.fromkeys(
        (f"--{name.replace('_', '-')}", f"--{name}")
    )  # with underscores as LightningCLI has them
    if kind is bool:
        parser.add_argument(*spellings, action="store_true", help=text)
    elif parameter.default is not parameter.empty:
        parser.add_argument(*spellings, type=kind, default=parameter.default, help=text)
    elif parameter.kind is parameter.KEYWORD_ONLY:
        parser.add_argument(*spellings, type=kind, required=True, help=text)
    elif kind == list[str]:
        parser.add_argument(name, nargs="+", type=str, help=text)
    else:
        parser.add_argument(name, type=kind, help=text)
