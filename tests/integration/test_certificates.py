"""Real runs: the trajectory certificate, which theorem applies and why not, exact sums."""

import copy
import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from lightning_landscape import LandscapeMonitor, Secant, Store, load
from lightning_landscape.bounds import Evidence
from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax
from tests.helpers.modules import FEATURES, loader
from tests.helpers.settings import SETTINGS, train
from tests.helpers.slow import some
from tests.integration.test_brute_force import record


class NormalisedSGD(torch.optim.Optimizer):
    """x ← x − γ g/‖g‖."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters))
        for p in parameters:
            p.add_(p.grad, alpha=-self.param_groups[0]["lr"] / norm)
        return loss


class Regression(pl.LightningModule):
    """A small network on data with noise, trained by any optimizer."""

    def __init__(self, optimizer, schedule=None):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        self.optimizer, self.schedule = optimizer, schedule

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x).squeeze(1) - y).square().mean()

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"},
        }


def data(sampling="with_replacement", batches=15, batch_size=6):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batches * batch_size, FEATURES, generator=generator)
    y = x[:, 0] - 0.5 * x[:, 1] + 0.3 * torch.randn(len(x), generator=generator)
    dataset = TensorDataset(x, y)
    if sampling == "with_replacement":
        return DataLoader(dataset, batch_size, sampler=RandomSampler(dataset, replacement=True))
    if sampling == "full":
        return DataLoader(dataset, len(dataset), shuffle=True)
    return DataLoader(dataset, batch_size, shuffle=sampling == "reshuffled")


def fit(
    optimizer, folder, schedule=None, sampling="with_replacement", epochs=4, dtype=None, **settings
):
    """Train with every step probed, unless said otherwise, and return the monitor."""
    pl.seed_everything(5, verbose=False)
    ours = {
        name: settings.pop(name)
        for name in ("every_n_steps", "every_step", "reference")
        if name in settings
    }
    monitor = LandscapeMonitor(
        **{"every_n_steps": 1, "max_probes": 1000, "dirpath": folder, **ours}
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
        **settings,
    )
    trainer.fit(Regression(optimizer, schedule), data(sampling))
    return monitor


def sgd(lr=0.05, **options):
    return lambda params: torch.optim.SGD(params, lr=lr, **options)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=60, cycle_momentum=False)


def falling(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)


ALONG_THE_GRADIENT = {
    "sgd": (sgd(), None, {}),
    "cosine": (sgd(), cosine, {}),
    "one_cycle": (sgd(), one_cycle, {}),
    "clipped": (sgd(0.2), None, {"gradient_clip_val": 0.3}),
    "normalised": (lambda p: NormalisedSGD(p, 0.05), None, {}),
    "sps_max": (lambda p: SPSMax(p, lr=0.5, c=1.0), None, {}),
    "dec_sps": (lambda p: DecSPS(p, lr=0.5), None, {}),
    "ngn": (lambda p: NGN(p, lr=0.5), None, {}),
    "adagrad_norm_max": (lambda p: AdaGradNormMax(p, lr=1.0, b_init=1.0), None, {}),
    "accumulated": (sgd(), None, {"accumulate_grad_batches": 4}),
}


@pytest.mark.parametrize("reference", some(["final", "another"], every=2))
@pytest.mark.parametrize("name", some(ALONG_THE_GRADIENT, every=8))
def test_the_certificate_of_the_trajectory_holds_to_rounding(name, reference, tmp_path):
    optimizer, schedule, settings = ALONG_THE_GRADIENT[name]
    if reference == "another":
        torch.manual_seed(0)
        there = {n: torch.randn_like(p) for n, p in Regression(None).named_parameters()}
        torch.save(there, tmp_path / "there.pt")
        settings = {**settings, "reference": str(tmp_path / "there.pt")}
    monitor = fit(optimizer, tmp_path, schedule, **settings)
    bound, table, run = (
        monitor.summary["bounds"]["trajectory"],
        monitor.table,
        monitor.summary["run"],
    )
    if reference == "another" and not bound["applies"]:
        # D_K may be larger than D_0, and nothing left to certify
        pytest.fail(bound["reason"])
    assert bound["status"] == "proved"
    assert len(table) == run["steps"]
    eta = [p.step_size for p in table]
    mean_gap = sum(e * (p.loss - p.reference_loss) for e, p in zip(eta, table, strict=True)) / sum(
        eta
    )
    assert bound["measured"] == pytest.approx(mean_gap, rel=1e-9)
    # Every sum, written out.
    squares = sum(e * e * p.grad_sq_norm for e, p in zip(eta, table, strict=True))
    rest = sum(p.step_residual**2 / 2 + p.step_residual * math.sqrt(p.sq_distance) for p in table)
    moved = (table[0].sq_distance - run["reference"]["final_sq_distance"]) / 2
    # the identity behind it: Σ η p = (D_0² − D_K²)/2 + ½ Σ η² G², up to R
    along = sum(e * p.inner_product for e, p in zip(eta, table, strict=True))
    assert abs(along - moved - squares / 2) <= rest + 2e-5 * (abs(moved) + squares)
    if bound["alpha"] is not None:
        excess = sum(e * p.reference_loss for e, p in zip(eta, table, strict=True))
        delta = bound["alpha"] - bound["beta"]
        value = (moved + squares / 2 + rest + bound["beta"] * excess) / (delta * sum(eta))
        assert bound["value"] == pytest.approx(value, rel=1e-6)
    assert mean_gap <= bound["value"] * (1 + 1e-6) + 1e-9
    assert sum(bound["terms"].values()) == pytest.approx(bound["value"])


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (sgd(momentum=0.9), "SGD"),
        (sgd(weight_decay=0.3), "SGD"),
        (lambda p: torch.optim.Adam(p, lr=0.01), "Adam"),
        (lambda p: torch.optim.AdamW(p, lr=0.01), "AdamW"),
    ],
)
def test_the_certificate_is_refused_with_the_residual(optimizer, said, tmp_path):
    bounds = fit(optimizer, tmp_path).summary["bounds"]
    entry = bounds["trajectory"]
    assert (entry["value"], entry["status"], entry["applies"]) == (None, "does_not_apply", False)
    assert said in entry["reason"]
    share = float(entry["reason"].split(" is ")[-1].split()[0].rstrip(","))
    assert share > 0.01
    assert not any(bound["applies"] for bound in bounds.values())
    assert all(bound["reason"] for bound in bounds.values())
    summary = load(tmp_path).summary
    assert summary["bound_in_force"] is None
    assert "No theorem applies" in summary["verdict"]
    assert bounds["sgd"]["reason"] in summary["verdict"]


APPLIES = {
    "sgd": (sgd(), None, {"sgd", "sgd_sharp", "sgd_schedule"}),
    "falling": (sgd(), falling, {"sgd_decreasing", "sgd_schedule"}),
    "cosine": (sgd(), cosine, {"sgd_schedule"}),
    "sps_max": (lambda p: SPSMax(p, lr=0.1, c=1.0), None, {"sps_max", "sps_max_sharp"}),
    "dec_sps": (lambda p: DecSPS(p, lr=0.3, c_init=1.5), None, {"dec_sps", "dec_sps_sharp"}),
    "ngn": (lambda p: NGN(p, lr=0.3), None, {"ngn", "ngn_sharp"}),
    "ngn_falling": (lambda p: NGN(p, lr=0.3), falling, {"ngn_decreasing"}),
    "adagrad_norm_max": (
        lambda p: AdaGradNormMax(p, lr=1.0, b_init=2.0),
        None,
        {"adagrad_norm_max"},
    ),
    "normalised": (lambda p: NormalisedSGD(p, 0.05), None, set()),
}


@pytest.mark.parametrize("every", some([7, 1], every=2))
@pytest.mark.parametrize("name", some(APPLIES, every=3))
def test_which_theorem_applies_is_measured(name, every, tmp_path):
    optimizer, schedule, expected = APPLIES[name]
    bounds = fit(optimizer, tmp_path, schedule, every_n_steps=every).summary["bounds"]
    assert {key for key, bound in bounds.items() if bound["applies"]} - {"trajectory"} == expected
    for key in expected:
        bound = bounds[key]
        assert bound["status"] == "estimate"
        assert "this run's own end" in bound["reason"]
        assert bound["value"] == pytest.approx(sum(bound["terms"].values()))
        assert bound["informativeness"] > 0
    trajectory = bounds["trajectory"]
    assert trajectory["status"] == ("proved" if every == 1 else "estimate")
    assert trajectory["measured"] <= trajectory["value"] * (1 + 1e-9)


def test_the_constants_are_those_of_the_optimiser_and_of_the_table(tmp_path):
    monitor = fit(lambda p: SPSMax(p, lr=0.1, c=1.5), tmp_path)
    constants, table = monitor.summary["bounds"]["sps_max"]["constants"], monitor.table
    assert (constants["c"], constants["step_size_bound"]) == (1.5, 0.1)
    assert constants["smoothness"] == pytest.approx(
        max(p.grad_sq_norm / (2 * p.loss) for p in table)
    )
    assert constants["sq_distance"] == table[0].sq_distance
    assert constants["interpolation_error"] == pytest.approx(
        sum(p.reference_loss for p in table) / len(table)
    )


def test_full_batch_gradient_descent_is_told_by_its_losses(tmp_path):
    monitor = fit(sgd(0.1), tmp_path, sampling="full", epochs=40)
    bounds = monitor.summary["bounds"]
    assert bounds["gradient_descent"]["status"] == "proved"
    gap = min(p.loss - p.reference_loss for p in monitor.table)
    assert gap <= bounds["gradient_descent"]["value"]
    above = [p for p in monitor.table if p.loss > p.reference_loss]
    expected = max(p.grad_sq_norm / (2 * (p.loss - p.reference_loss)) for p in above)
    assert bounds["gradient_descent"]["constants"]["smoothness"] == pytest.approx(expected)
    assert monitor.summary["conditions"]["polyak_lojasiewicz"]["measured_on"] == "full batch"
    mu = min(p.grad_sq_norm / (2 * (p.loss - p.reference_loss)) for p in above)
    assert monitor.summary["conditions"]["polyak_lojasiewicz"]["value"] == pytest.approx(mu)


@pytest.mark.parametrize(
    ("optimizer", "settings", "theorem", "said"),
    some(
        [
            (sgd(), {"sampling": "sequential"}, "sgd", "does not shuffle"),
            (sgd(momentum=0.9), {}, "sgd", "momentum=0.9"),
            (sgd(weight_decay=1e-5), {}, "sgd", "weight_decay=1e-05"),
            (sgd(0.2), {"gradient_clip_val": 0.3}, "sgd", "gradients were clipped"),
            (sgd(0.2), {"gradient_clip_val": 0.3}, "sgd_schedule", "may depend on the mini-batch"),
            (sgd(), {"schedule": cosine}, "sgd", "was not constant"),
            (
                sgd(),
                {},
                "sps_max",
                "the optimizer is SGD; the theorem is about SPSMax of this package",
            ),
            (
                lambda p: SPSMax(p, lr=0.5),
                {"gradient_clip_val": 0.3},
                "sps_max",
                "gradients are clipped",
            ),
            (
                lambda p: SPSMax(p, lr=0.5),
                {"accumulate_grad_batches": 3},
                "sps_max",
                "gradients are accumulated",
            ),
            (
                lambda p: NGN(p, lr=0.5),
                {"accumulate_grad_batches": 3},
                "ngn",
                "gradients are accumulated",
            ),
            (lambda p: SPSMax(p, lr=0.5, loss_infimum=-0.5), {}, "sps_max", "pass the same"),
            (
                lambda p: NGN(p, lr=0.5, loss_infimum=-0.5),
                {},
                "ngn_decreasing",
                "was not that of NGN's definition",
            ),
            (lambda p: NGN(p, lr=0.5), {"schedule": cosine}, "ngn", "lr started at 0.5 and was"),
            (
                lambda p: AdaGradNormMax(p),
                {"gradient_clip_val": 0.3},
                "adagrad_norm_max",
                "gradients are clipped",
            ),
            (
                lambda p: AdaGradNormMax(p),
                {"schedule": cosine},
                "adagrad_norm_max",
                "the theorem has one",
            ),
            (lambda p: DecSPS(p), {"schedule": cosine}, "sps_max", "the optimizer is DecSPS"),
        ],
        every=3,
    ),
)
def test_every_reason_is_said(optimizer, settings, theorem, said, tmp_path):
    bound = fit(optimizer, tmp_path, **settings).summary["bounds"][theorem]
    assert (bound["value"], bound["status"]) == (None, "does_not_apply")
    assert said in bound["reason"]


def test_a_grad_scaler_is_outside_the_theorem(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    settings = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    monitor = fit(lambda p: AdaGradNormMax(p, lr=0.5, b_init=2.0), tmp_path, **settings)
    assert monitor.summary["run"]["precision"] == "16-mixed"
    assert monitor.summary["bounds"]["sps_max"]["value"] is None
    with pytest.raises(RuntimeError, match="GradScaler"):
        fit(lambda p: SPSMax(p), tmp_path, **settings)


SUMMED = [
    "plain",
    "accumulation",
    "none_micro_batch",
    "bf16_accumulation",
    "scaler",
    "scaler_fused_adam",
    "clipping",
]
SUMMED += ["overflowing", "unfreezing", "partly_unused", "momentum_encoder", "tied"]


@pytest.mark.parametrize("name", some(SUMMED, every=8))
def test_exact_sums_are_those_over_every_step(name, tmp_path):
    setting = SETTINGS[name]
    few = LandscapeMonitor(every_n_steps=7, every_step=True)
    train(setting, tmp_path / "few", [few])
    sums = few.summary["run"]["exact_sums"]
    recording = record(setting, tmp_path)
    first = few.table[0].step
    steps = [s for s in recording.steps if s.step >= first]
    assert (sums["first_step"], sums["steps"]) == (first, len(steps))
    every = LandscapeMonitor(every_n_steps=1, max_probes=1000)
    train(setting, tmp_path / "every", [every])
    rows = {probe.step: probe for probe in every.table}
    # overflows, and windows without a loss, are not probes
    missing = [s for s in steps if s.step not in rows]
    for step in missing:
        assert (
            all(torch.equal(step.before[n], step.after[n]) for n in recording.names)
            or not step.micro_batches
        )
    assert sums["step_size"] == pytest.approx(sum(p.step_size for p in rows.values()), rel=1e-9)
    assert sums["sq_step"] == pytest.approx(
        sum(p.step_size**2 * p.grad_sq_norm for p in rows.values()), rel=1e-9
    )
    assert sums["sq_residual"] == pytest.approx(
        sum(p.step_residual**2 for p in rows.values()), rel=1e-9, abs=1e-15
    )
    assert sums["residual"] == pytest.approx(
        sum(p.step_residual for p in rows.values()), rel=1e-9, abs=1e-12
    )
    assert sums["negative_steps"] == sum(p.step_size < 0 for p in rows.values())


def test_exact_sums_enter_the_certificate_and_it_says_so(tmp_path):
    estimated = fit(sgd(), tmp_path / "a", cosine, every_n_steps=7).summary["bounds"]["trajectory"]
    exact = fit(sgd(), tmp_path / "b", cosine, every_n_steps=7, every_step=True)
    exact = exact.summary["bounds"]["trajectory"]
    everything = fit(sgd(), tmp_path / "c", cosine).summary["bounds"]["trajectory"]
    assert exact["constants"]["step_size_sum"] == pytest.approx(
        everything["constants"]["step_size_sum"], rel=1e-9
    )
    assert exact["constants"]["sq_step_sum"] == pytest.approx(
        everything["constants"]["sq_step_sum"], rel=1e-9
    )
    assert estimated["constants"]["sq_step_sum"] != pytest.approx(
        everything["constants"]["sq_step_sum"], rel=1e-9
    )
    assert "the sums over steps are taken from 9 probes of 60 steps" in estimated["reason"]
    assert "the sums of η(b − l) and ‖e‖D are taken from 9 probes" in exact["reason"]


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "accumulation",
        "bf16_mixed",
        "scaler",
        "annealed",
        "momentum_encoder",
        "recurrent",
        "unfreezing_late",
    ],
)
def test_the_secant_is_the_change_of_the_same_batch_gradient(name, tmp_path):
    from tests.helpers.brute_force import BruteForce

    setting = SETTINGS[name]
    recording = record(setting, tmp_path)
    brute = BruteForce(recording, setting.module, setting.autocast)
    monitor = LandscapeMonitor(every_n_steps=3, extras=[Secant()])
    train(setting, tmp_path / "run", [monitor])
    rows = load(tmp_path / "run" / "lightning_logs" / "version_0").tables["secant"]
    found = {row.step: row.grad_sq_change for row in rows}
    assert sorted(found) == [probe.step for probe in monitor.table]
    steps = {step.step: step for step in recording.steps}
    ratios = []
    for k, change in found.items():
        step = steps[k]
        here = brute.window(step, {n: step.before[n] for n in recording.names}, gradient=True)[1]
        there = brute.window(step, {n: step.after[n] for n in recording.names}, gradient=True)[1]
        expected = sum(
            float((there[n] - here[n]).square().sum()) for n in recording.names if n in here
        )
        size = sum(float(g.square().sum()) for g in here.values())
        assert change == pytest.approx(
            expected, rel=0.02 if setting.scaler else 1e-3, abs=1e-9 * size
        )
        length = sum(
            float((step.before[n].double() - step.after[n].double()).square().sum())
            for n in recording.names
        )
        ratios.append(math.sqrt(change / length))
    entry = monitor.summary["conditions"]["smoothness"]["secant"]
    assert entry["value"] == pytest.approx(max(ratios), rel=1e-4)
    assert entry["probes"] == len(ratios)


def test_sums_and_secants_go_on_after_a_checkpoint(tmp_path):
    def run(folder, epochs, checkpoint=None):
        pl.seed_everything(5, verbose=False)
        monitor = LandscapeMonitor(
            every_n_steps=4,
            dirpath=folder,
            every_step=True,
            extras=[Secant()],
            store=Store(keep=True),
        )
        saver = pl.callbacks.ModelCheckpoint(folder, save_last=True)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor, saver],
        )
        trainer.fit(Regression(sgd()), data("sequential"), ckpt_path=checkpoint)
        return monitor

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "half", 2)
    rest = run(tmp_path / "half", 4, str(tmp_path / "half" / "last.ckpt"))
    assert rest.summary["run"]["exact_sums"] == pytest.approx(whole.summary["run"]["exact_sums"])
    secants = [m.summary["conditions"]["smoothness"]["secant"] for m in (rest, whole)]
    assert secants[0]["probes"] == secants[1]["probes"] == 15
    assert secants[0]["value"] == pytest.approx(secants[1]["value"])


def test_training_is_bit_identical_with_everything_measured(tmp_path):
    def weights(monitors):
        pl.seed_everything(5, verbose=False)
        module = SETTINGS["plain"].module()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=monitors,
        )
        trainer.fit(module, loader())
        return {
            name: tensor.clone() for name, tensor in module.state_dict().items()
        }, torch.get_rng_state()

    plain, rng = weights([])
    monitored, rng_with = weights(
        [LandscapeMonitor(every_n_steps=3, dirpath=tmp_path, every_step=True, extras=[Secant()])]
    )
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    assert torch.equal(rng, rng_with)


def test_parameters_that_a_hook_moves_after_the_step_are_seen(tmp_path):
    """The step is as measured, and then undone: the sum over steps belongs to no path."""

    class Undone(Regression):
        def on_train_batch_end(self, *args):
            with torch.no_grad():
                for p in self.parameters():
                    p.clamp_(-0.05, 0.05)

    pl.seed_everything(5, verbose=False)
    monitor = LandscapeMonitor(every_n_steps=1, max_probes=1000, dirpath=tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(Undone(sgd()), data())
    for bound in monitor.summary["bounds"].values():
        assert not bound["applies"]
    assert (
        "something else moved the parameters" in monitor.summary["bounds"]["trajectory"]["reason"]
    )
    assert "something else moved the parameters" in monitor.summary["bounds"]["sgd"]["reason"]
    # The table shows it as well, where consecutive steps are probes.
    assert Evidence(monitor.table, monitor.summary["run"]).jump is not None


def test_another_optimiser_of_the_same_name_is_no_reason_to_lose_the_report(tmp_path):
    class SPSMax(torch.optim.SGD):
        pass

    bounds = fit(lambda p: SPSMax(p, lr=0.05), tmp_path).summary["bounds"]
    assert "the theorem is about SPSMax of this package" in bounds["sps_max"]["reason"]
    assert bounds["sgd"]["applies"]  # its steps were those of SGD, as measured


def test_a_run_that_diverged_has_a_report_with_its_sums(tmp_path):
    monitor = fit(sgd(1e3), tmp_path, every_step=True)
    assert monitor.summary is not None
    assert None in monitor.summary["run"]["exact_sums"].values()
    assert not monitor.summary["bounds"]["trajectory"]["applies"]


def shortened(o):
    return torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1e-3 if k == 0 else 0.9**k)


def test_steps_shorter_than_the_rule_between_probes_enter_the_constants(tmp_path):
    """Too few probes to see the rule broken: the constants are read off the steps."""
    monitor = fit(lambda p: AdaGradNormMax(p, lr=0.5), tmp_path / "a", shortened, every_n_steps=10)
    bound, table = monitor.summary["bounds"]["adagrad_norm_max"], monitor.table
    needed = max(math.sqrt(((0.5 / p.step_size) ** 2 - 1) / (p.step + 1)) for p in table)
    assert needed > max(math.sqrt(p.grad_sq_norm) for p in table)
    assert not bound["applies"] or bound["constants"]["grad_bound"] == pytest.approx(needed)
    monitor = fit(lambda p: DecSPS(p, lr=0.5), tmp_path / "b", shortened, every_n_steps=10)
    bound, table = monitor.summary["bounds"]["dec_sps"], monitor.table
    needed = max(1 / (2 * p.step_size * math.sqrt(p.step + 1)) for p in table)
    assert not bound["applies"] or bound["constants"]["smoothness"] == pytest.approx(needed)


@pytest.mark.parametrize("every", some([1, 10], every=2))
@pytest.mark.parametrize("hook", ["on_before_optimizer_step", "configure_gradient_clipping"])
def test_clipping_in_the_modules_own_hooks_is_no_schedule(hook, every, tmp_path):
    def clip(self, *args, **kwargs):
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.1)

    pl.seed_everything(5, verbose=False)
    monitor = LandscapeMonitor(every_n_steps=every, max_probes=1000, dirpath=tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(type("Clips", (Regression,), {hook: clip})(sgd(0.2)), data())
    assert monitor.summary["run"]["off_schedule"] > 0
    assert (
        "step sizes depend on the mini-batch" in monitor.summary["bounds"]["sgd_schedule"]["reason"]
    )


def test_equal_losses_of_different_batches_are_no_full_batch(tmp_path):
    """An interpolating hinge loss started at zero: all f_i are 0 at the reference and 1 at x_0."""

    class Hinge(Regression):
        def __init__(self):
            super().__init__(sgd(0.01))
            self.net = torch.nn.Linear(FEATURES, 1)
            torch.nn.init.zeros_(self.net.weight)
            torch.nn.init.zeros_(self.net.bias)

        def training_step(self, batch, batch_idx):
            x, _ = batch
            return (
                (
                    1
                    - x[:, 0].sign()
                    * self.net(x + x[:, :1].sign() * torch.eye(FEATURES)[0]).squeeze(1)
                )
                .relu()
                .mean()
            )

    torch.save(
        {"net.weight": 3 * torch.eye(FEATURES)[:1], "net.bias": torch.zeros(1)},
        tmp_path / "there.pt",
    )
    pl.seed_everything(5, verbose=False)
    monitor = LandscapeMonitor(
        every_n_steps=1, dirpath=tmp_path, reference=str(tmp_path / "there.pt")
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(Hinge(), data("sequential"))
    assert {probe.reference_loss for probe in monitor.table} == {0.0}
    assert {probe.initial_loss for probe in monitor.table} == {1.0}
    assert monitor.summary["conditions"]["aiming"]["measured_on"] == "mini-batch"
    assert not monitor.summary["bounds"]["gradient_descent"]["applies"]
    assert "does not shuffle" in monitor.summary["bounds"]["sgd"]["reason"]


def plain_fit(module, loader, folder, epochs=4, every=10, callbacks=(), **ours):
    """Train any module with few probes and return its monitor."""
    pl.seed_everything(5, verbose=False)
    monitor = LandscapeMonitor(
        **{"every_n_steps": every, "max_probes": 1000, "dirpath": folder, **ours}
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, *callbacks],
    )
    trainer.fit(module, loader)
    return monitor


@pytest.mark.parametrize("every", some([1, 10], every=2))
def test_a_hook_that_undoes_steps_is_seen_at_any_stride(every, tmp_path):
    class Undone(Regression):
        def on_train_batch_end(self, *args):
            with torch.no_grad():
                for p in self.parameters():
                    p.mul_(1 + 1e-6)  # too little to be seen in a distance

    monitor = plain_fit(Undone(sgd()), data(), tmp_path, every=every)
    assert monitor.summary["run"]["moved_between"] >= len(monitor.table) - 1
    assert not any(bound["applies"] for bound in monitor.summary["bounds"].values())
    assert "something else moved the parameters" in monitor.summary["bounds"]["sgd"]["reason"]
    assert fit(sgd(), tmp_path / "plain").summary["run"]["moved_between"] == 0


def test_steps_without_a_gradient_are_counted(tmp_path):
    class Skips(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 3 else super().training_step(batch, batch_idx)

    monitor = plain_fit(Skips(sgd()), data(), tmp_path)
    assert monitor.summary["run"]["idle_steps"] == 40
    assert "40 of 60 steps had no gradient" in monitor.summary["bounds"]["sgd"]["reason"]
    assert (
        fit(sgd(), tmp_path / "plain", accumulate_grad_batches=2).summary["run"]["idle_steps"] == 0
    )


def test_a_short_last_window_is_no_clipping(tmp_path):
    monitor = fit(sgd(), tmp_path, accumulate_grad_batches=2)  # 15 batches an epoch
    assert monitor.summary["run"]["off_schedule"] == 0
    assert monitor.summary["bounds"]["sgd_schedule"]["applies"]


def test_the_full_batch_several_times_an_epoch_is_the_full_batch(tmp_path):
    whole = data().dataset[:]
    loader = DataLoader([whole] * 20, batch_size=None)
    monitor = plain_fit(Regression(sgd()), loader, tmp_path, epochs=2, every=1)
    assert monitor.summary["conditions"]["aiming"]["measured_on"] == "full batch"
    assert monitor.summary["bounds"]["gradient_descent"]["status"] == "proved"


def test_the_same_batch_of_every_epoch_is_no_full_batch(tmp_path):
    """Ten batches in fixed order and a stride of ten: every probe has the first batch."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.01)
    monitor = fit(optimizer, tmp_path, sampling="sequential", epochs=5, every_n_steps=15)
    assert len({probe.reference_loss for probe in monitor.table}) == 1
    assert monitor.summary["conditions"]["aiming"]["measured_on"] == "mini-batch"
    assert monitor.summary["bounds"]["gradient_descent"]["status"] == "does_not_apply"


