"""Text for language models: Python's own, and files in the formats of PTB and WikiText-2."""

import pytest
import torch

from demos import text as texts
from demos.text import Text, Vocabulary, as_bytes, for_validation, read, segments, words

PTB = " the cat <unk> on the mat \n the dog saw N cats \n"
WIKI = " \n = A heading = \n \n the cat sat on the mat . \n"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with both in miniature."""
    for part in ("train", "valid"):
        (tmp_path / f"ptb.{part}.txt").write_text(PTB)
        (tmp_path / f"wiki.{part}.tokens").write_text(WIKI)
    return tmp_path


def test_python_brings_english_and_code():
    docs = read("python-docs")
    assert len(docs.train) > 10 * len(docs.validation) / 3 > 10_000
    assert "assignment" in words(docs.train, "python-docs")
    assert read("python-docs") == docs


def test_sources_are_split_by_file_without_tests_and_installed_packages(tmp_path):
    names = [f"package/m{number}.py" for number in range(40)]
    for name in (*names, "test/t.py", "site-packages/s.py", "package/tests/t.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = texts.python_sources(tmp_path)
    assert corpus.validation.split("\n") == sorted(filter(for_validation, names))
    assert sorted(corpus.train.split("\n") + corpus.validation.split("\n")) == sorted(names)
    assert 0 < len(corpus.validation) < len(corpus.train)


def test_a_folder_without_sources_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no \*\.py in .*take python-docs"):
        texts.python_sources(tmp_path)


def test_a_python_without_its_help_texts_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="found no module pydoc_data.*--root"):
        texts.python_docs()


def test_ptb_and_wikitext_end_their_lines(folder):
    ptb = words(read("ptb", folder).train, "ptb")
    assert ptb == [
        "the",
        "cat",
        "<unk>",
        "on",
        "the",
        "mat",
        "<eos>",
        "the",
        "dog",
        "saw",
        "N",
        "cats",
        "<eos>",
    ]
    wiki = words(read("wikitext-2", folder).train, "wikitext-2")
    assert wiki == [
        "=",
        "A",
        "heading",
        "=",
        "<eos>",
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        ".",
        "<eos>",
    ]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"found no ptb\.train\.txt in .*ptb\.valid\.txt.*--root"
    ):
        read("ptb", tmp_path)
    with pytest.raises(ValueError, match=r"without a folder; give root=.*wiki\.train\.tokens"):
        read("wikitext-2")
    with pytest.raises(ValueError, match=r"found data 'c4'; supported are python-docs"):
        read("c4")


def test_words_of_english_are_lower_case_with_runs_of_signs_as_one():
    assert words("A Key: x1 == 'b'\n----- \n", "python-docs") == [
        "a",
        "key",
        ":",
        "x",
        "1",
        "==",
        "'",
        "b",
        "'",
        "-----",
    ]


def test_a_vocabulary_keeps_the_most_frequent_words_and_ties_by_name():
    vocabulary = Vocabulary(["b", "b", "c", "a", "a", "d", "<unk>", "<unk>", "<unk>"], size=4)
    assert vocabulary.words == ["<unk>", "a", "b", "c"]
    numbers = vocabulary.encode(["c", "d", "a", "<unk>"])
    assert numbers.tolist() == [3, 0, 1, 0]
    assert vocabulary.decode(numbers) == ["c", "<unk>", "a", "<unk>"]
    assert len(Vocabulary(["b", "b", "c"])) == 3
    with pytest.raises(ValueError, match="found a vocabulary of 1; supported are 2 words or more"):
        Vocabulary(["a"], size=1)


def test_bytes_are_those_of_utf8():
    assert as_bytes("aé").tolist() == [97, 195, 169]


def test_segments_overlap_by_the_token_that_is_predicted_last():
    assert segments(torch.arange(8), 3).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    with pytest.raises(ValueError, match="found 3 tokens; a segment needs 4"):
        segments(torch.arange(3), 3)


@pytest.mark.parametrize(("data", "size"), [("ptb", 10), ("wikitext-2", 11)])
def test_batches_of_files_have_all_words(data, size, folder):
    text = Text(data, folder, size=None, length=2, batch_size=2)
    assert text.size == size
    assert {tuple(batch.shape) for (batch,) in text.train_dataloader()} == {(2, 3)}
    seen = torch.cat([batch for (batch,) in text.val_dataloader()])
    assert torch.equal(seen, segments(text.validation, 2))


def test_only_so_much_text_is_taken_as_was_asked_for(folder):
    text = Text("ptb", folder, unit="bytes", length=4, batch_size=1, limit=9)
    assert text.size == 256
    assert sorted(batch[0].tolist() for (batch,) in text.train_dataloader()) == sorted(
        [[*b" the "], [*b" cat "]]
    )
