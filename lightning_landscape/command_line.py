"""The parser of the command line: what jsonargparse's `auto_cli` does not do by itself."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

PROGRAM = "lightning-landscape"


class Parser(ArgumentParser):
    """A parser with positional runs, dashed options, flags without a value and one-line errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Add an argument that `auto_cli` found in a signature."""
        if names == ("runs",):  # a list would have to be written [a,b]
            options = {"type": str, "nargs": "+", "help": options["help"]}
        elif options.get("type") is bool:  # a flag would need a value, --force=true
            options = {"action": "store_true", "help": options["help"]}
        if names[0].startswith("--"):  # underscores stay, as LightningCLI has them
            names = tuple(dict.fromkeys((names[0].replace("_", "-"), *names)))
        return super().add_argument(*names, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what is wrong and where help is, and exit with status 2."""
        found = " ".join(message.split()).rstrip(".")
        self.exit(2, f"{PROGRAM}: {found}; {PROGRAM} --help shows what is supported\n")