def test_a_batch_sampler_of_the_users_own_is_not_called_sequential(tmp_path):
    class Shuffled:
        def __iter__(self):
            return iter(torch.randperm(90).view(15, 6).tolist())

        def __len__(self):
            return 15

    monitor = plain_fit(
        Regression(sgd()), DataLoader(data().dataset, batch_sampler=Shuffled()), tmp_path
    )
    assert monitor.summary["run"]["sampling"] == "unknown"
    assert "the order of the data is not known" in monitor.summary["bounds"]["sgd"]["reason"]


class Hooked(Regression):
    """A gradient hook with a state that every backward pass changes."""

    def on_fit_start(self):
        self.scale, self.calls = 0.0, 0
        for p in self.parameters():
            p.register_hook(self.hook)

    def hook(self, gradient):
        self.calls += 1
        self.scale = 0.9 * self.scale + 0.1 * float(gradient.norm())
        return gradient / (1 + self.scale)


def squared_error(module, batch):
    x, y = batch
    return (module.net(x).squeeze(1) - y).square().mean()


@pytest.mark.parametrize("ours", [{"extras": [Secant()]}, {"loss": squared_error}])
def test_hooks_of_parameters_do_not_see_our_backward_passes(ours, tmp_path):
    plain = Hooked(sgd())
    monitored = copy.deepcopy(plain)
    plain_fit(plain, data(), tmp_path / "a")
    plain_fit(monitored, data(), tmp_path / "b", **ours)
    assert monitored.calls == plain.calls == 60 * 4
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), monitored.parameters(), strict=True)
    )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_secant_that_cannot_be_had_costs_nothing_else(tmp_path):
    from torch.utils.checkpoint import checkpoint

    class Reentrant(Regression):
        def training_step(self, batch, batch_idx):
            x, y = batch
            hidden = checkpoint(self.net[1], self.net[0](x), use_reentrant=True)
            return (self.net[2](hidden).squeeze(1) - y).square().mean()

    with pytest.warns(UserWarning, match="Secant could not take a gradient again at step 0"):
        monitor = plain_fit(Reentrant(sgd()), data(), tmp_path, extras=[Secant()])
    assert len(monitor.table) == 6
    assert all(probe.evaluated for probe in monitor.table)
    assert "secant" not in load(tmp_path).tables
    assert "secant" not in monitor.summary["conditions"]["smoothness"]
    assert monitor.summary["conditions"]["smoothness"]["value"] is not None


