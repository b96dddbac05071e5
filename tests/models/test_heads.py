"""Heads against transformers' BertFor... models with the same weights, and the best span against trying them all."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from llm_core.models.bert import Bert, BertConfig, Pooler
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.models.heads import (
    Encoder,
    SentenceEncoder,
    SequenceClassifier,
    SpanFinder,
    TokenClassifier,
    best_spans,
    first_token,
    last_token,
    mean_of_tokens,
)
from llm_core.pretrained.bert import bert_table
from llm_core.pretrained.names import to_ours

CONFIG = BertConfig(vocab_size=31, context=11, n_layers=2, n_heads=3, d_model=12, d_ff=17)
IDS = torch.tensor([[1, 5, 9, 2, 8, 7, 2], [1, 3, 2, 30, 2, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]])
REAL = IDS != 0
KINDS = {
    "sequence": (transformers.BertForSequenceClassification, 5),
    "token": (transformers.BertForTokenClassification, 4),
    "span": (transformers.BertForQuestionAnswering, 2),
}


def our_model(kind: str, n_classes: int) -> nn.Module:
    encoder, D = Bert(CONFIG), CONFIG.d_model
    if kind == "sequence":
        return SequenceClassifier(encoder, D, n_classes, pool=Pooler(D), pad_id=0)
    return TokenClassifier(encoder, D, n_classes) if kind == "token" else SpanFinder(encoder, D)


@cache
def pair(kind: str, n_classes: int | None = None) -> tuple[nn.Module, nn.Module]:
    cls, default = KINDS[kind]
    n_classes = n_classes or default
    torch.manual_seed(0)
    theirs = cls(
        transformers.BertConfig(
            vocab_size=CONFIG.vocab_size,
            max_position_embeddings=CONFIG.context,
            num_hidden_layers=CONFIG.n_layers,
            num_attention_heads=CONFIG.n_heads,
            hidden_size=CONFIG.d_model,
            intermediate_size=CONFIG.d_ff,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=n_classes,
        )
    )
    for name, parameter in theirs.named_parameters():  # no bias of zero, no norm of one; tokens tell more than biases
        is_norm = name.endswith("LayerNorm.weight")
        nn.init.normal_(parameter, mean=float(is_norm), std=0.2 if parameter.ndim == 1 else 0.5)
    for module in theirs.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # with one, torch drops that row's gradient; ours learns every row
    ours = our_model(kind, n_classes)
    ours.load_state_dict(to_ours(bert_table(ours), theirs.state_dict()))
    return ours.eval(), theirs.eval()


def run_theirs(kind: str, theirs: nn.Module, ids: Tensor, segments: Tensor | None, mask: Tensor) -> list[Tensor]:
    out = theirs(input_ids=ids, token_type_ids=segments, attention_mask=mask.long())
    return [out.start_logits, out.end_logits] if kind == "span" else [out.logits]


def run_ours(ours: nn.Module, *inputs: Tensor | None) -> list[Tensor]:
    out = ours(*inputs)
    return list(out) if isinstance(out, tuple) else [out]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_segments", [False, True])
def test_logits_equal_transformers(kind, with_segments):
    ours, theirs = pair(kind)
    segments = SEGMENTS if with_segments else None
    for mask in (None, REAL, REAL & (torch.arange(7) != 1)):
        real = REAL if mask is None else mask
        expected = run_theirs(kind, theirs, IDS, segments, real)
        for got, want in zip(run_ours(ours, IDS, segments, mask), expected, strict=True):
            where = slice(None) if kind == "sequence" else real
            torch.testing.assert_close(got[where], want[where], rtol=0, atol=1e-5)
            assert want.std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 11])
def test_logits_equal_transformers_for_the_shortest_and_the_longest_text(kind, T):
    ours, theirs = pair(kind)
    ids = torch.randint(1, 31, (1, T), generator=torch.Generator().manual_seed(0))
    expected = run_theirs(kind, theirs, ids, None, torch.ones_like(ids))
    for got, want in zip(run_ours(ours, ids), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_one_class_is_a_regression():
    ours, theirs = pair("sequence", 1)
    torch.testing.assert_close(ours(IDS), run_theirs("sequence", theirs, IDS, None, REAL)[0], rtol=0, atol=1e-5)
    assert ours(IDS).shape == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_parameter_equal_transformers(kind):
    ours, theirs = pair(kind)
    # Any loss will do: a sum of all outputs, each with its own weight. Those of padding count for nothing.
    draws = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(1)) * REAL[..., None]
    weights = {"sequence": [torch.randn(3, 5)], "token": [draws[0]], "span": list(draws[..., 0])}[kind]
    for model, outputs in (
        (ours, run_ours(ours, IDS, SEGMENTS)),
        (theirs, run_theirs(kind, theirs, IDS, SEGMENTS, REAL)),
    ):
        model.zero_grad()
        sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    expected = to_ours(bert_table(ours), {name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == expected.keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_pools_are_what_a_loop_gives():
    hidden = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    for row in range(3):
        vectors = hidden[row, : int(REAL[row].sum())]
        torch.testing.assert_close(first_token(hidden, REAL)[row], vectors[0])
        torch.testing.assert_close(mean_of_tokens(hidden, REAL)[row], torch.stack(list(vectors)).mean(0))
        torch.testing.assert_close(last_token(hidden, REAL)[row], vectors[-1])


def test_pools_take_padding_on_the_left_too():
    hidden = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[False, False, True, True]])
    assert torch.equal(last_token(hidden, real), hidden[:, 3])
    torch.testing.assert_close(mean_of_tokens(hidden, real), hidden[:, 2:].mean(1))


def test_pools_of_nothing_but_padding_are_finite():
    hidden, real = torch.ones(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool)
    assert torch.equal(mean_of_tokens(hidden, real), torch.zeros(1, 5))
    assert torch.equal(last_token(hidden, real), hidden[:, 0])


def test_pools_keep_the_type_of_the_hidden_states():
    hidden = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    real = torch.ones(2, 3, dtype=torch.bool)
    assert {pool(hidden, real).dtype for pool in (first_token, mean_of_tokens, last_token)} == {torch.bfloat16}


@pytest.mark.parametrize("pool", [first_token, mean_of_tokens, last_token])
def test_a_texts_label_does_not_depend_on_its_padding(pool):
    torch.manual_seed(0)
    model = SequenceClassifier(Bert(CONFIG), 12, 3, pool=pool, pad_id=0).eval()
    together = model(IDS)
    for row in range(3):
        alone = model(IDS[row : row + 1, : int(REAL[row].sum())])[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-6)


def test_without_a_pad_id_every_token_counts():
    torch.manual_seed(0)
    encoder = Bert(CONFIG).eval()
    model = SequenceClassifier(encoder, 12, 3, pool=mean_of_tokens, pad_id=None)
    torch.testing.assert_close(model(IDS), model.output(encoder(IDS).mean(1)))


def test_a_decoder_takes_the_same_heads_and_its_last_token_sums_the_text_up():
    """Held against transformers' GPT2ForSequenceClassification, which pools like that."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=31, context=11, n_layers=2, n_heads=3, d_model=12)).eval()
    theirs = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=31,
            n_positions=11,
            n_layer=2,
            n_head=3,
            n_embd=12,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            num_labels=4,
        )
    ).eval()
    ours = SequenceClassifier(gpt, 12, 4, pool=last_token, pad_id=0).eval()
    nn.init.normal_(theirs.score.weight)
    with torch.no_grad():
        ours.output.weight.copy_(theirs.score.weight)
        # The hidden states are test_gpt's matter: here both read the same.
        theirs.transformer.forward = lambda ids, **_: BaseModelOutputWithPast(gpt.hidden(ids))
        torch.testing.assert_close(ours(IDS), theirs(IDS).logits)
    assert isinstance(gpt, Encoder)
    assert len(list(ours.parameters())) == len(list(gpt.parameters())) + 2  # it learns along
    assert TokenClassifier(gpt, 12, 2)(IDS).shape == (3, 7, 2)


