"""Real data for stand-ins of AlgoPerf's workloads: digits, help texts and functions of Python.

None of it is AlgoPerf's. Texts and functions differ a little between versions of Python, and so do
numbers measured on them.
"""

from __future__ import annotations

import ast
import contextlib
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

if __package__:
    from demos.data import digit_images
    from demos.stand_ins import BEGIN, END, PAD
    from demos.text import Vocabulary, python_docs, source_files, words
else:
    from data import digit_images
    from stand_ins import BEGIN, END, PAD
    from text import Vocabulary, python_docs, source_files, words

# ----------------------------------------------------------------------------------- rows of clicks


def is_mark(word: str) -> bool:
    """Return whether a word is a punctuation mark or a digit."""
    return not word[0].isalpha()


def clicks(text: Sequence[str], vocabulary: int = 1000, before: int = 4) -> TensorDataset:
    """Return a row for each word of a text: features of the words before it, and the event.

    The event to predict is that the word is a punctuation mark.

    Args:
        text: words.
        vocabulary: rows of an embedding table; all infrequent words share one row.
        before: number of categorical features, which are the words before, the last one first.

    Returns:
        Categories, shape (n, before), int64; real features, shape (n, 4); events, 1 or 0. The real
        features are logarithms of one plus: the words since the last mark, the length of the last
        word, the words since its previous occurrence (0 if none), and the number of those.
    """
    numbers = Vocabulary(text, vocabulary).encode(text)
    categories = torch.stack(
        [numbers[before - 1 - back : len(text) - 1 - back] for back in range(before)], 1
    )
    dense = torch.tensor(list(_counted(text)))[before - 1 : -1].log1p()
    return TensorDataset(
        categories, dense, torch.tensor([float(is_mark(word)) for word in text[before:]])
    )


def _counted(text: Sequence[str]) -> Iterator[tuple[float, ...]]:
    """Yield the counts that are known after reading each word."""
    last, often, mark = dict[str, int](), Counter[str](), 0
    for place, word in enumerate(text):
        mark = place if is_mark(word) else mark
        yield place - mark, len(word), place - last.get(word, place), often[word]
        last[word] = place
        often[word] += 1


def click_rows(vocabulary: int = 1000, before: int = 4) -> TensorDataset:
    """Return the rows of Python's help texts."""
    return clicks(words(python_docs().train, "python-docs"), vocabulary, before)


# ------------------------------------------------------------------------------ undersampled images


