"""Single samples: brute force by single gradients, both derivatives, processes, refusals."""

from contextlib import nullcontext
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy

from lightning_landscape import HeldOut, LandscapeMonitor, PerSample, Report, Store, load
from lightning_landscape import functional as F
from lightning_landscape.evaluation.slopes import SampleSlopes
from tests.helpers import distributed
from tests.helpers import per_sample as modules
from tests.helpers.brute_force import BruteForce
from tests.helpers.modules import loader
from tests.helpers.settings import Setting, bf16, fp16, train
from tests.helpers.slow import some
from tests.integration.test_brute_force import record

CASES = {
    "perceptron": Setting(modules.Perceptron),
    "convolutions": Setting(modules.Convolutions),
    "transformer": Setting(modules.Transformer),
    "lstm": Setting(modules.LSTM),
    "gru": Setting(modules.GRU),
    "stops_gradients": Setting(modules.StopsGradients),
    "partly_trained": Setting(modules.PartlyTrained),
    "accumulation": Setting(modules.Perceptron, {"accumulate_grad_batches": 2}, batches=5),
    "bf16_mixed": Setting(
        modules.Perceptron, {"precision": "bf16-mixed"}, autocast=bf16, rtol=2e-2
    ),
    "scaler": Setting(modules.Perceptron, scaler=True, autocast=fp16, rtol=3e-3),
    "own_function": Setting(modules.OwnFunction),
}


def run_of(folder):
    return load(folder / "lightning_logs" / "version_0")


def samples_of(run):
    return run.tables["per_sample"]


def expected_rows(recording, setting, step, reference=None):
    """Return the values of each sample from its own gradient, by brute force."""
    by_step = {recorded.step: recorded for recorded in recording.steps}
    first, rows = recording.steps[0], []
    for micro in by_step[step].micro_batches:
        alone = replace(by_step[step], micro_batches=[micro])
        for sample in range(len(micro.args[0][1])):
            brute = BruteForce(
                recording,
                setting.module,
                setting.autocast,
                lambda m, b, j=sample: modules.losses(m, b)[j],
                reference,
            )
            rows.append(brute.row(alone, first))
    return rows


def assert_equal_brute_force(run, recording, setting, reference=None):
    about, by_step = run.summary["per_sample"], {}
    for row in samples_of(run):
        by_step.setdefault(row.step, []).append(row)
    assert list(by_step) == [probe.step for probe in run.table]
    for step, rows in by_step.items():
        expected = expected_rows(recording, setting, step, reference)
        assert [row.sample for row in rows] == list(range(len(expected)))
        error = about["error"]["absolute"]
        for row, brute in zip(rows, expected, strict=True):
            for column in ("loss", "reference_loss"):
                assert getattr(row, column) == pytest.approx(
                    brute[column], rel=max(2e-6, setting.rtol / 10), abs=1e-6
                ), column
            size = (brute["grad_sq_norm"] * brute["sq_distance"]) ** 0.5
            assert row.inner_product == pytest.approx(
                brute["inner_product"], abs=setting.rtol * size + error
            )


def told_of_differences(expected):
    return (
        pytest.warns(UserWarning, match="takes finite differences, because forward mode failed")
        if expected
        else nullcontext()
    )


