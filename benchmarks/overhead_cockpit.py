"""What Cockpit's economy configuration costs per tracked step, for `overhead.py --cockpit`; needs an environment of its own.

PYTHON -m benchmarks.overhead_cockpit "CNN"

Cockpit (Schneider, Dangel, Hennig 2021, "Cockpit: a practical debugging tool for the training of deep neural networks") needs
``pkg_resources``, which setuptools no longer has from version 81 on: ``pip install torch "setuptools<81" cockpit-for-pytorch``.
The same networks, batches and rule for a cost as there: a tracked step and plain ones a moment later, medians of ratios.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from backpack import extend
from cockpit import Cockpit
from cockpit.utils import schedules
from cockpit.utils.configuration import configuration
from torch import nn

PERIOD, TRACKED, BATCH = 8, 20, 128


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def cnn() -> nn.Sequential:
    first = (nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(
        *first, *second, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)
    )


NETWORKS = {
    "MLP 784-256-256-10": (lambda: mlp(256), (784,)),
    "MLP 784-3000-3000-10": (lambda: mlp(3000), (784,)),
    "CNN": (cnn, (1, 28, 28)),
}
"""As in overhead.py, which cannot be imported here, where there is no lightning; the others have modules unknown to it"""


def main() -> None:
    name = sys.argv[1]
    if name not in NETWORKS:
        raise SystemExit(f"found the network {name!r}; supported are {', '.join(NETWORKS)}")
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net, criterion = extend(make()), extend(nn.CrossEntropyLoss())
    each = nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    inputs, classes = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    cockpit = Cockpit(
        net.parameters(),
        quantities=configuration("economy", track_schedule=schedules.linear(PERIOD)),
    )
    seconds = []
    for step in range(PERIOD * (TRACKED + 1)):
        start = time.perf_counter()
        optimizer.zero_grad()
        if step % PERIOD:
            criterion(net(inputs), classes).backward()
        else:
            outputs = net(inputs)
            loss = criterion(outputs, classes)
            told = {
                "batch_size": BATCH,
                "individual_losses": each(outputs, classes),
                "loss": loss,
                "optimizer": optimizer,
            }
            with cockpit(step, info=told):
                loss.backward(create_graph=cockpit.create_graph(step))
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    costs = [
        seconds[start] / statistics.mean(seconds[start + 5 : start + PERIOD]) - 1
        for start in range(PERIOD, len(seconds) - PERIOD + 1, PERIOD)
    ]
    print(json.dumps({"tracked": statistics.median(costs)}))


if __name__ == "__main__":
    main()
