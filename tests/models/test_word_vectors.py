"""Word vectors against gensim's own, and files that go to gensim and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.models import KeyedVectors
from torch import Tensor

from llm_core.models.word_vectors import UnknownWordError, WordVectors, count_words


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_encoding_leaves_unknown_words_out():
    vocabulary = count_words([["b", "a", "a"], ["c"]], min_count=1)
    assert vocabulary.words == ["a", "b", "c"]
    assert vocabulary.encode([["a", "x", "b"], ["x"], []]) == [[0, 1], [], []]


def some_vectors(n: int = 30, width: int = 7) -> WordVectors:
    words = [f"word{i}" for i in range(n - 2)] + ["naïve", "猫"]
    return WordVectors(words, draw(n, width).float())


def keyed(vectors: WordVectors) -> KeyedVectors:
    theirs = KeyedVectors(vectors.matrix.shape[1])
    theirs.add_vectors(vectors.words, vectors.matrix.numpy())
    return theirs


def same(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> None:
    assert [word for word, _ in ours] == [word for word, _ in theirs]
    np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], rtol=1e-4, atol=1e-6)


def test_neighbours_and_analogies_are_gensims():
    ours = some_vectors()
    theirs = keyed(ours)
    for a, b, c in (("word0", "word1", "word2"), ("猫", "naïve", "word9"), ("word3", "word3", "word4")):
        assert ours.similarity(a, b) == pytest.approx(theirs.similarity(a, b), abs=1e-6)
        same(ours.nearest(a, 6), theirs.most_similar(a, topn=6))
        same(ours.analogy(a, b, c, 4), theirs.most_similar(positive=[b, c], negative=[a], topn=4))
    assert len(ours.nearest("word0", 1000)) == 29
    assert len(ours.analogy("word0", "word1", "word2", 1000)) == 27
    assert len(ours) == 30
    assert "猫" in ours
    assert "dog" not in ours
    assert torch.equal(ours["word1"], ours.matrix[1])


@pytest.mark.parametrize("binary", [False, True])
def test_files_go_to_gensim_and_back(tmp_path: Path, binary):
    ours, path = some_vectors(), tmp_path / "vectors"
    ours.save(path, binary=binary)
    assert [file.name for file in tmp_path.iterdir()] == ["vectors"]
    theirs = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert theirs.index_to_key == ours.words
    assert np.array_equal(theirs.vectors, ours.matrix.numpy())
    theirs.save_word2vec_format(str(path), binary=binary)
    back = WordVectors.load(path, binary=binary)
    assert back.words == ours.words
    torch.testing.assert_close(back.matrix, ours.matrix, rtol=0, atol=0 if binary else 1e-6)
    ours.save(str(path), binary=binary)  # over the old file
    assert torch.equal(WordVectors.load(path, binary=binary).matrix, ours.matrix)


def test_extreme_numbers_survive_a_file(tmp_path: Path):
    matrix = torch.tensor([[1e-38, -3.4e38, 0.1], [float(np.float32(1) / 3), -0.0, 123456789.0]])
    for binary in (False, True):
        WordVectors(["a", "b"], matrix).save(tmp_path / "v", binary=binary)
        assert torch.equal(WordVectors.load(tmp_path / "v", binary=binary).matrix, matrix)


def test_bytes_that_look_like_a_line_break_or_a_blank_are_numbers(tmp_path: Path):
    matrix = torch.from_numpy(np.frombuffer(b"\n\n\n\n    \n \n ", dtype="<f4").copy())[None].repeat(3, 1)
    WordVectors(["a", "b", "c"], matrix).save(tmp_path / "v", binary=True)
    assert torch.equal(WordVectors.load(tmp_path / "v", binary=True).matrix, matrix)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "v"
    some_vectors().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        some_vectors(5).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["v"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "binary", "message"),
    [
        (b"", False, "first line should be two numbers"),
        (b"dog 1.0 2.0\n", False, "first line should be two numbers.*dog"),
        (b"2 2\na 1 2\n", False, "line 3: a word and 2 numbers should stand here, got 0"),
        (b"1 2\na 1 2 3\n", False, "line 2: a word and 2 numbers should stand here, got 4"),
        (b"2 1\na \0\0\0\0\nb \0\0\0", True, "says 2 words of 1 numbers, and 1 are there"),
        (b"1 1\na", True, "and 0 are there"),
        (b"999999999999 300\na 1 2\n", False, "says 999999999999 words of 300 numbers, and 6 bytes are there"),
        (b"999999999999 300\na 1 2\n", True, "says 999999999999 words of 300 numbers, and 6 bytes are there"),
        (b"1 -2\na 1 2\n", False, "first line should be two numbers"),
        (b"0 2\n", False, "first line should be two numbers"),
        (b"2 2\na 1 2\n 1 2\n", False, "line 3: a word and 2 numbers should stand here, got 2"),
        (b"2 2\na 1 2\nb 1 x\n", False, "line 3: could not convert string to float: b'x'"),
        (b"2 1\na 1\na 2\n", False, "2 words, 1 different; 'a' comes again"),
        (b"2 1\na 1\n\xe6\xbc 2\n", False, r"line 3: b'\\xe6\\xbc' is no UTF-8 .*errors=\"replace\""),
        (b"2 1\na \0\0\0\0\xe6\xbc \0\0\0\0", True, r"word 2: b'\\xe6\\xbc' is no UTF-8"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused(tmp_path: Path, content, binary, message):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        WordVectors.load(tmp_path / "v", binary=binary)


SPACED = ["New\u00a0York", "\u3000", "a\u2003b", "a\tb", "\u2028", "é", "\x1c"]


@pytest.mark.parametrize("binary", [False, True])
def test_only_the_plain_space_separates_as_in_gensim(tmp_path: Path, binary):
    ours, path = WordVectors(SPACED, draw(len(SPACED), 3).float()), tmp_path / "v"
    ours.save(path, binary=binary)
    theirs = KeyedVectors.load_word2vec_format(str(path), binary=binary)
    found = WordVectors.load(path, binary=binary)
    assert found.words == theirs.index_to_key == SPACED
    assert np.array_equal(found.matrix.numpy(), theirs.vectors)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a mark of the byte order, which gensim stumbles over
    assert WordVectors.load(path, binary=binary).words == SPACED


@pytest.mark.parametrize("errors", ["replace", "ignore"])
@pytest.mark.parametrize("binary", [False, True])
def test_half_characters_are_read_as_gensim_reads_them(tmp_path: Path, binary, errors):
    path, rows = tmp_path / "v", {b"\xe6\xbcab": [1.0, 2.0], "漢".encode(): [3.0, 4.0], b"x\xf0\x9f": [5.0, 6.0]}
    lines = [
        word + b" " + (np.array(row, "<f4").tobytes() if binary else b"%f %f" % tuple(row))
        for word, row in rows.items()
    ]
    path.write_bytes(b"3 2\r\n" + b"\n".join(lines))
    theirs = KeyedVectors.load_word2vec_format(str(path), binary=binary, unicode_errors=errors)
    ours = WordVectors.load(path, binary=binary, errors=errors)
    assert ours.words == theirs.index_to_key
    assert np.array_equal(ours.matrix.numpy(), theirs.vectors)


@pytest.mark.parametrize("binary", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, binary):
    path = tmp_path / "v"
    some_vectors(4, 3).save(path, binary=binary)
    whole = path.read_bytes()
    # The last line break may be missing, and of the last number in a text no end can be told.
    for kept in range(len(whole) - (1 if binary else 14)):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"v(,| ends too early| is not a word2vec file)"):
            WordVectors.load(path, binary=binary)


def test_a_vector_of_zeros_is_similar_to_nothing():
    vectors = WordVectors(["a", "b"], torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert vectors.similarity("a", "b") == 0


def test_an_unknown_word_is_refused_with_the_nearest_spelling():
    vectors = WordVectors(["house", "mouse", "tax"], torch.eye(3))
    for ask in (lambda w: vectors[w], vectors.nearest, lambda w: vectors.similarity("tax", w)):
        with pytest.raises(UnknownWordError, match=r"'hause' is not among the 3 words.*spelling: house, mouse"):
            ask("hause")
    with pytest.raises(UnknownWordError, match=r"that have a vector$"):
        vectors.analogy("tax", "zzzz", "house")
    assert issubclass(UnknownWordError, ValueError)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_work_is_refused():
    for words, message in (
        (["a", "a"], "2 words, 1 different"),
        ([], "got 0 words"),
        (["a b", "c"], "space or a line break.*'a b'"),
    ):
        with pytest.raises(ValueError, match=message):
            WordVectors(words, torch.zeros(len(words), 2))
    for bad in ("", "a\n", "a b"):
        with pytest.raises(ValueError, match="empty or have a space or a line break"):
            WordVectors([bad], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="2 words and 3 rows"):
        WordVectors(["a", "b"], torch.zeros(3, 2))
    with pytest.raises(ValueError, match="n=0"):
        some_vectors().nearest("word0", 0)
    with pytest.raises(ValueError, match="list of words: got the string 'one two'"):
        count_words(["one two"])
    with pytest.raises(ValueError, match="min_count=3 times: the most frequent of 2 comes 2 times"):
        count_words([["a", "a", "b"]], min_count=3)


def test_a_blank_at_the_end_of_a_line_is_passed_over_as_the_word2vec_program_writes_it(tmp_path: Path):
    (tmp_path / "v").write_bytes(b"2 2\na 1 2 \nb 3 4 \n")
    assert WordVectors.load(tmp_path / "v").matrix.tolist() == [[1, 2], [3, 4]]


def test_an_analogy_that_names_a_word_twice_leaves_out_one():
    vectors = WordVectors(["a", "b", "c"], torch.eye(3))
    assert {word for word, _ in vectors.analogy("a", "a", "b", 3)} == {"c"}
    assert {word for word, _ in vectors.analogy("a", "a", "a", 3)} == {"b", "c"}
