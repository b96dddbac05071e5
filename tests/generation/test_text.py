"""Text in, text out: what comes in pieces against what one gets by decoding all at the end and cutting."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch
from wrapped import Script, gpt, markov

from llm_core.generation.adjust import RepetitionPenalty
from llm_core.generation.generate import generate
from llm_core.generation.sampling import Sampler
from llm_core.generation.text import find_stop, generate_text, stream_text
from llm_core.text.characters import CharacterTokenizer
from llm_core.text.tokenizer import Vocabulary
from llm_core.text.words import WordTokenizer

TEXT = "a bc, dé. Ünïcode – 中文字 — 😀👍🏽 e\ufffdf\n\nEND. abcabcabd "


class Bytes:
    """Tokens are strings of bytes, cut anywhere: in the middle of a character, too. `encode` cuts by chance."""

    def __init__(self, chance: random.Random) -> None:
        raw = TEXT.encode()
        cuts = [sorted(chance.sample(range(len(raw) + 1), 2)) for _ in range(60)]
        self.tokens = [bytes([i]) for i in range(256)] + [raw[i : min(j, i + 7)] for i, j in cuts]
        self.vocabulary = Vocabulary({str(i): i for i in range(len(self.tokens))})
        self.chance = chance

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        raw, ids = text.encode(), []
        while raw:
            fits = [i for i, token in enumerate(self.tokens) if raw.startswith(token)]
            ids.append(self.chance.choice(fits))
            raw = raw[len(self.tokens[ids[-1]]) :]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


def cut(text: str, stops: list[str]) -> str:
    """Character by character: the text ends before the stop string with which it first ends, the longest."""
    for n in range(len(text) + 1):
        standing = [len(stop) for stop in stops if text[:n].endswith(stop)]
        if standing:
            return text[: n - max(standing)]
    return text


def a_text(chance: random.Random, tokenizer: Bytes) -> list[int]:
    """The ids of some text, now and then with a byte that is out of place."""
    ids = tokenizer.encode("".join(chance.choices(TEXT, k=chance.randrange(40))))
    for _ in range(chance.randrange(3)):
        ids.insert(chance.randrange(len(ids) + 1), chance.randrange(256))
    return ids


def some_stops(chance: random.Random, text: str) -> list[str]:
    """Pieces of the text, strings that nearly stand in it, and others."""
    stops = []
    for _ in range(chance.randrange(4)):
        i = chance.randrange(len(text) + 1)
        piece = text[i : i + chance.randrange(1, 5)]
        stops.append(chance.choice([piece, piece + "x", "abd", "é", "\n\n", "😀"]) or "ab")
    return stops


@pytest.mark.parametrize("seed", range(150))
def test_pieces_joined_are_the_text_decoded_as_a_whole_and_cut(seed):
    chance = random.Random(seed)
    tokenizer = Bytes(chance)
    ids = a_text(chance, tokenizer) or [97]
    text = tokenizer.decode(ids)
    stops = some_stops(chance, text)
    pieces = list(stream_text(Script(ids, 400), tokenizer, chance.choice(["a", "é中", TEXT]), len(ids), stop=stops))
    assert "".join(pieces) == cut(text, stops)
    assert "" not in pieces
    assert find_stop(text, stops) == (len(cut(text, stops)) if any(stop in text for stop in stops) else None)


def certain(text: str, stops: list[str]) -> str:
    """What no continuation can change: without an unfinished character, or a stop string's beginning, at the end."""
    text = text.rstrip("\ufffd")
    beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(beginnings, default=0)]


