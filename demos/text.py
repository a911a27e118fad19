"""Text without a download: texts that ship with Python, or PTB and WikiText-2 from a folder.

Python has half a megabyte of English, the help texts of the language (`pydoc_data.topics`), and
more than ten megabytes of code, its standard library. Both differ a little between versions of
Python, and so do numbers measured on them.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

Name = Literal["python-docs", "python-sources", "ptb", "wikitext-2"]
UNKNOWN, END = "<unk>", "<eos>"
FILES = {
    "ptb": ("ptb.train.txt", "ptb.valid.txt"),
    "wikitext-2": ("wiki.train.tokens", "wiki.valid.tokens"),
}
"""Distributed names of the training file and of the validation file"""
BYTES = 256


@dataclass(frozen=True, slots=True)
class Corpus:
    """A training text and a validation text."""

    train: str
    validation: str


def for_validation(name: str) -> bool:
    """Return whether a file or chapter is for validation: the same tenth on every machine."""
    return zlib.crc32(name.encode()) % 10 == 0


def python_docs() -> Corpus:
    """Return the help texts of Python's documentation, split by topic.

    Raises:
        FileNotFoundError: if this Python has no help texts.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "found no module pydoc_data, which ships with Python; supported is a whole standard "
            "library: install it (Debian splits it into packages), or name a folder with PTB or "
            "WikiText-2 by --root"
        ) from error
    return _split({name: topics[name] for name in sorted(topics)})


def source_files(folder: Path | None = None) -> dict[str, str]:
    """Return the files of the standard library by name, without tests and installed packages.

    Args:
        folder: another folder with Python files.

    Raises:
        FileNotFoundError: if there are no files.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    texts = {
        name: paths[name].read_text(encoding="utf-8", errors="replace")
        for name in sorted(paths)
        if not left_out.intersection(name.split("/"))
    }
    if not texts:
        raise FileNotFoundError(
            f"found no *.py in {folder}; supported is a folder with Python's own sources: install "
            "them, or take python-docs"
        )
    return texts


def python_sources(folder: Path | None = None) -> Corpus:
    """Return the sources of the standard library, split by file; arguments as `source_files`."""
    return _split(source_files(folder))


def _split(texts: dict[str, str]) -> Corpus:
    held_out = {name for name in texts if for_validation(name)}
    parts = (
        [text for name, text in texts.items() if (name in held_out) is wanted]
        for wanted in (False, True)
    )
    return Corpus(*("\n".join(part) for part in parts))


def from_files(name: Literal["ptb", "wikitext-2"], root: Path) -> Corpus:
    """Return PTB or WikiText-2, whose lines are words separated by blanks.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    texts = []
    for file in FILES[name]:
        path = root / file
        if not path.is_file():
            raise FileNotFoundError(
                f"found no {file} in {root}; supported is a folder with "
                f"{' and '.join(FILES[name])}: name it by --root, or leave that out to train on "
                "texts that ship with Python"
            )
        texts.append(path.read_text(encoding="utf-8"))
    return Corpus(*texts)


def read(name: Name, root: Path | None = None) -> Corpus:
    """Return a corpus by name.

    Raises:
        ValueError: if the name is unknown, or if it needs a folder.
        FileNotFoundError: if a file is missing.
    """
    if name == "python-docs":
        return python_docs()
    if name == "python-sources":
        return python_sources()
    if name not in FILES:
        raise ValueError(
            f"found data {name!r}; supported are python-docs, python-sources, {', '.join(FILES)}"
        )
    if root is None:
        raise ValueError(
            f"found data {name!r} without a folder; give root=, the folder with "
            f"{' and '.join(FILES[name])}"
        )
    return from_files(name, root)


def words(text: str, name: Name) -> list[str]:
    """Return the words of a text; PTB and WikiText-2 are split already and get `<eos>` per line."""
    if name in FILES:
        return [word for line in text.splitlines() if line.strip() for word in (*line.split(), END)]
    # A line of equal signs is one word.
    return [found.group() for found in re.finditer(r"[a-z]+|\d|([^\sa-z\d])\1*", text.lower())]


class Vocabulary:
    """The most frequent words of a text; all others are `<unk>`, number 0.

    Args:
        text: words.
        size: largest number of words, including `<unk>`; None for all. Equally frequent words are
            sorted by name.

    Raises:
        ValueError: if the size leaves no word but `<unk>`.
    """

    def __init__(self, text: Sequence[str], size: int | None = None) -> None:
        if size is not None and size < 2:
            raise ValueError(
                f"found a vocabulary of {size}; supported are 2 words or more, {UNKNOWN} among them"
            )
        counts = Counter(text)
        counts.pop(UNKNOWN, None)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))
        self.words = [UNKNOWN, *frequent[: None if size is None else size - 1]]
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: Sequence[str]) -> Tensor:
        """Return the numbers of words, int64."""
        return torch.tensor([self._numbers.get(word, 0) for word in text])

    def decode(self, numbers: Tensor) -> list[str]:
        """Return the words of numbers."""
        return [self.words[number] for number in numbers.tolist()]


def as_bytes(text: str) -> Tensor:
    """Return the bytes of a text in UTF-8, int64 from 0 to 255."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def segments(tokens: Tensor, length: int) -> Tensor:
    """Cut a text into contiguous segments, each with the token after it.

    Args:
        tokens: a text, shape ``(n,)``.
        length: predicted tokens per segment.

    Returns:
        Shape ``(m, length + 1)``; the last token of a row is the first of the next. An incomplete
        segment at the end is dropped.

    Raises:
        ValueError: if the text is shorter than a segment.
    """
    if len(tokens) < length + 1:
        raise ValueError(
            f"found {len(tokens)} tokens; a segment needs {length + 1}: take more text or a "
            "smaller length"
        )
    return tokens.unfold(0, length + 1, length)


class Text(pl.LightningDataModule):
    """Mini-batches of contiguous segments, shape (batch, length + 1).

    Inputs are all tokens but the last, targets all but the first.

    Args:
        data: Name of the text.
        root: Folder with the files of PTB or WikiText-2.
        unit: Kind of token.
        size: Largest vocabulary of words; None for all words of the training text.
        length: Predicted tokens per segment.
        batch_size: Segments per mini-batch.
        limit: Number of training tokens, the first ones; None for all.
    """

    def __init__(
        self,
        data: Name = "python-docs",
        root: Path | None = None,
        unit: Literal["words", "bytes"] = "words",
        size: int | None = 1000,
        length: int = 32,
        batch_size: int = 16,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        self.length, self.batch_size = length, batch_size
        corpus = read(data, root)
        if unit == "bytes":
            self.vocabulary, self.size = None, BYTES
            texts = [as_bytes(text) for text in (corpus.train, corpus.validation)]
        else:
            train, validation = (words(text, data) for text in (corpus.train, corpus.validation))
            self.vocabulary = Vocabulary(train, size)
            self.size = len(self.vocabulary)
            texts = [self.vocabulary.encode(train), self.vocabulary.encode(validation)]
        self.train, self.validation = texts[0][:limit], texts[1]

    def train_dataloader(self) -> DataLoader:
        """Return shuffled mini-batches of one size.

        A smaller last mini-batch would make the last iterate noisy.
        """
        return DataLoader(
            TensorDataset(segments(self.train, self.length)),
            self.batch_size,
            shuffle=True,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader:
        """Return the validation text in order."""
        return DataLoader(
            TensorDataset(segments(self.validation, self.length)), 4 * self.batch_size
        )
