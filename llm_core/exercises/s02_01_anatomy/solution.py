"""Reference solution of exercise 02/01: parameters of the three families, from their sizes."""


def decoder_parameters(V: int, T: int, L: int, D: int) -> int:
    """Learned numbers of a GPT-2."""
    attention = 4 * D * D + 4 * D
    feed_forward = 8 * D * D + 5 * D
    block = attention + feed_forward + 4 * D
    return V * D + T * D + L * block + 2 * D


def encoder_parameters(V: int, T: int, L: int, D: int, F: int) -> int:
    """Learned numbers of a BERT without any head."""
    attention = 4 * D * D + 4 * D
    feed_forward = 2 * D * F + F + D
    block = attention + feed_forward + 4 * D
    return V * D + T * D + 2 * D + 2 * D + L * block


def encoder_decoder_parameters(V: int, L: int, D: int, F: int) -> int:
    """Learned numbers of a Transformer of 2017, with L blocks on each side."""
    attention = 4 * D * D
    feed_forward = 2 * D * F + F + D
    encoder_block = attention + feed_forward + 4 * D
    decoder_block = 2 * attention + feed_forward + 6 * D
    return V * D + L * (encoder_block + decoder_block)