@pytest.mark.parametrize("seed", range(30))
def test_each_piece_comes_as_soon_as_it_is_certain(seed):
    chance = random.Random(seed)
    tokenizer = Bytes(chance)
    ids = tokenizer.encode(TEXT)
    stops = ["ENDE", "abcabd", "👍👍", "abx"]
    expected, given = [], ""
    for n in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:n])
        end = text.find("abcabd")
        if (now := certain(text, stops) if end < 0 else text[:end]) != given:
            expected.append((n, now[len(given) :]))
            given = now
        if end >= 0:
            break
    assert given == TEXT[: TEXT.index("abcabd")]
    model = Script(ids, 400)
    assert [(model.asked, piece) for piece in stream_text(model, tokenizer, "a", len(ids), stop=stops)] == expected
    assert model.asked == n


def test_nothing_is_generated_after_a_stop_string():
    tokenizer = CharacterTokenizer("abcdefgh")
    model = Script(tokenizer.encode("abcdefgh"), 8)
    assert list(stream_text(model, tokenizer, "a", 8, stop="de")) == ["a", "b", "c"]
    assert model.asked == 5


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "abcabd"),
        ("abd", "abc"),
        (["x", "ca"], "ab"),
        (["cab", "ca"], "ab"),
        (["bcab", "cab"], "a"),  # both complete at once: the longer one
        (["abca", "b"], "a"),  # b is complete first
        ("abcabd", ""),
        ("abcabdx", "abcabd"),
        (["abce", "bca"], "a"),
        ("d", "abcab"),
    ],
)
def test_the_stop_string_that_is_complete_first_ends_the_text(stop, expected):
    tokenizer = CharacterTokenizer("abcd")
    assert generate_text(Script(tokenizer.encode("abcabd"), 4), tokenizer, "a", 6, stop=stop) == expected


def test_the_stop_token_is_not_part_of_the_text():
    tokenizer = CharacterTokenizer("abcd")
    ids = tokenizer.encode("abcabd")
    assert generate_text(Script(ids, 4), tokenizer, "a", 6, stop_id=2) == "ab"
    assert generate_text(Script(ids, 4), tokenizer, "a", 6, stop_id={3, 1}) == "a"
    assert generate_text(Script(ids, 4), tokenizer, "a", 6, stop_id=0) == ""
    # What might have been a stop string is handed out when a stop token ends the text.
    assert list(stream_text(Script(ids, 4), tokenizer, "a", 6, stop_id=2, stop="abd")) == ["ab"]


def test_a_character_that_is_never_finished_is_a_replacement_character():
    tokenizer = Bytes(random.Random(0))
    ids = [*"a😀".encode()][:-1]
    assert list(stream_text(Script(ids, 400), tokenizer, "a", 4)) == ["a", "\ufffd"]
    assert list(stream_text(Script(ids, 400), tokenizer, "a\ufffd", 4)) == ["a", "\ufffd"]
    assert list(stream_text(Script([240, 159, 97], 400), tokenizer, "a", 3)) == ["\ufffda"]