@pytest.mark.parametrize("name", some(CASES, every=2))
def test_each_sample_is_a_gradient_by_itself(name, tmp_path):
    setting = CASES[name]
    recording = record(setting, tmp_path)
    monitor = LandscapeMonitor(every_n_steps=3, loss=modules.losses, extras=[PerSample()])
    with told_of_differences(name == "own_function"):
        train(setting, tmp_path / "run", [monitor], epochs=1)
    recording.last = recording.steps[len(recording.steps) // 2].before  # that of one epoch
    run = run_of(tmp_path / "run")
    assert run.summary["per_sample"]["method"] == (
        "finite difference" if name == "own_function" else "forward mode"
    )
    assert_equal_brute_force(run, recording, setting)


def fit(folder, case="perceptron", told=False, **arguments):
    setting = CASES[case] if isinstance(case, str) else Setting(case)
    monitor = LandscapeMonitor(
        **{"every_n_steps": 3, "loss": modules.losses, "extras": [PerSample()]} | arguments
    )
    with told_of_differences(told):
        train(setting, folder, [monitor])
    return run_of(folder)


def reference_of(folder):
    fit(folder)
    return str(run_of(folder).path / "reference.safetensors")


def test_live_against_a_reference_is_the_same(tmp_path):
    one = fit(tmp_path / "one")
    two = fit(tmp_path / "two", reference=str(one.path / "reference.safetensors"))
    assert samples_of(two) == samples_of(one)
    assert len(samples_of(one)) == 6 * len(one.table)
    for key in ("alpha_beta", "beta_min", "conditions", "method", "training_loss", "mixing"):
        assert two.summary["per_sample"][key] == one.summary["per_sample"][key]


@pytest.mark.parametrize("case", ["perceptron", "lstm", "own_function"])
@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_training_is_the_same_with_and_without(case, mode, tmp_path):
    reference = "final"
    if mode == "file":
        train(CASES[case], tmp_path / "first", [LandscapeMonitor()])
        reference = str(run_of(tmp_path / "first").path / "reference.safetensors")
    ends = []
    for name in ("without", "with"):
        monitors = (
            [LandscapeMonitor(reference=reference, loss=modules.losses, extras=[PerSample()])]
            if name == "with"
            else []
        )
        with told_of_differences(case == "own_function" and name == "with"):
            trainer, module = train(CASES[case], tmp_path / name, monitors)
        ends.append(
            (
                module.state_dict(),
                torch.get_rng_state(),
                trainer.optimizers[0].state_dict()["state"],
            )
        )
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name
    assert torch.equal(ends[0][1], ends[1][1])
    assert len(samples_of(run_of(tmp_path / "with"))) == 12
    assert torch._C._is_fwd_grad_enabled()
    assert torch.backends.mkldnn.enabled


def test_means_over_the_samples_are_the_columns_of_the_probe(tmp_path):
    run = fit(tmp_path, "accumulation", every_n_steps=1)
    assert run.summary["per_sample"]["fidelity"]["inner_product"] < 1e-6
    for probe in run.table:
        rows = [row for row in samples_of(run) if row.step == probe.step]
        size = (probe.grad_sq_norm * probe.sq_distance) ** 0.5
        assert sum(row.loss for row in rows) / len(rows) == pytest.approx(probe.loss, rel=1e-6)
        assert sum(row.reference_loss for row in rows) / len(rows) == pytest.approx(
            probe.reference_loss, rel=1e-6
        )
        assert sum(row.inner_product for row in rows) / len(rows) == pytest.approx(
            probe.inner_product, abs=1e-6 * size
        )


def mean_loss(module, batch):
    return modules.losses(module, batch).mean()


def held_out_batches(trainer):
    return [(torch.full((5, 12), 0.5), torch.arange(5) % 4)]


def test_all_else_is_as_with_the_mean_as_loss(tmp_path):
    """Held-out batches and every column of the table."""
    held_out = HeldOut(held_out_batches, fixed=1)
    one = fit(tmp_path / "one", extras=[PerSample(), held_out])
    two = fit(tmp_path / "two", extras=[held_out], loss=mean_loss)
    assert one.table == two.table
    assert one.tables["held_out"] == two.tables["held_out"]
    assert one.tables["fixed_batches"] == two.tables["fixed_batches"]
    assert len(one.tables["held_out"]) == len(one.table)
    assert "per_sample" not in two.tables
    assert "per_sample" not in two.summary


# -------------------------------------------------------------------------------------- derivatives


class Kinks(modules.Base):
    """Many kinks within the width of a difference."""

    def network(self):
        layers = (
            torch.nn.Linear(12, 32),
            torch.nn.ReLU(),
            torch.nn.Linear(32, 32),
            torch.nn.ReLU(),
            torch.nn.Linear(32, 4),
        )
        return torch.nn.Sequential(*layers, modules.Custom())


class Wrapped(modules.LSTM):
    def network(self):
        return torch.nn.Sequential(super().network(), modules.Custom())


class WrappedTransformer(modules.Transformer):
    def network(self):
        return torch.nn.Sequential(super().network(), modules.Custom())


@pytest.mark.parametrize(
    "kind", some([Kinks, modules.OwnFunction, Wrapped, WrappedTransformer], every=4)
)
def test_each_difference_is_off_by_no_more_than_it_says(kind, tmp_path, monkeypatch):
    errors, original = [], SampleSlopes._by_differences

    def recorded(self, *given):
        slopes = original(self, *given)
        errors.extend(slopes.error.tolist())
        return slopes

    monkeypatch.setattr(SampleSlopes, "_by_differences", recorded)
    setting = Setting(kind)
    recording = record(setting, tmp_path)
    run = fit(tmp_path / "run", kind, told=True)
    expected = [row for probe in run.table for row in expected_rows(recording, setting, probe.step)]
    for row, brute, error in zip(samples_of(run), expected, errors, strict=True):
        assert abs(row.inner_product - brute["inner_product"]) <= error


def test_differences_say_how_they_were_taken(tmp_path):
    setting = CASES["own_function"]
    recording = record(setting, tmp_path)
    run = fit(tmp_path / "run", "own_function", told=True)
    about = run.summary["per_sample"]
    assert about["method"] == "finite difference"
    assert "You must implement the jvp function" in about["method_reason"]
    assert about["step"] > 0
    assert 0 < about["error"]["absolute"] < 1e-3
    assert_equal_brute_force(run, recording, replace(setting, rtol=1e-6))


class FastPath(modules.Transformer):
    """In evaluation mode without autograd torch fuses whole layers: no forward derivative."""

    def on_train_start(self):
        self.net.eval()


class Compiled(modules.Perceptron):
    def network(self):
        return torch.compile(super().network(), backend="eager")


class Doubles(modules.Perceptron):
    def __init__(self):
        super().__init__()
        self.double()


@pytest.mark.parametrize("kind", [FastPath, Compiled])
def test_more_that_forward_mode_goes_through(kind, tmp_path):
    run = fit(tmp_path, kind)
    assert run.summary["per_sample"]["method"] == "forward mode"
    assert run.summary["per_sample"]["fidelity"]["inner_product"] < 1e-6
    assert run.summary["per_sample"]["fidelity"]["loss"] < 1e-6


def test_double_precision(tmp_path):
    pl.seed_everything(1, verbose=False)
    monitor = LandscapeMonitor(every_n_steps=3, loss=modules.losses, extras=[PerSample()])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[monitor],
        enable_progress_bar=False,
    )
    trainer.fit(Doubles(), loader(dtype=torch.float64))
    assert monitor.summary["per_sample"]["fidelity"]["inner_product"] < 1e-14
    assert monitor.summary["per_sample"]["fidelity"]["loss"] < 1e-14


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Estimated(modules.Base):
    """A straight-through estimator, whose gradients are not derivatives."""

    def network(self):
        class Layer(torch.nn.Linear):
            def forward(self, x):
                return StraightThrough.apply(super().forward(x))

        return Layer(12, 4)


