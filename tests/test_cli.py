"""The command line on real runs, on killed or damaged runs, and with wrong usage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_landscape import Segments, Store, load
from lightning_landscape.cli import main
from lightning_landscape.csv_tables import to_csv
from lightning_landscape.extras.segments import SegmentPoint
from lightning_landscape.probes import ProbeTable, to_json_line
from tests.helpers.grid import train
from tests.reporting.test_tables import check_latex, check_markdown

pytest.importorskip("jsonargparse")
pytest.importorskip("pylatexenc")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def say(capsys):
    """Return a function that runs a line and gives (status, stdout, stderr)."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run_folder(grid, tmp_path):
    """Return a copy of a real run, to be damaged."""
    folder = tmp_path / "logs" / "landscape"
    shutil.copytree(grid / "width_3" / "seed_0" / "landscape", folder)
    return folder


def strict(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def is_one_line(error):
    return error.startswith("lightning-landscape: ") and error.count("\n") == 1


# ------------------------------------------------------------------------------------------ summary


@pytest.mark.slow
def test_as_a_program(grid):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [
        sys.executable,
        "-m",
        "lightning_landscape.cli",
        "summary",
        str(grid / "width_3" / "seed_0"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The α-β-condition holds at all 12 probes" in done.stdout
    assert "restricted_secant" in done.stdout
    assert all(len(line) <= 104 for line in done.stdout.splitlines())


def test_summary_shows_verdict_and_tables(grid, say):
    status, out, err = say("summary", grid / "width_3" / "seed_0")
    summary = load(grid / "width_3" / "seed_0").summary
    assert (status, err) == (0, "")
    assert " ".join(summary["verdict"].split()) in " ".join(out.split())
    assert f"{summary['conditions']['alpha_beta']['alpha']:.4g}" in out
    assert f"{summary['bounds']['trajectory']['value']:.4g}" in out


def test_summary_as_json_is_the_file(grid, say):
    status, out, _ = say("summary", grid / "width_3" / "seed_0", "--format", "json")
    assert status == 0
    assert strict(out) == load(grid / "width_3" / "seed_0").summary


def test_summary_as_markdown_and_latex(grid, say):
    status, out, _ = say("summary", grid / "width_3" / "seed_0", "--format=markdown")
    assert status == 0
    check_markdown(out)
    assert out.count("### ") == 3
    status, out, _ = say("summary", grid / "width_3" / "seed_0", "--format=latex")
    assert status == 0
    check_latex(out)
    assert out.count(r"\begin{table}") == 3


@pytest.mark.parametrize(
    "inside", ["", "landscape", "landscape/probes.csv", "landscape/summary.json"]
)
def test_a_run_by_any_of_its_paths(inside, grid, say):
    assert say("summary", grid / "width_3" / "seed_0" / inside)[0] == 0


def test_several_runs_where_one_is_asked_for_are_named(grid, say):
    status, out, err = say("summary", grid / "width_3")
    assert (status, out) == (2, "")
    assert is_one_line(err)
    assert "seed_0, seed_1; name one of them, or compare them" in err


# ----------------------------------------------------------------- runs that were killed or damaged


def killed(folder):
    table = load(folder).table
    lines = [
        probe.with_values(
            reference_loss=None, inner_product=None, sq_distance=None, initial_loss=None
        )
        for probe in table
    ]
    (folder / "probes.jsonl").write_text("".join(map(to_json_line, lines)) + '{"schema": 1, "st')
    (folder / "probes.csv").unlink()
    (folder / "summary.json").unlink()


def without_summary(folder):
    (folder / "summary.json").unlink()


def without_table(folder):
    (folder / "probes.csv").unlink()


def damaged_summary(folder):
    path = folder / "summary.json"
    path.write_text(path.read_text()[:500])


def summary_not_finite(folder):
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"steps": 12', '"steps": NaN', 1))


def foreign_summary(folder):
    (folder / "summary.json").write_text('{"schema": 1, "loss": 0.5}')


def damaged_table(folder):
    path = folder / "probes.csv"
    path.write_text(path.read_text()[:-40])


def later_schema(folder):
    path = folder / "probes.csv"
    path.write_text(path.read_text().replace(",1\n", ",2\n"))


def not_finite(folder):
    path = folder / "probes.csv"
    lines = path.read_text().splitlines(keepends=True)
    fields = lines[3].split(",")
    lines[3] = ",".join([*fields[:2], "inf", *fields[3:]])
    path.write_text("".join(lines))


def partly_evaluated(folder):
    table = load(folder).table
    rows = [
        probe.with_values(reference_loss=None, inner_product=None, sq_distance=None)
        for probe in table[8:]
    ]
    (folder / "probes.csv").write_text(table.merged(rows).to_csv())


def damaged_segments(folder):
    (folder / "segments.csv").write_text("step,fraction\n1,0.5\n")


def another_table(folder):
    (folder / "probes.csv").write_text(ProbeTable(load(folder).table[:5]).to_csv())


BROKEN = {
    killed: [
        "probes.csv is missing: the 12 probes are those of probes.jsonl",
        "summary.json is missing",
        "None of the 12 probes",
    ],
    without_summary: ["summary.json is missing: the run is still training, or was killed"],
    without_table: ["No probe can be read (probes.csv, probes.jsonl): only summary.json is shown"],
    damaged_summary: ["summary.json cannot be read and is left out"],
    summary_not_finite: [
        "summary.json cannot be read and is left out: found a number that is not finite"
    ],
    foreign_summary: ["summary.json cannot be read and is left out: found no 'run' in it"],
    damaged_table: [
        "the table of probes (probes.csv, probes.jsonl) cannot be read and is left out: "
        "found schema None"
    ],
    later_schema: ["supported is schema 1, read it with the version that wrote it"],
    not_finite: ["1 of 12 probes have a value that is missing or not finite; they are left out"],
    partly_evaluated: ["4 of 12 probes were not evaluated at the reference"],
    damaged_segments: [
        "segments.csv cannot be read and is left out: "
        "found no column ['loss', 'schema'] in segments.csv"
    ],
    another_table: ["summary.json is about 12 probes, but the table has 5"],
}


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "json"])
def test_what_is_missing_is_named_and_the_rest_is_shown(damage, form, run_folder, say):
    damage(run_folder)
    status, out, err = say("summary", run_folder, "--format", form)
    assert status == 0
    if form == "json":
        content = strict(out)
        assert {"run", "conditions", "bounds", "verdict"} <= set(content)
    else:
        assert err == ""
    said = " ".join((err if form == "json" else out).replace("\\_", "_").split())
    if form != "latex":
        said = said.replace("\\", "")
        assert all(sentence in said for sentence in BROKEN[damage]), said


def test_a_table_alone_gives_the_conditions_of_the_whole_run_and_no_theorem(run_folder, say):
    whole = load(run_folder).summary
    without_summary(run_folder)
    content = strict(say("summary", run_folder, "--format", "json")[1])
    for name in ("alpha", "beta", "neighbourhood", "informativeness"):
        assert content["conditions"]["alpha_beta"][name] == whole["conditions"]["alpha_beta"][name]
    assert (
        content["conditions"]["smoothness"]["value"] == whole["conditions"]["smoothness"]["value"]
    )
    assert {bound["status"] for bound in content["bounds"].values()} == {"does_not_apply"}
    assert set(content["bounds"]) == set(whole["bounds"])
    assert "summary.json is missing" in content["bounds"]["sgd"]["reason"]
    assert content["verdict"].startswith(
        "Incomplete: the run ended early (no summary.json was written)."
    )


def test_nothing_to_show(run_folder, tmp_path, say):
    without_summary(run_folder)
    damaged_table(run_folder)
    status, out, err = say("summary", run_folder)
    assert (status, out) == (1, "")
    assert is_one_line(err)
    assert "nothing can be shown" in err
    assert "found schema None" in err
    assert say("compare", run_folder)[0] == 1
    for path, sentence in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path, "no run in it"),
    ):
        shutil.rmtree(tmp_path / "logs", ignore_errors=True)
        status, out, err = say("summary", path)
        assert (status, out) == (1, "")
        assert is_one_line(err)
        assert sentence in err


