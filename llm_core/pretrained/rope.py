"""What a config.json says about RoPE: the base, how it is slowed down for longer texts, and which columns turn.

It is said in one of two forms. Until 2025 `rope_theta` and `rope_scaling` stand beside each other, since then all is in
`rope_parameters`; both are read, and the older one is written, which all versions of transformers know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_core.layers.positions import (
    DynamicScaling,
    LengthScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    YarnScaling,
)
from llm_core.pretrained.files import entry, naming, obeyed

# The entries that say something about it.
ROPE_ENTRIES = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)
# The ways of slowing RoPE down, and what each has to say.
_ROPE_KEYS: dict[Any, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}
_PHI_KINDS = {"default": "default", "longrope": "longrope", "su": "longrope"}
_PHI_CONTEXT = 4096  # what its class takes for an original context that is not said


class Turning(NamedTuple):
    """How a model turns its queries and keys."""

    base: float
    scaling: RopeScaling | LengthScaling | None
    width: int | None
    """Columns of a head that turn; None: all."""


def read_rope(config: Mapping[str, Any], *, base: float, context: int, d_head: int, phi: bool = False) -> Turning:
    """Base, scaling and width, as transformers finds them.

    `rope_scaling`, if it says anything, stands before `rope_parameters`; an entry within stands before the one of its
    name beside it.

    Args:
        config: see `files.read_config`.
        base: what an absent `rope_theta` stands for.
        context: the longest text.
        d_head: width of a head.
        phi: whether it is read as Phi-3's, whose heads may turn in part, and whose scaling can only be longrope, of
            which "su" is the first name.

    Raises:
        ValueError: it asks for something that `Rope` does not do, by the key and value that ask for it.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    for part in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(part, {}), dict | None):
            raise _unknown(part, config[part], "an object, or null")
    rope = dict(config.get(key) or {})
    base = obeyed(rope if "rope_theta" in rope else config, "rope_theta", base)
    name = rope.get("rope_type", rope.get("type", "default"))
    kinds = _PHI_KINDS if phi else {kind: kind for kind in _ROPE_KEYS}
    if not isinstance(name, str) or name not in kinds:
        raise _unknown(key, config[key], f"the rope_type {', '.join(kinds)}")
    name = kinds[name]
    unknown = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_KEYS[name]}
    if any(rope[entry] is not None for entry in unknown):
        raise _unknown(key, config[key], f"the rope_type {name} without {', '.join(sorted(unknown))}")
    width = None
    if not phi:
        _whole(config, rope)
    else:
        width = _part(config, rope, d_head)
        original = "original_max_position_embeddings"
        config = {**config, original: obeyed(config, original, _PHI_CONTEXT)}
    with naming(config, ["max_position_embeddings", *(entry for entry in ROPE_ENTRIES if entry in config)]):
        return Turning(base, _scaling(name, rope, config, context), width)


def _whole(config: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    """Hold a config of a model that turns whole heads to it. Its class there reads no share, other programs do."""
    beside = config.get("partial_rotary_factor")
    for factor in (1.0 if beside is None else beside, rope.get("partial_rotary_factor", 1.0)):
        if type(factor) not in (int, float) or factor != 1:
            raise _unknown("partial_rotary_factor", factor, "1: all columns of a head turn")


def _part(config: Mapping[str, Any], rope: Mapping[str, Any], d_head: int) -> int | None:
    said = rope if "partial_rotary_factor" in rope else config
    factor = obeyed(said, "partial_rotary_factor", 1.0)
    width = int(d_head * factor)
    if not 0 < factor <= 1 or (d_head > 0 and (width < 2 or width % 2)):
        with naming(config, ("hidden_size", "num_attention_heads", "head_dim")):
            raise _unknown("partial_rotary_factor", factor, f"an even number of the {d_head} columns of a head")
    return None if width == d_head else width


def _scaling(
    name: str, rope: Mapping[str, Any], config: Mapping[str, Any], context: int
) -> RopeScaling | LengthScaling | None:
    if name == "default":
        return None
    if name == "linear":
        return LinearScaling(entry(rope, "factor", float))
    if name == "dynamic":
        return DynamicScaling(entry(rope, "factor", float), context)
    # The entry beside it stands first here, as that of Phi-3 does.
    said = config if "original_max_position_embeddings" in config else rope
    original = obeyed(said, "original_max_position_embeddings", context)
    attention_factor = obeyed(rope, "attention_factor", 1.0, null=True) if "attention_factor" in rope else None
    if name == "llama3":
        low, high = entry(rope, "low_freq_factor", float), entry(rope, "high_freq_factor", float)
        return Llama3Scaling(entry(rope, "factor", float), low, high, original)
    if name == "yarn":
        if rope.get("truncate", True) is not True:
            raise _unknown("truncate", rope["truncate"], "true")
        fast, slow = entry(rope, "beta_fast", float, 32.0), entry(rope, "beta_slow", float, 1.0)
        return YarnScaling(entry(rope, "factor", float), original, fast, slow, attention_factor)
    factor = entry(rope, "factor", float, context / original if original > 0 else 1.0)
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    return LongScaling(_numbers(rope, "short_factor"), _numbers(rope, "long_factor"), original, attention_factor)


def _numbers(rope: Mapping[str, Any], key: str) -> tuple[float, ...]:
    numbers = rope.get(key)
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise _unknown(key, numbers, "a list of numbers")
    return tuple(float(number) for number in numbers)


def rope_json(scaling: RopeScaling | LengthScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` of a scaling of ours.

    Raises:
        ValueError: it is none of those that have a name there.
    """
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor, _):
            return {"rope_type": "dynamic", "factor": factor}
        case LongScaling(short, long, context, attention_factor):
            return {
                "rope_type": "longrope",
                "short_factor": list(short),
                "long_factor": list(long),
                "original_max_position_embeddings": context,
                "attention_factor": attention_factor,
            }
        case Llama3Scaling(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
        case YarnScaling(factor, context, fast, slow, attention_factor):
            rope = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": context,
                "beta_fast": fast,
                "beta_slow": slow,
            }
            return rope if attention_factor is None else rope | {"attention_factor": attention_factor}
    raise ValueError(f"no config.json can say {scaling}: only the scalings of llm_core.layers.positions")


def phi_rope_json(scaling: RopeScaling | LengthScaling | None, width: int, d_head: int) -> dict[str, Any]:
    """What Phi-3's config.json says beside `rope_scaling`: the share of a head that turns, and the original context."""
    share = width / d_head
    if int(d_head * share) != width:  # of a fraction that was rounded down
        share = (width + 0.5) / d_head
    said: dict[str, Any] = {"partial_rotary_factor": share}
    if isinstance(scaling, LongScaling):
        said["original_max_position_embeddings"] = scaling.original_context
    return said


def _unknown(key: str, value: object, does: str) -> ValueError:
    return ValueError(f'config.json says "{key}": {value}, but this model only does {does}')
