"""The configuration of a run: a TOML file, typed and checked before anything else is done.

    objective = "causal"                what the model learns to guess
    [data]                              what it learns from
    [tokenizer]                         how that becomes ids
    [model]                             its sizes
    [optimizer]  [schedule]  [run]      how it learns

Each section is a frozen dataclass, and each of its fields is a key: its type, its default, the values that it may have
(`rule`) and what it means (`about`). A key that is not known is refused with the one that was probably meant.

    read_config(preset="book", file="mine.toml", options=["model.d_model=64"])     each changes what stood before it
    to_toml(config)                                                                 the whole, every key explained

Chapter: 5.4, Train.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

PRESETS = Path(__file__).resolve().parent / "presets"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, what came, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# What values a key may have


@dataclass(frozen=True)
class Rule:
    """What a value has to be, in words and as a test."""

    says: str
    holds: Callable[[Any], bool]


SIZE = Rule("at least 1", lambda value: value >= 1)
COUNT = Rule("at least 0", lambda value: value >= 0)
POSITIVE = Rule("above 0", lambda value: value > 0)
SHARE = Rule("a share, at least 0 and below 1", lambda value: 0 <= value < 1)
PART = Rule("a share, above 0 and below 1", lambda value: 0 < value < 1)
SHARES = Rule("shares, each at least 0 and below 1", lambda value: all(0 <= part < 1 for part in value))


def key(default: Any, about: str, rule: Rule | None = None) -> Any:
    """A field of a section: its default, what it means, and what it may be."""
    return field(default=default, metadata={"about": about, "rule": rule})


# ---------------------------------------------------------------------------------------------------------------------
# The sections


@dataclass(frozen=True)
class DataConfig:
    """What the model learns from. One of the first four says where the text is."""

    corpus: str | None = key(None, "a text that the book knows by name (`llm-core corpus list`)")
    files: tuple[str, ...] = key((), "files of text in UTF-8, each a document")
    articles: str | None = key(None, "a folder that `llm-core wikipedia extract` has made")
    shards: str | None = key(None, "a folder of token shards, which tokenizer.file has made")
    validation_files: tuple[str, ...] = key((), "files of text that are held out, for `files` and `shards`")
    validation_share: float = key(0.1, "without them, this share at the end of each of `files` is held out", PART)


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes ids."""

    kind: Literal["wordpiece", "bpe"] = key("wordpiece", "what is trained on the text, unless there is a `file`")
    vocab_size: int = key(30000, "V, the tokens asked for; a short text may give fewer", SIZE)
    lowercase: bool = key(True, "whether WordPiece lowers capitals and drops accents")
    file: str | None = key(None, "a tokenizer.json to take in place of training one")


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of the model. V is the tokenizer's."""

    kind: Literal["gpt", "llama", "bert"] = key("gpt", "gpt: learned positions, LayerNorm; llama: RoPE, RMSNorm, gates")
    context: int = key(128, "T, the tokens of a row, and the longest text that the model can read", SIZE)
    d_model: int = key(512, "D, the width", SIZE)
    n_layers: int = key(2, "L", SIZE)
    n_heads: int = key(8, "H", SIZE)
    n_kv_heads: int | None = key(None, "K, of llama; as many as H unless given", SIZE)
    d_ff: int = key(2048, "F, the width of the feed-forward layers", SIZE)
    dropout: float = key(0.0, "of gpt and bert", SHARE)