def undersampled(images: Tensor, share: float = 0.25, seed: int = 0) -> Tensor:
    """Return images without most columns of their Fourier transform, as in a fast MRI scan.

    Args:
        images: shape (n, 1, height, width).
        share: share of kept columns: the constant one, and others drawn for each image.
        seed: seed of the drawn columns.

    Returns:
        The absolute values of the inverse transform, shape (n, 1, height, width).
    """
    width = images.shape[-1]
    drawn = torch.rand(len(images), width, generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = 2.0  # above all random numbers, so the constant column is always kept
    kept = torch.zeros(len(images), width).scatter_(
        1, drawn.topk(max(1, round(share * width)), 1).indices, 1.0
    )
    return torch.fft.ifft2(torch.fft.fft2(images) * kept[:, None, None]).abs()


def scanned_digits() -> TensorDataset:
    """Return scikit-learn's digits, undersampled and original."""
    images = digit_images().tensors[0]
    return TensorDataset(undersampled(images), images)


# ---------------------------------------------------------------------------------------- functions


@dataclass(frozen=True, slots=True)
class Function:
    """A function of Python's library."""

    name: str
    code: str
    """Without the docstring"""
    summary: str
    """The first line of the docstring, or nothing"""
    kinds: tuple[str, ...]
    """Kinds of the nodes of its syntax tree without the docstring, the function itself first"""
    parents: tuple[int, ...]
    """Index of each node's parent; −1 for the function"""


def functions_of(source: str) -> Iterator[Function]:
    """Yield the functions and methods of a file, including nested ones."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            code = lines[node.lineno - 1 : node.end_lineno]
            if ast.get_docstring(node) is not None:
                said, node.body = node.body[0], node.body[1:]
                if said.lineno > node.lineno:
                    del code[
                        said.lineno - node.lineno : (said.end_lineno or said.lineno)
                        - node.lineno
                        + 1
                    ]
            kinds, parents = zip(*_nodes(node), strict=True)
            yield Function(node.name, "\n".join(code), summary, kinds, parents)


def _nodes(root: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield kind and parent's index of every node, without "load" and "store" contexts."""
    waiting, place = [(root, -1)], 0
    while waiting:
        node, parent = waiting.pop()
        yield type(node).__name__, parent
        waiting += [
            (child, place)
            for child in ast.iter_child_nodes(node)
            if not isinstance(child, ast.expr_context)
        ]
        place += 1


@cache
def library() -> tuple[Function, ...]:
    """Return the functions of Python's library, without duplicates, in a mixed order."""
    found: dict[str, Function] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of some of its own sources
        for _, source in sorted(
            source_files().items(), key=lambda item: (zlib.crc32(item[0].encode()), item[0])
        ):
            with contextlib.suppress(SyntaxError):  # some files have wrong syntax on purpose
                for function in functions_of(source):
                    found.setdefault(function.code.strip(), function)
    return tuple(found.values())


def parts(name: str) -> set[str]:
    """Return the parts of a name: for "__setItem_2" they are set, item, 2."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)}


def graphs(functions: Sequence[Function], nodes: int = 40, labels: int = 8) -> TensorDataset:
    """Return syntax trees as graphs, and labels from the functions' names.

    A label says whether the name contains one of the most frequent parts of names.

    Args:
        functions: functions with more nodes are left out.
        nodes: largest number of nodes in a graph.
        labels: number of labels.

    Returns:
        Kinds of nodes, shape (n, nodes), with 0 for "no node"; edges from parents to children,
        shape (n, nodes, nodes), bool; labels, shape (n, labels), 1 or 0.
    """
    small = [function for function in functions if len(function.kinds) <= nodes]
    numbers = {
        kind: 1 + place
        for place, kind in enumerate(sorted({kind for f in small for kind in f.kinds}))
    }
    frequent = [
        part
        for part, _ in Counter(part for f in small for part in sorted(parts(f.name))).most_common(
            labels
        )
    ]
    kinds = torch.zeros(len(small), nodes, dtype=torch.int64)
    edges = torch.zeros(len(small), nodes, nodes, dtype=torch.bool)
    for graph, function in enumerate(small):
        kinds[graph, : len(function.kinds)] = torch.tensor(
            [numbers[kind] for kind in function.kinds]
        )
        edges[graph, function.parents[1:], range(1, len(function.kinds))] = True
    named = [[float(part in parts(function.name)) for part in frequent] for function in small]
    return TensorDataset(kinds, edges, torch.tensor(named))


def translations(
    functions: Sequence[Function], vocabulary: int = 1000, source: int = 32, target: int = 16
) -> TensorDataset:
    """Return functions and the first lines of their docstrings, for translation into English.

    Args:
        functions: functions without a docstring are left out.
        vocabulary: number of tokens, including `PAD`, `BEGIN`, `END` and one for all other words.
        source: number of words of the code, the first ones.
        target: number of words of the line, the first ones.

    Returns:
        Tokens of the code, shape (n, source), and of the line with `BEGIN` first, shape
        (n, target + 1). `PAD` fills up missing words.
    """
    told = [function for function in functions if function.summary]
    pairs = [
        [words(text, "python-sources") for text in (function.code, function.summary)]
        for function in told
    ]
    known = Vocabulary([word for pair in pairs for text in pair for word in text], vocabulary - 3)
    codes = torch.full((len(told), source), PAD)
    lines = torch.full((len(told), target + 1), PAD)
    for row, (code, line) in enumerate(pairs):
        start = known.encode(code[:source]).long() + 3
        tokens = torch.cat(
            [torch.tensor([BEGIN]), known.encode(line).long() + 3, torch.tensor([END])]
        )[: target + 1]
        codes[row, : len(start)], lines[row, : len(tokens)] = start, tokens
    return TensorDataset(codes, lines)
