"""Real images without a download: scikit-learn's digits, or files of MNIST and CIFAR in a folder.

The folder holds either IDX files (MNIST, Fashion-MNIST and others in LeCun's format) or the
unpacked CIFAR-10 or CIFAR-100, in the binary or the Python version. The Python version is pickled,
and a pickle can run any code. Here it cannot: the three names in these files stand for inert
records of this module, and every other name is refused.
"""

from __future__ import annotations

import gzip
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Name = Literal["digits", "fashion-mnist", "idx", "cifar10", "cifar100"]
Split = Literal["train", "t10k"]

# ---------------------------------------------------------------------------------------- IDX files


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of bytes.

    LeCun's format: two zero bytes, a type, a rank, the sizes, then the values.

    Raises:
        ValueError: if the file has another format or is truncated.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(
            f"found no IDX file of unsigned bytes in {path}; supported are the files of MNIST and "
            "Fashion-MNIST"
        )
    sizes = [
        int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])
    ]
    values = _bytes(content[4 + 4 * len(sizes) :])
    if len(values) != math.prod(sizes):
        raise ValueError(
            f"found {len(values)} values in {path}, whose header says "
            f"{' × '.join(map(str, sizes))}; supported are whole files: fetch it again"
        )
    return values.reshape(sizes)


def find_idx(root: Path, stem: str) -> Path:
    """Return the file with a stem such as ``train-images-idx3-ubyte``, compressed or not.

    Its name may have a prefix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are several, as in EMNIST.
    """
    names = [
        name
        for end in ("", ".gz")
        for name in (f"{stem}{end}", f"{stem.replace('-idx', '.idx')}{end}")
    ]
    for name in names:
        if (root / name).is_file():
            return root / name
    others = sorted(path for name in names for path in root.glob(f"*{name}"))
    if len(others) > 1:
        raise ValueError(
            f"found {', '.join(path.name for path in others)} in {root}; supported is one data set "
            "per folder: move the others"
        )
    if others:
        return others[0]
    raise FileNotFoundError(
        f"found no {stem}[.gz] in {root}; --root needs a folder with the four IDX files of "
        "Fashion-MNIST. Debian's package dataset-fashion-mnist has them, `dpkg -L "
        "dataset-fashion-mnist` says where"
    )


def idx(root: str | Path, split: Split = "train") -> TensorDataset:
    """Return images and classes from a folder of IDX files.

    Returns:
        Images of shape (n, 1, height, width) with values in [0, 1], and classes of shape (n,).

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if images and classes do not belong together.
    """
    images = read_idx(find_idx(Path(root), f"{split}-images-idx3-ubyte"))
    labels = read_idx(find_idx(Path(root), f"{split}-labels-idx1-ubyte"))
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"found images of shape {tuple(images.shape)} and classes of shape "
            f"{tuple(labels.shape)} in {root}; supported are (n, height, width) and (n,): check "
            "that both files are of one data set"
        )
    return TensorDataset(images[:, None].float() / 255, labels.long())


def fashion_mnist(root: str | Path, split: Split = "train") -> TensorDataset:
    """Return Fashion-MNIST as vectors of 784 values in [0, 1] and classes."""
    return flat(idx(root, split))


# -------------------------------------------------------------------------------------------- CIFAR

