"""The decoder of Pythia's shape against transformers' own, its schedule, and the small demo."""

import csv
from argparse import Namespace

import pytest
import torch

from demos import transformer_language_model as demo
from demos.experiment import Options
from lightning_landscape.reporting.compare import compare

TINY = {
    "text": {"unit": "bytes", "length": 8, "batch_size": 4},
    "shapes": ("tiny",),
    "steps": 12,
    "repeats": 4,
    "monitor": {"every_n_steps": 2, "live_epochs": None},
    "trainer": {"accelerator": "cpu"},
}


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return demo.Decoder(50, 32, 2, 2)


def of_transformers(decoder):
    """Return GPT-NeoX as in transformers with the same parameters."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    other = transformers.GPTNeoXForCausalLM(config).eval()
    output = next(
        name for name in ("lm_head.weight", "embed_out.weight") if name in other.state_dict()
    )  # older ones have the latter
    names = {
        "before_attention": "input_layernorm",
        "before_mlp": "post_attention_layernorm",
        "out": "attention.dense",
    }
    names |= {
        "query_key_value": "attention.query_key_value",
        "mlp.0": "mlp.dense_h_to_4h",
        "mlp.2": "mlp.dense_4h_to_h",
    }
    top = {"embedding.weight": "gpt_neox.embed_in.weight", "head.weight": output}
    top |= {f"norm.{kind}": f"gpt_neox.final_layer_norm.{kind}" for kind in ("weight", "bias")}
    state = {}
    for name, value in decoder.state_dict().items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            state[f"gpt_neox.layers.{block}.{names[part]}.{kind}"] = value
        else:
            state[top[name]] = value
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing
    assert all(
        ("weight" not in name and not name.endswith("bias")) or "rotary" in name
        for name in missing.missing_keys
    )
    return other


def test_it_is_gpt_neox(decoder):
    for parameter in decoder.parameters():  # biases as well, which start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(50, (3, 17))
    with torch.no_grad():
        assert torch.allclose(decoder(tokens), of_transformers(decoder)(tokens).logits, atol=1e-4)


def test_only_tokens_before_are_seen(decoder):
    tokens = torch.randint(50, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    before, after = decoder(tokens), decoder(changed)
    assert torch.allclose(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


def test_rotary_embeddings_see_distances_alone():
    torch.manual_seed(0)
    query, key = (torch.randn(16).expand(1, 1, 12, 16) for _ in range(2))
    scores = (demo.rotary(query) @ demo.rotary(key).transpose(-1, -2))[0, 0]
    for shift in range(-5, 6):
        diagonal = scores.diagonal(shift)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[0, 1], scores[0, 5])


@pytest.mark.parametrize(("shape", "count"), [("70m", 70_426_624), ("160m", 162_322_944)])
def test_shapes_have_as_many_parameters_as_pythia(shape, count):
    sizes = {name: value for name, value in demo.SHAPES[shape].items() if name != "lr"}
    with torch.device("meta"):
        decoder = demo.Decoder(50_304, **sizes)
    assert sum(p.numel() for p in decoder.parameters()) == count


def test_the_step_size_rises_in_a_line_and_falls_along_a_cosine():
    factors = [demo.warm_up_and_cosine(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1)
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert sorted(factors[10:], reverse=True) == factors[10:]


@pytest.mark.slow
def test_the_demo_in_miniature_writes_runs_table_and_picture(tmp_path):
    chosen = Options("small", tmp_path, (0, 1), None, Namespace())
    found = demo.run(chosen, TINY)
    assert len(found) == 2 + 3
    with (tmp_path / "transformer_language_model.csv").open(encoding="utf-8") as file:
        rows = {row["runs"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["tiny, one pass", "tiny, repeated"]
    assert [row["seeds"] for row in rows.values()] == ["2", "2"]
    assert (tmp_path / "transformer_language_model.png").stat().st_size > 10_000
    from lightning_landscape import load
    from lightning_landscape.reading.load import find_runs

    runs = [load(path) for path in find_runs(tmp_path)]
    assert len(runs) == 4
    assert all(run.summary["run"]["steps"] == 12 for run in runs)
    assert sorted(run.summary["run"]["batches_per_epoch"] for run in runs) == [3, 3, 12, 12]
    for group in compare(runs, group_by="text").groups:
        assert float(rows[f"tiny, {group.key}"]["beta_min_1"]) == group.beta_min[1]


def test_a_text_too_short_for_one_pass_is_refused(tmp_path):
    (tmp_path / "ptb.train.txt").write_text("a b c\n" * 10)
    (tmp_path / "ptb.valid.txt").write_text("a b c\n" * 10)
    chosen = Options("small", tmp_path, (0,), tmp_path, Namespace(data="ptb"))
    with pytest.raises(SystemExit, match="found 60 tokens in ptb; one pass needs 385"):
        demo.run(chosen, TINY)


def test_findings_follow_the_numbers():
    def row(sigma, beta, share):
        return {
            "informative_share": share,
            "informative_rates": "0.1 to 1",
            "interpolation_error": sigma,
            "drop": 1.0,
            "beta_min_0.1": beta,
            "beta_min_1": beta,
        }

    one, again = row(2.0, 3.0, 0.5), row(1.0, 1.0, 0.1)
    verdicts = [
        f.verdict for f in demo.findings_of({"s, one pass": one, "s, repeated": again}, ["s"])
    ]
    assert verdicts == ["seen", "not seen", "seen", "seen", "seen"]
    verdicts = [
        f.verdict for f in demo.findings_of({"s, one pass": again, "s, repeated": one}, ["s"])
    ]
    assert verdicts == ["not seen", "seen", "not seen", "not seen", "not seen"]
