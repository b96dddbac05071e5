"""BERT's checkpoints: read as transformers writes them, written as it reads them, and MiniLM's real weights."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.models.bert import BERT_SIZES, Bert, BertConfig, BertPretraining, MaskedLanguageModel, Pooler
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.heads import SentenceEncoder, SequenceClassifier, SpanFinder, TokenClassifier, first_token
from llm_core.pretrained.bert import (
    bert_config,
    bert_table,
    load_bert,
    load_into,
    load_minilm,
    load_pooler,
    minilm_vocab,
    save_bert,
)
from llm_core.pretrained.names import to_ours, to_theirs
from llm_core.text.wordpiece_fast import WordPieceTokenizer

CONFIG = BertConfig(
    vocab_size=31, context=11, n_layers=2, n_heads=3, d_model=12, d_ff=17, n_segments=3, pad_id=1, norm_eps=1e-7
)
IDS = torch.tensor([[2, 5, 9, 4, 8, 7, 4], [2, 3, 4, 30, 4, 1, 1], [2, 1, 1, 1, 1, 1, 1]])
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
D = CONFIG.d_model
KINDS = {
    "BertForMaskedLM": lambda: MaskedLanguageModel(Bert(CONFIG)),
    "BertForPreTraining": lambda: BertPretraining(Bert(CONFIG)),
    "BertForSequenceClassification": lambda: SequenceClassifier(
        Bert(CONFIG), D, 5, pool=Pooler(D), pad_id=1, dropout=0.3
    ),
    "BertForTokenClassification": lambda: TokenClassifier(Bert(CONFIG), D, 5, dropout=0.3),
    "BertForQuestionAnswering": lambda: SpanFinder(Bert(CONFIG), D),
}


def their_model(name: str) -> transformers.BertPreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=31,
        max_position_embeddings=11,
        num_hidden_layers=2,
        num_attention_heads=3,
        hidden_size=12,
        intermediate_size=17,
        type_vocab_size=3,
        pad_token_id=1,
        layer_norm_eps=1e-7,
        num_labels=2 if name == "BertForQuestionAnswering" else 5,
    )
    theirs = getattr(transformers, name)(config)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    return theirs.eval()


def scramble(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def outputs(model: nn.Module) -> list[Tensor]:
    """Every output at every token, of one of theirs or of ours, as a list."""
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel):
            out = model(IDS, token_type_ids=SEGMENTS, attention_mask=(IDS != 1).long()).to_tuple()
        else:
            out = model(IDS, SEGMENTS)
    out = out if isinstance(out, tuple) else (out,)
    return [tensor[IDS != 1] if tensor.shape[1:2] == IDS.shape[1:] else tensor for tensor in out]


def assert_same_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    for got, expected in zip(outputs(ours), outputs(theirs), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def assert_same_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def rewrite(folder: Path, change: dict[str, object]) -> None:
    """Change entries of a config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A BertModel with its pooler, saved by transformers."""
    their_model("BertModel").save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def test_an_encoder_and_its_pooler_are_read_as_transformers_wrote_them(bert_folder):
    theirs = their_model("BertModel")
    ours, pooler = load_bert(bert_folder), load_pooler(bert_folder)
    assert ours.config == dataclasses.replace(CONFIG, dropout=0.1)
    assert not ours.training
    assert not pooler.training
    hidden, pooled = outputs(theirs)
    torch.testing.assert_close(outputs(ours)[0], hidden, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(pooler(ours(IDS, SEGMENTS)), pooled, rtol=0, atol=1e-5)


def test_an_encoder_goes_to_transformers_and_back_bit_by_bit(bert_folder, tmp_path):
    save_bert(load_bert(bert_folder), tmp_path / "ours", pooler=load_pooler(bert_folder))
    assert_same_tensors(load_file(tmp_path / "ours/model.safetensors"), load_file(bert_folder / "model.safetensors"))
    again, report = transformers.BertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_same_tensors(again.state_dict(), their_model("BertModel").state_dict())
    assert_same_outputs(Both(load_bert(tmp_path / "ours"), load_pooler(tmp_path / "ours")), again.eval())


class Both(nn.Module):
    """An encoder and its pooler: what BertModel gives."""

    def __init__(self, encoder: Bert, pooler: Pooler) -> None:
        super().__init__()
        self.encoder, self.pooler = encoder, pooler

    def forward(self, ids: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(ids, segments)
        return hidden, self.pooler(hidden)


def test_their_config_comes_back_as_it_was(bert_folder, tmp_path):
    save_bert(load_bert(bert_folder), tmp_path / "ours")
    before = transformers.BertConfig.from_pretrained(bert_folder).to_dict()
    after = transformers.BertConfig.from_pretrained(tmp_path / "ours").to_dict()
    told_apart = {name for name in before if before[name] != after.get(name)}
    assert told_apart <= {"transformers_version", "dtype", "id2label", "label2id"}  # five labels, which no encoder has


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_read_as_transformers_wrote_them(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    ours = KINDS[name]().eval()
    load_into(ours, tmp_path)
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_written_as_transformers_writes_them(name, tmp_path):
    ours = scramble(KINDS[name]())
    save_bert(ours, tmp_path / "ours")
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_same_outputs(ours, theirs.eval())
    theirs.save_pretrained(tmp_path / "theirs")
    written, expected = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert_same_tensors(written, expected)
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [name]
    if isinstance(ours, (SequenceClassifier, TokenClassifier)):
        assert (theirs.dropout.p, theirs.num_labels) == (0.3, 5)


@pytest.mark.parametrize("name", ["BertModel", *KINDS])
def test_tables_lead_there_and_back(name):
    theirs = their_model(name).state_dict()
    ours = Bert(CONFIG) if name == "BertModel" else KINDS[name]()
    prefixed = {
        n if n.startswith(("bert.", "cls.", "classifier", "qa_")) else f"bert.{n}": t for n, t in theirs.items()
    }
    table = bert_table(ours)
    mapped = to_ours(table, prefixed)
    assert mapped.keys() == ours.state_dict().keys()
    back = to_theirs(table, mapped)
    without = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}  # tied: there under another name
    without |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if name == "BertModel" else set()
    assert_same_tensors(back, {n: t for n, t in prefixed.items() if n not in without})


def test_an_encoder_is_read_from_a_checkpoint_with_heads(tmp_path):
    theirs = their_model("BertForPreTraining")
    theirs.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(load_bert(tmp_path))[0], outputs(theirs.bert)[0], rtol=0, atol=1e-5)
    with torch.no_grad():
        pooled = theirs.bert(IDS).pooler_output
        theirs_hidden = theirs.bert(IDS).last_hidden_state
        torch.testing.assert_close(load_pooler(tmp_path)(theirs_hidden), pooled, rtol=0, atol=1e-5)


def test_names_of_2018_and_positions_as_a_tensor_are_understood(bert_folder):
    """As in the published bert-base-uncased (gamma, beta) and all-MiniLM-L6-v2 (position_ids)."""
    expected = load_bert(bert_folder)
    file = bert_folder / "model.safetensors"
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    save_file({**old, "bert.embeddings.position_ids": torch.arange(11)[None]}, file)
    assert_same_tensors(load_bert(bert_folder).state_dict(), expected.state_dict())


def test_a_tied_table_that_is_stored_twice_is_held_to_be_one(tmp_path):
    theirs = their_model("BertForMaskedLM")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    table = tensors["bert.embeddings.word_embeddings.weight"]
    ours = MaskedLanguageModel(Bert(CONFIG)).eval()
    save_file({**tensors, "cls.predictions.decoder.weight": table.clone()}, file)
    load_into(ours, tmp_path)
    assert_same_outputs(ours, theirs)
    save_file({**tensors, "cls.predictions.decoder.weight": table + 1}, file)
    with pytest.raises(ValueError, match=r"cls\.predictions\.decoder\.weight and .* two that differ"):
        load_into(ours, tmp_path)
    assert load_bert(tmp_path).config.vocab_size == 31  # the encoder alone does not care


def test_loading_draws_nothing_and_gives_parameters_that_learn(bert_folder):
    state = torch.random.get_rng_state()
    models = load_bert(bert_folder), load_pooler(bert_folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.requires_grad for model in models for p in model.parameters())


def test_loading_into_a_model_keeps_its_parameters_mode_and_type(bert_folder):
    """An optimizer holds the parameters: if others took their places, it would train what no one uses."""
    model = Bert(CONFIG).double().train()
    before = list(model.parameters())
    load_into(model, bert_folder)
    assert model.training
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert_same_tensors(model.state_dict(), load_bert(bert_folder).double().state_dict())


def test_weights_come_in_the_type_that_is_asked_for(bert_folder):
    file = bert_folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    for load in (load_bert, load_pooler):
        for dtype, expected in ((None, torch.float16), (torch.float64, torch.float64)):
            assert {p.dtype for p in load(bert_folder, dtype=dtype).parameters()} == {expected}
        assert {p.dtype for p in load(bert_folder).parameters()} == {torch.float32}


def test_a_checkpoint_with_another_head_is_refused_and_the_model_stays(bert_folder):
    model = TokenClassifier(Bert(CONFIG), D, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"lacks classifier\.weight, classifier\.bias"):
        load_into(model, bert_folder)
    assert_same_tensors(model.state_dict(), before)


def test_layers_that_the_config_does_not_count_are_refused(bert_folder):
    rewrite(bert_folder, {"num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.1\..* and 13 more, which a model with"):
        load_bert(bert_folder)
    rewrite(bert_folder, {"num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"lacks bert\.encoder\.layer\.2"):
        load_bert(bert_folder)


def test_sizes_that_do_not_fit_are_refused(bert_folder):
    rewrite(bert_folder, {"vocab_size": 32})
    with pytest.raises(ValueError, match=r"\(31, 12\) among the weights, \(32, 12\) by the config"):
        load_bert(bert_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, '"model_type": "roberta", but this model only does "bert"'),
        ({"hidden_act": "relu"}, '"hidden_act": "relu", but this model only does "gelu"'),
        ({"position_embedding_type": "relative_key"}, '"relative_key", but this model only does "absolute"'),
        ({"is_decoder": True}, '"is_decoder": true'),
        ({"add_cross_attention": True}, '"add_cross_attention": true'),
        ({"tie_word_embeddings": False}, '"tie_word_embeddings": false'),
        ({"embedding_size": 128}, '"embedding_size": 128, which this loader does not know'),
        ({"hidden_size": None}, '"hidden_size": null'),
        ({"pad_token_id": None}, '"pad_token_id": null'),
        ({"num_attention_heads": 5}, "d_model=12, n_heads=5"),
    ],
)
def test_architectures_that_ours_is_not_are_refused(bert_folder, change, message):
    rewrite(bert_folder, change)
    for load in (load_bert, load_pooler):
        with pytest.raises(ValueError, match=message):
            load(bert_folder)


def test_a_config_that_does_not_say_something_has_the_default_of_transformers(bert_folder):
    config = json.loads((bert_folder / "config.json").read_text())
    assert bert_config({}) == dataclasses.replace(BERT_SIZES["bert-base-uncased"], dropout=0.1)
    old = {"pad_token_id", "layer_norm_eps", "position_embedding_type", "tie_word_embeddings", "model_type"}
    old |= {"type_vocab_size", "hidden_dropout_prob"}
    found = bert_config({key: value for key, value in config.items() if key not in old})
    theirs = transformers.BertConfig()
    assert (found.pad_id, found.norm_eps) == (theirs.pad_token_id, theirs.layer_norm_eps)
    assert (found.n_segments, found.dropout) == (theirs.type_vocab_size, theirs.hidden_dropout_prob)
    assert bert_config(config | {"hidden_dropout_prob": 0}).dropout == 0.0


def test_models_that_transformers_has_not_are_refused(tmp_path):
    gpt = GPT(GPTConfig(vocab_size=31, context=11, n_layers=1, n_heads=3, d_model=12))
    for model, message in (
        (gpt, "got GPT"),
        (TokenClassifier(gpt, 12, 2), "got TokenClassifier on GPT"),
        (SequenceClassifier(Bert(CONFIG), D, 2, pool=first_token, pad_id=1), "pool=first_token"),
    ):
        with pytest.raises(ValueError, match=message):
            save_bert(model, tmp_path / "none")
    with pytest.raises(ValueError, match="got MaskedLanguageModel"):
        save_bert(MaskedLanguageModel(Bert(CONFIG)), tmp_path / "none", pooler=Pooler(D))
    assert not (tmp_path / "none").exists()


ENGLISH = [
    "A man is playing the guitar.",
    "Someone plays a guitar on a stage.",
    "The stock market fell sharply on Monday, after two weeks of gains.",
    "Yes.",
]


@pytest.fixture(scope="module")
def read_english(minilm) -> tuple[Tensor, Tensor, Tensor, nn.Module]:
    """The sentences as ids (tokenized by transformers), the mask, their hidden states, and their model."""
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm)
    batch = tokenizer(ENGLISH, padding=True, return_tensors="pt")
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        hidden = theirs(**batch).last_hidden_state
    return batch["input_ids"], batch["attention_mask"].bool(), hidden, theirs


def test_minilms_hidden_states_equal_transformers(minilm, read_english):
    ids, mask, expected, theirs = read_english
    ours = load_minilm()
    assert ours.config == BERT_SIZES["minilm-l6"]
    with torch.no_grad():
        for got in (ours(ids), ours(ids, mask=mask)):
            torch.testing.assert_close(got[mask], expected[mask], rtol=0, atol=1e-5)
        for row in range(len(ENGLISH)):
            alone = ours(ids[row][mask[row]][None])[0]
            torch.testing.assert_close(alone, expected[row][mask[row]], rtol=0, atol=1e-5)
        hidden = ours(ids)
        torch.testing.assert_close(load_pooler(minilm)(hidden), theirs.pooler(expected), rtol=0, atol=1e-5)


def test_minilms_sentence_vectors_equal_those_of_transformers_hidden_states(read_english):
    """Mean over real tokens, then length 1: what the model's own 1_Pooling and 2_Normalize folders ask for."""
    ids, mask, hidden, _ = read_english
    with torch.no_grad():
        vectors = SentenceEncoder(load_minilm(), pad_id=0)(ids)
    for row in range(len(ENGLISH)):
        mean = hidden[row][mask[row]].mean(0)
        torch.testing.assert_close(vectors[row], mean / mean.norm(), rtol=0, atol=1e-5)
    scores = vectors @ vectors.T
    assert scores[0, 1] > 0.5 > scores[0, 2]
    assert scores[0, 1] > scores[1, 2]