_PIXELS = 3 * 32 * 32
_CIFAR_FOLDERS = {
    "cifar10": ("", "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("", "cifar-100-binary", "cifar-100-python"),
}
"""Names of the files in the archives"""


def cifar(
    root: str | Path, classes: Literal[10, 100], split: Literal["train", "test"] = "train"
) -> TensorDataset:
    """Return CIFAR-10 or CIFAR-100 from its binary or its Python version.

    Args:
        root: folder of the files, or the folder in which the archive was unpacked.
        classes: 10, or 100 for the fine classes of CIFAR-100.
        split: training or test images.

    Returns:
        Images of shape (n, 3, 32, 32) with values in [0, 1], and their classes.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not one of CIFAR.
    """
    images, labels = zip(
        *(_read_cifar(path, classes) for path in _find_cifar(Path(root), classes, split)),
        strict=True,
    )
    return TensorDataset(
        torch.cat(images).reshape(-1, 3, 32, 32).float() / 255, torch.cat(labels).long()
    )


def _find_cifar(root: Path, classes: Literal[10, 100], split: str) -> list[Path]:
    ten = [f"data_batch_{part}" for part in range(1, 6)] if split == "train" else ["test_batch"]
    stems = ten if classes == 10 else [split]
    for folder in _CIFAR_FOLDERS[f"cifar{classes}"]:
        for end in (".bin", ""):
            paths = [root / folder / f"{stem}{end}" for stem in stems]
            there = [path for path in paths if path.is_file()]
            if len(there) == len(paths):
                return paths
            if there:
                missing = ", ".join(path.name for path in paths if path not in there)
                raise FileNotFoundError(
                    f"found {len(there)} of {len(paths)} files in {root / folder}; add {missing}"
                )
    there = sorted(path.name for path in root.glob("*"))
    found = (
        ", ".join([*there[:8], *(["…"] if there[8:] else [])]) or "nothing"
        if root.is_dir()
        else "no folder"
    )
    raise FileNotFoundError(
        f"found {found} in {root}; supported are {', '.join(stems)} of CIFAR-{classes}, with .bin "
        f"(binary version) or without (Python version): unpack cifar-{classes}-binary.tar.gz or "
        f"cifar-{classes}-python.tar.gz, name its folder with --root"
    )


def _read_cifar(path: Path, classes: Literal[10, 100]) -> tuple[Tensor, Tensor]:
    images, labels = (
        _read_binary(path, classes) if path.suffix == ".bin" else _read_python(path, classes)
    )
    if not len(labels) or labels.max() >= classes:
        raise ValueError(
            f"found {f'class {labels.max()}' if len(labels) else 'no image'} in {path}; supported "
            f"are images of {classes} classes: check that it is a file of CIFAR-{classes}"
        )
    return images, labels


def _read_binary(path: Path, classes: Literal[10, 100]) -> tuple[Tensor, Tensor]:
    content = path.read_bytes()
    before = 1 if classes == 10 else 2  # CIFAR-100 has a coarse class before the fine one
    if len(content) % (before + _PIXELS):
        raise ValueError(
            f"found {len(content)} bytes in {path}; supported are files of CIFAR-{classes}, "
            f"{before + _PIXELS} bytes an image: check that it is one, and fetch it again if it "
            "was cut short"
        )
    rows = _bytes(content).reshape(-1, before + _PIXELS)
    return rows[:, before:], rows[:, before - 1]


def _read_python(path: Path, classes: Literal[10, 100]) -> tuple[Tensor, Tensor]:
    name = b"labels" if classes == 10 else b"fine_labels"
    with path.open("rb") as file:
        try:
            content = _CifarUnpickler(file, encoding="bytes").load()
            labels, data = torch.tensor(content[name], dtype=torch.uint8), content[b"data"].tensor()
            if data.shape != (len(labels), _PIXELS):
                raise ValueError(f"images of shape {tuple(data.shape)} for {len(labels)} classes")
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(
                f"found no file of CIFAR-{classes}, Python version, in {path} "
                f"({type(error).__name__}: {error}); supported is a pickled dictionary with "
                f"{name.decode()} and data: check that it is one, or take the binary version"
            ) from error
    return data, labels


class _Array:
    """The state of a pickled numpy array."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        _, shape, kind, by_columns, content = self.state
        if not isinstance(kind, _Type) or kind.name not in (b"u1", "u1") or by_columns:
            raise ValueError("an array that is not of unsigned bytes, row by row")
        return _bytes(content).reshape(shape)


class _Type:
    """The name of a pickled numpy type."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and alignment, which bytes do not have."""


class _CifarUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, text and arrays; imports nothing and runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        }:
            return _Array
        if (module, name) == ("numpy", "ndarray"):
            return None  # an argument of _reconstruct
        if (module, name) == ("numpy", "dtype"):
            return _Type
        raise pickle.UnpicklingError(f"the name {module}.{name}, which no file of CIFAR has")


