"""The main demo from the command line and from YAML, with LightningCLI.

python demos/cli.py fit --config demos/configs/one_pass.yaml     one run: x_p is its last iterate
python demos/cli.py fit --config demos/configs/two_passes.yaml   a second run against that x_p
python demos/cli.py fit --trainer.callbacks.help lightning_landscape.LandscapeMonitor
"""

from __future__ import annotations

from lightning.pytorch.cli import ArgsType, LightningCLI

# imported, so that their short names work on the command line
from lightning_landscape import (  # noqa: F401
    HeldOut,
    LandscapeMonitor,
    Layers,
    PerSample,
    Secant,
    Segments,
)

if __package__:
    from demos.data import Images
    from demos.mlp import MLP
else:
    from data import Images
    from mlp import MLP


def main(args: ArgsType = None) -> LightningCLI:
    """Run LightningCLI over the demo's module and data."""
    return LightningCLI(
        MLP, Images, seed_everything_default=0, save_config_kwargs={"overwrite": True}, args=args
    )


if __name__ == "__main__":
    main()
