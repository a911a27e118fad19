"""Draws configurations: what is trained, how, and what the monitor is asked for. A seed and a number give one, alone or not."""

import random
from dataclasses import asdict, dataclass, field

PRECISIONS = ("32-true", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true")
STRATEGIES = ("one",) * 12 + ("ddp",) * 6 + ("fsdp2",)
OPTIMIZERS = ("sgd", "momentum", "nesterov_decay", "adam", "fused_adam", "fused_sgd", "adamw", "adagrad", "rmsprop", "lbfgs")
OWN_OPTIMIZERS = ("sps_max", "dec_sps", "ngn", "adagrad_norm_max")
ODD = (
    "Plain",
    "Annealed",
    "TargetInBuffers",
    "TargetInParameters",
    "Spectral",
    "Unfreezing",
    "OwnGenerators",
    "Mutating",
    "ObjectBatches",
    "PartlyUnused",
    "GradientPenalty",
    "Recurrent",
    "Momentum",
    "Tied",
    "SkipsMicroBatch",
)
FOREIGN = ("boring", "transformer", "lstm", "gpt2", "bert", "vit", "resnet")
BY_HAND = ("Gan", "Critic", "Seldom")


@dataclass(frozen=True)
class Configuration:
    seed: int
    number: int
    model: str
    optimizer: str
    precision: str
    strategy: str
    accumulate: int
    clip: tuple | None
    scheduler: bool
    trainer: dict = field(default_factory=dict)
    batches: int = 7
    reference: str = "final"
    loss: bool = False
    every: int = 1
    monitor: dict = field(default_factory=dict)
    player: str | None = None

    def axes(self):
        """Return the values by which outcomes are counted."""
        names = ("model", "optimizer", "precision", "strategy", "accumulate", "reference")
        return {name: str(getattr(self, name)) for name in names} | {"clip": self.clip[0] if self.clip else "none"}

    def __str__(self):
        said = {k: v for k, v in asdict(self).items() if v not in (None, {}, False)}
        return ", ".join(f"{name}={value}" for name, value in said.items())


def draw(seed, number):
    """Return the configuration of a number, whatever others are drawn."""
    r = random.Random(f"{seed}/{number}")
    strategy = r.choice(STRATEGIES)
    model = r.choice(ODD + FOREIGN + FOREIGN + BY_HAND)
    by_hand = model in BY_HAND
    precision = r.choice(PRECISIONS)
    optimizer = r.choice(OPTIMIZERS + OPTIMIZERS + OWN_OPTIMIZERS)
    accumulate = 1 if by_hand else r.choice((1, 1, 2, 3))
    clip = None if by_hand else r.choice((None, None, ("norm", 0.05), ("value", 0.01)))
    trainer = r.choice(({}, {}, {"limit_train_batches": 5}, {"max_steps": 6}))
    if strategy == "fsdp2":
        model, optimizer, precision, by_hand, clip = "Sharded", "sgd", "32-true", False, clip and ("norm", 0.05)
    asked = {"segments": r.choice((0, 2)), "live_epochs": r.choice((None, "doubling")), "max_probes": r.choice((256, 4))}
    for name in ("secant", "exact_sums", "per_layer"):
        asked[name] = r.random() < 0.3
    loss = by_hand or (model in ODD and model not in ("SkipsMicroBatch", "ObjectBatches", "Recurrent") and r.random() < 0.2)
    if loss:
        asked["exact_sums"] = False
    return Configuration(
        seed=seed,
        number=number,
        model=model,
        optimizer="sgd and adam" if by_hand else optimizer,
        precision=precision,
        strategy="one" if by_hand else strategy,
        accumulate=accumulate,
        clip=clip,
        scheduler=not by_hand and strategy != "fsdp2" and r.random() < 0.3,
        trainer=trainer,
        batches=r.choice((6, 7)),
        reference=r.choice(("final", "final", "file")),
        loss=loss,
        every=r.choice((1, 2, 3)),
        monitor=asked,
        player=r.choice(("generator", "discriminator")) if by_hand else None,
    )