# ------------------------------------------------------------------------------------------ compare


def test_compare_groups(grid, say):
    status, out, err = say("compare", grid, "--group-by", "width", "--format", "json")
    found = strict(out)
    assert (status, err) == (0, "")
    assert [(group["key"], len(group["runs"])) for group in found["groups"]] == [(3, 2), (24, 2)]
    assert set(found["groups"][0]["beta_min"]) == {"0.1", "1"}
    assert strict(say("compare", grid, "--group_by", "width", "--format", "json")[1]) == found
    separately = [grid / f"width_{width}" / f"seed_{seed}" for width in (3, 24) for seed in (0, 1)]
    assert (
        strict(say("compare", *separately, grid, "--group-by=width", "--format=json")[1]) == found
    )  # each counts once


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex"])
def test_compare_in_every_format(form, grid, say):
    status, out, _ = say("compare", grid, "--format", form)
    assert status == 0
    for name in ("width_3/seed_0", "width_24/seed_1", "all runs"):
        assert name in out.replace("\\", "")
    if form == "markdown":
        check_markdown(out)
    if form == "latex":
        check_latex(out)


def test_compare_with_a_picture(grid, tmp_path, say):
    pytest.importorskip("matplotlib")
    for suffix, start in ((".pdf", b"%PDF"), (".png", b"\x89PNG")):
        path = tmp_path / "new" / f"picture{suffix}"
        assert say("compare", grid, "--group-by", "width", "--picture", path)[0] == 0
        assert path.read_bytes().startswith(start)
    status, out, err = say("compare", grid, "--picture", tmp_path / "picture.gif")
    assert (status, out) == (2, "")
    assert ".pdf or .png" in err


