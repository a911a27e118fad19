"""Real images without a download: scikit-learn's digits, or Fashion-MNIST from a folder with its four IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Name = Literal["digits", "fashion-mnist"]


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes (LeCun's format: two zero bytes, a type, a rank, the sizes, then the values).

    Raises:
        ValueError: if the file is something else.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"found no IDX file of unsigned bytes in {path}; supported are the files of MNIST and Fashion-MNIST")
    sizes = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])]
    values = torch.frombuffer(bytearray(content[4 + 4 * len(sizes) :]), dtype=torch.uint8)
    return values.reshape(sizes)


def find_idx(root: Path, stem: str) -> Path:
    """Return the file with a stem such as ``train-images-idx3-ubyte``, compressed or not.

    Raises:
        FileNotFoundError: if it is not there.
    """
    for name in (stem, f"{stem}.gz"):
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"found no {stem}[.gz] in {root}; --root needs a folder with the four IDX files of Fashion-MNIST. Debian's package "
        "dataset-fashion-mnist has them, `dpkg -L dataset-fashion-mnist` says where"
    )


def fashion_mnist(root: str | Path, split: Literal["train", "t10k"] = "train") -> TensorDataset:
    """Return Fashion-MNIST as vectors of 784 values in [0, 1] and classes."""
    images = read_idx(find_idx(Path(root), f"{split}-images-idx3-ubyte"))
    labels = read_idx(find_idx(Path(root), f"{split}-labels-idx1-ubyte"))
    return TensorDataset(images.reshape(len(images), -1).float() / 255, labels.long())


def digits() -> TensorDataset:
    """Return scikit-learn's 1,797 digits as vectors of 64 values in [0, 1] and classes."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return TensorDataset(torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long())


class Images(pl.LightningDataModule):
    """Training batches of digits or of Fashion-MNIST.

    Args:
        data: Which images.
        root: Folder with the four IDX files of Fashion-MNIST.
        batch_size: Images in a mini-batch.
    """

    def __init__(self, data: Name = "digits", root: str | None = None, batch_size: int = 64) -> None:
        super().__init__()
        if data == "fashion-mnist" and root is None:
            raise ValueError("data='fashion-mnist' needs root=, the folder with its four IDX files")
        self.data, self.root, self.batch_size = data, root, batch_size

    def setup(self, stage: str) -> None:
        """Read the images."""
        self.images = digits() if self.data == "digits" else fashion_mnist(self.root or "")

    def train_dataloader(self) -> DataLoader:
        """Return shuffled mini-batches of one size: a last one of a few images would throw the last iterate off."""
        return DataLoader(self.images, self.batch_size, shuffle=True, drop_last=True)


FEATURES = {"digits": 64, "fashion-mnist": 784}