@dataclass(frozen=True)
class OptimizerConfig:
    """What takes the steps."""

    kind: Literal["adam", "adamw", "muon"] = key("adamw", "adam: no weight decay; muon: for the blocks' matrices")
    weight_decay: float = key(0.1, "lr x this of each weight of a matrix is taken off at each step", COUNT)
    betas: tuple[float, float] = key((0.9, 0.95), "how much of the two running means is kept at each step", SHARES)
    eps: float = key(1e-8, "added to the root of the mean square", POSITIVE)
    max_norm: float = key(1.0, "longer gradients are shortened to this", POSITIVE)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate of each step."""

    kind: Literal["constant", "cosine", "stable"] = key("cosine", "stable: level, and down over the last `decay`")
    peak: float = key(1e-3, "the learning rate at its highest", POSITIVE)
    warmup: float = key(0.05, "the share of the steps that it takes to get there", SHARE)
    decay: float = key(0.2, "the share of the steps over which `stable` goes down", SHARE)
    floor: float = key(0.0, "where it ends", COUNT)


@dataclass(frozen=True)
class RunConfig:
    """How long, in which numbers, how often to look and to save."""

    steps: int | None = key(None, "how many steps; either this or `epochs`", SIZE)
    epochs: float | None = key(None, "how often the text is read", POSITIVE)
    batch_size: int = key(32, "B, the rows of a step", SIZE)
    parts: int = key(1, "a batch is learned from in so many parts, which takes less memory", SIZE)
    seed: int = key(0, "of the weights and of the order of the text", COUNT)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: a GPU if there is one")
    dtype: Literal["float32", "bfloat16"] = key("float32", "what matrix products are computed in")
    compile: bool = key(False, "whether torch.compile makes one program of the model; it takes minutes at first")
    evaluate_every: int = key(100, "steps between two looks at the held-out text; 0: none", COUNT)
    evaluate_tokens: int = key(20000, "how much of the held-out text a look reads", SIZE)
    save_every: int = key(200, "steps between two checkpoints", SIZE)
    keep: int = key(2, "how many checkpoints are kept", SIZE)


# What may be another when a run goes on: it changes no weight.
FREE = ("run.device", "run.evaluate_every", "run.evaluate_tokens", "run.save_every", "run.keep")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Raises:
        ConfigError: sizes do not fit together, or what one key says is of no effect by what another says.
    """

    objective: Literal["causal", "masked"] = key("causal", "causal: guess the next token; masked: guess hidden ones")
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ConfigError(problem)


def _problems(config: TrainConfig) -> Iterator[str]:
    """What does not fit together; one key alone is checked when it is read."""
    data, tokenizer, model, run = config.data, config.tokenizer, config.model, config.run
    sources = [name for name in ("corpus", "files", "articles", "shards") if getattr(data, name)]
    if len(sources) != 1:
        came = " and ".join(f"data.{name}" for name in sources) or "none of them"
        yield f"one of data.corpus, data.files, data.articles and data.shards says where the text is: got {came}"
    if data.validation_files and sources[0] in ("corpus", "articles"):
        yield (
            f"data.validation_files goes with data.files and data.shards; data.{sources[0]} brings a part of its own: "
            "leave data.validation_files out"
        )
    if data.shards and not tokenizer.file:
        yield "data.shards holds ids, so tokenizer.file must name the tokenizer.json that made them: got none"
    if data.shards and not data.validation_files and run.evaluate_every:
        yield "data.shards has no held-out text: give data.validation_files, or run.evaluate_every = 0"
    if config.objective == "masked" and model.kind != "bert":
        yield (
            f'objective = "masked" needs a model that reads both ways, model.kind = "bert": got {model.kind!r}, '
            "which sees only what came before"
        )
    if config.objective == "causal" and model.kind == "bert":
        yield (
            'model.kind = "bert" sees the token that objective = "causal" would have it guess: take gpt or llama, '
            'or objective = "masked"'
        )
    if config.objective == "masked" and tokenizer.kind != "wordpiece" and not tokenizer.file:
        yield f'objective = "masked" needs [MASK]: take tokenizer.kind = "wordpiece", got {tokenizer.kind!r}'
    if config.objective == "masked" and model.context < 3:
        yield f"model.context must have room for [CLS], a token and [SEP]: got {model.context}"
    if model.d_model % model.n_heads:
        yield f"model.n_heads must divide model.d_model: got {model.n_heads} and {model.d_model}"
    if model.kind == "llama" and model.d_model // model.n_heads % 2:
        yield (
            "model.d_model / model.n_heads must be even, since RoPE turns pairs: got "
            f"{model.d_model} / {model.n_heads} = {model.d_model // model.n_heads}"
        )
    if model.n_kv_heads and model.kind != "llama":
        yield f"model.n_kv_heads is of llama: got model.kind = {model.kind!r}; leave it out"
    if model.n_kv_heads and model.n_heads % model.n_kv_heads:
        yield f"model.n_kv_heads must divide model.n_heads: got {model.n_kv_heads} and {model.n_heads}"
    if model.dropout and model.kind == "llama":
        yield f"model.dropout is of gpt and bert, and llama has none: got {model.dropout}; leave it out"
    if config.optimizer.kind == "adam" and config.optimizer.weight_decay:
        yield (
            f'optimizer.kind = "adam" has no weight decay: got optimizer.weight_decay = '
            f"{config.optimizer.weight_decay}; take adamw, or weight_decay = 0"
        )
    if config.optimizer.kind == "muon" and model.kind == "bert":
        yield 'optimizer.kind = "muon" goes with gpt and llama: take adamw for bert'
    if config.schedule.floor > config.schedule.peak:
        yield f"schedule.floor must not be above schedule.peak: got {config.schedule.floor} and {config.schedule.peak}"
    if config.schedule.kind == "stable" and config.schedule.warmup + config.schedule.decay > 1:
        yield (
            "schedule.warmup and schedule.decay must fit into the whole: got "
            f"{config.schedule.warmup} + {config.schedule.decay}"
        )
    if (run.steps is None) == (run.epochs is None):
        came = "neither" if run.steps is None else "both"
        yield f"run.steps or run.epochs says how long, one of the two: got {came}"
    if run.batch_size % run.parts:
        yield f"run.parts must divide run.batch_size: got {run.parts} and {run.batch_size}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading

SECTIONS = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "run": RunConfig,
}
TOP = {"objective": next(f for f in fields(TrainConfig) if f.name == "objective")}


def _known() -> dict[str, tuple[Any, Any]]:
    """Every key with its type and its field."""
    known = {name: (get_type_hints(TrainConfig)[name], entry) for name, entry in TOP.items()}
    for section, kind in SECTIONS.items():
        hints = get_type_hints(kind)
        known |= {f"{section}.{entry.name}": (hints[entry.name], entry) for entry in fields(kind)}
    return known


KNOWN = _known()


def read_config(
    file: str | Path | None = None, *, preset: str | None = None, options: Sequence[str] = ()
) -> TrainConfig:
    """The configuration that a preset, a file and single options give together, the later before the earlier.

    Args:
        file: a TOML file.
        preset: one of `presets()`.
        options: each `key=value`, such as `model.d_model=64`. The value is TOML; text may stand without quotes.

    Raises:
        ConfigError: the file cannot be read or is no TOML, a key is unknown, or a value cannot be.

    >>> read_config(preset="book", options=["model.d_model=64", "model.kind=llama"]).model.kind
    'llama'
    """
    values: dict[str, Any] = {}
    if preset is not None:
        values = _read(_preset(preset), f"preset {preset}")
    if file is not None:
        values = _changed(values, _read(Path(file), str(file)))
    for option in options:
        values = _changed(values, _option(option))
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    top: dict[str, Any] = {}
    for name, value in values.items():
        section, _, bare = name.rpartition(".")
        (sections[section] if section else top)[bare] = value
    return TrainConfig(**top, **{name: SECTIONS[name](**found) for name, found in sections.items()})


# Of these, one is given: naming another later replaces it.
INSTEAD = (("run.steps", "run.epochs"), ("data.corpus", "data.files", "data.articles", "data.shards"))