def test_compare_names_what_is_missing_in_a_run(grid, run_folder, say):
    without_summary(run_folder)
    status, out, _ = say("compare", grid, run_folder, "--group-by", "width", "--format", "markdown")
    assert status == 0
    said = out.replace("\\", "")
    assert "summary.json is missing" in said
    assert "because the width is not known there" in said


def test_compare_by_what_no_run_has(grid, say):
    status, out, err = say("compare", grid, "--group-by", "depth")
    assert (status, out) == (2, "")
    assert is_one_line(err)
    assert "found no hyper-parameter 'depth'" in err


# --------------------------------------------------------------------------------------------- plot


@pytest.mark.slow
def test_plot(run_folder, tmp_path, say):
    from lightning_landscape.reporting.figures import FIGURES

    points = [
        SegmentPoint(probe.step, t, probe.loss)
        for probe in load(run_folder).table
        for t in (0.0, 0.5, 1.0)
    ]
    (run_folder / "segments.csv").write_text(to_csv(SegmentPoint, points))
    for damage in (None, without_summary):
        if damage is not None:
            damage(run_folder)
        status, out, _ = say("plot", run_folder, "--out", tmp_path / "pictures")
        assert status == 0
        paths = [Path(line) for line in out.splitlines()]
        assert [path.name for path in paths] == [
            f"{name}.{kind}" for name in (*FIGURES, "segments") for kind in ("pdf", "png")
        ]
        assert all(path.stat().st_size > 1000 for path in paths)


def test_plot_hands_over_the_run_and_the_extras_that_left_tables(
    run_folder, tmp_path, say, monkeypatch
):
    from lightning_landscape.reporting import figures

    seen = []
    monkeypatch.setattr(figures, "draw_all", lambda *given: seen.append(given) or {"one": None})
    monkeypatch.setattr(
        figures, "save", lambda drawn, folder: [folder / f"{name}.png" for name in drawn]
    )
    (run_folder / "segments.csv").write_text(to_csv(SegmentPoint, [SegmentPoint(0, 0.5, 1.0)]))
    assert say("plot", run_folder, "--out", tmp_path / "new") == (
        0,
        f"{tmp_path / 'new' / 'one.png'}\n",
        "",
    )
    run = load(run_folder)
    ((drawn, extras),) = seen
    assert (drawn.table, drawn.summary, drawn.tables) == (run.table, run.summary, run.tables)
    assert run.tables == {"segments": [SegmentPoint(0, 0.5, 1.0)]}
    assert list(extras) == [Segments]


