"""Put other linear layers into a model that is finished: the model itself knows nothing of it.

A layer fits if it is called alike: a linear layer `(x) -> y`, an embedding `(ids) -> x` and `.logits(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from torch import nn

from llm_core.layers.embedding import TokenEmbedding

Model = TypeVar("Model", bound=nn.Module)


def replace_layers(
    model: Model,
    linear: Callable[[nn.Linear], nn.Module],
    embedding: Callable[[TokenEmbedding], nn.Module] | None = None,
    *,
    keep: Collection[str] = (),
) -> Model:
    """Replace every `nn.Linear` (and every `TokenEmbedding`) of a model, in place and one by one.

    Each old layer is let go before the next one is made, so the memory needed on top is that of one layer.

    Args:
        linear: makes the new layer from the old one.
        embedding: the same for token embeddings, which are the tied output head too. None: they stay.
        keep: names of layers that stay as they are, as in `model.named_modules()`.

    Returns:
        The same model.

    Raises:
        ValueError: a name in `keep` is no layer that would be replaced; or there is nothing to replace.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (embedding is not None and isinstance(module, TokenEmbedding))
    ]
    if not names:
        raise ValueError(f"there is nothing to replace in this {type(model).__name__}: was it converted before?")
    unknown = sorted(set(keep) - set(names))
    if unknown:
        raise ValueError(
            f"there is no layer to keep called {unknown[0]!r}; those that would be replaced: {_some(names)}"
        )
    for name in names:
        if name in keep:
            continue
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, child)
        if isinstance(old, nn.Linear):
            setattr(owner, child, linear(old))
        elif embedding is not None:
            setattr(owner, child, embedding(old))
    return model


def _some(names: Collection[str]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + ("" if len(names) <= 3 else f" and {len(names) - 3} more")
