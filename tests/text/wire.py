"""The few bytes of protobuf that tests read: sentencepiece writes its models so, and no package here reads them."""

from __future__ import annotations


def fields_of(message: bytes, wanted: int) -> list[bytes]:
    """The fields of a number, of those that have a length, in a message of protobuf."""
    found, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 2:
            size = number()
            if key >> 3 == wanted:
                found.append(message[at : at + size])
            at += size
        elif key & 7 == 0:
            number()
        else:
            at += 4 if key & 7 == 5 else 8
    return found
