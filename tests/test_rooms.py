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


MATHS = {"bounds", "conditions", "functional"}
ALLOWED = {
    # files read by everybody, which import next to nothing
    "csv_tables": set(),
    "files": set(),
    "probes": {"csv_tables"},
    "run": {"csv_tables", "probes"},
    # above the waist: code that touches a live model, and knows no theorem
    "vectors": {"vectors"},
    "training": {"training", "vectors"},
    "store": {"probes", "store", "training", "vectors"},
    "recording": {"probes", "recording", "store", "training", "vectors"},
    "evaluation": {
        *("csv_tables", "probes", "reporting"),
        *("evaluation", "recording", "store", "training", "vectors"),
    },
    # below it: code that knows theorems, and no model
    "functional": {"functional"},
    "conditions": {"conditions", "functional"},
    "bounds": {"bounds", "functional", "probes"},
    "reporting": {"csv_tables", "files", "probes", "reporting", "run", *MATHS},
    # both ends: a measurement of a record, with its part of the report
    "extras": {
        "evaluation",
        "extras",
        "probes",
        "reporting",
        "store",
        "training",
        "vectors",
        *MATHS,
    },
    "reading": {"csv_tables", "extras", "files", "probes", "reading", "reporting", "run", *MATHS},
    "settings": {"csv_tables", "evaluation", "extras", "store", "training"},
    "fit": {
        *("evaluation", "extras", "files", "fit", "probes", "reading", "recording", "reporting"),
        *("settings", "store", "training", "vectors"),
    },
    "monitor": {
        *("evaluation", "fit", "probes", "recording", "reporting", "settings", "training"),
        "vectors",
    },
    "cli": {"command_line", "csv_tables", "extras", "files", "reading", "reporting"},
    "command_line": set(),
    "optim": {"optim"},
    "__init__": {
        *("bounds", "conditions", "extras", "functional", "optim"),
        *("monitor", "probes", "reading", "run", "settings"),
    },
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