def _changed(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    replaced = {name for group in INSTEAD if any(name in more for name in group) for name in group}
    return {name: value for name, value in values.items() if name not in replaced} | dict(more)


def presets() -> dict[str, Path]:
    """The settings that come with the package: name -> file."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def _preset(name: str) -> Path:
    known = presets()
    if name not in known:
        raise ConfigError(f"there is no preset {name!r}: there are {', '.join(known)}{_nearest(name, known)}")
    return known[name]


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}: give a TOML file, or a preset ({', '.join(presets())})") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8, and TOML is: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    values = {}
    for name, value in content.items():
        if name in SECTIONS and not isinstance(value, dict):
            raise ConfigError(f"{source}: [{name}] is a section of keys: got {name} = {value!r}")
        inside = value.items() if isinstance(value, dict) else ()
        if isinstance(value, dict) and name not in SECTIONS:
            likely = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f"; did you mean [{likely[0]}]?" if likely else ""
            raise ConfigError(f"{source}: there is no section [{name}]: there are {', '.join(SECTIONS)}{hint}")
        for inner, one in inside:
            values[f"{name}.{inner}"] = _value(f"{name}.{inner}", one, source)
        if not isinstance(value, dict):
            values[name] = _value(name, value, source)
    return values


def _option(option: str) -> dict[str, Any]:
    name, equals, text = option.partition("=")
    name, text = name.strip(), text.strip()
    if not equals or not name:
        raise ConfigError(f"an option is written key=value, model.d_model=64 for one: got {option!r}")
    _check_known(name, f"-o {option}")
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        read = {"value": text}
    value = read["value"] if read.keys() == {"value"} else text
    if KNOWN[name][0] in (str, str | None) and not isinstance(value, str):
        value = text  # a file whose name is a number
    return {name: _value(name, value, f"-o {option}")}


def _check_known(name: str, source: str) -> None:
    if name in KNOWN:
        return
    section, _, bare = name.rpartition(".")
    there = {known.rpartition(".")[2]: known for known in KNOWN if known.rpartition(".")[0] == section}
    elsewhere = [known for known in KNOWN if known.rpartition(".")[2] == bare]
    likely = elsewhere or [there[close] for close in difflib.get_close_matches(bare, there, n=1)]
    if likely:
        hint = f"did you mean {' or '.join(likely)}?"
    else:
        hint = f"there are {', '.join(there.values() if section in SECTIONS else (*TOP, *SECTIONS))}"
    raise ConfigError(f"{source}: there is no key {name}; {hint}")


def _nearest(name: str, known: Iterable[str]) -> str:
    likely = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {likely[0]}?" if likely else ""


def _value(name: str, value: Any, source: str) -> Any:
    """A value of the type that its key has and within its rule."""
    _check_known(name, source)
    hint, entry = KNOWN[name]
    expected, read = _typed(hint, value)
    if read is None:
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        near = _nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{source}: {name} must be {expected}: got {value!r}{near} ({entry.metadata['about']})")
    rule = entry.metadata["rule"]
    if rule is not None and not rule.holds(read):
        raise ConfigError(f"{source}: {name} must be {rule.says}: got {value!r} ({entry.metadata['about']})")
    return read


def _typed(hint: Any, value: Any) -> tuple[str, Any]:
    """What a type is called, and the value as one of it; None if it is none. True is no number, and NaN is none."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return "one of " + ", ".join(map(repr, choices)), value if value in choices else None
    if hint == tuple[str, ...]:
        good = isinstance(value, list | tuple) and all(isinstance(part, str) and part for part in value)
        return 'a list of texts, such as ["a.txt"]', tuple(value) if good else None
    if hint == tuple[float, float]:
        good = isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(part) for part in value)
        return "two numbers, such as [0.9, 0.95]", tuple(map(float, value)) if good else None
    if hint is bool:
        return "true or false", value if isinstance(value, bool) else None
    if hint in (int, int | None):
        return "a whole number", value if isinstance(value, int) and not isinstance(value, bool) else None
    if hint in (float, float | None):
        return "a number", float(value) if _is_number(value) else None
    assert hint in (str, str | None), hint
    return "a text that is not empty", value if isinstance(value, str) and value else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def to_toml(config: TrainConfig) -> str:
    """The whole configuration as TOML that `read_config` reads, with a comment on every key.

    A key that has no value stands as a comment.
    """
    lines = [_line("objective", config.objective, TOP["objective"])]
    for section, kind in SECTIONS.items():
        lines += ["", f"[{section}]"]
        lines += [_line(entry.name, getattr(getattr(config, section), entry.name), entry) for entry in fields(kind)]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any, entry: Any) -> str:
    said = f"# {name} =" if value is None else f"{name} = {_toml(value)}"
    return f"{said:40}  # {entry.metadata['about']}"


def _toml(value: Any) -> str:
    """A value as TOML has it, which is as JSON has it, but for the character DEL."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def settings(config: TrainConfig) -> dict[str, Any]:
    """What makes a run what it is, key by key; what may change in mid-run is left out.

    >>> settings(read_config(preset="book"))["model.d_model"] == read_config(preset="book").model.d_model
    True
    """
    flat: dict[str, Any] = {}
    for name, value in asdict(config).items():
        flat |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in FREE}
