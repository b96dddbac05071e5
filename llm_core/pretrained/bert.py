"""BERT's published weights in `Bert` and its heads, and back.

    model = load_bert(folder)                              # the encoder, whatever heads there are beside it
    pooler = load_pooler(folder)                           # its pooler, if there is one
    load_into(TokenClassifier(Bert(...), ...), folder)     # a model with a head, from a checkpoint of its kind
    save_bert(model, "copy")                               # any of them: a folder that transformers reads

Both have the same tensors, so the name table only renames. A checkpoint of a bare encoder leaves out the "bert." before
its names, and one of 2018 calls a norm's weight and bias gamma and beta; both are put right when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llm_core.models.bert import Bert, BertConfig, BertPretraining, MaskedLanguageModel, Pooler
from llm_core.models.heads import SequenceClassifier, SpanFinder, TokenClassifier
from llm_core.pretrained.files import check_config, naming, obeyed, read_config, read_shapes, read_weights, write
from llm_core.pretrained.names import Line, check_shapes, check_tied, load, same, to_ours, to_theirs
from llm_core.pretrained.packages import MINILM, locate

# What ours calls it, and what transformers takes for nothing said.
_READ: dict[str, tuple[str, int | float]] = {
    "vocab_size": ("vocab_size", 30522),
    "max_position_embeddings": ("context", 512),
    "num_hidden_layers": ("n_layers", 12),
    "num_attention_heads": ("n_heads", 12),
    "hidden_size": ("d_model", 768),
    "intermediate_size": ("d_ff", 3072),
    "type_vocab_size": ("n_segments", 2),
    "pad_token_id": ("pad_id", 0),
    "hidden_dropout_prob": ("dropout", 0.1),
    "layer_norm_eps": ("norm_eps", 1e-12),
}
# What Bert does in one way only.
_FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "tie_word_embeddings": True,
}
# Dropout in other places, names of labels, and what Google's converter wrote down of a pooler that is always the same.
_OF_NO_EFFECT = {
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "id2label",
    "label2id",
    "problem_type",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}
# Models with a head: transformers' class, and {ours: theirs} of the layers beside the encoder.
_MASKED_TOKENS = {"head.dense": "cls.predictions.transform.dense", "head.norm": "cls.predictions.transform.LayerNorm"}
_HEADS: dict[type[nn.Module], tuple[str, dict[str, str]]] = {
    MaskedLanguageModel: ("BertForMaskedLM", _MASKED_TOKENS),
    BertPretraining: (
        "BertForPreTraining",
        {**_MASKED_TOKENS, "pooler.dense": "bert.pooler.dense", "next_sentence": "cls.seq_relationship"},
    ),
    SequenceClassifier: ("BertForSequenceClassification", {"pool.dense": "bert.pooler.dense", "output": "classifier"}),
    TokenClassifier: ("BertForTokenClassification", {"output": "classifier"}),
    SpanFinder: ("BertForQuestionAnswering", {"output": "qa_outputs"}),
}
_ENCODER = ("bert.embeddings.", "bert.encoder.")
_EMBEDDING = "bert.embeddings.word_embeddings.weight"
_Value = TypeVar("_Value")


def bert_table(model: nn.Module) -> list[Line]:
    """BERT's names and ours, for a `Bert` or a model with a head on one.

    Raises:
        ValueError: the model is none of these, or pools in a way that BERT's classifier does not.
    """
    if isinstance(model, Bert):
        return _encoder_table(model.config, "")
    encoder, _, layers = _parts(model)
    table = _encoder_table(encoder.config, "encoder.") + _both(layers.items())
    if isinstance(model, (MaskedLanguageModel, BertPretraining)):
        table.append(same("head.bias", "cls.predictions.bias"))
    return table


def bert_config(config: Mapping[str, Any]) -> BertConfig:
    """What BERT's config.json says, as ours. The one dropout is that of the hidden states.

    Raises:
        ValueError: it asks for something that `Bert` does not do, by the key and value that ask for it.
    """
    check_config(config, read={*_READ, *_OF_NO_EFFECT}, fixed=_FIXED)
    if config.get("pad_token_id", 0) is None:
        raise ValueError('config.json says "pad_token_id": null, but this model has a padding token: which is it?')
    said: dict[str, Any] = {ours: obeyed(config, theirs, default) for theirs, (ours, default) in _READ.items()}
    with naming(config, _READ):
        return BertConfig(**said)


def load_bert(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Bert:
    """The encoder of a checkpoint, in eval mode. `dtype=None` keeps the numbers as they are stored.

    Raises:
        ValueError: a file is missing or broken; the config asks for something that `Bert` does not do; or the weights
            are not those of the config.
    """
    with torch.device("meta"):
        model = Bert(bert_config(read_config(folder)))
    load(model, _of_type(dtype, _read(model, bert_table(model), folder)))
    return model.eval()


def load_pooler(folder: Path | str, *, dtype: torch.dtype | None = torch.float32) -> Pooler:
    """The pooler of a checkpoint that has one, in eval mode. Arguments and errors are those of `load_bert`."""
    with torch.device("meta"):
        model = Pooler(bert_config(read_config(folder)).d_model)
    load(model, _of_type(dtype, _read(model, _both([("dense", "bert.pooler.dense")]), folder, whole=())))
    return model.eval()


def load_into(model: nn.Module, folder: Path | str) -> None:
    """Copy the weights of a checkpoint into a model with a head (or a `Bert`), which keeps its mode, type and device.

    Raises:
        ValueError: a file is missing or broken, or the weights are not those of this model: the checkpoint is of
            another size, or has no such head; or its config.json describes another encoder than the model's (dropout
            aside, which is the model's own). The model is then as it was.
    """
    table = bert_table(model)
    encoder = model if isinstance(model, Bert) else _parts(model)[0]
    _check_same(encoder.config, read_config(folder))
    model.load_state_dict(_read(model, table, folder))


def save_bert(model: nn.Module, folder: Path | str, *, pooler: Pooler | None = None) -> None:
    """Write a checkpoint that transformers reads: a `Bert` as a BertModel, a model with a head as its BertFor...

    Args:
        model: a `Bert`, or a model with a head on one.
        folder: made if it is not there.
        pooler: goes with a `Bert`, since a BertModel has one. Models with a head have their own, or none.

    Raises:
        ValueError: transformers has no such model. Nothing is written then.
    """
    tensors = to_theirs(bert_table(model), model.state_dict())
    if isinstance(model, Bert):
        config, architecture = model.config, "BertModel"
        if pooler is not None:
            tensors |= to_theirs(_both([("dense", "bert.pooler.dense")]), pooler.state_dict())
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    elif pooler is not None:
        raise ValueError(f"a pooler goes with a Bert; a model with a head has its own: got {type(model).__name__}")
    else:
        encoder, architecture, _ = _parts(model)
        config = encoder.config
    said: dict[str, Any] = {theirs: getattr(config, ours) for theirs, (ours, _) in _READ.items()}
    said |= {**_FIXED, "architectures": [architecture], "attention_probs_dropout_prob": config.dropout}
    if isinstance(model, (SequenceClassifier, TokenClassifier)):
        names = [f"LABEL_{i}" for i in range(model.output.out_features)]  # transformers counts the names of the labels
        said |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        said["classifier_dropout"] = model.dropout.p
    write(folder, said, tensors)


def find_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in its installed package. The checksums of the files that are read are checked.

    Raises:
        MissingPackage: the package is not installed; the message has the command that installs it.
        ValueError: a file is not the one that is expected.
    """
    files = [locate(MINILM, file) for file in MINILM.sha256]
    return files[0].parent