def test_the_text_continues_the_prompt():
    tokenizer = WordTokenizer.train(["I love books, and maps."])
    ids = tokenizer.encode("and maps.")
    assert list(stream_text(Script(ids, 20), tokenizer, "I love books", 3)) == [" and", " maps", "."]
    assert list(stream_text(Script(ids, 20), tokenizer, "I love books,", 3, stop=" ma")) == [" and"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_it_is_what_generate_chooses_decoded(use_cache):
    tokenizer, model = CharacterTokenizer("abcdefghijklmnopqrs"), gpt()
    options = {"choose": Sampler(1.5, 9), "adjust": RepetitionPenalty(1.4), "use_cache": use_cache}
    text = generate_text(model, tokenizer, "head", 10, generator=torch.Generator().manual_seed(1), **options)
    ids = generate(model, [tokenizer.encode("head")], 10, generator=torch.Generator().manual_seed(1), **options)
    assert text == tokenizer.decode(ids[0].tolist())
    assert len(set(text)) > 3


def test_tokens_that_the_tokenizer_does_not_have_are_never_chosen():
    model = markov(9, 0)
    model.table[:, 5:] = 50.0
    tokenizer = CharacterTokenizer("abcde")
    expected = [int(model.table[0, :5].argmax())]
    for _ in range(5):
        expected.append(int(model.table[expected[-1], :5].argmax()))
    assert generate_text(model, tokenizer, "a", 6) == tokenizer.decode(expected)
    assert len(generate_text(model, tokenizer, "a", 30, choose=Sampler(), generator=torch.Generator())) == 30


def test_ids_in_a_gap_of_the_vocabulary_are_never_chosen():
    characters = "abcde"
    tokenizer = CharacterTokenizer(characters)
    tokenizer.vocabulary = Vocabulary({c: 2 * i for i, c in enumerate(characters)})  # 1, 3, 5, 7: no token
    model = markov(12, 0)
    model.table[:, 1::2] += 50.0
    model.table[:, 9:] += 50.0
    known = list(tokenizer.vocabulary.ids.values())
    expected = [known[int(model.table[0, known].argmax())]]
    for _ in range(5):
        expected.append(known[int(model.table[expected[-1], known].argmax())])
    assert generate_text(model, tokenizer, "a", 6) == tokenizer.decode(expected)
    for choose in (Sampler(), Sampler(9.0), Sampler(top_k=1), Sampler(top_p=0.5), Sampler(min_p=0.5)):
        text = generate_text(model, tokenizer, "a", 30, choose=choose, generator=torch.Generator())
        assert len(text) == 30
        assert set(text) <= set(characters)
    # An adjustment has its say before, and none can bring them back.
    text = generate_text(model, tokenizer, "a", 30, adjust=lambda logits, *_: logits * 0)
    assert text == "a" * 30


def test_a_stop_token_needs_no_token_of_the_tokenizer():
    model = markov(9, 0)
    model.table[:, 7] = 50.0
    assert generate_text(model, CharacterTokenizer("abcde"), "a", 6, stop_id=7) == ""
    assert len(generate_text(model, CharacterTokenizer("abcde"), "a", 6)) == 6


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_text_is_refused():
    model, tokenizer = markov(4, 0), CharacterTokenizer("abcd")
    for call in (stream_text, generate_text):
        for prompt in ([1, 2], b"ab", None, 3):
            with pytest.raises(ValueError, match=f"the prompt is text: got a {type(prompt).__name__}"):
                call(model, tokenizer, prompt, 3)
        for stop in (3, [3], None, ["a", None], [b"a"]):
            with pytest.raises(ValueError, match=r"stop strings are text, .*stop_id"):
                call(model, tokenizer, "a", 3, stop=stop)
        with pytest.raises(ValueError, match="got max_new_tokens=nan"):
            call(model, tokenizer, "a", float("nan"))
    assert model.passes == 0


def test_what_cannot_work_is_refused_by_the_call_itself():
    model, tokenizer = markov(4, 0), CharacterTokenizer("abcd")
    for call in (stream_text, generate_text):
        with pytest.raises(ValueError, match="the tokenizer has 5 tokens, the model knows 4"):
            call(model, CharacterTokenizer("abcde"), "a", 3)
        with pytest.raises(ValueError, match="empty stop string"):
            call(model, tokenizer, "a", 3, stop=["b", ""])
        with pytest.raises(ValueError, match="empty stop string"):
            call(model, tokenizer, "a", 3, stop="")
        with pytest.raises(ValueError, match="prompt is empty"):
            call(model, tokenizer, "", 3)
        with pytest.raises(
            ValueError, match="2 prompt tokens and 100 new ones do not fit the context of 100: at most 99"
        ):
            call(model, tokenizer, "ab", 100)
        with pytest.raises(ValueError, match="stop token"):
            call(model, tokenizer, "a", 3, stop_id=4)
        with pytest.raises(ValueError, match="max_new_tokens=0"):
            call(model, tokenizer, "a", 0)
        with pytest.raises(ValueError, match="not among the 4 characters"):
            call(model, tokenizer, "xyz", 3)
    assert model.passes == 0
