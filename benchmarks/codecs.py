"""What a codec of the store costs in accuracy: the same run stored as it is and through each codec, number by number.

python -m benchmarks.codecs                          scikit-learn's digits, a few seconds
python -m benchmarks.codecs --width 256 --epochs 20  a larger network, for longer

Training is the same to the last bit whatever the store does, so the run that stored everything as it is has the true p_k and
D_k. Errors are relative to ‖g‖‖x − x_p‖ for p and to ‖x − x_p‖ for D. Each codec's run states a bound of both, and between
which two numbers the neighbourhood and the bound in force lie; this says whether the true ones do.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from demos.data import Images
from demos.mlp import MLP
from demos.sweep import quiet
from lightning_landscape import LandscapeMonitor, ProbeTable, Report, Store, load
from lightning_landscape.run import Run

CODECS = ("bfloat16", "int8")
ROUNDING = 1e-5
"""Of inner products in float32 over other blocks"""


def train(folder: Path, store_dtype: str, width: int, epochs: int) -> Run:
    """Return a measured run of an MLP on digits."""
    pl.seed_everything(0, verbose=False)
    monitor = LandscapeMonitor(
        every_n_steps=5,
        dirpath=folder,
        prefix=store_dtype,
        store=Store(dtype=store_dtype),
        report=Report(images=None),
    )  # type: ignore[arg-type]
    switched_off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[monitor], **switched_off)
    trainer.fit(MLP(width=width), Images("digits"))
    return load(monitor_folder(folder, store_dtype))


def monitor_folder(folder: Path, prefix: str) -> Path:
    """Return the newest folder of a monitor: an earlier run's is never overwritten."""
    return max(folder.glob(f"{prefix}*"), key=lambda path: path.stat().st_mtime_ns)


def errors(coded: ProbeTable, exact: ProbeTable) -> dict[str, list[float]]:
    """Return, for each probe, how far p and D are from the true ones, relative to their sizes; 0 where x is x_p."""
    product, distance = [], []
    for one, true in zip(coded, exact, strict=True):
        assert None not in (
            one.inner_product,
            one.sq_distance,
            true.inner_product,
            true.sq_distance,
        )
        size, far = math.sqrt(true.grad_sq_norm * true.sq_distance), math.sqrt(true.sq_distance)  # type: ignore[operator,arg-type]
        product.append(abs(one.inner_product - true.inner_product) / size if size else 0.0)  # type: ignore[operator]
        distance.append(abs(math.sqrt(one.sq_distance) - far) / far if far else 0.0)  # type: ignore[arg-type]
    return {"inner_product": product, "distance": distance}


def compared(coded: Run, exact: Run) -> dict[str, Any]:
    """Return what a codec did to a run, and what the run itself says of that."""
    assert coded.summary is not None
    assert exact.summary is not None
    store, found = coded.summary["run"]["store"], errors(coded.table, exact.table)
    said, theorem = store["accuracy"], coded.summary["bound_in_force"]
    result: dict[str, Any] = {
        "bytes": store["bytes"],
        "native_bytes": exact.summary["run"]["store"]["bytes"],
    }
    for name, values in found.items():
        result[name] = {"largest": max(values), "median": statistics.median(values), **said[name]}
    near = ("conditions", "alpha_beta", "neighbourhood")
    result["neighbourhood"] = interval(said["neighbourhood"], _at(coded, *near), _at(exact, *near))
    if theorem is not None and said["bound_in_force"] is not None:
        value = ("bounds", theorem, "value")
        result[theorem] = interval(said["bound_in_force"], _at(coded, *value), _at(exact, *value))
    return result


def interval(said: list[float | None], found: float | None, true: float | None) -> dict[str, Any]:
    """Return a number with the two between which it is said to lie, and whether the true one does; null is without bound."""
    low, high = (
        (-math.inf if said[0] is None else said[0]),
        (math.inf if said[1] is None else said[1]),
    )
    value = math.inf if true is None else true
    slack = ROUNDING * max(abs(end) for end in (low, high, 0.0) if math.isfinite(end))
    return {
        "found": found,
        "true": true,
        "said": said,
        "true_is_inside": low - slack <= value <= high + slack,
    }


def _at(run: Run, *keys: str) -> Any:
    value: Any = run.summary
    for key in keys:
        value = value[key]
    return value


def shown(value: float | None, how: str = ".4g") -> str:
    """Return a number as text."""
    return "—" if value is None else format(value, how)


def report(results: dict[str, dict[str, Any]]) -> str:
    """Return all of it as text."""
    lines = [
        f"{'codec':10s}{'of native':>10s}  {'':4s}{'largest':>10s}{'median':>10s}{'its bound':>10s}"
    ]
    for codec, result in results.items():
        for name, letter in (("inner_product", "p"), ("distance", "D")):
            one = result[name]
            cells = (one["largest"], one["median"], one["bound"])
            head = (
                f"{codec:10s}{result['bytes'] / result['native_bytes']:10.2f}"
                if letter == "p"
                else " " * 20
            )
            lines.append(
                f"{head}  {letter:4s}" + "".join(f"{shown(cell, '.2g'):>10s}" for cell in cells)
            )
    for codec, result in results.items():
        for name in (
            key for key, value in result.items() if isinstance(value, dict) and "said" in value
        ):
            one = result[name]
            found, true, low, high = (
                shown(value) for value in (one["found"], one["true"], *one["said"])
            )
            inside = "inside" if one["true_is_inside"] else "OUTSIDE"
            lines.append(
                f"{codec}, {name}: {found}, said to be in [{low}, {high}]; the true {true} is {inside}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--width", type=int, default=32, help="of the MLP's hidden layers (default: 32)"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/codecs"), help="folder of the runs and the numbers"
    )
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    quiet()
    exact = train(given.out, "native", given.width, given.epochs)
    results = {
        codec: compared(train(given.out, codec, given.width, given.epochs), exact)
        for codec in CODECS
    }
    path = given.out / "codecs.json"
    about = {"width": given.width, "epochs": given.epochs, "probes": len(exact.table)}
    path.write_text(
        json.dumps({**about, "codecs": results}, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    print(
        f"{len(exact.table)} probes; errors of p relative to ‖g‖‖x − x_p‖, of D relative to ‖x − x_p‖\n\n{report(results)}"
    )
    print(f"\n  numbers   {path}")


if __name__ == "__main__":
    main()
