"""Compact residual networks for small images: ResNet9 of fast CIFAR training, ResNet18 and 34."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

DEPTHS = (9, 18, 34)
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Number of residual blocks in each of four stages (He et al. 2016)"""


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 × 3 convolution with BatchNorm, whose shift makes a bias useless."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """Two convolutions with a skip connection.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: stride of the first convolution.
        after: whether a ReLU follows the sum, as in ResNet18. If not, it follows the second
            convolution, as in ResNet9.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, after: bool = True) -> None:
        super().__init__()
        self.after = after
        self.first, self.second = (
            convolution(inputs, outputs, stride),
            convolution(outputs, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        changed = self.second(relu(self.first(x)))
        return relu(changed + self.shortcut(x)) if self.after else relu(changed) + self.shortcut(x)


def resnet(depth: int, channels: int = 3, classes: int = 10, width: int = 64) -> nn.Sequential:
    """Return a residual network for images of at least 8 × 8 pixels.

    Args:
        depth: 9, 18 or 34, the number of convolutions and linear layers on the longest path.
        channels: channels of an image.
        classes: number of classes.
        width: channels of the first layer, 64 in the literature; later layers have up to 8 times
            as many.

    Raises:
        ValueError: if the depth is another one.
    """
    if depth not in DEPTHS:
        raise ValueError(f"found depth {depth}; supported are {', '.join(map(str, DEPTHS))}")
    first = [*convolution(channels, width), nn.ReLU()]
    body = _nine(width) if depth == 9 else _stages(width, _BLOCKS[depth])
    pool = nn.AdaptiveMaxPool2d(1) if depth == 9 else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*first, *body, pool, nn.Flatten(), nn.Linear(8 * width, classes))


def _nine(width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for stage in range(3):
        inputs, outputs = width * 2**stage, 2 * width * 2**stage
        layers += [*convolution(inputs, outputs), nn.ReLU(), nn.MaxPool2d(2)]
        if stage != 1:
            layers.append(Residual(outputs, outputs, after=False))
    return layers


def _stages(width: int, blocks: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for place in range(count):
            layers.append(Residual(inputs, outputs, stride=2 if stage and not place else 1))
            inputs = outputs
    return layers