def test_gradients_that_are_not_derivatives_are_told(tmp_path):
    run = fit(tmp_path, Estimated, told=True)
    assert run.summary["per_sample"]["fidelity"]["inner_product"] > 0.1
    assert "Something in the loss changes gradients, or stops them" in run.summary["verdict"]


def smoothed(module, batch):
    x, y = batch
    return cross_entropy(module.net(x), y, label_smoothing=0.3, reduction="none")


def test_a_loss_that_is_not_that_of_training_is_told(tmp_path):
    run = fit(tmp_path, loss=smoothed)
    found = run.summary["per_sample"]["training_loss"]
    assert found["same"] is False
    assert found["samples"] == pytest.approx(run.table[0].loss, rel=1e-6)
    assert "the measured loss is not the trained one" in run.summary["verdict"]
    same = fit(tmp_path / "same")
    assert same.summary["per_sample"]["training_loss"]["same"] is True
    assert "the measured loss is not the trained one" not in same.summary["verdict"]


# --------------------------------------------------------------------------------------- what mixes


def test_samples_that_mix_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(
        MisconfigurationException,
        match=r"losses of others changed\. The module has BatchNorm1d.*PerSample\(mixing=True\)",
    ):
        fit(tmp_path, modules.Mixing)
    assert not list(tmp_path.rglob("probes.*"))


@pytest.mark.slow
def test_samples_that_mix_are_measured_on_demand(tmp_path):
    """Each sample with the rest of its mini-batch unchanged."""
    setting = Setting(modules.Mixing)
    recording = record(setting, tmp_path)
    run = fit(tmp_path / "run", modules.Mixing, extras=[PerSample(mixing=True)])
    assert run.summary["per_sample"]["mixing"] == "allowed"
    assert (
        "A single sample's loss may depend on the rest of its mini-batch" in run.summary["verdict"]
    )
    assert_equal_brute_force(run, recording, setting)


def test_samples_that_do_not_mix_are_found_not_to(tmp_path):
    assert fit(tmp_path, "convolutions").summary["per_sample"]["mixing"] is False


