"""Small image files, written byte by byte in the real formats, and damaged ones."""

import gzip
import pickle
import re
import struct

import pytest
import torch

from demos.data import (
    Images,
    cifar,
    digit_images,
    digits,
    fashion_mnist,
    find_idx,
    idx,
    standardized,
)

PIXELS = 3 * 32 * 32


def random_bytes(*shape, below=256, seed=0):
    return torch.randint(
        below, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def raw(values):
    return values.numpy().tobytes()


def write_idx(path, values, compressed=True):
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + raw(values)
    path.write_bytes(gzip.compress(content) if compressed else content)


# ---------------------------------------------------- the Python version of CIFAR, opcode by opcode


def text(value):
    """A str of Python 2: SHORT_BINSTRING."""
    return b"U" + bytes([len(value)]) + value


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def array(values, kind=b"u1"):
    """An array as numpy pickled it under Python 2, protocol 2."""
    rows, columns = values.shape
    made = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + number(0)
        + b"\x85"
        + text(b"b")
        + b"\x87R"
    )
    dtype = b"cnumpy\ndtype\n" + text(kind) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + number(0) + b"tb"
    content = b"T" + struct.pack("<i", values.numel()) + raw(values)  # BINSTRING
    return (
        made
        + b"("
        + number(1)
        + number(rows)
        + number(columns)
        + b"\x86"
        + dtype
        + b"\x89"
        + content
        + b"tb"
    )


def write_python(path, images, **labels):
    items = text(b"batch_label") + text(b"training batch 1 of 5")
    for name, values in labels.items():
        items += text(name.encode()) + b"](" + b"".join(map(number, values.tolist())) + b"e"
    items += (
        text(b"data")
        + array(images)
        + text(b"filenames")
        + b"]("
        + b"".join(text(b"cat.png") for _ in images)
        + b"e"
    )
    path.write_bytes(b"\x80\x02}(" + items + b"u.")


def write_cifar(folder, classes, version, count=6):
    """Write all training files; return their images and classes."""
    stems = [f"data_batch_{part}" for part in range(1, 6)] if classes == 10 else ["train"]
    images, labels = [], []
    for seed, stem in enumerate(stems):
        pixels, fine = (
            random_bytes(count, PIXELS, seed=seed),
            random_bytes(count, below=classes, seed=100 + seed),
        )
        coarse = fine // 5
        if version == "python":
            given = (
                {"labels": fine}
                if classes == 10
                else {"coarse_labels": coarse, "fine_labels": fine}
            )
            write_python(folder / stem, pixels, **given)
        else:
            before = [fine] if classes == 10 else [coarse, fine]
            (folder / f"{stem}.bin").write_bytes(
                raw(torch.cat([*(b[:, None] for b in before), pixels], dim=1))
            )
        images.append(pixels)
        labels.append(fine)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar_is_read_as_written(classes, version, tmp_path):
    pixels, labels = write_cifar(tmp_path, classes, version)
    images, found = cifar(tmp_path, classes).tensors
    assert torch.equal(found, labels.long())
    assert images.shape == (len(labels), 3, 32, 32)
    assert torch.equal((images * 255).round().to(torch.uint8).reshape(-1, PIXELS), pixels)
    # a colour is 1,024 values row by row, red first
    assert images[2, 1, 3, 4] == pixels[2, 1024 + 3 * 32 + 4] / 255


def test_the_miniature_is_a_pickle_that_numpy_reads_too(tmp_path):
    pixels, labels = random_bytes(4, PIXELS), torch.tensor([1, 0, 99, 3])
    write_python(tmp_path / "train", pixels, fine_labels=labels)
    with (tmp_path / "train").open("rb") as file:
        theirs = pickle.load(file, encoding="latin1")
    assert (theirs["data"] == pixels.numpy()).all()
    assert theirs["fine_labels"] == labels.tolist()


@pytest.mark.parametrize("folder", ["cifar-100-python", "cifar-100-binary"])
def test_the_folder_of_the_archive_is_found(folder, tmp_path):
    (tmp_path / folder).mkdir()
    _, labels = write_cifar(tmp_path / folder, 100, folder.rsplit("-", 1)[1])
    assert torch.equal(cifar(tmp_path, 100).tensors[1], labels.long())


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_runs_no_code(tmp_path):
    (tmp_path / "train").write_bytes(
        pickle.dumps({"fine_labels": [1], "data": Evil(tmp_path / "ran")}, protocol=2)
    )
    with pytest.raises(
        ValueError, match=r"found no file of CIFAR-100.*the name (io|__builtin__|builtins)\.open"
    ):
        cifar(tmp_path, 100)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        b"numpy.core.multiarray\n_set_typeDict\n",
        b"numpy\nload\n",
        b"os\nsystem\n",
        b"torch\nload\n",
    ],
)
def test_names_beside_those_of_an_array_are_refused(name, tmp_path):
    (tmp_path / "train").write_bytes(b"\x80\x02c" + name + b".")
    with pytest.raises(
        ValueError,
        match=f"the name {re.escape(name.decode().strip()).replace(chr(92) + chr(10), '.')}",
    ):
        cifar(tmp_path, 100)