# ------------------------------------------------------------------------------------------- digits


def digits() -> TensorDataset:
    """Return scikit-learn's 1,797 digits as vectors of 64 values in [0, 1] and classes."""
    return flat(digit_images())


def digit_images() -> TensorDataset:
    """Return scikit-learn's 1,797 digits, shape (n, 1, 8, 8), values in [0, 1], and classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return TensorDataset(
        torch.from_numpy(found.images)[:, None].float() / 16, torch.from_numpy(found.target).long()
    )


# ------------------------------------------------------------------------------------------ loaders


def _bytes(content: bytes) -> Tensor:
    """Return bytes as a tensor that owns them; torch cannot view an empty buffer."""
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )


def flat(data: TensorDataset) -> TensorDataset:
    """Return images as vectors."""
    return TensorDataset(data.tensors[0].flatten(1), *data.tensors[1:])


def standardized(data: TensorDataset) -> TensorDataset:
    """Return images whose channels have mean 0 and standard deviation 1 over the data set."""
    images = data.tensors[0]
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return TensorDataset((images - mean) / deviation, *data.tensors[1:])


class Images(pl.LightningDataModule):
    """Training batches of images.

    Args:
        data: Name of the data set; all but the digits are read from files.
        root: Folder with these files.
        batch_size: Images per mini-batch.
        vectors: Whether an image is a vector of values in [0, 1]; if not, it is standardized and
            has the shape (channels, height, width).
    """

    def __init__(
        self,
        data: Name = "digits",
        root: str | Path | None = None,
        batch_size: int = 64,
        vectors: bool = True,
    ) -> None:
        super().__init__()
        if data != "digits" and root is None:
            what = (
                "the folder of its files"
                if data.startswith("cifar")
                else "the folder with its four IDX files"
            )
            raise ValueError(f"data={data!r} needs root=, {what}")
        self.data, self.root, self.batch_size, self.vectors = data, root, batch_size, vectors
        self.images: TensorDataset | None = None

    def setup(self, stage: str = "fit") -> None:
        """Read the images, once."""
        if self.images is None:
            images = self._read()
            self.images = flat(images) if self.vectors else standardized(images)

    def _read(self) -> TensorDataset:
        if self.data == "digits":
            return digit_images()
        assert self.root is not None
        if self.data in ("cifar10", "cifar100"):
            return cifar(self.root, 10 if self.data == "cifar10" else 100)
        return idx(self.root)

    @property
    def shape(self) -> Sequence[int]:
        """Shape of one input."""
        self.setup()
        assert self.images is not None
        return self.images.tensors[0].shape[1:]

    @property
    def classes(self) -> int:
        """Number of classes."""
        if self.data != "idx":
            return 100 if self.data == "cifar100" else 10
        self.setup()
        assert self.images is not None
        return int(self.images.tensors[1].max()) + 1

    @property
    def steps(self) -> int:
        """Mini-batches in an epoch, at least one."""
        self.setup()
        assert self.images is not None
        if len(self.images) < self.batch_size:
            raise ValueError(
                f"found {len(self.images)} images for batches of {self.batch_size}; supported are "
                "whole batches: name the folder of a larger set, or take smaller ones"
            )
        return len(self.images) // self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Return shuffled mini-batches of one size.

        A smaller last mini-batch would make the last iterate noisy.
        """
        assert self.steps
        assert self.images is not None
        return DataLoader(self.images, self.batch_size, shuffle=True, drop_last=True)


FEATURES = {"digits": 64, "fashion-mnist": 784}
