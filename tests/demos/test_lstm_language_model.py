"""The LSTM under normalized SGD: its optimizer by the formula, and the demo in miniature."""

import csv
from argparse import Namespace

import pytest
import torch

from demos import lstm_language_model as demo
from demos.experiment import Options
from lightning_landscape import load

TINY = {
    "text": {"size": 40, "length": 8, "batch_size": 8, "limit": 1_000},
    "model": {"embedding": 6, "hidden": 8, "lr": 0.3},
    "epochs": 2,
    "monitor": {"every_n_steps": 1, "live_epochs": None},
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return demo.LSTMLanguageModel(20, 6, 8)


@pytest.fixture
def batch():
    return (torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(0)),)


def test_steps_have_the_length_lr_along_the_momentum():
    x = [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[-1.0]]))]
    optimizer = demo.NormalisedSGD(x, lr=0.5, momentum=0.8, weight_decay=0.1)
    here, momentum = torch.tensor([1.0, 2.0, -1.0]), torch.zeros(3)
    for g in (torch.tensor([3.0, 0.0, 4.0]), torch.tensor([-1.0, 2.0, 0.5]), torch.zeros(3)):
        x[0].grad, x[1].grad = g[:2].clone(), g[2:].reshape(1, 1).clone()
        optimizer.step()
        momentum = 0.8 * momentum + 0.2 * (g + 0.1 * here)
        here = here - 0.5 * momentum / momentum.norm()
        assert torch.allclose(torch.cat([p.detach().flatten() for p in x]), here)


def test_a_gradient_of_zeros_moves_nothing():
    x = torch.nn.Parameter(torch.ones(2))
    x.grad = torch.zeros(2)
    demo.NormalisedSGD([x], lr=1.0).step()
    assert x.tolist() == [1.0, 1.0]


def test_the_last_layer_is_as_wide_as_a_words_vector(model, batch):
    assert [(layer.input_size, layer.hidden_size) for layer in model.layers] == [
        (6, 8),
        (8, 8),
        (8, 6),
    ]
    assert model.outputs(batch[0]).shape == (4, 9, 6)


def test_only_words_before_are_seen(model, batch):
    (tokens,) = batch
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 20
    before, after = model.outputs(tokens), model.outputs(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_outputs_of_zero_cost_the_logarithm_of_the_vocabulary(model, batch):
    torch.nn.init.zeros_(model.embedding.weight)
    assert model.plain(batch).item() == pytest.approx(torch.tensor(20.0).log().item())


def test_the_measured_loss_has_nothing_of_the_regularisers(model, batch):
    assert torch.equal(model.plain(batch), model.plain(batch))
    assert not torch.equal(model.penalised(batch), model.penalised(batch))
    model.hparams.update(dropout=0.0, activation=0.0, temporal=0.0)
    assert torch.equal(model.penalised(batch), model.plain(batch))
    outputs = model.outputs(batch[0][:, :-1])
    model.hparams.update(activation=2.0, temporal=3.0)
    added = 2 * outputs.square().mean() + 3 * (outputs[:, 1:] - outputs[:, :-1]).square().mean()
    assert torch.allclose(model.penalised(batch), model.plain(batch) + added)


@pytest.mark.slow
def test_the_demo_in_miniature_writes_runs_table_and_picture(tmp_path, capsys):
    chosen = Options("small", tmp_path, (0, 1), None, Namespace())
    found = demo.run(chosen, TINY)
    assert len(found) == 2 * 3 + 2
    assert {f.verdict for f in found} <= {"seen", "not seen"}
    with (tmp_path / "lstm_language_model.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["training"], row["seed"]) for row in rows] == [
        (k, s) for k in ("plain", "regularised") for s in "01"
    ]
    assert (tmp_path / "lstm_language_model.png").stat().st_size > 10_000
    for row in rows:
        run = load(tmp_path / row["training"] / f"seed-{row['seed']}")
        assert run.summary["run"]["loss"]["source"] == "plain"
        assert run.summary["run"]["hparams"]["regularised"] is (row["training"] == "regularised")
        value = run.summary["conditions"]["polyak_lojasiewicz"]["value"]
        assert float(row["mu_min"]) == pytest.approx(value)
        assert run.summary["run"]["fidelity"]["max_abs"] == 0
    plain, other = (load(tmp_path / kind / "seed-0").table for kind in ("plain", "regularised"))
    assert plain[0].loss == other[0].loss  # the same function at the same start
    assert plain[-1].loss != other[-1].loss
    assert "Findings (lstm_language_model, small setting)" in capsys.readouterr().out


def test_findings_follow_the_numbers():
    row = dict.fromkeys(("cosine_early_min", "negative_cosines_early", "mu_at"), 1.0)
    agrees = {
        "cosine_early_mean": -0.1,
        "aiming_early_min": -1.0,
        "aiming_late_min": 0.1,
        "mu_min": 1e-8,
    }
    differs = {
        "cosine_early_mean": 0.1,
        "aiming_early_min": -1.0,
        "aiming_late_min": -0.1,
        "mu_min": 1e-3,
    }
    verdicts = [f.verdict for f in demo.findings_of([{"training": "plain", **row, **agrees}], [])]
    assert verdicts == ["seen"] * 3
    both = [
        {"training": "plain", **row, **numbers} for numbers in (agrees, differs)
    ]  # one seed is enough to differ
    assert [f.verdict for f in demo.findings_of(both, [])] == ["not seen"] * 3
