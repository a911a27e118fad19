"""Text without a download: what Python itself brings, or PTB and WikiText-2 from a folder with their files.

Python has half a megabyte of English, the help texts of the language (`pydoc_data.topics`), and more than ten megabytes of
code, its standard library. Both differ a little between versions of Python, and so do numbers that are measured on them.
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
"""Names of the training and of the validation file, as they are distributed"""
BYTES = 256


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text for training and another for validation."""

    train: str
    validation: str


def for_validation(name: str) -> bool:
    """Return whether a file or chapter is for validation: a tenth of all, the same on every machine."""
    return zlib.crc32(name.encode()) % 10 == 0


def python_docs() -> Corpus:
    """Return the help texts of Python's own documentation, split by topic.

    Raises:
        FileNotFoundError: if this Python comes without them.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            "found no module pydoc_data, which ships with Python; supported is a whole standard library: install it (Debian "
            "splits it into packages), or name a folder with PTB or WikiText-2 by --root"
        ) from error
    return _split({name: topics[name] for name in sorted(topics)})


def source_files(folder: Path | None = None) -> dict[str, str]:
    """Return the files of the standard library by name, without its tests and without what was installed.

    Args:
        folder: another one with Python files.

    Raises:
        FileNotFoundError: if there are none.
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
            f"found no *.py in {folder}; supported is a folder with Python's own sources: install them, or take python-docs"
        )
    return texts


def python_sources(folder: Path | None = None) -> Corpus:
    """Return the sources of the standard library, split by file; the arguments are those of `source_files`."""
    return _split(source_files(folder))


def _split(texts: dict[str, str]) -> Corpus:
    held_out = {name for name in texts if for_validation(name)}
    parts = (
        [text for name, text in texts.items() if (name in held_out) is wanted]
        for wanted in (False, True)
    )
    return Corpus(*("\n".join(part) for part in parts))


def from_files(name: Literal["ptb", "wikitext-2"], root: Path) -> Corpus:
    """Return PTB or WikiText-2, whose lines are words with blanks between them.

    Raises:
        FileNotFoundError: if a file is not there.
    """
    texts = []
    for file in FILES[name]:
        path = root / file
        if not path.is_file():
            raise FileNotFoundError(
                f"found no {file} in {root}; supported is a folder with {' and '.join(FILES[name])}: name it by --root, or "
                "leave that out to train on texts that ship with Python"
            )
        texts.append(path.read_text(encoding="utf-8"))
    return Corpus(*texts)


def read(name: Name, root: Path | None = None) -> Corpus:
    """Return a corpus by name.

    Raises:
        ValueError: if the name is another one, or needs a folder.
        FileNotFoundError: if its files are not there.
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
            f"found data {name!r} without a folder; give root=, the folder with {' and '.join(FILES[name])}"
        )
    return from_files(name, root)


def words(text: str, name: Name) -> list[str]:
    """Return the words of a text; those of PTB and WikiText-2 are divided already, and a line ends with `<eos>`."""
    if name in FILES:
        return [word for line in text.splitlines() if line.strip() for word in (*line.split(), END)]
    return [
        found.group() for found in re.finditer(r"[a-z]+|\d|([^\sa-z\d])\1*", text.lower())
    ]  # a ruled line is one word


class Vocabulary:
    """The most frequent words of a text; all others are `<unk>`, whose number is 0.

    Args:
        text: words.
        size: largest number of words, `<unk>` among them; None for all. Of equally frequent ones the first by name stays.

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
        """Return words by their numbers."""
        return [self.words[number] for number in numbers.tolist()]


def as_bytes(text: str) -> Tensor:
    """Return the bytes of a text in UTF-8, int64 from 0 to 255."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def segments(tokens: Tensor, length: int) -> Tensor:
    """Cut a text into contiguous segments, each with the token that follows it.

    Args:
        tokens: a text, shape ``(n,)``.
        length: tokens that are predicted in each segment.

    Returns:
        Shape ``(m, length + 1)``; a row's last token is the first of the next row. What is left over is dropped.

    Raises:
        ValueError: if the text is shorter than a segment.
    """
    if len(tokens) < length + 1:
        raise ValueError(
            f"found {len(tokens)} tokens; a segment needs {length + 1}: take more text or a smaller length"
        )
    return tokens.unfold(0, length + 1, length)


class Text(pl.LightningDataModule):
    """Mini-batches of contiguous segments, shape (batch, length + 1): inputs without the last token, targets without the first.

    Args:
        data: Which text.
        root: Folder with the files of PTB or WikiText-2.
        unit: What a token is.
        size: Largest vocabulary of words; None for all words of the training text.
        length: Tokens that are predicted in each segment.
        batch_size: Segments in a mini-batch.
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
        """Return shuffled mini-batches of one size: a last one of few segments would throw the last iterate off."""
        return DataLoader(
            TensorDataset(segments(self.train, self.length)),
            self.batch_size,
            shuffle=True,
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader:
        """Return the other text in order."""
        return DataLoader(
            TensorDataset(segments(self.validation, self.length)), 4 * self.batch_size
        )
