"""BERT against transformers' BERT: the same random weights give the same hidden states, logits and gradients."""

from __future__ import annotations

import dataclasses
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from llm_core.models.bert import (
    BERT_SIZES,
    Bert,
    BertConfig,
    BertPretraining,
    MaskedLanguageModel,
    Pooler,
)

CONFIG = BertConfig(vocab_size=31, context=11, n_layers=3, n_heads=3, d_model=12, d_ff=17)
IDS = torch.tensor([[1, 5, 9, 2, 8, 7, 2], [1, 3, 2, 30, 2, 0, 0], [1, 2, 0, 0, 0, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
REAL = IDS != 0
# BertModel of huggingface.co/google-bert/bert-base-uncased, -large-uncased, sentence-transformers/all-MiniLM-L6-v2.
PUBLISHED = {"bert-base-uncased": 109_482_240, "bert-large-uncased": 335_141_888, "minilm-l6": 22_713_216}


def their_config(config: BertConfig, **changes: object) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        type_vocab_size=config.n_segments,
        pad_token_id=config.pad_id,
        layer_norm_eps=config.norm_eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
        **changes,
    )


def in_our_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """BertForPreTraining's tensors under our names; of those that are there twice (tied), one."""
    changes = [
        ("bert.embeddings.word_embeddings", "encoder.token_embedding"),
        ("bert.embeddings.token_type_embeddings", "encoder.segment_embedding"),
        ("bert.embeddings.position_embeddings", "encoder.positions.embedding"),
        ("bert.embeddings.LayerNorm", "encoder.norm"),
        ("bert.pooler", "pooler"),
        ("bert.encoder.layer", "encoder.blocks"),
        ("attention.self", "attention"),
        ("attention.output.dense", "attention.output"),
        ("attention.output.LayerNorm", "attention_norm"),
        ("intermediate.dense", "feed_forward.up"),
        ("output.LayerNorm", "feed_forward_norm"),
        ("cls.seq_relationship", "next_sentence"),
        ("cls.predictions.transform.dense", "head.dense"),
        ("cls.predictions.transform.LayerNorm", "head.norm"),
        ("cls.predictions.bias", "head.bias"),
    ]
    ours = {}
    for name, tensor in theirs.items():
        if name.startswith("cls.predictions.decoder"):
            continue
        for old, new in changes:
            name = name.replace(old, new)
        if "blocks" in name and "attention" not in name:
            name = name.replace(".output.dense", ".feed_forward.down")
        ours[name] = tensor
    return ours


@cache
def pair(n_heads: int = 3) -> tuple[BertPretraining, transformers.BertForPreTraining]:
    config = dataclasses.replace(CONFIG, n_heads=n_heads)
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(their_config(config))
    for parameter in theirs.parameters():  # no zero bias, no norm of one: a swapped pair would not show
        nn.init.normal_(parameter, std=0.3)
    for module in theirs.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # with one, torch drops that row's gradient; ours learns every row
    ours = BertPretraining(Bert(config))
    ours.load_state_dict(in_our_names(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def run_theirs(theirs: nn.Module, ids: Tensor, segments: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    out = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    return out.prediction_logits, out.seq_relationship_logits


@pytest.mark.parametrize("n_heads", [1, 3, 12])
@pytest.mark.parametrize("with_segments", [False, True])
def test_both_heads_logits_equal_transformers(n_heads, with_segments):
    ours, theirs = pair(n_heads)
    segments = SEGMENTS if with_segments else None
    tokens, follows = ours(IDS, segments)
    expected_tokens, expected_follows = run_theirs(theirs, IDS, segments, REAL)
    torch.testing.assert_close(tokens[REAL], expected_tokens[REAL], rtol=0, atol=1e-5)
    torch.testing.assert_close(follows, expected_follows, rtol=0, atol=1e-5)
    assert expected_tokens.std() > 0.5  # numbers that could differ


@pytest.mark.parametrize(("batch", "T"), [(1, 1), (2, 11), (1, 4)])
def test_hidden_states_equal_transformers_at_any_length(batch, T):
    ours, theirs = pair()
    ids = torch.randint(1, 31, (batch, T), generator=torch.Generator().manual_seed(0))
    expected = theirs.bert(ids).last_hidden_state
    torch.testing.assert_close(ours.encoder(ids), expected, rtol=0, atol=1e-5)
    assert torch.equal(ours.encoder.hidden(ids), ours.encoder(ids))
    torch.testing.assert_close(ours.pooler(ours.encoder(ids)), theirs.bert(ids).pooler_output, rtol=0, atol=1e-5)


def test_gradients_equal_transformers():
    ours, theirs = pair()
    targets = IDS.masked_fill(~REAL, -100).flatten()
    follows = torch.tensor([0, 1, 1])
    for model, logits in ((ours, ours(IDS, SEGMENTS)), (theirs, run_theirs(theirs, IDS, SEGMENTS, REAL))):
        model.zero_grad()
        (F.cross_entropy(logits[0].flatten(0, 1), targets) + F.cross_entropy(logits[1], follows)).backward()
    expected = in_our_names({name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == expected.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_masked_language_model_is_the_same_without_the_other_head():
    ours, theirs = pair()
    alone = MaskedLanguageModel(ours.encoder).eval()
    alone.head.load_state_dict(ours.head.state_dict())
    expected = run_theirs(theirs, IDS, SEGMENTS, REAL)[0]
    torch.testing.assert_close(alone(IDS, SEGMENTS)[REAL], expected[REAL], rtol=0, atol=1e-5)
    mask = REAL & (torch.arange(7) != 1)
    expected = run_theirs(theirs, IDS, SEGMENTS, mask)[0]
    torch.testing.assert_close(alone(IDS, SEGMENTS, mask)[mask], expected[mask], rtol=0, atol=1e-5)


def test_hidden_states_do_not_depend_on_padding_or_on_the_other_texts():
    ours, _ = pair()
    together = ours.encoder(IDS, SEGMENTS)
    for row in range(3):
        T = int(REAL[row].sum())
        alone = ours.encoder(IDS[row : row + 1, :T], SEGMENTS[row : row + 1, :T])[0]
        torch.testing.assert_close(together[row, :T], alone, rtol=0, atol=1e-5)


def test_a_mask_is_honoured_where_pad_id_would_say_otherwise():
    ours, theirs = pair()
    ids, mask = IDS.clone(), REAL.clone()
    ids[0, 3] = 0  # token 0, meant
    mask[1, 1] = False  # a token that may not be read
    expected = theirs.bert(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours.encoder(ids, mask=mask)[mask], expected[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ours(ids, None, mask)[0][mask], run_theirs(theirs, ids, None, mask)[0][mask], rtol=0, atol=1e-5
    )
    assert (ours.encoder(ids)[mask] - expected[mask]).abs().max() > 1e-3


def test_another_pad_id_is_honoured():
    ours, _ = pair()
    other = Bert(dataclasses.replace(CONFIG, pad_id=9)).eval()
    other.load_state_dict(ours.encoder.state_dict())
    ids = torch.tensor([[4, 5, 6, 9, 9]])
    torch.testing.assert_close(other(ids)[:, :3], other(ids[:, :3]), rtol=0, atol=1e-5)


def test_every_position_reads_every_token():
    ours, _ = pair()
    before = ours.encoder(IDS[:1])
    for changed in range(7):
        ids = IDS[:1].clone()
        ids[0, changed] = 22
        assert (ours.encoder(ids) - before).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("name", BERT_SIZES)
def test_named_sizes_have_the_published_number_of_parameters(name):
    config = BERT_SIZES[name]
    with torch.device("meta"):
        ours, pooler = Bert(config), Pooler(config.d_model)
        theirs = transformers.BertModel(their_config(config))
    count = ours.n_parameters() + sum(p.numel() for p in pooler.parameters())
    assert count == PUBLISHED[name] == sum(p.numel() for p in theirs.parameters())


def test_base_is_what_transformers_calls_a_default_bert():
    default, base = transformers.BertConfig(), BERT_SIZES["bert-base-uncased"]
    assert (base.n_layers, base.n_heads, base.d_model) == (12, 12, 768)
    assert (base.n_heads, base.norm_eps) == (default.num_attention_heads, default.layer_norm_eps)
    assert (base.dropout, base.n_segments, base.pad_id) == (default.hidden_dropout_prob, default.type_vocab_size, 0)
    # Heads do not show in a count: 16 are those of the paper's section 3 and 12 those of MiniLM's config.json.
    assert (BERT_SIZES["bert-large-uncased"].n_heads, BERT_SIZES["minilm-l6"].n_heads) == (16, 12)


@pytest.mark.parametrize("wrong", [31, -1])
def test_an_id_that_is_no_token_is_refused(wrong):
    ours, _ = pair()
    with pytest.raises(ValueError, match=rf"0 \.\.\. 30.*{wrong}"):
        ours.encoder(torch.tensor([[1, wrong]]))


@pytest.mark.parametrize("wrong", [2, -1])
def test_a_segment_that_is_none_is_refused(wrong):
    ours, _ = pair()
    with pytest.raises(ValueError, match=rf"segments must be 0 \.\.\. 1: got {min(wrong, 0)} to {max(wrong, 0)}"):
        ours.encoder(torch.tensor([[1, 5]]), torch.tensor([[0, wrong]]))


@pytest.mark.parametrize("T", [0, 12])
def test_more_than_the_context_and_less_than_a_token_are_refused(T):
    ours, _ = pair()
    with pytest.raises(ValueError, match=f"{T} tokens long, the context is 11"):
        ours.encoder(torch.ones(2, T, dtype=torch.long))


@pytest.mark.usefixtures("unchecked")
def test_segments_and_masks_of_another_shape_are_refused():
    ours, _ = pair()
    with pytest.raises(ValueError, match=r"segments must be .* \(3, 7\): got \(1, 7\)"):
        ours.encoder(IDS, SEGMENTS[:1])
    with pytest.raises(ValueError, match=r"mask must be .* \(3, 7\): got \(3, 6\)"):
        ours.encoder(IDS, mask=REAL[:, :6])
    with pytest.raises(ValueError, match=r"boolean.*torch\.int64"):
        ours.encoder(IDS, mask=REAL.long())


@pytest.mark.parametrize("name", ["vocab_size", "context", "n_layers", "n_heads", "d_model", "d_ff", "n_segments"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1: got 0"):
        dataclasses.replace(CONFIG, **{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, "d_model=12, n_heads=5"),
        ({"pad_id": 31}, r"0 \.\.\. 30: got 31"),
        ({"pad_id": -1}, "got -1"),
        ({"dropout": 1.0}, r"got 1\.0"),
        ({"dropout": -0.1}, r"got -0\.1"),
        ({"norm_eps": 0.0}, r"got 0\.0"),
    ],
)
def test_other_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_a_new_model_guesses_evenly_and_depends_on_the_seed_alone():
    config = BertConfig(vocab_size=500, context=32, n_layers=4, n_heads=4, d_model=64, d_ff=128)
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(BertPretraining(Bert(config)).eval())
    same, again, other = models
    ids = torch.randint(1, 500, (4, 32), generator=torch.Generator().manual_seed(0))
    tokens, follows = same(ids)
    assert F.cross_entropy(tokens.flatten(0, 1), ids.flatten()).item() == pytest.approx(math.log(500), abs=0.1)
    assert F.cross_entropy(follows, torch.zeros(4, dtype=torch.long)).item() == pytest.approx(math.log(2), abs=0.2)
    assert torch.equal(tokens, again(ids)[0])
    assert not torch.equal(tokens, other(ids)[0])
    for name, p in same.named_parameters():
        if p.ndim == 2 and p.numel() > 1000:
            assert p.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = Bert(dataclasses.replace(CONFIG, dropout=0.3))
    assert not torch.allclose(model(IDS), model(IDS))
    places = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p == 0.3]
    assert len(places) == 1 + CONFIG.n_layers
    assert all(block.attention.dropout == 0.3 for block in model.blocks)
    read = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model(IDS.repeat(20, 1))
    assert (read[0] == 0).double().mean().item() == pytest.approx(0.3, abs=0.05)  # after the norm, so nothing is moved
    model.eval()
    plain = Bert(CONFIG)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(IDS), plain(IDS))


def test_a_model_says_how_much_it_can_read_and_knows():
    model = Bert(CONFIG)
    assert (model.context, model.vocab_size) == (11, 31)
