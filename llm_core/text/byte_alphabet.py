"""Bytes written as characters: GPT-2's alphabet, in which byte-pair encoding writes its tokens.

    in_alphabet(raw)         bytes -> characters
    from_alphabet(token)     characters -> bytes, the way back

A token's bytes are written as a string with one printable character for each byte: most printable bytes stand for
themselves, the others move to U+0100 and up, so the space is "Ġ" and the newline "Ċ". Files use these strings
(`tokenizer.json`, `merges.txt`, GGUF), and so do `tokens` and `vocabulary` of the tokenizers here.

Source: Radford et al. 2019.
"""

from __future__ import annotations

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""Byte -> its character."""

ALPHABET = "".join(CHARACTER.values())
"""The 256 characters that stand for bytes, in the order of the ids that training gives them."""

# As tables for str.translate, on the bytes read as Latin-1.
_BYTE = {ord(character): byte for byte, character in CHARACTER.items()}
_LETTERS = frozenset(ALPHABET)


def in_alphabet(raw: bytes) -> str:
    """Bytes, written in the alphabet.

    >>> in_alphabet(b"a b\\n"), in_alphabet("é".encode())
    ('aĠbĊ', 'Ã©')
    """
    return raw.decode("latin-1").translate(CHARACTER)


def from_alphabet(token: str) -> bytes:
    """The bytes that a token of the alphabet stands for.

    Raises:
        ValueError: it holds a character that is not in the alphabet.

    >>> from_alphabet("ĠÃ©").decode()
    ' é'
    """
    if not _LETTERS.issuperset(token):
        raise ValueError(f"the token {token!r} is not written in the alphabet of bytes")
    return token.translate(_BYTE).encode("latin-1")


def utf8(text: str) -> bytes:
    """The bytes of a text.

    Raises:
        ValueError: the text holds half a surrogate pair, which has no bytes in UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a surrogate pair, U+{ord(text[error.start]):04X}, which is no character: "
            'repair it, with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for one'
        ) from None