def test_heads_train_their_encoder():
    model = SequenceClassifier(Bert(CONFIG), 12, 3, pool=Pooler(12), pad_id=0)
    model(IDS).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sentence_vectors_have_length_one_and_compare_by_cosine():
    torch.manual_seed(0)
    encoder = Bert(CONFIG).eval()
    model = SentenceEncoder(encoder, pad_id=0)
    vectors = model(IDS)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    hidden = encoder(IDS)
    means = torch.stack([hidden[row, : int(REAL[row].sum())].mean(0) for row in range(3)])
    torch.testing.assert_close(vectors @ vectors.T, F.cosine_similarity(means[:, None], means[None], dim=-1))
    assert torch.equal(model(IDS, SEGMENTS, REAL), SentenceEncoder(encoder, pad_id=None)(IDS, SEGMENTS, REAL))
    assert not torch.allclose(model(IDS), SentenceEncoder(encoder, pad_id=0, pool=first_token)(IDS))
    assert list(model.state_dict()) == [f"encoder.{name}" for name in encoder.state_dict()]


def test_heads_start_small_and_drop_in_training_only():
    torch.manual_seed(0)
    for model in (
        SequenceClassifier(Bert(CONFIG), 12, 300, pool=first_token, pad_id=0, dropout=0.5),
        TokenClassifier(Bert(CONFIG), 12, 300, dropout=0.5),
    ):
        assert model.output.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (model.output.bias == 0).all()
        assert not torch.allclose(model(IDS), model(IDS))
        model.eval()
        assert torch.equal(model(IDS), model(IDS))


