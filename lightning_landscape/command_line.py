"""A command line from functions, by jsonargparse's `auto_cli`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

PROGRAM = "lightning-landscape"


def run(
    commands: list[Callable[..., None]], text: str | None, arguments: Sequence[str] | None
) -> None:
    """Run one of several functions, with the arguments of a command line.

    Args:
        commands: functions with annotated arguments and Google docstrings. Required arguments are
            positional, except keyword-only ones.
        text: first line of the help.
        arguments: the command line; by default that of this process.

    Raises:
        SystemExit: after the help, or with status 2 after wrong usage.
    """
    words = None if arguments is None else list(arguments)
    title = (text or "").split("\n")[0].replace("``", "")
    auto_cli(commands, words, parser_class=_Parser, prog=PROGRAM, description=title)


class _Parser(ArgumentParser):
    """Adds to `auto_cli`: lists without brackets, dashes, flags without a value, short errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> Any:
        if names == ("runs",):  # auto_cli would expect [a,b]
            options = {"type": str, "nargs": "+", "help": options["help"]}
        elif options.get("type") is bool:  # auto_cli would expect --force=true
            options = {"action": "store_true", "help": options["help"]}
        if names[0].startswith("--"):  # LightningCLI's spelling with underscores also works
            names = tuple(dict.fromkeys((names[0].replace("_", "-"), *names)))
        return super().add_argument(*names, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        found = " ".join(message.split()).rstrip(".")
        self.exit(2, f"{PROGRAM}: {found}; {PROGRAM} --help shows the supported arguments\n")
