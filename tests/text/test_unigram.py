"""Unigram: every sum over cuts against the sum written out, every id against `tokenizers`, training against others."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from corpus import AWKWARD, chinese, code, english, mixed_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llm_core.text import unigram_fast
from llm_core.text.lattice import (
    best_cut,
    best_cuts,
    edges_of,
    expected_counts,
    forward_scores,
    prefixes_of,
    sample_cut,
)
from llm_core.text.lattices import Lattices
from llm_core.text.pretokenisers import Metaspace
from llm_core.text.pretokenize import split_at_spaces
from llm_core.text.tokenizer import Tokenizer as OurProtocol
from llm_core.text.tokenizer import UnknownTokenError
from llm_core.text.unigram_fast import BYTES, UnigramTokenizer
from llm_core.text.unigram_training import learn_scores, seed_pieces

SCORES = {"a": -2.0, "b": -2.5, "c": -3.0, "ab": -3.5, "bc": -4.0, "abc": -6.0, "aa": -4.0, "ca": -3.25, "bca": -5.5}
WORDS = ["a", "ab", "abc", "aaaa", "abcabc", "bcabca", "cabbacab", "aabbccaa"]


def cuts_of(word: str, pieces) -> list[tuple[str, ...]]:
    """All ways to cut a word into these pieces, by trying every set of places to cut at."""
    found = []
    for n in range(len(word)):
        for places in itertools.combinations(range(1, len(word)), n):
            ends = (0, *places, len(word))
            cut = tuple(word[start:end] for start, end in itertools.pairwise(ends))
            if all(piece in pieces for piece in cut):
                found.append(cut)
    return found


def probabilities_of(word: str, scores, alpha: float = 1.0) -> dict[tuple[str, ...], float]:
    weights = {cut: math.exp(alpha * sum(scores[piece] for piece in cut)) for cut in cuts_of(word, scores)}
    total = sum(weights.values())
    return {cut: weight / total for cut, weight in weights.items()}


def strings(word: str, cut) -> tuple[str, ...]:
    return tuple(word[start:end] for start, end in cut)


def theirs(pieces, unk_id=0, byte_fallback=False, prepend="always", special=()) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id, byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), tokenizer.decoder])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def assert_same(our: UnigramTokenizer, their: Tokenizer, text: str) -> None:
    ids = their.encode(text, add_special_tokens=False).ids
    assert our.encode(text) == ids, text[:200]
    for skip in (True, False):
        assert our.decode(ids, skip_special_tokens=skip) == their.decode(ids, skip_special_tokens=skip), text[:200]


@pytest.fixture(scope="module")
def trained() -> UnigramTokenizer:
    text = english()[:60_000] + chinese()[:6_000] + code()[:30_000]
    return UnigramTokenizer.train(text.split("\n\n"), 3000)


# --- the cuts of a word, written out ---


@pytest.mark.parametrize("word", WORDS)
def test_the_best_cut_is_the_best_of_all_cuts(word):
    totals = {cut: sum(SCORES[piece] for piece in cut) for cut in cuts_of(word, SCORES)}
    best = strings(word, best_cut(edges_of(word, SCORES)))
    assert totals[best] == pytest.approx(max(totals.values()))
    assert "".join(best) == word


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
@pytest.mark.parametrize("word", WORDS)
def test_the_n_best_cuts_are_the_n_best_of_all_cuts(word, n):
    totals = sorted((sum(SCORES[piece] for piece in cut) for cut in cuts_of(word, SCORES)), reverse=True)
    found = best_cuts(edges_of(word, SCORES), n)
    assert [score for score, _ in found] == pytest.approx(totals[:n])
    assert len({tuple(cut) for _, cut in found}) == len(found) == min(n, len(totals))
    for score, cut in found:
        assert score == pytest.approx(sum(SCORES[piece] for piece in strings(word, cut)))


@pytest.mark.parametrize("word", WORDS)
def test_expected_counts_are_the_mean_over_all_cuts(word):
    expected: Counter[str] = Counter()
    for cut, probability in probabilities_of(word, SCORES).items():
        for piece in cut:
            expected[piece] += probability
    counts, score = expected_counts(word, SCORES)
    assert counts == pytest.approx(dict(expected))
    assert score == pytest.approx(math.log(sum(math.exp(sum(map(SCORES.get, cut))) for cut in cuts_of(word, SCORES))))
    assert forward_scores(edges_of(word, SCORES))[-1] == pytest.approx(score)


class EveryChoice(random.Random):
    """Takes the path that it is told, and notes how likely the path was; the paths not taken are left for later."""

    def __init__(self, path):
        super().__init__(0)
        self.path, self.probability, self.branches = list(path), 1.0, []

    def choices(self, population, weights=None, *, cum_weights=None, k=1):
        assert k == 1
        assert sum(weights) == pytest.approx(1.0)
        at = len(self.branches)
        taken = self.path[at] if at < len(self.path) else 0
        self.branches.append((taken, len(population)))
        self.probability *= weights[taken] / sum(weights)
        return [population[taken]]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("word", WORDS)
def test_the_chance_of_each_sampled_cut_is_exact(word, alpha):
    """Not an estimate: every sequence of choices that the sampler can make is followed."""
    found: dict[tuple[str, ...], float] = {}
    paths = [()]
    while paths:
        rng = EveryChoice(paths.pop())
        cut = strings(word, sample_cut(edges_of(word, SCORES), rng, alpha))
        assert cut not in found
        found[cut] = rng.probability
        for at in range(len(rng.path), len(rng.branches)):
            head = tuple(taken for taken, _ in rng.branches[:at])
            paths += [(*head, other) for other in range(1, rng.branches[at][1])]
    assert found == pytest.approx(probabilities_of(word, SCORES, alpha))


def test_sampling_draws_as_often_as_it_should():
    rng, word, n = random.Random(5), "abcabc", 1500
    tokenizer = UnigramTokenizer([("<unk>", 0.0), *SCORES.items()], prepend="never")
    drawn = Counter(tuple(tokenizer.sample(word, rng, 0.5)) for _ in range(n))
    expected = probabilities_of(word, SCORES, 0.5)
    ids = {cut: tuple(tokenizer.vocabulary.ids[piece] for piece in cut) for cut in expected}
    assert set(drawn) <= set(ids.values())
    chi = sum((drawn[ids[cut]] - n * p) ** 2 / (n * p) for cut, p in expected.items())
    assert chi < 2 * len(expected) + 10  # the mean of chi^2 is len - 1
    assert drawn != Counter(tuple(tokenizer.sample(word, rng, 0.5)) for _ in range(n))
    again = random.Random(5)
    assert drawn == Counter(tuple(tokenizer.sample(word, again, 0.5)) for _ in range(n))


def test_a_long_word_overflows_nothing():
    word = "abc" * 3000
    edges = edges_of(word, SCORES)
    assert -math.inf < forward_scores(edges)[-1] < forward_scores(edges, 0.0)[-1] < math.inf
    assert "".join(strings(word, sample_cut(edges, random.Random(0), 50.0))) == word
    counts, _ = expected_counts(word, SCORES)
    assert sum(len(piece) * count for piece, count in counts.items()) == pytest.approx(len(word))


def test_what_cannot_be_cut_is_named():
    with pytest.raises(ValueError, match="'axb' cannot be cut into these 9 pieces"):
        expected_counts("axb", SCORES)
    assert edges_of("", SCORES) == []
    assert best_cut([]) == sample_cut([], random.Random(0)) == []
    assert best_cuts([], 3) == [(0.0, [])]


def test_many_words_at_once_are_the_words_one_by_one():
    words = [*WORDS, "c", "abc" * 50]
    pieces, scores = list(SCORES), np.array(list(SCORES.values()))
    counts = np.array([3.0, 1.0, 2.0, 0.5, 7.0, 1.0, 4.0, 1.0, 11.0, 2.0])
    used, total = Lattices(words, pieces).expected_counts(scores, counts)
    expected: Counter[str] = Counter()
    log_probability = 0.0
    for word, count in zip(words, counts.tolist(), strict=True):
        one, score = expected_counts(word, SCORES)
        log_probability += count * score
        for piece, share in one.items():
            expected[piece] += count * share
    assert dict(zip(pieces, used.tolist(), strict=True)) == pytest.approx({p: expected[p] for p in pieces})
    assert total == pytest.approx(log_probability)


def test_places_where_no_piece_ends_are_passed_over():
    scores = {"ab": -1.0, "abc": -2.0, "cd": -1.5, "d": -1.0, "bcd": -0.5, "dd": -1.0}
    for word in ("abcd", "abcdd", "abab"):
        edges, expected = edges_of(word, scores), probabilities_of(word, scores)
        assert {strings(word, cut) for _, cut in best_cuts(edges, 9)} == set(expected)
        assert strings(word, best_cut(edges)) == max(expected, key=expected.__getitem__)
        assert {strings(word, sample_cut(edges, random.Random(seed))) for seed in range(40)} == set(expected)
        used, _ = Lattices([word], list(scores)).expected_counts(np.array(list(scores.values())), np.ones(1))
        counts, _ = expected_counts(word, scores)
        assert used.tolist() == pytest.approx([counts.get(piece, 0.0) for piece in scores])
    with pytest.raises(ValueError, match="every word must be one that can be cut"):
        Lattices(["ab", "ba"], list(scores)).expected_counts(np.array(list(scores.values())), np.ones(2))


def test_pieces_that_go_take_their_edges_along():
    kept = [piece != "ab" and piece != "c" for piece in SCORES]
    fewer = {piece: score for (piece, score), stays in zip(SCORES.items(), kept, strict=True) if stays}
    words = ["ab", "abcaa", "bca", "aaa"]
    lattices = Lattices(words, list(SCORES))
    lattices.keep(np.array(kept))
    scores = np.array(list(fewer.values()))
    assert lattices.log_probabilities(scores).tolist() == pytest.approx([expected_counts(w, fewer)[1] for w in words])
    same = Lattices(words, list(fewer))
    ones = np.ones(len(words))
    assert lattices.expected_counts(scores, ones)[0] == pytest.approx(same.expected_counts(scores, ones)[0])


def test_a_piece_without_itself_is_all_its_other_cuts():
    words = ["ab", "abc", "aa", "bca"]
    found = Lattices(words, list(SCORES), whole=False).log_probabilities(np.array(list(SCORES.values())))
    for word, score in zip(words, found.tolist(), strict=True):
        others = [cut for cut in cuts_of(word, SCORES) if cut != (word,)]
        assert score == pytest.approx(math.log(sum(math.exp(sum(map(SCORES.get, cut))) for cut in others)))


def test_em_never_makes_the_text_less_likely():
    words = Counter(split_at_spaces(english()[:20_000]))
    pieces = list(seed_pieces(words, 6))
    lattices, counts = Lattices(list(words), pieces), np.array(list(words.values()), dtype=float)
    rng = np.random.default_rng(0)
    for start in (np.full(len(pieces), 1.0), rng.random(len(pieces)) + 0.01):
        used, totals = start, []
        for _ in range(12):
            scores = np.log(np.maximum(used, 1e-300) / used.sum())
            used, total = lattices.expected_counts(scores, counts)
            totals.append(total)
        assert all(after >= before - 1e-6 * abs(before) for before, after in itertools.pairwise(totals))
        assert totals[1] > totals[0] + 100
        assert totals[-1] > totals[1]
        # what is used adds up to the text
        assert used @ [len(piece) for piece in pieces] == pytest.approx(sum(len(w) * c for w, c in words.items()))


# --- ids ---


def test_ids_are_theirs_on_mixed_text(trained):
    their = theirs(trained.pieces, special=trained.special_tokens)
    for text in (mixed_text()[:200_000], *AWKWARD):
        assert_same(trained, their, text)
    assert trained.encode(mixed_text()[:50_000]).count(trained.unk_id) > 10  # unknown ones are among them


def test_ids_are_theirs_with_their_own_pieces():
    texts = english()[:60_000].split("\n")
    tokenizer = theirs([("<unk>", 0.0)])
    trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ours = UnigramTokenizer.from_json(tokenizer.to_str())
    assert ours.vocab_size == tokenizer.get_vocab_size()
    for text in (english()[40_000:100_000], *AWKWARD):
        assert_same(ours, tokenizer, text)


def test_ids_are_theirs_where_cuts_tie():
    """Scores of a few values, all of them sums of halves: many cuts have exactly the same score."""
    rng = random.Random(1)
    for _ in range(150):
        names = {"".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 12))}
        pieces = [("<unk>", 0.0)] + [(name, -rng.randint(1, 4) / 2 * len(name)) for name in sorted(names)]
        rng.shuffle(pieces)
        unk_id = [name for name, _ in pieces].index("<unk>")
        for prepend in ("always", "never"):
            our, their = (
                UnigramTokenizer(pieces, unk_id=unk_id, prepend=prepend),
                theirs(pieces, unk_id, False, prepend),
            )
            for _ in range(8):
                text = "".join(rng.choices("abcd ", k=rng.randint(0, 14)))
                assert our.encode(text) == their.encode(text).ids, (pieces, text)


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
@pytest.mark.parametrize("byte_fallback", [False, True])
def test_spaces_bytes_and_special_tokens_are_theirs(prepend, byte_fallback):
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁a", -1.5), ("a", -2.0), ("b", -3.0)]
    pieces += [("é", -4.0), ("▁▁", -3.0), ("\n", -5.0)]
    pieces += [(name, -6.0) for name in BYTES] if byte_fallback else []
    special = ("<s>", "</s>", "<unk>")
    our = UnigramTokenizer(pieces, byte_fallback=byte_fallback, prepend=prepend, special_tokens=special)
    their = theirs(pieces, 0, byte_fallback, prepend, special)
    texts = [
        "", " ", "  ", "a", " a", "a ", "a  b", "▁a", "a\nb", "\na", "é e\u0301", "<s>", "<s>a b</s>", "a<s> a<s>a",
        " <s> ",
        "<unk>a", "a<unk><unk>b", "xyz a xyz", "🎉🎉a", "a🎉 🎉", "中a文", "x<s>x", "<s", "</s></s>", "▁", "a▁b",
        *AWKWARD,
    ]  # fmt: skip
    for text in texts:
        assert_same(our, their, text)
    their.encode_special_tokens = True
    for text in texts:
        assert our.encode(text, allowed_special=()) == their.encode(text, add_special_tokens=False).ids, text
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(len(pieces)) for _ in range(rng.randint(0, 6))]
        for skip in (True, False):
            assert our.decode(ids, skip_special_tokens=skip) == their.decode(ids, skip_special_tokens=skip), ids


def test_the_text_comes_back(trained):
    with_bytes = UnigramTokenizer.train(english()[:20_000].split("\n"), 900, byte_fallback=True)
    assert with_bytes.vocab_size == 900
    for text in (mixed_text()[:50_000], *AWKWARD):
        expected = text.removeprefix(" ").replace("▁", " ")
        assert with_bytes.decode(with_bytes.encode(text)) == expected
        assert with_bytes.unk_id not in with_bytes.encode(text)
    exact = UnigramTokenizer(with_bytes.pieces, byte_fallback=True, prepend="never")
    for text in AWKWARD:
        assert exact.decode(exact.encode(text)) == text
    known = english()[:60_000]
    assert trained.decode(trained.encode(known)) == known.removeprefix(" ")


def test_unknown_characters_beside_each_other_are_one_token():
    tokenizer = UnigramTokenizer([("a", -1.0), ("<unk>", 0.0), ("▁", -1.0)], unk_id=1)
    assert tokenizer.encode("axya zz") == [2, 0, 1, 0, 2, 1]
    assert tokenizer.tokens("xa") == ["▁", "<unk>", "a"]
    without = UnigramTokenizer([("a", -1.0), ("▁", -1.0)], unk_id=None)
    assert without.encode("a a") == [1, 0, 1, 0]
    with pytest.raises(UnknownTokenError, match="'xy' cannot be cut into the 2 pieces"):
        without.encode("axy")


def test_lone_surrogates_are_unknown():
    """`tokenizers` refuses them; UTF-8 has no bytes for them."""
    text = "a\ud800b\udfff"
    plain = UnigramTokenizer([("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("▁", -1.0)])
    assert plain.encode(text) == [3, 1, 0, 2, 0]
    pieces = [*plain.pieces, *((name, -9.0) for name in BYTES)]
    assert UnigramTokenizer(pieces, byte_fallback=True).encode(text) == [3, 1, 0, 2, 0]
    trained = UnigramTokenizer.train(["ab\ud800 ab\ud800"], 10)
    assert not any("\ud800" in piece for piece in trained.vocabulary)
    with pytest.raises(TypeError):
        theirs(plain.pieces).encode(text)


def test_nothing_is_a_text_too(trained):
    assert trained.encode("") == trained.sample("", random.Random(0)) == []
    assert trained.decode([]) == ""
    assert trained.best("", 3) == [([], 0.0)]
    assert split_at_spaces("") == []
    assert split_at_spaces(" ") == split_at_spaces(" ", prepend=False) == ["▁"]


def test_a_very_long_word_is_cut_as_theirs(trained):
    text = "".join(random.Random(0).choices("abcdefgh中文x", k=20_000))
    assert trained.encode(text) == theirs(trained.pieces).encode(text).ids


def test_what_was_encoded_before_makes_no_difference(trained, monkeypatch):
    text = english()[:20_000]
    expected = UnigramTokenizer(trained.pieces).encode(text)
    assert trained.encode(text) == trained.encode(text) == expected
    monkeypatch.setattr(unigram_fast, "CACHE_SIZE", 3)
    small = UnigramTokenizer(trained.pieces)
    ids = small.encode(text)
    assert ids == expected
    ids.append(0)
    assert small.encode(text) == expected


# --- samples and the best few of a whole text ---


def test_samples_and_best_cuts_of_a_text_say_the_same_text(trained):
    text = "the statements raise another exception"
    rng = random.Random(0)
    samples = [trained.sample(text, rng, 0.2) for _ in range(20)]
    assert len({tuple(ids) for ids in samples}) > 5
    assert {trained.decode(ids) for ids in samples} == {text}
    found = trained.best(text, 8)
    assert found[0][0] == trained.encode(text)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len({tuple(ids) for ids, _ in found}) == 8
    assert {trained.decode(ids) for ids, _ in found} == {text}
    # the score of a cut is that of its pieces
    for ids, score in found:
        assert score == pytest.approx(sum(trained.pieces[id_][1] for id_ in ids))
    assert trained.sample(text, rng, 1000.0) == trained.encode(text)


def test_the_best_of_two_words_are_the_best_of_all_pairs():
    tokenizer = UnigramTokenizer([("<unk>", 0.0), ("▁", -1.0), *SCORES.items(), ("▁a", -3.5)])
    scores = dict(tokenizer.pieces)
    totals = [
        sum(scores[piece] for piece in (*first, *second))
        for first in cuts_of("▁abc", scores)
        for second in cuts_of("▁caa", scores)
    ]
    found = tokenizer.best("abc caa", 7)
    assert [score for _, score in found] == pytest.approx(sorted(totals, reverse=True)[:7])


def test_the_best_few_are_those_of_sentencepiece():
    import sentencepiece

    texts = [line for line in english()[:60_000].split("\n") if line]
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, vocab_size=700, model_type="unigram", bos_id=-1, eos_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    their = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    our = UnigramTokenizer([(their.id_to_piece(i), their.get_score(i)) for i in range(their.vocab_size())])
    for text in ("statement", "The quick brown fox", "multiplication of integers"):
        expected = their.nbest_encode_as_ids(text, 6)
        scores = dict(enumerate(score for _, score in our.pieces))
        assert [s for _, s in our.best(text, 6)] == pytest.approx(
            [sum(map(scores.get, ids)) for ids in expected], rel=1e-4
        )
        assert our.encode(text) == their.encode(text)


def test_how_sharp_a_sample_is_must_be_a_number_from_0_on(trained):
    for alpha in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha must be a number from 0 on"):
            trained.sample("a", random.Random(0), alpha)
    with pytest.raises(ValueError, match="n=0"):
        trained.best("a", 0)


# --- training ---


def test_seeds_are_the_substrings_that_occur_twice_and_end_in_more_than_one_way():
    words = Counter(split_at_spaces("the then there other otter banana bandana") * 3) + Counter(["▁xyz"])
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                counts[word[start:end]] += count
    longer = {piece[:-1] for piece, count in counts.items() if counts[piece[:-1]] == count}
    for longest in (1, 2, 4, 16):
        expected = {
            piece: count
            for piece, count in counts.items()
            if len(piece) == 1
            or (len(piece) <= longest and count > 1 and (piece not in longer or len(piece) == longest))
        }
        assert seed_pieces(words, longest) == expected
    few = seed_pieces(words, 16, 5)
    several = {piece: n * len(piece) for piece, n in seed_pieces(words).items() if len(piece) > 1}
    assert sorted(several[p] for p in few if len(p) > 1) == sorted(several.values())[-5:]
    assert [piece for piece in few if len(piece) == 1] == list(few)[: len(set("".join(words)))]


def test_training_keeps_every_character_and_the_size_asked_for(trained):
    text = english()[:60_000] + chinese()[:6_000] + code()[:30_000]
    assert trained.vocab_size == 3000
    assert set(text.replace(" ", "▁")) <= set(trained.vocabulary)
    assert trained.pieces[0] == ("<unk>", 0.0)
    scores = [score for _, score in trained.pieces[1:]]
    rounded = [round(score, 9) for score in scores]  # what ties but for rounding stands in the order of the pieces
    assert rounded == sorted(rounded, reverse=True)
    assert sum(map(math.exp, scores)) == pytest.approx(1.0)
    assert not any("▁" in piece[1:] for piece in trained.vocabulary)


def test_training_is_as_good_as_theirs_on_text_it_has_not_seen():
    """At most 4 % more tokens, and a log likelihood at most 2 % lower."""
    texts = english()[:120_000].split("\n")
    seen, unseen = [t for i, t in enumerate(texts) if i % 10], [t for i, t in enumerate(texts) if i % 10 == 0]
    their = theirs([("<unk>", 0.0)])
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    their.train_from_iterator(seen, trainer)
    tokenizers = [UnigramTokenizer.train(seen, 1200), UnigramTokenizer.from_json(their.to_str())]
    (n, likely), (their_n, their_likely) = [
        (
            sum(len(tokenizer.encode(text)) for text in unseen),
            sum(tokenizer.best(text, 1)[0][1] for text in unseen),
        )
        for tokenizer in tokenizers
    ]
    assert n < 1.04 * their_n
    assert likely > 1.02 * their_likely  # both negative


def test_pruning_takes_what_costs_least():
    # "ab" and "cd" are whole words; "abcd" occurs so rarely that its parts do as well.
    words = {"ab": 100, "cd": 90, "abcd": 2, "a": 3, "b": 3, "c": 3, "d": 3}
    assert set(learn_scores(words, 6)) == {"a", "b", "c", "d", "ab", "cd"}
    assert set(learn_scores(words, 5)) == {"a", "b", "c", "d", "ab"}
    assert set(learn_scores(words, 4)) == {"a", "b", "c", "d"}
    scores = learn_scores(words, 4)
    counts = Counter("".join(word * n for word, n in words.items()))
    for character, score in scores.items():
        assert math.exp(score) == pytest.approx(counts[character] / counts.total())
    assert learn_scores(words, 6, shrink=0.1).keys() == learn_scores(words, 6, shrink=0.9).keys()


def test_a_character_that_em_has_no_use_for_counts_as_used_half_a_time():
    uses = 500
    scores = learn_scores({"abcdefgh": uses}, 9)  # the word stays whole as good as always
    assert set(scores) == {*"abcdefgh", "abcdefgh"}
    for character in "abcdefgh":
        assert math.exp(scores[character]) == pytest.approx(0.5 / (uses + 8 * 0.5), rel=1e-3)
    assert sum(map(math.exp, scores.values())) == pytest.approx(1.0)


def test_training_does_not_depend_on_the_order_of_the_texts():
    texts = english()[:30_000].split("\n")
    first = UnigramTokenizer.train(texts, 500)
    second = UnigramTokenizer.train(iter(texts[::-1]), 500)
    assert second.pieces == first.pieces
    words = Counter(split_at_spaces(english()[:10_000]))
    assert learn_scores(words, 300) == learn_scores(dict(sorted(words.items(), reverse=True)), 300)


def test_options_of_training():
    texts = ["a banana, a bandana, a cabana"] * 3
    tokenizer = UnigramTokenizer.train(
        texts, 290, special_tokens=["<u>", "<s>"], byte_fallback=True, prepend="never", max_length=3, seeds=8
    )
    assert list(tokenizer.vocabulary)[:2] == ["<u>", "<s>"]
    assert list(tokenizer.vocabulary)[2:258] == list(BYTES)
    assert max(map(len, list(tokenizer.vocabulary)[258:])) == 3
    assert sum(len(piece) > 1 for piece in list(tokenizer.vocabulary)[258:]) == 8
    assert tokenizer.split == Metaspace("▁", "never")
    assert tokenizer.encode("<s>a")[0] == 1
    assert tokenizer.decode(tokenizer.encode(" é a")) == " é a"


def test_errors():
    with pytest.raises(ValueError, match="list of texts"):
        UnigramTokenizer.train("one string", 100)
    for nothing in ([], [""], ["\ud800"]):
        with pytest.raises(ValueError, match="at least one text"):
            UnigramTokenizer.train(nothing, 100)
    with pytest.raises(ValueError, match="room for all 4 characters of the texts: got room for 3"):
        UnigramTokenizer.train(["abc"], 4)
    assert UnigramTokenizer.train(["abc"], 5).vocab_size == 5
    with pytest.raises(ValueError, match="special_tokens must begin"):
        UnigramTokenizer.train(["abc"], 50, special_tokens=[])
    for pieces in ([], [("", 0.0)]):
        with pytest.raises(ValueError, match="no piece may be empty"):
            UnigramTokenizer(pieces)
    with pytest.raises(ValueError, match="once: got 'a' more than once"):
        UnigramTokenizer([("a", 0.0), ("a", -1.0)])
    for unk_id in (-1, 1):
        with pytest.raises(ValueError, match=f"0 to 0: got {unk_id}"):
            UnigramTokenizer([("a", -1.0)], unk_id=unk_id)
    with pytest.raises(ValueError, match="256 are not, '<0x00>' for one"):
        UnigramTokenizer([("a", -1.0)], byte_fallback=True)
    with pytest.raises(ValueError, match="1 are not, '<s>' for one"):
        UnigramTokenizer([("a", -1.0)], special_tokens=["<s>"])
    for id_ in (-1, 1):
        with pytest.raises(UnknownTokenError, match=f"0 to 0: got {id_}"):
            UnigramTokenizer([("a", -1.0)]).decode([0, id_])


# --- files ---


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_a_saved_tokenizer_is_the_same_to_both(tmp_path, trained, byte_fallback):
    pieces = trained.pieces[:600] + ([(name, -20.0) for name in BYTES] if byte_fallback else [])
    pieces.insert(1, ("<s>", 0.0))
    for prepend in ("always", "first", "never"):
        our = UnigramTokenizer(pieces, prepend=prepend, byte_fallback=byte_fallback, special_tokens=["<s>", "<unk>"])
        path = our.save(tmp_path / "tokenizer.json")
        loaded, their = UnigramTokenizer.load(path), Tokenizer.from_file(str(path))
        assert loaded.pieces == our.pieces
        assert loaded.to_json() == path.read_text(encoding="utf-8")
        for text in (english()[5_000:10_000], "<s> a <s>b", *AWKWARD[:12]):
            assert_same(our, their, text)
            assert_same(loaded, their, text)
        their.save(str(path))
        assert UnigramTokenizer.load(path).to_json() == our.to_json()
        assert len(list(tmp_path.iterdir())) == 1


def test_files_that_ask_for_something_else_are_refused(tmp_path):
    good = json.loads(UnigramTokenizer([("<unk>", 0.0), ("a", -1.0)], special_tokens=["<unk>"]).to_json())

    def refused(change, message):
        content = copy.deepcopy(good)
        change(content)
        (tmp_path / "t.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=message) as error:
            UnigramTokenizer.load(tmp_path / "t.json")
        assert "t.json" in str(error.value)

    refused(lambda c: c["model"].update(type="BPE"), 'model.type must be "Unigram", got "BPE"')
    refused(lambda c: c["pre_tokenizer"].update(type="Spaces"), "pre_tokenizer.type")
    refused(lambda c: c["added_tokens"][0].update(rstrip="no"), "rstrip of the added token '<unk>'")
    refused(lambda c: c["model"].update(byte_fallback=True), "model.byte_fallback must be false, where not all of")
    refused(lambda c: c.update(decoder=None), "decoder must be there")
    refused(lambda c: c["model"].update(unk_id=2), "model.unk_id must be null, or the place of one of the 2 pieces")


def test_it_is_a_tokenizer_that_can_be_sent_to_another_process(trained):
    assert isinstance(trained, OurProtocol)
    trained.encode("the cat")
    for twin in (pickle.loads(pickle.dumps(trained)), copy.deepcopy(trained)):
        assert twin.encode("the cat sat") == trained.encode("the cat sat")
    assert prefixes_of(trained.vocabulary) >= set(trained.vocabulary)
