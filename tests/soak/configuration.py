"""A configuration is one value of each axis: a function of the seed and its number alone."""

import random
from dataclasses import asdict, dataclass, replace

AXES = {
    "precision": ["32-true", "32-true", "bf16-mixed", "bf16-true", "64-true", "16-mixed"],
    "accumulation": ["1", "1", "2", "3", "schedule"],
    "clipping": ["none", "none", "norm", "value"],
    "strategy": ["one", "one", "one", "ddp"],
    "optimizer": [
        "sgd",
        "momentum",
        "weight_decay",
        "sgd_fused",
        "adam",
        "adamw",
        "adam_fused",
        "adagrad",
        "rmsprop",
        "sps_max",
        "ngn",
        "dec_sps",
        "adagrad_norm_max",
        "groups",
        "sgd",
        "adamw",
        "lbfgs",
    ],
    "scheduler": ["none", "epoch", "step"],
    "model": [
        *("mlp", "cnn", "dropout", "manual", "gan", "critic", "seldom", "manual_without_loss"),
        *("boring", "transformer", "lstm", "gpt2", "bert", "vit", "resnet"),
        *(
            "plain",
            "skips_micro_batch",
            "annealed",
            "target_in_buffers",
            "target_in_parameters",
            "spectral",
            "non_leaf",
        ),
        *(
            "unfreezing",
            "unfreezing_late",
            "own_generators",
            "mutating",
            "object_batches",
            "partly_unused",
        ),
        *("gradient_penalty", "recurrent", "momentum_encoder", "tied", "overflowing"),
    ],
    "reference": ["final", "final", "file"],
    "every_n_steps": [1, 1, 2, 3],
    "max_probes": [256, 256, 3, 5],
    "max_overhead": [None, None, None, None, 0.5],
    "loss": ["own", "own", "user"],
    "secant": [False, True],
    "every_step": [False, True],
    "layers": [False, True],
    "segments": [0, 1, 4],
    "live_epochs": [None, "doubling", (2,)],
    "live_losses": [False, True],
    "limit_train_batches": [None, None, 0.75],
    "validation": ["none", "none", "epoch", "within"],
    "max_steps": [-1, -1, 5],
    "uneven": [False, True],
    "shuffle": [True, True, False],
}

SHARDED_EVERY = 60
"""One configuration in this many is of shards: its processes take seconds to start"""

GANS = ("gan", "critic", "seldom")
MANUAL = (*GANS, "manual", "manual_without_loss")
HAVE_NET = (
    *(
        "mlp",
        "cnn",
        "dropout",
        "plain",
        "annealed",
        "target_in_buffers",
        "target_in_parameters",
        "spectral",
        "unfreezing",
    ),
    *(
        "own_generators",
        "mutating",
        "partly_unused",
        "gradient_penalty",
        "tied",
        "momentum_encoder",
        "skips_micro_batch",
    ),
)
"""Modules with a part ``net`` for plain batches, to which a user's loss can be applied"""

CARRY_STATE = ("lstm", "recurrent")
"""Modules with a state of a batch's size"""

STEPS_ARE_COUNTED = ("skips_micro_batch", "overflowing")
"""Modules that misbehave at certain batches of one process"""


@dataclass(frozen=True)
class Configuration:
    seed: int
    number: int
    precision: str = "32-true"
    accumulation: str = "1"
    clipping: str = "none"
    strategy: str = "one"
    optimizer: str = "sgd"
    scheduler: str = "none"
    model: str = "mlp"
    reference: str = "final"
    every_n_steps: int = 1
    max_probes: int = 256
    max_overhead: float | None = None
    loss: str = "own"
    secant: bool = False
    every_step: bool = False
    layers: bool = False
    segments: int = 0
    live_epochs: str | tuple | None = None
    live_losses: bool = False
    limit_train_batches: float | None = None
    validation: str = "none"
    max_steps: int = -1
    uneven: bool = False
    shuffle: bool = True

    @property
    def processes(self):
        return 1 if self.strategy == "one" else 2

    @property
    def players(self):
        """Names of the separately measured parts; empty if the whole module is measured."""
        return ("discriminator", "generator") if self.model in GANS else ()

    def __str__(self):
        usual = Configuration(self.seed, self.number)
        different = {
            name: value for name, value in asdict(self).items() if value != getattr(usual, name)
        }
        return " ".join(f"{name}={value}" for name, value in different.items()) or "all as usual"