def test_damaged_cifar_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="found nothing in .*; supported are data_batch_1, .*: unpack cifar-10-binary",
    ):
        cifar(tmp_path, 10)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"found notes\.txt in"):
        cifar(tmp_path, 100)
    write_cifar(tmp_path, 10, "binary")
    whole = (tmp_path / "data_batch_4.bin").read_bytes()
    (tmp_path / "data_batch_4.bin").write_bytes(whole[:-1])
    with pytest.raises(
        ValueError,
        match=f"found {len(whole) - 1} bytes in .*data_batch_4.bin; supported .* 3073 bytes",
    ):
        cifar(tmp_path, 10)
    (tmp_path / "data_batch_4.bin").write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(ValueError, match="found class 11 in"):
        cifar(tmp_path, 10)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match="found 4 of 5 files in .*; add data_batch_4.bin"):
        cifar(tmp_path, 10)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02}.", b"\x80\x02}(", b"no pickle", b"\x80\x02]."]
)
def test_what_is_no_pickle_of_cifar_is_named(content, tmp_path):
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(
        ValueError, match="found no file of CIFAR-100, Python version, in .*take the binary version"
    ):
        cifar(tmp_path, 100)


def test_arrays_of_other_types_and_lengths_are_refused(tmp_path):
    pixels = random_bytes(2, PIXELS)
    write_python(tmp_path / "train", pixels, fine_labels=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"images of shape \(2, 3072\) for 3 classes"):
        cifar(tmp_path, 100)
    write_python(tmp_path / "train", pixels, fine_labels=torch.tensor([1, 2]))
    (tmp_path / "train").write_bytes(
        (tmp_path / "train").read_bytes().replace(text(b"u1"), text(b"O8"))
    )
    with pytest.raises(ValueError, match="not of unsigned bytes"):
        cifar(tmp_path, 100)


# -------------------------------------------------------------------------------- IDX files, digits


@pytest.mark.parametrize("before", ["", "emnist-letters-"])
@pytest.mark.parametrize("dash", ["-idx", ".idx"])
@pytest.mark.parametrize("compressed", [True, False])
def test_any_folder_of_idx_files_is_read(before, dash, compressed, tmp_path):
    pixels, labels = random_bytes(8, 6, 5), random_bytes(8, below=7)
    end = ".gz" if compressed else ""
    write_idx(tmp_path / f"{before}train-images{dash}3-ubyte{end}", pixels, compressed)
    write_idx(tmp_path / f"{before}train-labels{dash}1-ubyte{end}", labels, compressed)
    images, found = idx(tmp_path).tensors
    assert images.shape == (8, 1, 6, 5)
    assert torch.equal((images[:, 0] * 255).round().to(torch.uint8), pixels)
    assert torch.equal(found, labels.long())
    assert fashion_mnist(tmp_path).tensors[0].shape == (8, 30)
    data = Images("idx", tmp_path, batch_size=4)
    assert (tuple(data.shape), data.classes, data.steps) == ((30,), int(labels.max()) + 1, 2)


def test_idx_files_that_are_cut_short_or_of_two_data_sets_are_named(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    write_idx(images, random_bytes(8, 6, 5), compressed=False)
    write_idx(labels, random_bytes(7), compressed=False)
    with pytest.raises(
        ValueError, match=r"found images of shape \(8, 6, 5\) and classes of shape \(7,\)"
    ):
        idx(tmp_path)
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match="found 239 values in .*, whose header says 8 × 6 × 5"):
        idx(tmp_path)
    images.rename(tmp_path / "a-train-images-idx3-ubyte")
    (tmp_path / "b-train-images-idx3-ubyte").touch()
    with pytest.raises(
        ValueError, match="found a-train-images-idx3-ubyte, b-train-images-idx3-ubyte in"
    ):
        find_idx(tmp_path, "train-images-idx3-ubyte")


def test_digits_are_the_same_as_vectors_and_as_images():
    vectors, images = digits(), digit_images()
    assert vectors.tensors[0].shape == (1797, 64)
    assert images.tensors[0].shape == (1797, 1, 8, 8)
    assert torch.equal(vectors.tensors[0], images.tensors[0].flatten(1))
    assert torch.equal(vectors.tensors[1], images.tensors[1])


def test_images_are_standardised_by_channel():
    data = torch.utils.data.TensorDataset(
        torch.rand(50, 3, 4, 4) * torch.tensor([1.0, 5.0, 9.0]).reshape(1, 3, 1, 1)
    )
    images = standardized(data).tensors[0]
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3))


def test_loaders_give_images_or_vectors(tmp_path):
    write_cifar(tmp_path, 10, "binary")
    x, y = next(iter(Images("cifar10", tmp_path, 8, vectors=False).train_dataloader()))
    assert (x.shape, y.shape) == ((8, 3, 32, 32), (8,))
    assert len(Images("cifar10", tmp_path, 8).train_dataloader()) == 30 // 8
    with pytest.raises(ValueError, match="needs root="):
        Images("cifar100")
