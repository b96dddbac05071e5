"""Supervised batches: the loss is that of transformers, of the completions alone, and it stays inside each text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from llm_core.adaptation.supervised import Example, cut_end, cut_start, pack, supervised_batch
from llm_core.models.gpt import GPT, GPTConfig
from llm_core.pretrained.gpt2 import save_gpt2
from llm_core.training.losses import CrossEntropy
from llm_core.training.masking import IGNORE_ID
from llm_core.training.optimizer import AdamW
from llm_core.training.step import train_step

PAIRS = [([5, 6, 7], [8, 9, 2]), ([5], [2]), ([10, 11, 5, 6], [7, 2]), ([3], [4, 5, 6, 7, 8, 2])]
LOSS = CrossEntropy(ignore_id=IGNORE_ID)


def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=13, context=24, n_layers=2, n_heads=2, d_model=16))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def surprise(model: nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """-ln p(completion | prompt), one token after the other, without padding."""
    ids = prompt + completion
    terms = [
        -F.log_softmax(model(torch.tensor([ids[:i]]))[0, -1], dim=-1)[ids[i]] for i in range(len(prompt), len(ids))
    ]
    return torch.stack(terms).sum()


@pytest.mark.parametrize("pad_id", [0, 2, 7])  # 2 and 7 are in the texts too
def test_the_loss_is_that_of_the_completions_alone(pad_id):
    model = gpt()
    batch = supervised_batch([Example.of(*pair) for pair in PAIRS], pad_id=pad_id)
    assert batch.inputs[0].shape == batch.targets.shape == (4, 6)
    expected = sum(surprise(model, *pair) for pair in PAIRS)
    torch.testing.assert_close(LOSS.total(model, batch), expected)
    assert LOSS.count(batch) == 3 + 1 + 2 + 6


def test_the_loss_is_that_of_transformers(tmp_path):
    model = gpt()
    save_gpt2(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    longest = max(len(p) + len(c) for p, c in PAIRS)
    rows = [(p + c, [-100] * len(p) + c, longest - len(p) - len(c)) for p, c in PAIRS]
    ids = torch.tensor([text + [0] * fill for text, _, fill in rows])
    labels = torch.tensor([marked + [-100] * fill for _, marked, fill in rows])
    seen = torch.tensor([[1] * len(text) + [0] * fill for text, _, fill in rows])
    batch = supervised_batch([Example.of(*pair) for pair in PAIRS], pad_id=0)
    mean = LOSS.total(model, batch) / LOSS.count(batch)
    torch.testing.assert_close(mean, theirs(ids, attention_mask=seen, labels=labels).loss, rtol=1e-5, atol=1e-5)


def test_in_a_conversation_only_the_models_turns_count():
    model = gpt()
    turns = [([1, 5], False), ([6, 2], True), ([1, 7, 8], False), ([9, 2], True)]
    batch = supervised_batch([Example.of_turns(turns)], pad_id=0)
    expected = surprise(model, [1, 5], [6, 2]) + surprise(model, [1, 5, 6, 2, 1, 7, 8], [9, 2])
    torch.testing.assert_close(LOSS.total(model, batch), expected)
    assert LOSS.count(batch) == 4


def test_the_first_token_of_a_text_is_never_a_target():
    without_prompt = supervised_batch([Example.of([], [5, 6, 2])], pad_id=0)
    assert without_prompt.targets.tolist() == [[6, 2]]
    assert without_prompt.inputs[0].tolist() == [[5, 6]]


def test_a_model_learns_its_answers_and_not_the_questions():
    model = gpt().train()
    batch = supervised_batch([Example.of(*pair) for pair in PAIRS[:1] + PAIRS[3:]], pad_id=0)
    optimizer = AdamW(model.parameters())
    for _ in range(60):
        record = train_step(model, batch, optimizer, lr=0.01, loss=LOSS)
    assert record.loss < 0.1
    answer = model(torch.tensor([[5, 6, 7]])).argmax(dim=-1)
    assert answer[0, -1] == 8
    assert F.log_softmax(model(torch.tensor([[5]]))[0, -1], dim=-1)[6] < -1.0  # 5 6 came only in a prompt


class Bigram(nn.Module):
    """Reads one token only: any loss across a border would show, and nothing else crosses one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(13, 13)

    def forward(self, ids):
        return self.table(ids)