def test_a_head_without_labels_is_refused():
    with pytest.raises(ValueError, match="at least one label: got 0"):
        TokenClassifier(Bert(CONFIG), 12, 0)


def best_by_trying_all(start: list[float], end: list[float], context: list[bool], max_length: int) -> tuple[int, int]:
    T = len(start)
    spans = [
        (i, j) for i, j in itertools.product(range(T), repeat=2) if i <= j < i + max_length and all(context[i : j + 1])
    ]
    return max(spans, key=lambda span: start[span[0]] + end[span[1]])  # the first of those that tie


@pytest.mark.parametrize("max_length", [1, 2, 3, 30])
@pytest.mark.parametrize("T", [1, 2, 9])
def test_the_best_span_is_the_best_of_all(max_length, T):
    generator = torch.Generator().manual_seed(T)
    # Few different numbers, so that many spans tie; all of them below zero in half of the rows.
    start, end = torch.randint(0, 4, (2, 40, T), generator=generator).float()
    start[::2] -= 10
    context = torch.rand(40, T, generator=generator) < 0.7
    context[torch.arange(40), torch.randint(T, (40,), generator=generator)] = True
    spans = best_spans(start, end, context, max_length=max_length)
    for row in range(40):
        i, j = best_by_trying_all(start[row].tolist(), end[row].tolist(), context[row].tolist(), max_length)
        assert (spans.start[row], spans.end[row]) == (i, j)
        assert spans.score[row] == start[row, i] + end[row, j]


def test_the_likeliest_start_and_end_need_not_make_a_span():
    start = torch.tensor([[0.0, 1.0, 9.0, 0.0]])
    end = torch.tensor([[9.0, 8.0, 1.0, 0.0]])
    spans = best_spans(start, end, torch.tensor([[False, True, True, True]]))
    assert (spans.start.item(), spans.end.item(), spans.score.item()) == (2, 2, 10.0)


def test_spans_may_be_thirty_tokens_long_unless_said_otherwise():
    start, end = torch.zeros(1, 40), torch.zeros(1, 40)
    start[0, 2], end[0, 31], end[0, 32] = 5.0, 5.0, 9.0
    spans = best_spans(start, end, torch.ones(1, 40, dtype=torch.bool))
    # 2 ... 31 are 30 tokens and score 10; 2 ... 32 would be 31 and score 14; 3 ... 32 scores 9.
    assert (spans.start.item(), spans.end.item()) == (2, 31)


def test_texts_without_room_for_an_answer_are_refused():
    logits, context = torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool)
    context[1] = False
    with pytest.raises(ValueError, match=r"there is none in rows \[1\]"):
        best_spans(logits, logits, context)
    with pytest.raises(ValueError, match="got max_length=0"):
        best_spans(logits, logits, context, max_length=0)
