"""Reference solution of exercise 05/02: a MinHash signature, what it estimates, and when two of them meet."""


def signature(hashes: list[int], ways: list[tuple[int, int]], p: int) -> list[int]:
    """For each way (a, b), the smallest (a h + b) mod p over all h."""
    return [min((a * h + b) % p for h in hashes) for a, b in ways]


def similarity(one: list[int], other: list[int]) -> float:
    """The share of places in which two signatures agree."""
    return sum(x == y for x, y in zip(one, other, strict=True)) / len(one)


def meet(one: list[int], other: list[int], n_bands: int) -> bool:
    """Whether two signatures agree in all numbers of at least one band."""
    rows = len(one) // n_bands
    return any(one[start : start + rows] == other[start : start + rows] for start in range(0, len(one), rows))