def test_plot_of_no_probes(run_folder, tmp_path, say):
    pytest.importorskip("matplotlib")
    without_table(run_folder)
    status, _, err = say("plot", run_folder, "--out", tmp_path)
    assert status == 1
    assert "nothing can be drawn" in err


# -------------------------------------------------------------------------------------------- clean


def bytes_of(folder):
    files = {
        path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    return sum(files.values())


def test_clean(tmp_path, say):
    folder = train(tmp_path, 3, 0, epochs=1, store=Store(keep=True))
    before = sorted(path.name for path in folder.iterdir())
    size = bytes_of(folder / "store")
    assert size > 0
    status, out, _ = say("clean", tmp_path, "--dry-run")
    assert (status, out) == (0, f"would remove {folder / 'store'}, {size:,} bytes\n")
    assert (folder / "store").exists()
    status, out, _ = say("clean", tmp_path)
    assert (status, out) == (0, f"removed {folder / 'store'}, {size:,} bytes\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        name for name in before if name != "store"
    ]
    assert load(folder).summary["run"]["complete"]
    assert "there is no store in 1 run" in say("clean", tmp_path)[1]


def test_clean_leaves_a_run_that_may_be_training(run_folder, say):
    without_summary(run_folder)
    (run_folder / "store" / f"{0:012d}").mkdir(parents=True)
    (run_folder / "store" / f"{0:012d}" / "batch").write_bytes(b"12345")
    status, out, err = say("clean", run_folder)
    assert (status, out) == (1, "")
    assert "killed, or is still training; --force removes it" in err
    assert (run_folder / "store" / f"{0:012d}" / "batch").exists()
    status, out, _ = say("clean", run_folder, "--force")
    assert (status, out) == (0, f"removed {run_folder / 'store'}, 5 bytes\n")


def test_clean_refuses_where_no_run_is_and_then_removes_nothing(run_folder, tmp_path, say):
    other, ours = tmp_path / "other" / "store", run_folder / "store" / f"{0:012d}"
    for folder in (ours, other):
        folder.mkdir(parents=True)
        (folder / "batch").write_bytes(b"12345")
    status, out, err = say("clean", run_folder, other.parent)
    assert (status, out) == (1, "")
    assert is_one_line(err)
    assert (ours / "batch").exists()
    assert (other / "batch").exists()


def test_clean_of_a_tree_asks_for_it(grid, tmp_path, say):
    for name in ("one", "two"):
        shutil.copytree(grid / "width_3" / "seed_0", tmp_path / "tree" / name)
        (tmp_path / "tree" / name / "landscape" / "store").mkdir()
    single = tmp_path / "tree" / "one"
    status, out, err = say("clean", single, tmp_path / "tree")
    assert (status, out) == (2, "")
    assert is_one_line(err)
    assert "found 2 runs in" in err
    assert len(list(tmp_path.glob("tree/*/landscape/store"))) == 2
    assert say("clean", tmp_path / "tree", "--dry-run")[1].count("would remove") == 2
    assert len(list(tmp_path.glob("tree/*/landscape/store"))) == 2
    status, out, _ = say("clean", tmp_path / "tree", "--recursive")
    assert (status, out.count("removed ")) == (0, 2)
    assert not list(tmp_path.glob("tree/*/landscape/store"))


def test_clean_does_not_follow_links(run_folder, tmp_path, say):
    (tmp_path / "precious" / f"{0:012d}").mkdir(parents=True)
    (tmp_path / "precious" / f"{0:012d}" / "file").write_bytes(b"1")
    (run_folder / "store").symlink_to(tmp_path / "precious")
    status, _, err = say("clean", run_folder)
    assert status == 1
    assert is_one_line(err)
    assert (tmp_path / "precious" / f"{0:012d}" / "file").exists()


def test_files_that_another_run_links_are_not_counted(run_folder, tmp_path, say):
    store = run_folder / "store" / f"{0:012d}"
    store.mkdir(parents=True)
    (store / "shared").write_bytes(b"12345")
    os.link(store / "shared", tmp_path / "linked")
    (store / "own").write_bytes(b"123")
    assert say("clean", run_folder)[1].endswith(" 3 bytes\n")
    assert (tmp_path / "linked").read_bytes() == b"12345"


# ----------------------------------------------------------------------------------------- the line


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["summarise"],
        ["summary"],
        ["compare"],
        ["plot", "run"],
        ["summary", "run", "--format", "html"],
        ["summary", "run", "--forma", "json"],
        ["compare", "run", "--group", "width"],
        ["summary", "run", "--config", "nowhere.yaml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_2(line, say):
    status, out, err = say(*line)
    assert (status, out) == (2, "")
    assert is_one_line(err), err


def test_help_has_a_text_for_every_argument(say, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = say("--help")
    assert status == 0
    for command in ("summary", "compare", "plot", "clean"):
        assert command in out
        status, said, _ = say(command, "--help")
        assert status == 0
    for words in (
        "--dry-run",
        "List the stores, but remove none",
        "killed, or it is still training",
    ):
        assert words in said
    assert "Write a nested one with dots" in say("compare", "--help")[1]


def test_arguments_from_a_file(grid, tmp_path, say):
    (tmp_path / "compare.yaml").write_text(f"runs: [{grid}]\ngroup_by: width\nformat: json\n")
    status, out, _ = say("compare", "--config", tmp_path / "compare.yaml")
    assert status == 0
    assert strict(out)["group_by"] == "width"
    (tmp_path / "all.yaml").write_text(f"clean:\n  runs: [{grid}]\n  dry_run: true\n")
    assert say("--config", tmp_path / "all.yaml", "clean")[0] == 0


@pytest.mark.parametrize("module", ["jsonargparse", "pylatexenc"])
def test_without_the_extra_it_says_how_to_get_it(module, grid, say, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = say("summary", grid / "width_3" / "seed_0")
    assert (status, out) == (1, "")
    assert is_one_line(err)
    assert f"found no {module}; install it with: pip install 'lightning-landscape[cli]'" in err


def test_without_matplotlib_pictures_say_how_to_get_it(grid, tmp_path, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for line in (
        ["plot", grid / "width_3" / "seed_0", "--out", tmp_path],
        ["compare", grid, "--picture", tmp_path / "picture.png"],
    ):
        status, out, err = say(*line)
        assert (status, out) == (1, "")
        assert "pip install 'lightning-landscape[plots]'" in err


@pytest.mark.slow
def test_a_console_without_greek_letters(grid):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    program = "import sys; from lightning_landscape.cli import main; sys.exit(main())"
    run = str(grid / "width_3" / "seed_0")
    for form in ("terminal", "json"):
        command = [sys.executable, "-c", program, "summary", run, "--format", form]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
    assert strict(done.stdout) == load(run).summary


def test_the_program_is_installed_by_that_name():
    text = (ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\nlightning-landscape = "lightning_landscape.cli:main"\n' in text


def test_clean_leaves_what_is_not_ours(tmp_path, say):
    folder = tmp_path / "experiment"
    (folder / "store").mkdir(parents=True)
    (folder / "summary.json").write_text('{"accuracy": 0.9}')
    (folder / "store" / "my_data.bin").write_bytes(b"12345678")
    assert say("clean", folder)[0] != 0
    train(folder, 3, 0, epochs=1)  # a run of ours beside another tool's store
    ours = next(path.parent for path in folder.rglob("probes.csv"))
    (ours / "store").mkdir()
    (ours / "store" / "my_data.bin").write_bytes(b"1")
    say("clean", folder, "--recursive", "--force")
    assert (folder / "store" / "my_data.bin").exists()
    assert (ours / "store" / "my_data.bin").exists()


def test_files_that_hold_something_else_are_one_line(run_folder, say):
    content = json.loads((run_folder / "summary.json").read_text())
    content["conditions"]["alpha_beta"] = {}
    content["run"]["fidelity"] = {}
    (run_folder / "summary.json").write_text(json.dumps(content))
    for command in (("summary", run_folder), ("plot", run_folder, "--out", run_folder)):
        status, _, err = say(*command)
        assert status in (0, 1)
        assert "Traceback" not in err
        assert err.count("\n") <= 1
    (run_folder / "probes.csv").write_text("step\n" + "9" * 200_000 + "\n")
    status, _, err = say("summary", run_folder)
    assert "Traceback" not in err
