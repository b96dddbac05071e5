"""What an n-gram model expects at each place of the text that it was counted from, as if it had not seen that place.

A text shows what came, and only once. A model of counts knows what else has come after the same few letters in a whole
megabyte, after a few seconds of counting. So it can teach: a step that reads 768 characters learns from 768
distributions, in which all that was counted is summed up (distillation, Hinton et al. 2015).

But asked about its own text it would only repeat it: most long contexts came once, and it has seen what followed. So
the text is cut into parts, and each part is judged by a model of all the others (cross-fitting). The parts are long and
follow each other: a speaker's words are no secret where the same scene is on both sides of a cut, but there are few.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_core.models.ngram import ModifiedKneserNey, NGramModel

AT_ONCE = 4096  # places whose distributions are worked out together, 8 V bytes each and several times over


def expectations(ids: Int[Tensor, " N"], *, vocab_size: int, n: int, parts: int = 20) -> Float[Tensor, "N V"]:
    """Row t: the probability of each token after the first t + 1, by a model that has not counted what came there.

    In float16, as there are N V numbers: of a probability it keeps three digits.

    Raises:
        ValueError: there are not two parts, or a part would be empty.
    """
    if not 2 <= parts <= len(ids):
        raise ValueError(f"a text of {len(ids)} tokens is cut into 2 to {len(ids)} parts: got {parts}")
    text = ids.numpy()
    rows = torch.empty(len(text), vocab_size, dtype=torch.float16)
    cuts = [len(text) * part // parts for part in range(parts + 1)]
    for begin, end in pairwise(cuts):
        others = [rest for rest in (text[:begin], text[end:]) if len(rest)]
        model = NGramModel(others, n, vocab_size=vocab_size, smoothing=ModifiedKneserNey())
        stop = len(text) if end == len(text) else end - 1  # row t is about token t + 1, and the last about none
        for first in range(max(begin - 1, 0), stop, AT_ONCE):
            last = min(first + AT_ONCE, stop)
            back = max(0, first - max(n - 2, 0))  # the row of `first` reads the n - 1 tokens that end with it
            logs = model.next_token_log_probabilities(text[back:last])[first - back :]
            rows[first:last] = torch.from_numpy(np.exp(logs)).half()
    return rows
