"""The main demo from the command line and from YAML, with LightningCLI.

python demos/cli.py fit --config demos/configs/one_pass.yaml     one run: x_p is its last iterate
python demos/cli.py fit --config demos/configs/two_passes.yaml   a second run against that x_p
python demos/cli.py fit --trainer.callbacks.help lightning_landscape.LandscapeMonitor
"""

from __future__ import annotations

from lightning.pytorch.cli import ArgsType, LightningCLI

import lightning_landscape  # noqa: F401 - with it imported, the short name `LandscapeMonitor` works on the command line

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
