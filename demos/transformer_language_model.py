"""A decoder of Pythia's shape under AdamW: the α-β-condition without interpolation.

python demos/transformer_language_model.py            bytes of Python's own sources, a tiny decoder,
                                                      about a minute
python demos/transformer_language_model.py --larger   twice as wide and deep, 2,000 steps, 3 seeds:
                                                      about half an hour
python demos/transformer_language_model.py --full     the shapes of Pythia 70M and 160M, 3 seeds;
                                                      needs a GPU
python demos/transformer_language_model.py --full --data wikitext-2 --root DIR
                                                      DIR has wiki.train.tokens, …

Islamov et al. 2024, figures 7 and 19. The same decoder is trained twice for the same number of
steps: once on text that it sees only once, and once on a small part of it many times, which it fits
better. The paper relates larger constants to less interpolation; here nothing else differs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lightning_landscape import Store
from lightning_landscape.reporting.compare import compare
from lightning_landscape.run import Run

if __package__:
    from demos.experiment import Finding, Options, conclude, measured, options, seen
    from demos.pairs import draw, over_seeds, row_of
    from demos.text import FILES, Text
else:
    from experiment import Finding, Options, conclude, measured, options, seen
    from pairs import draw, over_seeds, row_of
    from text import FILES, Text

NAME = "transformer_language_model"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "depth": 2, "heads": 4, "lr": 3e-3},
    "small": {"width": 128, "depth": 4, "heads": 4, "lr": 2e-3},
    "70m": {"width": 512, "depth": 6, "heads": 8, "lr": 1e-3},
    "160m": {"width": 768, "depth": 12, "heads": 12, "lr": 6e-4},
}
"""Width, depth, heads and step size; all but the first two are Pythia's (Biderman et al. 2023)"""
ROTATED = 0.25
"""Share of each head's values that rotary embeddings rotate"""