def test_a_file_reference_without_the_parameters_that_join_late_still_gives_a_report(tmp_path):
    class Late(pl.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module):
            self.freeze(pl_module.net[0])

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(
                    pl_module.net[0], optimizer, lr=0.05, initial_denom_lr=1.0
                )

    class Tuned(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    module = Tuned(None)
    there = copy.deepcopy(module.state_dict())
    there["net.2.weight"] += 0.1
    torch.save(there, tmp_path / "there.pt")
    with pytest.warns(UserWarning, match="found no value of .'net.0.weight', 'net.0.bias'. in the"):
        monitor = plain_fit(
            module, data(), tmp_path, callbacks=[Late()], reference=str(tmp_path / "there.pt")
        )
    assert [probe.step for probe in monitor.table] == [0, 10, 20]
    assert all(probe.evaluated for probe in monitor.table)
    assert monitor.summary["run"]["dropped"]["unevaluable"] == 1
    assert monitor.summary["run"]["complete"] is False
    assert monitor.summary["conditions"]["alpha_beta"]["interpolation_error"] is not None


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("schedule", [cosine, warm_up])
def test_a_scheduler_on_an_optimiser_with_one_lr_is_seen_at_any_stride(schedule, every, tmp_path):
    settings = {"schedule": schedule, "every_n_steps": every}
    for kind, theorem in ((SPSMax, "sps_max"), (AdaGradNormMax, "adagrad_norm_max"), (NGN, "ngn")):
        bound = fit(lambda p, kind=kind: kind(p, lr=0.5), tmp_path / theorem, **settings).summary[
            "bounds"
        ][theorem]
        assert not bound["applies"]
        assert "lr started at 0.5 and was" in bound["reason"]
    # a scheduler has no effect on DecSPS
    later = fit(
        lambda p: DecSPS(p, lr=0.5), tmp_path / "dec_sps", schedule=cosine, every_n_steps=every
    )
    assert later.summary["bounds"]["dec_sps"]["applies"]


def test_the_range_of_learning_rates_is_recorded(tmp_path):
    monitor = fit(sgd(0.05), tmp_path, schedule=cosine, every_n_steps=10)
    rates = [0.05 * (1 + math.cos(math.pi * k / 60)) / 2 for k in range(0, 60, 10)]
    assert monitor.summary["run"]["learning_rates"] == pytest.approx(
        {"min": rates[-1], "max": 0.05}
    )
    assert monitor.summary["run"]["lr_schedulers"] == [
        {"class": "CosineAnnealingLR", "reduce_on_plateau": False}
    ]


class Plateau(Regression):
    """A scheduler that looks at the training loss."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "loss", "interval": "step"},
        }


class ByHand(Regression):
    """Sets its learning rate in a hook."""

    def on_train_epoch_start(self):
        self.optimizers().param_groups[0]["lr"] = 0.05 / (self.current_epoch + 1)


def test_a_learning_rate_that_follows_the_losses_is_no_schedule(tmp_path):
    plateau = plain_fit(Plateau(None), data(), tmp_path / "a").summary
    assert (
        "ReduceLROnPlateau sets lr by what was measured"
        in plateau["bounds"]["sgd_schedule"]["reason"]
    )
    assert not plateau["bounds"]["sgd_schedule"]["applies"]
    assert plateau["run"]["lr_schedulers"] == [
        {"class": "ReduceLROnPlateau", "reduce_on_plateau": True}
    ]
    by_hand = plain_fit(ByHand(sgd()), data(), tmp_path / "b").summary["bounds"]["sgd_schedule"]
    assert by_hand["applies"]
    assert "lr was set by hand" in by_hand["reason"]


class Noisy(pl.callbacks.Callback):
    """Changes the gradient before any monitor sees it."""

    def on_after_backward(self, trainer, pl_module):
        for p in pl_module.parameters():
            p.grad.mul_(1.1)


@pytest.mark.parametrize("reference", some(["final", "another"], every=2))
def test_a_gradient_that_a_callback_changed_is_seen(reference, tmp_path):
    module = Regression(sgd())
    if reference == "another":
        reference = str(tmp_path / "there.pt")
        torch.save({name: value + 0.1 for name, value in module.state_dict().items()}, reference)
    changed = plain_fit(
        module, data(), tmp_path / "a", callbacks=[Noisy()], reference=reference
    ).summary
    assert changed["run"]["fidelity"]["gradient"] == pytest.approx(0.1 / 1.1, rel=1e-5)
    assert not any(bound["applies"] for bound in changed["bounds"].values())
    assert (
        "differs from that of the measured loss by 0.091 of its length"
        in changed["bounds"]["sgd"]["reason"]
    )
    assert "9.1 % of their norm. Either a callback changed them" in changed["verdict"]
    plain = plain_fit(Regression(sgd()), data(), tmp_path / "b").summary
    assert plain["run"]["fidelity"]["gradient"] == 0
    windows = fit(sgd(), tmp_path / "c", accumulate_grad_batches=4).summary
    assert windows["run"]["fidelity"]["gradient"] < 1e-6


def test_a_pruned_module_still_gives_a_report(tmp_path):
    pruning = pl.callbacks.ModelPruning("l1_unstructured", amount=0.2, parameters_to_prune=None)
    with pytest.warns(UserWarning, match="LandscapeMonitor"):
        monitor = plain_fit(Regression(sgd()), data(), tmp_path, callbacks=[pruning])
    assert monitor.summary["run"]["complete"] is False
    assert monitor.summary["verdict"].startswith("Incomplete: the run ended early")
