"""Two small stochastic problems and the four methods in numpy, from the formulas of the papers."""

from math import sqrt

import numpy as np
import torch
from torch import nn

from lightning_landscape.optim import NGN, AdaGradNormMax, DecSPS, SPSMax

METHODS = {"SPSMax": SPSMax, "DecSPS": DecSPS, "NGN": NGN, "AdaGradNormMax": AdaGradNormMax}
OF_THE_LOSS = ("SPSMax", "DecSPS", "NGN")


class Logistic:
    """Logistic regression with a bias; gradients by hand."""

    def __init__(self, seed=0, features=5, batch=4):
        self.random = np.random.default_rng(seed)
        self.truth = self.random.normal(size=features)
        self.batch = batch
        self.start = [self.random.normal(size=features), np.zeros(1)]

    def draw(self):
        x = self.random.normal(size=(self.batch, len(self.truth)))
        y = np.sign(x @ self.truth + 0.5 * self.random.normal(size=self.batch))
        return x, y

    @staticmethod
    def by_hand(parameters, batch):
        (w, b), (x, y) = parameters, batch
        margin = y * (x @ w + b)
        slope = -y / (1 + np.exp(margin)) / len(y)
        return np.mean(np.log1p(np.exp(-margin))), [x.T @ slope, slope.sum(keepdims=True)]

    @staticmethod
    def by_torch(parameters, batch):
        (w, b), (x, y) = parameters, map(torch.as_tensor, batch)
        return nn.functional.softplus(-y * (x @ w + b), threshold=1e3).mean()


class Perceptron:
    """tanh network with one hidden layer and squared error; backpropagation by hand."""

    def __init__(self, seed=0, features=3, hidden=4, batch=4):
        self.random = np.random.default_rng(seed)
        self.features, self.batch = features, batch
        shapes = [(features, hidden), (hidden,), (hidden,)]
        self.start = [0.7 * self.random.normal(size=shape) for shape in shapes]

    def draw(self):
        x = self.random.normal(size=(self.batch, self.features))
        return x, np.sin(x.sum(axis=1)) + 0.1 * self.random.normal(size=self.batch)

    @staticmethod
    def by_hand(parameters, batch):
        (w, b, v), (x, y) = parameters, batch
        h = np.tanh(x @ w + b)
        error = h @ v - y
        slope = error / len(y)
        before = np.outer(slope, v) * (1 - h**2)
        return 0.5 * np.mean(error**2), [x.T @ before, before.sum(axis=0), h.T @ slope]

    @staticmethod
    def by_torch(parameters, batch):
        (w, b, v), (x, y) = parameters, map(torch.as_tensor, batch)
        return 0.5 * (torch.tanh(x @ w + b) @ v - y).square().mean()


# Each method is a pure function of all losses and squared norms up to this step.


def sps_max(losses, sq_norms, steps, lr=1.0, c=1.0, loss_infimum=0.0):
    return min((losses[-1] - loss_infimum) / (c * sq_norms[-1]), lr)


def dec_sps(losses, sq_norms, steps, lr=1.0, c_init=1.0, loss_infimum=0.0):
    k = len(steps)
    c_k, c_before = c_init * sqrt(k + 1), c_init * sqrt(max(k, 1))
    before = steps[-1] if steps else lr
    return min((losses[-1] - loss_infimum) / sq_norms[-1], c_before * before) / c_k


def ngn(losses, sq_norms, steps, lr=1.0, loss_infimum=0.0):
    return lr / (1 + lr * sq_norms[-1] / (2 * (losses[-1] - loss_infimum)))


def adagrad_norm_max(losses, sq_norms, steps, lr=1.0, b_init=1.0):
    return lr / sqrt(b_init**2 + sum(max(sq_norms[: j + 1]) for j in range(len(sq_norms))))


REFERENCES = {"SPSMax": sps_max, "DecSPS": dec_sps, "NGN": ngn, "AdaGradNormMax": adagrad_norm_max}


def reference_along(name, problem, path, batches, schedule=lambda k: 1.0, lr=1.0, **constants):
    """Return the step sizes of the formula at the points of a path, and the next point of each.

    Every step starts at a point of the given path: along two separate runs, long steps would
    multiply rounding errors. ``schedule`` multiplies lr.
    """
    losses, sq_norms, steps, reached = [], [], [], []
    for k, (parameters, batch) in enumerate(zip(path, batches, strict=True)):
        loss, gradients = problem.by_hand(parameters, batch)
        losses.append(loss)
        sq_norms.append(sum((g**2).sum() for g in gradients))
        steps.append(REFERENCES[name](losses, sq_norms, steps, lr=lr * schedule(k), **constants))
        reached.append([p - steps[-1] * g for p, g in zip(parameters, gradients, strict=True)])
    return steps, reached


def leaves(problem):
    """Return the problem's starting point as parameters in float64."""
    return [nn.Parameter(torch.tensor(value)) for value in problem.start]


def closure_of(optimizer, problem, parameters, batch):
    """Return an ordinary closure: zero_grad, forward, backward, the loss."""

    def closure():
        optimizer.zero_grad()
        loss = problem.by_torch(parameters, batch)
        loss.backward()
        return loss

    return closure
