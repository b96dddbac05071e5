"""Reference solution of exercise 02/02: one merge of byte-pair encoding, and the longest match of WordPiece."""

from itertools import pairwise


def best_pair(words: list[list[int]], counts: list[int]) -> tuple[int, int]:
    """The pair of neighbours that comes most often; of equals, the one with the smaller ids."""
    totals: dict[tuple[int, int], int] = {}
    for word, count in zip(words, counts, strict=True):
        for pair in pairwise(word):
            totals[pair] = totals.get(pair, 0) + count
    return min(totals, key=lambda pair: (-totals[pair], pair))


def merge(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The word with each such pair as one token, from left to right."""
    merged: list[int] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new
        else:
            merged.append(token)
    return merged


def longest_match(word: str, ids: dict[str, int]) -> list[int]:
    """The ids of the pieces of a word, each the longest that fits; [UNK] alone where at some point none fits."""
    found, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        ends = [end for end in range(start + 1, len(word) + 1) if mark + word[start:end] in ids]
        if not ends:
            return [ids["[UNK]"]]
        found.append(ids[mark + word[start : ends[-1]]])
        start = ends[-1]
    return found