def rotary(values: Tensor, base: float = 10_000.0) -> Tensor:
    """Apply rotary embeddings to the first quarter of each head's values (Su et al. 2021).

    Args:
        values: queries or keys, shape (batch, heads, length, size).
        base: base of the frequencies.
    """
    size = int(ROTATED * values.shape[-1])
    frequencies = base ** (
        -torch.arange(0, size, 2, device=values.device, dtype=torch.float32) / size
    )
    angles = torch.arange(values.shape[-2], device=values.device)[:, None] * frequencies
    cos, sin = angles.cos().to(values.dtype), angles.sin().to(values.dtype)
    a, b, rest = values.split([size // 2, size // 2, values.shape[-1] - size], -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Block(nn.Module):
    """x + attention(LayerNorm(x)) + MLP(LayerNorm(x)), as in GPT-NeoX (Black et al. 2022)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def attention(self, x: Tensor) -> Tensor:
        """Return the output of causal self-attention."""
        batch, length, width = x.shape
        of_heads = self.query_key_value(x).view(batch, length, self.heads, -1).transpose(1, 2)
        query, key, value = of_heads.chunk(3, -1)
        gathered = scaled_dot_product_attention(rotary(query), rotary(key), value, is_causal=True)
        return self.out(gathered.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.before_attention(x)) + self.mlp(self.before_mlp(x))


class Decoder(nn.Module):
    """A decoder of GPT-NeoX's architecture without dropout, with untied embeddings."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            # GPT-NeoX: smaller weights at the end of residual branches, which otherwise add up.
            if parameter.ndim == 2:
                ends = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(
                    parameter,
                    std=2 / depth / math.sqrt(width) if ends else math.sqrt(2 / (5 * width)),
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


def warm_up_and_cosine(step: int, steps: int, warm_up: float = 0.1, last: float = 0.1) -> float:
    """Return the factor of the step size: linear from 0 to 1, then a cosine down to 0.1."""
    start = max(1, round(warm_up * steps))
    if step < start:
        return (step + 1) / start
    return (
        last
        + (1 - last)
        * (1 + math.cos(math.pi * min(1.0, (step - start) / max(1, steps - start))))
        / 2
    )


class TransformerLanguageModel(pl.LightningModule):
    """Pythia's decoder and optimizer: AdamW with linear warm-up and a cosine.

    Args:
        vocabulary: Number of tokens.
        shape: Name of a size.
        text: Name of the training text, one pass or repeated, for comparisons.
        weight_decay: Weight decay of matrices.
    """

    def __init__(
        self,
        vocabulary: int,
        shape: str = "tiny",
        text: str = "one pass",
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {"vocabulary": vocabulary, "shape": shape, "text": text, "weight_decay": weight_decay}
        )
        sizes = {name: value for name, value in SHAPES[shape].items() if name != "lr"}
        self.decoder = Decoder(vocabulary, **sizes)

    def cross_entropy(self, batch: tuple[Tensor]) -> Tensor:
        """Return the mean loss of the next tokens."""
        (tokens,) = batch
        return cross_entropy(self.decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        loss = self.cross_entropy(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.cross_entropy(batch), batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim == 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.hparams["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=SHAPES[self.hparams["shape"]]["lr"], betas=(0.9, 0.95), eps=1e-8
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_up_and_cosine(step, steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def findings_of(rows: Mapping[str, dict[str, Any]], shapes: Sequence[str]) -> list[Finding]:
    """Compare the runs with the paper."""
    found = []
    for name, row in rows.items():
        holds = row["informative_share"] >= 1 / 3  # one of the three decades
        betas = f"β_min(0.1) = {row['beta_min_0.1']:.3g}, β_min(1) = {row['beta_min_1']:.3g}"
        numbers = f"holds so for δ from {row['informative_rates']} (looked at: 0.01 to 10); {betas}"
        text = (
            f"{name}: a wide range of pairs holds and says something (its neighbourhood is below "
            "the drop, a decade of δ)"
        )
        found.append(Finding(text, seen(holds), numbers))
    for shape in shapes:
        one, again = rows[f"{shape}, one pass"], rows[f"{shape}, repeated"]
        less = one["interpolation_error"] > again["interpolation_error"]
        ratio = (
            one["interpolation_error"] / one["drop"],
            again["interpolation_error"] / again["drop"],
        )
        found.append(
            Finding(
                f"{shape}: one pass interpolates less than repeated text (σ² is larger)",
                seen(less),
                f"σ² {one['interpolation_error']:.3g} against {again['interpolation_error']:.3g}; "
                f"of the drop {ratio[0]:.3g} against {ratio[1]:.3g}",
            )
        )
        for rate, name in (("0.1", "beta_min_0.1"), ("1", "beta_min_1")):
            found.append(
                Finding(
                    f"{shape}: less interpolation comes with larger constants (β_min at "
                    f"δ = {rate})",
                    seen(one[name] > again[name]),
                    f"one pass {one[name]:.3g}, repeated {again[name]:.3g}",
                )
            )
    return found


SMALL: dict[str, Any] = {
    "text": {"unit": "bytes", "length": 64, "batch_size": 16},
    "shapes": ("tiny",),
    "steps": 400,
    "repeats": 20,
    "monitor": {"every_n_steps": 4, "max_probes": 128},
    "trainer": {"accelerator": "cpu"},
}
LARGER: dict[str, Any] = {
    **SMALL,
    "shapes": ("small",),
    "steps": 2000,
    "monitor": {"every_n_steps": 8, "max_probes": 256},
}
FULL: dict[str, Any] = {
    "text": {"unit": "words", "size": 50_304, "length": 512, "batch_size": 8},
    "shapes": ("70m", "160m"),
    "steps": 480,  # one pass through WikiText-2, which has two million words
    "repeats": 20,
    "monitor": {"every_n_steps": 20, "max_probes": 24, "store": Store(gib=40.0)},
    "trainer": {"precision": "bf16-mixed"},
}


def run(chosen: Options, setting: dict[str, Any]) -> list[Finding]:
    """Train, measure, draw and conclude in one setting."""
    data = getattr(chosen.arguments, "data", "python-sources")
    batch = setting["text"]["batch_size"] * setting["text"]["length"]
    limits = {
        "one pass": setting["steps"] * batch + 1,
        "repeated": setting["steps"] // setting["repeats"] * batch + 1,
    }
    runs: dict[str, list[Run]] = {}
    for way, limit in limits.items():
        text = Text(data, chosen.root, **setting["text"], limit=limit)
        if len(text.train) < limit:
            raise SystemExit(
                f"found {len(text.train)} tokens in {data}; one pass needs {limit}: take another "
                "--data"
            )
        for shape in setting["shapes"]:
            runs[f"{shape}, {way}"] = [
                measured(
                    chosen.out / shape / way.replace(" ", "-") / f"seed-{seed}",
                    lambda shape=shape, way=way, text=text: TransformerLanguageModel(
                        text.size, shape, way
                    ),
                    lambda text=text: text,
                    seed=seed,
                    monitor=setting["monitor"],
                    max_steps=setting["steps"],
                    gradient_clip_val=1.0,
                    check_val_every_n_epoch=max(1, setting["repeats"] // 5),
                    limit_val_batches=20,
                    **setting["trainer"],
                )
                for seed in chosen.seeds
            ]
    betas = {name: over_seeds(own) for name, own in runs.items()}
    groups = {name: compare(own, group_by="text").groups[0] for name, own in runs.items()}
    rows = {name: row_of(name, groups[name], betas[name]) for name in runs}
    found = findings_of(rows, setting["shapes"])
    draw(chosen.out / f"{NAME}.png", betas, groups, runs)
    conclude(NAME, chosen, list(rows.values()), found)
    return found


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", choices=("python-docs", "python-sources", *FILES), default="python-sources"
    )


def main() -> None:
    chosen = options(NAME, __doc__, small_seeds=2, larger_seeds=3, full_seeds=3, add=add)
    run(chosen, chosen.pick(SMALL, FULL, LARGER))


if __name__ == "__main__":
    main()