def load_minilm() -> Bert:
    """The encoder of all-MiniLM-L6-v2, in eval mode. Errors are those of `find_minilm`.

    Its vectors of sentences are those of `SentenceEncoder(load_minilm(), pad_id=0)`.
    """
    return load_bert(find_minilm())


def minilm_vocab() -> Path:
    """The file with the tokens of all-MiniLM-L6-v2, one a line. Errors are those of `find_minilm`."""
    return locate(MINILM, "model/vocab.txt")


def _encoder_table(config: BertConfig, prefix: str) -> list[Line]:
    layers = {"norm": "embeddings.LayerNorm"}
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            layers[f"{ours}.attention.{part}"] = f"{theirs}.attention.self.{part}"
        layers |= {
            f"{ours}.attention.output": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.feed_forward.up": f"{theirs}.intermediate.dense",
            f"{ours}.feed_forward.down": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    return [
        same(f"{prefix}token_embedding.weight", _EMBEDDING),
        same(f"{prefix}segment_embedding.weight", "bert.embeddings.token_type_embeddings.weight"),
        same(f"{prefix}positions.embedding.weight", "bert.embeddings.position_embeddings.weight"),
        *_both((prefix + ours, "bert." + theirs) for ours, theirs in layers.items()),
    ]


def _both(layers: Iterable[tuple[str, str]]) -> list[Line]:
    """The weight and the bias of each layer."""
    return [same(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in layers for kind in ("weight", "bias")]


def _parts(model: nn.Module) -> tuple[Bert, str, dict[str, str]]:
    """The encoder of a model with a head, and the entry of `_HEADS`."""
    known = [entry for kind, entry in _HEADS.items() if isinstance(model, kind)]
    encoder = getattr(model, "encoder", None)
    if not known or not isinstance(encoder, Bert):
        names = ", ".join(kind.__name__ for kind in _HEADS)
        raise ValueError(
            f"a checkpoint of BERT is of a Bert, or of one of {names} on a Bert: got {type(model).__name__} on "
            f"{type(encoder).__name__}"
        )
    if isinstance(model, SequenceClassifier) and not isinstance(model.pool, Pooler):
        raise ValueError(f"BERT's classifier reads a Pooler: got pool={getattr(model.pool, '__name__', model.pool)}")
    return encoder, *known[0]


def _check_same(ours: BertConfig, config: Mapping[str, Any]) -> None:
    """Hold a model's encoder to a config.json: weights of the same shapes can belong to another one."""
    theirs = bert_config(config)
    for key, (name, default) in _READ.items():
        if name != "dropout" and getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f'config.json says "{key}": {json.dumps(config.get(key, default))}, but the model has '
                f"{name}={getattr(ours, name)}: build it with the checkpoint's own config (bert_config)"
            )


def _read(
    model: nn.Module, table: list[Line], folder: Path | str, *, whole: tuple[str, ...] = _ENCODER
) -> dict[str, Tensor]:
    """A checkpoint's tensors under our names. Other heads may be left over, but nothing that begins as in `whole`."""
    wanted = {line.theirs for line in table}
    shapes = _names_of_today(read_shapes(folder))
    shapes = {name: shape for name, shape in shapes.items() if name in wanted or name.startswith(whole)}
    with naming(read_config(folder), _READ):
        check_shapes(table, model, shapes)
    tensors = _names_of_today(read_weights(folder))
    if "cls.predictions.bias" in wanted:
        check_tied(tensors, _EMBEDDING, "cls.predictions.decoder.weight")
    return to_ours(table, tensors)


def _names_of_today(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    bare = not any(name.startswith("bert.") for name in tensors)
    today = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if bare and name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"bert.{name}"
        if name != "bert.embeddings.position_ids":  # 0, 1, 2, ...: no weight
            today[name] = tensor
    return today


def _of_type(dtype: torch.dtype | None, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