def draw(seed, number):
    """Return a configuration; optimizers and modules are dealt in turn: 200 have them all."""
    deal = random.Random(f"{seed}")
    models, optimizers = (
        deal.sample(AXES[axis], len(AXES[axis])) for axis in ("model", "optimizer")
    )
    chance = random.Random(f"{seed}-{number}")
    values = {axis: chance.choice(choices) for axis, choices in AXES.items()}
    values["model"], values["optimizer"] = (
        models[number % len(models)],
        optimizers[number % len(optimizers)],
    )
    if number % SHARDED_EVERY == 7:
        return sharded(Configuration(seed, number, **values), chance)
    return possible(Configuration(seed, number, **values), chance)


def possible(one, chance):
    """Return a configuration without values that exclude each other.

    Values that make no sense together, or have no recording to compare with, are replaced. Those
    that the package or Lightning refuse are made rarer: a configuration that does not run covers
    nothing.
    """
    # several backward passes, a sampler of its own, batches by number
    if one.model in (*GANS, "lstm", *STEPS_ARE_COUNTED):
        one = replace(one, strategy="one")
    if one.model in MANUAL:
        seldom = chance.random() < 0.15  # Lightning refuses both
        one = one if seldom else replace(one, accumulation="1", clipping="none")
        one = replace(
            one,
            loss="user",
            every_step=one.every_step and seldom,
            max_steps=-1 if one.players else one.max_steps,
        )
        if one.model == "manual_without_loss":
            one = replace(one, loss="own", every_step=False)
    elif one.model not in HAVE_NET:
        one = replace(one, loss="own")
    need_a_closure = ("sps_max", "ngn", "dec_sps")
    if one.model in MANUAL and one.optimizer in (*need_a_closure, "lbfgs"):
        one = replace(one, optimizer="sgd")
    if one.every_step and (one.max_overhead is not None or one.loss == "user"):
        one = replace(one, every_step=chance.random() < 0.1)
    if one.precision == "16-mixed" and chance.random() < 0.8:
        if one.optimizer in need_a_closure:  # a GradScaler gives them none
            one = replace(one, precision="bf16-mixed")
        if "fused" in one.optimizer:  # Lightning does not clip gradients that they unscale
            one = replace(one, clipping="none")
    if one.model == "overflowing":
        # without a scaler its parameters are nan, and there is nothing to measure
        optimizer = "sgd" if one.optimizer in need_a_closure else one.optimizer
        one = replace(one, precision="16-mixed", optimizer=optimizer)
        one = replace(one, clipping="none") if "fused" in one.optimizer else one
    if one.model in CARRY_STATE:
        one = replace(one, uneven=False)
    if one.model == "unfreezing_late":  # a file would have to name parameters that join later
        one = replace(
            one, reference="final", optimizer="sgd" if one.optimizer == "groups" else one.optimizer
        )
    return one


def sharded(one, chance):
    """Return a configuration for shards.

    The module has nothing random, so one process has what two have, up to rounding. Optimizers that
    divide by small numbers would magnify the rounding and are left out.
    """
    return replace(
        one,
        strategy="fsdp2",
        model="sharded",
        precision="32-true",
        accumulation=chance.choice(["1", "2"]),
        clipping=chance.choice(["none", "norm"]),
        optimizer=chance.choice(["sgd", "momentum", "weight_decay"]),
        reference=chance.choice(["final", "folder"]),
        scheduler="none",
        max_overhead=None,
        every_step=one.every_step and one.loss == "own",
        limit_train_batches=None,
        validation="none",
        uneven=False,
        shuffle=False,
    )