@pytest.mark.parametrize("length", [7, 8, 11, 18])
def test_packed_the_loss_does_not_cross_the_borders(length):
    examples = [Example.of(*pair) for pair in PAIRS] + [Example.of([], [4, 5, 2])]
    rows = pack(examples, length)
    assert max(len(row.ids) for row in rows) <= length
    packed = supervised_batch(rows, pad_id=0)
    alone = supervised_batch(examples, pad_id=0)
    assert LOSS.count(packed) == LOSS.count(alone)
    torch.testing.assert_close(LOSS.total(Bigram(), packed), LOSS.total(Bigram(), alone))


def test_packed_every_text_is_there_once_and_whole():
    examples = [Example.of(*pair) for pair in PAIRS]
    rows = pack(examples, 9)
    assert all(len(row.ids) <= 9 for row in rows)
    # 6 and 2 tokens fit into one row of 9, then 6, then 7: the first row that has room, in the order given.
    assert [row.ids for row in rows] == [(5, 6, 7, 8, 9, 2, 5, 2), (10, 11, 5, 6, 7, 2), (3, 4, 5, 6, 7, 8, 2)]
    later = pack([examples[0], examples[2], examples[1]], 8)
    assert [row.ids for row in later] == [(5, 6, 7, 8, 9, 2, 5, 2), (10, 11, 5, 6, 7, 2)]
    assert pack([], 9) == []


def test_packed_attention_does_cross_the_borders():
    """As the docstring says. When models take a mask of texts, this test is to be turned round."""
    model, examples = gpt(), [Example.of(*pair) for pair in PAIRS]
    packed, alone = (supervised_batch(rows, pad_id=0) for rows in (pack(examples, 21), examples))
    assert not torch.isclose(LOSS.total(model, packed), LOSS.total(model, alone))


def test_too_long_is_an_error_unless_it_is_said_how_to_cut():
    examples = [Example.of(*pair) for pair in PAIRS]
    whole = supervised_batch(examples, pad_id=0, max_length=7)
    assert torch.equal(whole.targets, supervised_batch(examples, pad_id=0).targets)
    with pytest.raises(ValueError, match=r"text 3 is too long: it has 7 tokens, 6 are allowed.*cut=cut_end"):
        supervised_batch(examples, pad_id=0, max_length=6)
    with pytest.raises(ValueError, match=r"text 3 is too long: it has 7 tokens, 6 are allowed.*rows longer"):
        pack(examples, 6)


@pytest.mark.parametrize(
    ("cut", "inputs", "targets"),
    [(cut_end, [3, 4, 5], [4, 5, 6]), (cut_start, [6, 7, 8], [7, 8, 2])],
)
def test_cut_at_either_end(cut, inputs, targets):
    batch = supervised_batch([Example.of(*PAIRS[3])], pad_id=0, max_length=4, cut=cut)
    assert batch.inputs[0].tolist() == [inputs]
    assert batch.targets.tolist() == [targets]
    of_prompt = supervised_batch([Example.of([4, *PAIRS[0][0]], [8, 2])], pad_id=0, max_length=5, cut=cut)
    assert of_prompt.targets.tolist() == [[IGNORE_ID] * 3 + [8] if cut is cut_end else [IGNORE_ID] * 2 + [8, 2]]
    short = supervised_batch([Example.of(*PAIRS[1])], pad_id=0, max_length=4, cut=cut)
    assert short.inputs[0].tolist() == [[5]]


@pytest.mark.parametrize(
    ("pair", "cut", "length"),
    [
        (([5, 6, 7], [8, 9, 2]), cut_end, 3),
        (([5, 6, 7], [8, 9, 2]), cut_start, 1),
        (([5, 6, 7], [8, 9, 2]), cut_start, 0),
        (([5, 6, 7], [8, 9, 2]), cut_end, 0),
    ],
)
def test_nothing_left_to_learn_is_an_error(pair, cut, length):
    with pytest.raises(ValueError, match=f"text 0 has 6 tokens, and nothing .* left when it is cut to {length}"):
        supervised_batch([Example.of(*pair)], pad_id=0, max_length=length, cut=cut)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Example.of([5, 6], []), "this text of 2 tokens"),
        (lambda: Example.of([], [5]), "this text of 1 tokens"),
        (lambda: Example.of([], []), "this text of 0 tokens"),
        (lambda: Example.of_turns([]), "this text of 0 tokens"),
        (lambda: Example((1, 2, 3), (True, True)), "3 ids and 2 marks"),
        (lambda: supervised_batch([], pad_id=0), "at least one sequence"),
    ],
)
def test_texts_from_which_nothing_can_be_learned(make, message):
    with pytest.raises(ValueError, match=message):
        make()