class Sorted(modules.Perceptron):
    """Rejects batches of repeated samples."""


def of_distinct(module, batch):
    assert len(batch[0].unique(dim=0)) == len(batch[0])
    return modules.losses(module, batch)


class Sample:
    """An opaque batch."""

    def __init__(self, x, y):
        self.x, self.y = x, y


class Objects(modules.Perceptron):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Sample(*batch)

    def training_step(self, batch, batch_idx):
        return super().training_step((batch.x, batch.y), batch_idx)


def of_objects(module, batch):
    return modules.losses(module, (batch.x, batch.y))


@pytest.mark.parametrize(("kind", "loss"), [(Sorted, of_distinct), (Objects, of_objects)])
def test_whether_samples_mix_may_stay_unknown(kind, loss, tmp_path):
    run = fit(tmp_path, kind, loss=loss)
    assert run.summary["per_sample"]["mixing"] is None
    assert run.summary["per_sample"]["fidelity"]["inner_product"] < 1e-6
    assert len(samples_of(run)) == 6 * len(run.table)


class SkipsAtFirst(modules.Mixing):
    """Its first step has no loss, so the first probe comes after a step and may not be refused."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) if self.trainer.global_step else None


def test_after_the_first_step_nothing_is_refused(tmp_path):
    with pytest.warns(
        UserWarning, match="could not evaluate the samples of step 1.*losses of others changed"
    ):
        run = fit(tmp_path, SkipsAtFirst, every_n_steps=1)
    assert run.summary["run"]["complete"] is True
    assert len(run.table) == 19
    assert run.summary["per_sample"]["mixing"] is True
    assert "No single sample was evaluated: MisconfigurationException" in run.summary["verdict"]


# ------------------------------------------------------------------------------------------ refused


def too_short(module, batch):
    return modules.losses(module, batch)[:5]


def a_matrix(module, batch):
    return module.net(batch[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"loss": None}, "found PerSample and no loss="),
        ({"loss": mean_loss}, r"found a tensor of shape \(\) as losses of single samples"),
        ({"loss": a_matrix}, r"found a tensor of shape \(6, 4\) as losses of single samples"),
        ({"loss": too_short}, r"found 5 losses for a batch of tensors with \[6, 12\] items"),
        ({"extras": []}, r"found a tensor of shape \(6,\) as loss; supported is one number"),
    ],
)
def test_refused(arguments, said, tmp_path):
    with pytest.raises(MisconfigurationException, match=said):
        fit(tmp_path, **arguments)


def test_an_argument_is_checked_when_it_is_given():
    with pytest.raises(
        MisconfigurationException, match=r"PerSample\(mixing='yes'\).*True and False"
    ):
        PerSample(mixing="yes")


def test_what_fails_costs_the_samples_alone(tmp_path, monkeypatch):
    def failing(self, *given, **named):
        raise ValueError("on purpose")

    monkeypatch.setattr("lightning_landscape.extras.per_sample.PerSample.at", failing)
    with pytest.warns(
        UserWarning, match="could not evaluate the samples of step 0, ValueError: on purpose"
    ):
        run = fit(tmp_path)
    assert run.summary["run"]["complete"] is True
    assert len(run.table) == 7
    assert run.summary["per_sample"]["samples"] == 0
    assert (
        "No single sample was evaluated: ValueError: on purpose, at step 0."
        in run.summary["verdict"]
    )


# ------------------------------------------------------------------------------------------ summary


def test_the_summary_puts_the_pair_to_the_test(tmp_path):
    run = fit(tmp_path, every_n_steps=1)
    found, entry = run.summary["conditions"]["alpha_beta"], run.summary["per_sample"]
    names = ("loss", "reference_loss", "inner_product")
    columns = {
        name: torch.tensor([getattr(row, name) for row in samples_of(run)], dtype=torch.float64)
        for name in names
    }
    violated = F.alpha_beta_violations(found["alpha"], found["beta"], **columns)
    margins = F.alpha_beta_margin(found["alpha"], found["beta"], **columns)
    assert entry["samples"] == len(samples_of(run)) == 120
    assert entry["violated"] == int(violated.sum()) > 0
    assert entry["violated_share"] == pytest.approx(float(violated.double().mean()))
    tight = samples_of(run)[int(margins.argmin())]
    assert entry["smallest_margin"] == {
        "value": float(margins.min()),
        "step": tight.step,
        "sample": tight.sample,
    }
    assert entry["quantiles"]["0"] == float(margins.min())
    assert entry["quantiles"]["1"] == float(margins.max())
    assert entry["quantiles"]["0.5"] == pytest.approx(
        float(margins.quantile(0.5, interpolation="nearest"))
    )
    best = F.best_alpha_beta(**columns)
    assert {n: entry["alpha_beta"][n] for n in ("alpha", "beta", "rate")} == {
        n: float(getattr(best, n)) for n in ("alpha", "beta", "rate")
    }
    assert entry["alpha_beta"]["attained"] is True
    assert entry["alpha_beta"]["neighbourhood"] == pytest.approx(
        float(best.ratio * columns["reference_loss"].mean())
    )
    pair, own = (
        (entry["alpha_beta"]["alpha"], entry["alpha_beta"]["beta"]),
        run.table.columns(*names),
    )
    assert not F.alpha_beta_violations(
        *pair, **own
    ).any()  # what holds for each sample holds for their means
    assert entry["beta_min"] == {
        "0.1": float(F.beta_min(0.1, **columns)),
        "1": float(F.beta_min(1.0, **columns)),
    }
    aiming = columns["inner_product"] / columns["loss"]
    assert entry["conditions"]["aiming"]["value"] == pytest.approx(float(aiming.min()))
    assert samples_of(run)[int(aiming.argmin())].sample == entry["conditions"]["aiming"]["sample"]
    assert f"is violated by {entry['violated']}" in run.summary["verdict"]
    for step in entry["steps"]:
        rows = torch.tensor([row.step == step["step"] for row in samples_of(run)])
        assert step["samples"] == 6
        assert step["violated_share"] == pytest.approx(float(violated[rows].double().mean()))
        assert step["quantiles"]["0"] == float(margins[rows].min())
        assert step["beta"] == float(
            F.beta_min(found["rate"], **{n: column[rows] for n, column in columns.items()})
        )


def test_a_sample_below_the_infimum(tmp_path):
    """The mean of a mini-batch can be above a bound that a single sample is below."""
    run = fit(tmp_path, loss_infimum=0.6)
    entry = run.summary["per_sample"]
    lowest = min(min(row.loss, row.reference_loss) for row in samples_of(run))
    assert lowest < 0.6 < min(probe.loss for probe in run.table)
    assert "is below loss_infimum 0.6" in entry["reason"]
    assert entry["alpha_beta"]["alpha"] is None
    assert entry["violated"] is None
    assert "Nothing can be said of single samples" in run.summary["verdict"]
    assert entry["samples"] == len(samples_of(run))


def test_thinning_drops_their_rows_too(tmp_path):
    reference = reference_of(tmp_path / "first")
    run = fit(tmp_path / "run", every_n_steps=1, max_probes=4, reference=reference)
    assert (
        sorted({row.step for row in samples_of(run)})
        == [probe.step for probe in run.table]
        == [0, 8, 16]
    )


# --------------------------------------------------------------------------- processes and resuming


@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_two_processes_have_the_samples_of_one(mode, tmp_path):
    arguments = {"every_n_steps": 2, "loss": distributed.sample_losses, "extras": [PerSample()]}
    if mode == "file":
        distributed.train(tmp_path / "first", [LandscapeMonitor()], processes=1)
        arguments["reference"] = str(
            load(tmp_path / "first" / "run").path / "reference.safetensors"
        )
    runs = []
    for processes in (1, 2):
        distributed.train(
            tmp_path / str(processes), [LandscapeMonitor(**arguments)], processes=processes
        )
        runs.append(load(tmp_path / str(processes) / "run"))
    one, two = runs
    assert two.summary["per_sample"]["method"] == "forward mode"
    assert two.summary["per_sample"]["fidelity"]["inner_product"] < 1e-6
    for probe in one.table:
        here, there = (
            sorted((r.loss, r) for r in samples_of(run) if r.step == probe.step) for run in runs
        )
        assert len(here) == len(there) == 2 * distributed.BATCH
        for (_, a), (_, b) in zip(here, there, strict=True):
            for column in ("loss", "reference_loss"):
                assert getattr(a, column) == pytest.approx(getattr(b, column), rel=2e-5)
            assert a.inner_product == pytest.approx(b.inner_product, abs=1e-5)


def one_sided(module, batch):
    """Only the second process has an operation without a forward derivative."""
    x, y = batch
    hidden = module.net[0](x)
    hidden = (
        modules.WithoutForwardDerivative.apply(hidden) if module.global_rank == 1 else hidden.tanh()
    )
    return cross_entropy(module.net[2](hidden), y, reduction="none")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*finite differences")
def test_all_processes_take_the_same_way(tmp_path):
    monitor = LandscapeMonitor(every_n_steps=3, loss=one_sided, extras=[PerSample()])
    distributed.train(tmp_path, [monitor])
    run = load(tmp_path / "run")
    about = run.summary["per_sample"]
    assert about["method"] == "finite difference"
    assert "jvp function" in about["method_reason"]
    assert about["fidelity"]["inner_product"] < 1e-3
    assert len(samples_of(run)) == 2 * distributed.BATCH * len(run.table)


@pytest.mark.filterwarnings("ignore:.*could not evaluate the samples")
@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_a_failure_in_one_process_ends_the_samples_in_all(mode, tmp_path, monkeypatch):
    original, reference = SampleSlopes.at, "final"
    if mode == "file":
        distributed.train(tmp_path / "first", [LandscapeMonitor()], processes=1)
        reference = str(load(tmp_path / "first" / "run").path / "reference.safetensors")

    def failing(self, record, moment, line):
        if self._evaluator.training.processes.rank == 1 and len(calls) == 2:
            raise KeyError("on purpose")
        calls.append(0)
        return original(self, record, moment, line)

    calls = []
    monkeypatch.setattr(SampleSlopes, "at", failing)
    arguments = {
        "every_n_steps": 3,
        "loss": distributed.sample_losses,
        "reference": reference,
        "extras": [PerSample()],
    }
    distributed.train(tmp_path, [LandscapeMonitor(**arguments)])
    run = load(tmp_path / "run")
    assert run.summary["run"]["complete"] is True
    assert len(run.table) == 6
    assert sorted({row.step for row in samples_of(run)}) == [0, 3]
    assert run.summary["per_sample"]["samples"] == 4 * distributed.BATCH
    assert "on purpose" in run.summary["per_sample"]["stopped_by"]


def before(rows, step):
    return [row for row in rows if row.step < step]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("mode", some(["final", "file"], every=2))
def test_resuming_keeps_the_samples_of_before(mode, tmp_path):
    arguments = {
        "every_n_steps": 2,
        "loss": distributed.sample_losses,
        "extras": [PerSample()],
        "store": Store(keep=True),
    }
    if mode == "file":
        distributed.train(tmp_path / "first", [LandscapeMonitor()], processes=1)
        arguments["reference"] = str(
            load(tmp_path / "first" / "run").path / "reference.safetensors"
        )
    distributed.train(tmp_path / "whole", [LandscapeMonitor(**arguments)], processes=1)
    whole = load(tmp_path / "whole" / "run")
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "epoch=1-step=10.ckpt")
    distributed.train(
        tmp_path / "again", [LandscapeMonitor(**arguments)], processes=1, ckpt_path=checkpoint
    )
    again = load(tmp_path / "again" / "run")
    if mode == "file":
        held = torch.load(checkpoint, weights_only=True)["callbacks"]
        (state,) = [state for key, state in held.items() if "LandscapeMonitor" in key]
        assert state["extras"]["PerSample, per_sample"]["steps"] == [0, 2, 4, 6, 8]
        assert before(samples_of(again), 10) == before(samples_of(whole), 10)
    assert [row.loss for row in before(samples_of(again), 10)] == [
        row.loss for row in before(samples_of(whole), 10)
    ]
    assert {row.step for row in samples_of(again)} == {probe.step for probe in again.table}
    assert again.summary["per_sample"]["fidelity"]["inner_product"] < 1e-6
    assert (
        again.summary["per_sample"]["training_loss"] == whole.summary["per_sample"]["training_loss"]
    )


@pytest.mark.slow
@pytest.mark.pictures
def test_the_picture(tmp_path):
    from lightning_landscape.reporting import figures

    run = fit(tmp_path, report=Report(images="all"))
    drawn = PerSample.figures(figures.Drawn(run.table, run.summary, run.tables))
    margins, violations = drawn["per_sample"].axes
    assert margins.get_legend_handles_labels()[1] == [
        "all samples",
        "5 % to 95 %",
        "25 % to 75 %",
        "median",
    ]
    shares = [100 * step["violated_share"] for step in run.summary["per_sample"]["steps"]]
    assert violations.lines[0].get_ydata().tolist() == shares
    assert (run.path / "figures" / "per_sample.png").is_file()
