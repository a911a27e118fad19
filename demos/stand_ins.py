"""Small stand-ins for networks of AlgoPerf: DLRM, U-Net, graph network, transformer; and an MLP.

Each has the typical parts of its kind (dot products of embeddings, skip connections, messages along
edges, attention to another sequence) and trains in seconds. Its method `loss` takes a mini-batch.
No network has dropout or normalizes over a batch, so the loss is a function of parameters and
mini-batch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss

PAD, BEGIN, END = 0, 1, 2
"""Numbers of the special tokens"""


def perceptron(*sizes: int) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU in between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Classifier(nn.Module):
    """The control: an MLP with two hidden layers that interpolates its data.

    Args:
        features: Size of an input.
        classes: Number of classes.
        width: Size of the hidden layers.
    """

    def __init__(self, features: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.net = perceptron(features, width, width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy."""
        x, y = batch
        return cross_entropy(self(x), y)


# --------------------------------------------------------------------------------------------- DLRM


class DLRM(nn.Module):
    """Embedding tables, dot products of all pairs, MLPs before and after (Naumov et al. 2019).

    Args:
        tables: Number of rows of each embedding table; there is one per categorical feature.
        dense: Number of real features.
        width: Size of an embedding, and of the output of the first MLP.
        hidden: Size of the hidden layers of both MLPs.
    """

    def __init__(
        self, tables: Sequence[int], dense: int, width: int = 16, hidden: int = 64
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in tables)
        for table in self.tables:
            nn.init.uniform_(
                table.weight, -(table.num_embeddings**-0.5), table.num_embeddings**-0.5
            )
        count = len(tables) + 1
        self.bottom = nn.Sequential(perceptron(dense, hidden, width), nn.ReLU())
        self.top = perceptron(width + count * (count - 1) // 2, hidden, hidden, 1)

    @staticmethod
    def interaction(vectors: Tensor) -> Tensor:
        """Return the dot products of all pairs of vectors.

        Args:
            vectors: shape (batch, n, width).

        Returns:
            Shape (batch, n (n − 1) / 2).
        """
        row, column = torch.tril_indices(
            vectors.shape[1], vectors.shape[1], -1, device=vectors.device
        )
        return (vectors @ vectors.mT)[:, row, column]

    def forward(self, categories: Tensor, dense: Tensor) -> Tensor:
        """Return a logit for each row.

        Args:
            categories: shape (batch, tables).
            dense: real features, shape (batch, dense).
        """
        first = self.bottom(dense)
        vectors = torch.stack(
            [
                first,
                *(table(column) for table, column in zip(self.tables, categories.T, strict=True)),
            ],
            1,
        )
        return self.top(torch.cat([first, self.interaction(vectors)], 1)).squeeze(1)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the mean binary cross-entropy."""
        categories, dense, clicks = batch
        return binary_cross_entropy_with_logits(self(categories, dense), clicks)


# -------------------------------------------------------------------------------------------- U-Net


def convolutions(channels: int, out: int) -> nn.Sequential:
    """Return two convolutions with instance normalization, as in fastMRI (Zbontar et al. 2018)."""
    parts = []
    for a, b in ((channels, out), (out, out)):
        parts += [
            nn.Conv2d(a, b, 3, padding=1, bias=False),
            nn.InstanceNorm2d(b),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """A contracting and an expanding path with skip connections (Ronneberger et al. 2015).

    Args:
        channels: Channels at full resolution; they double when the resolution is halved.
        halvings: Number of times the resolution is halved.
    """

    def __init__(self, channels: int = 8, halvings: int = 2) -> None:
        super().__init__()
        counts = [channels * 2**level for level in range(halvings + 1)]
        self.down = nn.ModuleList(convolutions(a, b) for a, b in pairwise([1, *counts[:-1]]))
        self.bottom = convolutions(counts[-2], counts[-1])
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(pairwise(counts)))
        )
        self.up = nn.ModuleList(convolutions(2 * a, a) for a in reversed(counts[:-1]))
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return images of the same shape, (batch, 1, height, width)."""
        values, skipped = images, []
        for block in self.down:
            values = block(values)
            skipped.append(values)
            values = self.pool(values)
        values = self.bottom(values)
        for widen, block in zip(self.widen, self.up, strict=True):
            values = block(torch.cat([widen(values), skipped.pop()], 1))
        return self.last(values)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean absolute error over pixels."""
        images, targets = batch
        return l1_loss(self(images), targets)


# ------------------------------------------------------------------------------------ graph network


class Round(nn.Module):
    """One round of messages: neighbors and the graph update the nodes, then the nodes the graph.

    Args:
        width: Size of the vectors of nodes and graph.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sent, self.received = nn.Linear(width, width), nn.Linear(width, width)
        self.nodes = nn.Sequential(perceptron(4 * width, width, width), nn.LayerNorm(width))
        self.whole = nn.Sequential(perceptron(2 * width, width, width), nn.LayerNorm(width))

    def forward(
        self, nodes: Tensor, edges: Tensor, whole: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the new vectors of nodes and graphs.

        Args:
            nodes: shape (batch, nodes, width).
            edges: shape (batch, nodes, nodes), 1 for an edge from the first to the second node.
            whole: shape (batch, width).
            there: shape (batch, nodes, 1), 0 for a missing node.
        """
        heard = [
            nodes,
            edges.mT @ self.sent(nodes),
            edges @ self.received(nodes),
            whole[:, None].expand_as(nodes),
        ]
        nodes = (nodes + self.nodes(torch.cat(heard, -1))) * there
        return nodes, whole + self.whole(torch.cat([mean_of(nodes, there), whole], -1))


def mean_of(nodes: Tensor, there: Tensor) -> Tensor:
    """Return the mean over the existing nodes."""
    return (nodes * there).sum(1) / there.sum(1)


class GraphNetwork(nn.Module):
    """Rounds of messages with a graph vector (Battaglia et al. 2018), and binary labels per graph.

    Args:
        kinds: Number of kinds of nodes, with 0 for "no node".
        labels: Number of labels.
        width: Size of the vectors.
        rounds: Number of rounds.
    """

    def __init__(self, kinds: int, labels: int, width: int = 32, rounds: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.rounds = nn.ModuleList(Round(width) for _ in range(rounds))
        self.head = nn.Linear(width, labels)

    def forward(self, kinds: Tensor, edges: Tensor) -> Tensor:
        """Return logits, shape (batch, labels).

        Args:
            kinds: shape (batch, nodes).
            edges: shape (batch, nodes, nodes).
        """
        there = (kinds > 0)[..., None].to(self.head.weight.dtype)
        nodes = self.embedding(kinds) * there
        whole, edges = mean_of(nodes, there), edges.to(nodes.dtype)
        for messages in self.rounds:
            nodes, whole = messages(nodes, edges, whole, there)
        return self.head(whole)

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the mean binary cross-entropy over labels."""
        kinds, edges, labels = batch
        return binary_cross_entropy_with_logits(self(kinds, edges), labels)


# -------------------------------------------------------------------------------------- transformer


def positions(length: int, width: int) -> Tensor:
    """Return sines and cosines of positions, shape (length, width) (Vaswani et al. 2017)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class EncoderDecoder(nn.Module):
    """Encoder and decoder of Vaswani et al. 2017 with pre-normalization and tied embeddings.

    Args:
        vocabulary: Number of tokens, including `PAD`, `BEGIN` and `END`.
        width: Size of an embedding, even.
        depth: Blocks of the encoder and of the decoder.
        heads: Heads of each attention.
    """

    def __init__(self, vocabulary: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        sizes = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        encoding = nn.TransformerEncoderLayer(width, heads, 4 * width, **sizes)
        decoding = nn.TransformerDecoderLayer(width, heads, 4 * width, **sizes)
        self.encoder = nn.TransformerEncoder(
            encoding, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(decoding, depth, nn.LayerNorm(width))
        for parameter in (*self.encoder.parameters(), *self.decoder.parameters()):
            # torch copies one layer, so without this step all blocks would start equal.
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Return the sum of the embeddings of tokens and of positions."""
        width = self.embedding.embedding_dim
        return math.sqrt(width) * self.embedding(tokens) + positions(tokens.shape[1], width).to(
            self.embedding.weight
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits of the token after each of the target, shape (batch, length, vocabulary).

        Args:
            source: shape (batch, length of the source), `PAD` at the end.
            target: shape (batch, length), `BEGIN` first; attention is causal.
        """
        nothing = source == PAD
        later = torch.ones(
            target.shape[1], target.shape[1], dtype=torch.bool, device=target.device
        ).triu(1)
        memory = self.encoder(self.embedded(source), src_key_padding_mask=nothing)
        decoded = self.decoder(
            self.embedded(target), memory, tgt_mask=later, memory_key_padding_mask=nothing
        )
        return decoded @ self.embedding.weight.T

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean cross-entropy over the tokens of the targets."""
        source, target = batch
        return cross_entropy(
            self(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD
        )