def test_minilm_reads_what_our_own_tokenizer_gives(minilm, read_english):
    ids, mask, _, _ = read_english
    tokenizer = WordPieceTokenizer.load_vocabulary(minilm_vocab())
    assert minilm_vocab() == minilm / "vocab.txt"
    for row, sentence in enumerate(ENGLISH):
        assert tokenizer.encode_pair(sentence)[0] == ids[row][mask[row]].tolist()


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"n_heads": 2}, {}, '"num_attention_heads": 4, but the model has n_heads=2'),
        ({"norm_eps": 0.02}, {}, '"layer_norm_eps": 1e-12, but the model has norm_eps=0.02'),
        ({"pad_id": 3}, {}, '"pad_token_id": 0, but the model has pad_id=3'),
        ({}, {"hidden_act": "relu"}, '"hidden_act": "relu", but this model only does "gelu"'),
        ({}, {"is_decoder": True}, '"is_decoder": true, but this model only does false'),
        ({}, {"layer_norm_eps": 1e-5}, '"layer_norm_eps": 1e-05, but the model has norm_eps=1e-12'),
        ({"d_ff": 40}, {}, '"intermediate_size": 36, but the model has d_ff=40'),
    ],
)
def test_weights_of_an_encoder_that_computes_something_else_are_not_copied(change, config, message, tmp_path):
    sizes = {"vocab_size": 31, "context": 20, "n_layers": 1, "d_model": 24, "d_ff": 36, "n_heads": 4}
    save_bert(TokenClassifier(Bert(BertConfig(**sizes)), 24, 5), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(said))
    model = TokenClassifier(Bert(BertConfig(**(sizes | change), dropout=0.3)), 24, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_into(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
