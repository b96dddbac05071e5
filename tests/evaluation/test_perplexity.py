"""Perplexity against transformers' losses, against a loop over single tokens, and against what is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from llm_core.evaluation.perplexity import Likelihood, masked_likelihood, text_likelihood, texts_likelihood, token_nats
from llm_core.pretrained.gpt2 import load_gpt2

V, CONTEXT = 29, 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """GPT-2 as transformers has it and as we load it; with large weights, so that every token tells."""
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=CONTEXT, n_layer=2, n_head=2, n_embd=16, bos_token_id=0, eos_token_id=0)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return load_gpt2(folder), theirs.eval()


def draw_ids(n: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(seed))


def uniform(vocab_size: int):
    return lambda ids: torch.zeros(*ids.shape, vocab_size)


def one_by_one(model, ids: Tensor, context: int, stride: int) -> float:
    """The sum of -ln p, each token asked for by itself, from what its window lets it see."""
    total = 0.0
    with torch.no_grad():
        for t in range(1, len(ids)):
            # The first window, k strides in, whose inputs reach token t - 1.
            k = max(0, math.ceil((t - context) / stride))
            seen = ids[k * stride : t]
            assert 1 <= len(seen) <= context
            total -= model(seen[None])[0, -1].double().log_softmax(-1)[ids[t]].item()
    return total


@pytest.mark.parametrize("n", [2, 7, CONTEXT + 1])
def test_a_text_within_the_context_has_the_loss_of_transformers(models, n):
    ours, theirs = models
    ids = draw_ids(n)
    result = text_likelihood(ours, ids, context=CONTEXT)
    inputs = ids[None, :CONTEXT]  # theirs reads the last token too, which ours has no use for
    with torch.no_grad():
        expected = theirs(inputs, labels=inputs).loss.item() if n <= CONTEXT else None
        logits = theirs(ids[None, :-1]).logits[0]
    assert result.nats_per_token == pytest.approx(F.cross_entropy(logits, ids[1:]).item(), rel=1e-5)
    if expected is not None:
        assert result.nats_per_token == pytest.approx(expected, rel=1e-5)
        assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert result.n_tokens == n - 1


def test_texts_of_unequal_length_have_the_loss_of_transformers_with_padding_left_out(models):
    ours, theirs = models
    texts = [draw_ids(n, seed=n) for n in (5, 12, 2, 9)]
    ids, labels = torch.zeros(4, 12, dtype=torch.long), torch.full((4, 12), -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = text
    with torch.no_grad():
        expected = theirs(ids, attention_mask=(labels >= 0).long(), labels=labels).loss.item()
    for batch_size in (1, 3, 8):
        result = texts_likelihood(ours, texts, context=CONTEXT, batch_size=batch_size)
        assert result.nats_per_token == pytest.approx(expected, rel=1e-5)
        assert result.n_tokens == 4 + 11 + 1 + 8


def test_the_sliding_window_is_that_of_transformers_guide(models):
    """The loop of its page on perplexity: labels of what was counted before are -100, the loss times their number."""
    ours, theirs = models
    ids, stride, total, before = draw_ids(40)[None], 5, 0.0, 0
    for begin in range(0, 40, stride):
        end = min(begin + CONTEXT, 40)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        n_targets = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += theirs(ids[:, begin:end], labels=labels).loss.item() * n_targets
        before = end
        if end == 40:
            break
    # Their windows count the token they read last, ours the one after: one token of context less is the same window.
    result = text_likelihood(ours, ids[0], context=CONTEXT - 1, stride=stride)
    assert result.total_nats == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 7, CONTEXT, None])
@pytest.mark.parametrize("n", [2, CONTEXT, CONTEXT + 1, CONTEXT + 2, 41])
def test_every_token_counts_once_with_what_its_window_lets_it_see(models, n, stride):
    ours, _ = models
    ids = draw_ids(n)
    result = text_likelihood(ours, ids, context=CONTEXT, stride=stride, batch_size=3)
    assert result.n_tokens == n - 1
    expected = one_by_one(ours, ids, CONTEXT, CONTEXT if stride is None else stride)
    assert result.total_nats == pytest.approx(expected, rel=1e-5)


def test_the_result_does_not_depend_on_the_batch_size_nor_on_the_order(models):
    ours, _ = models
    texts = [draw_ids(n, seed=n) for n in (30, 3, 13, 1, 25, 12)]
    results = [texts_likelihood(ours, texts, context=CONTEXT, stride=7, batch_size=b).total_nats for b in (1, 2, 5, 99)]
    results.append(texts_likelihood(ours, texts[::-1], context=CONTEXT, stride=7, batch_size=2).total_nats)
    alone = sum(text_likelihood(ours, text, context=CONTEXT, stride=7).total_nats for text in texts if len(text) > 1)
    assert results == pytest.approx([alone] * 5, rel=1e-6)


def test_lists_are_texts_too_and_texts_without_a_target_add_nothing(models):
    ours, _ = models
    ids = draw_ids(9)
    expected = text_likelihood(ours, ids, context=CONTEXT)
    assert text_likelihood(ours, ids.tolist(), context=CONTEXT) == expected
    assert texts_likelihood(ours, [[], [3], ids.tolist()], context=CONTEXT) == expected
    assert text_likelihood(ours, ids.int(), context=CONTEXT).total_nats == pytest.approx(expected.total_nats)


@pytest.mark.parametrize("n_vocabulary", [2, 256, 1000])
def test_a_model_that_knows_nothing_wavers_between_all_tokens(n_vocabulary):
    result = text_likelihood(uniform(n_vocabulary), [1, 0, 1, 1, 0], context=3, stride=2)
    assert result.perplexity == pytest.approx(n_vocabulary)


def test_a_model_of_bytes_that_knows_nothing_needs_8_bits_a_byte():
    text = "Wärme, 熱, 🔥"
    ids = [0, *text.encode()]
    result = text_likelihood(uniform(256), ids, context=4, n_bytes=len(text.encode()))
    assert result.n_tokens == len(text.encode())
    assert result.bits_per_byte == pytest.approx(8)


def test_bits_per_byte_compare_tokenizers_where_perplexity_does_not():
    """The same knowledge of the same text, by bytes and by pairs of bytes."""
    text = b"ab" * 50
    by_byte = text_likelihood(uniform(256), [0, *text], context=8, n_bytes=100)
    by_pair = text_likelihood(uniform(65536), [0] + [1] * 50, context=8, n_bytes=100)
    assert by_pair.perplexity == pytest.approx(by_byte.perplexity**2)
    assert by_pair.bits_per_byte == pytest.approx(by_byte.bits_per_byte)


def test_what_cannot_be_has_infinite_perplexity_and_so_has_what_almost_cannot():
    def sure_of_zero(ids):
        return torch.tensor([0.0, -math.inf]).expand(*ids.shape, 2)

    assert text_likelihood(sure_of_zero, [0, 1], context=3).perplexity == math.inf
    assert text_likelihood(sure_of_zero, [0, 0], context=3).perplexity == 1.0
    assert Likelihood(total_nats=1000.0, n_tokens=1).perplexity == math.inf  # e^1000 is no float


def test_half_precision_logits_are_summed_up_in_single_precision():
    logits = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    targets = torch.tensor([[1, 2, 3], [-1, 5, -1]])
    expected = -logits.double().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    nats = token_nats(logits, targets, ignore_id=-1)
    torch.testing.assert_close(nats.double(), expected.masked_fill(targets < 0, 0), rtol=1e-5, atol=0)


def test_many_tokens_are_added_up_without_losing_any():
    """In single precision a sum of 16 million ones stops growing."""

    def one_nat(ids):
        # p of token 0 is 1 / e exactly: the other has the rest.
        return torch.tensor([-1.0, math.log(1 - math.exp(-1))]).expand(*ids.shape, 2)

    result = texts_likelihood(one_nat, [torch.zeros(100_001, dtype=torch.long)] * 180, context=100_000, batch_size=30)
    assert result.n_tokens == 18_000_000
    assert result.nats_per_token == pytest.approx(1.0, rel=2e-7)


# ---- the model's mode ----


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.dropout = nn.Linear(1, 1), nn.Dropout(0.5)
        self.fail = False

    def forward(self, ids: Tensor) -> Tensor:
        self.seen = (self.training, self.dropout.training, torch.is_grad_enabled())
        if self.fail:
            raise RuntimeError("out of memory")
        return self.dropout(torch.ones(*ids.shape, 3))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_eval_mode_without_gradients_and_gets_its_own_mode_back(training):
    model = Watched().train(training)
    model.frozen.eval()
    result = text_likelihood(model, [0, 1, 2], context=4)
    assert result.perplexity == pytest.approx(3)
    assert model.seen == (False, False, False)
    assert (model.training, model.dropout.training, model.frozen.training) == (training, training, False)
    model.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        text_likelihood(model, [0, 1, 2], context=4)
    assert (model.training, model.dropout.training, model.frozen.training) == (training, training, False)
    assert torch.is_grad_enabled()


# ---- hidden tokens ----


def test_masked_targets_have_the_loss_of_transformers():
    torch.manual_seed(0)
    theirs = BertForMaskedLM(
        BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)

    class Ours(nn.Module):
        def forward(self, ids: Tensor, segments: Tensor) -> Tensor:
            return theirs(ids, token_type_ids=segments).logits

    generator = torch.Generator().manual_seed(0)
    batches, nats, n = [], 0.0, 0
    for shape in ((3, 7), (1, 5), (2, 4)):
        ids = torch.randint(V, shape, generator=generator)
        segments = torch.randint(2, shape, generator=generator)
        targets = ids.masked_fill(torch.rand(shape, generator=generator) < 0.6, -100)
        if shape == (2, 4):
            targets[:] = -100  # by chance nothing was hidden
        else:
            n_targets = int((targets != -100).sum())
            nats += theirs(ids, token_type_ids=segments, labels=targets).loss.item() * n_targets
            n += n_targets
        batches.append(((ids, segments), targets))
    result = masked_likelihood(Ours(), batches, ignore_id=-100)
    assert result.n_tokens == n
    assert result.total_nats == pytest.approx(nats, rel=1e-5)
    with pytest.raises(ValueError, match="every target is ignore_id=-100"):
        masked_likelihood(Ours(), batches[2:], ignore_id=-100)


def test_the_id_that_is_left_out_may_be_a_token():
    ids = torch.tensor([[1, 0, 2]])
    model = Watched()
    assert masked_likelihood(model, [((ids,), ids)], ignore_id=0).n_tokens == 2


# ---- errors ----


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([[0, 1]], {"context": 0}, "context must be at least 1: got 0"),
        ([[0, 1]], {"context": 4, "batch_size": 0}, "batch_size must be at least 1: got 0"),
        ([[0, 1]], {"context": 4, "stride": 5}, r"1 \.\.\. context.*stride=5, context=4"),
        ([[0, 1]], {"context": 4, "stride": 0}, "stride=0, context=4"),
        ([[0, 1]], {"context": 4, "n_bytes": 0}, "n_bytes=0"),
        ([], {"context": 4}, "got 0 texts"),
        ([[], [7]], {"context": 4}, "got 2 texts, none of which has 2 tokens"),
        ([torch.zeros(2, 3, dtype=torch.long)], {"context": 4}, r"one row of ids, \(N,\): got \(2, 3\)"),
        ([[1, -100]], {"context": 4}, "got -100. Leave padding out"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_model_runs(texts, options, message):
    def model(ids):
        raise AssertionError("the model ran")

    with pytest.raises(ValueError, match=message):
        texts_likelihood(model, texts, **options)


def test_bits_per_byte_needs_bytes_and_a_likelihood_needs_targets():
    with pytest.raises(ValueError, match="n_bytes=len"):
        _ = Likelihood(1.0, 1).bits_per_byte
    with pytest.raises(ValueError, match="n_tokens=0"):
        Likelihood(0.0, 0)
    with pytest.raises(ValueError, match="n_bytes=-1"):
        Likelihood(1.0, 1, -1)
