"""The hourglass: which part of the package may import which."""

import ast
from pathlib import Path

import pytest

import lightning_landscape

PACKAGE = Path(lightning_landscape.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Return the full names of all that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def rooms_imported(path):
    ours = [
        name.split(".")
        for name in imports(path)
        if name and name.startswith("lightning_landscape.")
    ]
    return {parts[1] for parts in ours}


WAIST = {"probes", "records"}
ALLOWED = {
    "__init__": {"bounds", "conditions", "functional", "loading", "monitor", "optim", "probes"},
    "settings": set(),
    "monitor": {
        "session",
        "settings",
        "evaluation",
        "recording",
        "training",
        "vectors",
        "reporting",
        "probes",
    },
    "ending": {"settings", "evaluation", "recording", "training", "vectors", "reporting", "probes"},
    "session": {
        *(
            "ending",
            "settings",
            "evaluation",
            "recording",
            "store",
            "training",
            "vectors",
            "reporting",
        ),
        *("files", "loading", "probes", "records"),
    },
    "training": {"evaluation", "recording", "store", "training", "vectors"},
    "vectors": {"training", "vectors"},
    "recording": {"evaluation", "extras", "recording", "store", "training", "vectors", *WAIST},
    "store": {"recording", "store", "training", "vectors", *WAIST},
    "evaluation": {"evaluation", "extras", "recording", "store", "training", "vectors", *WAIST},
    "extras": {"evaluation", "extras", "recording", "training", "vectors", *WAIST},
    "csv_tables": set(),
    "probes": {"csv_tables"},
    "records": {"csv_tables"},
    "functional": {"functional"},
    "conditions": {"conditions", "functional"},
    "bounds": {"bounds", "functional", "probes"},
    "optim": {"optim"},
    "reporting": {"reporting", "bounds", "conditions", "functional", "files", "loading", *WAIST},
    "files": {"records"},
    "loading": {"files", *WAIST},
    "cli": {"command_line", "files", "loading", "reporting"},
    "command_line": set(),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    assert rooms_imported(path) <= ALLOWED[room(path)]


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda path: path.name
)
def test_functional_needs_torch_alone(path):
    import sys

    outside = {name.split(".")[0] for name in imports(path)} - {"lightning_landscape", "torch"}
    assert outside <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightning_is_imported_from_one_namespace(path):
    assert not {
        name
        for name in imports(path)
        if name and name.split(".")[0] in ("pytorch_lightning", "lightning_fabric")
    }
