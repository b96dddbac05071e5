"""`tokenizer.json` with a Unigram: files like T5's and XLM-RoBERTa's, and every entry deleted, nulled, flipped."""

from __future__ import annotations

import copy
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from wire import fields_of

from llm_core.text.unigram_fast import BYTES, UnigramTokenizer

TEXTS = [
    "", " ", "a b", " ab  ba ", "abc\tab\n\nb a", "ﬁx ﬂx x", "é e\u0301 中a", "a <x> b", "a<x>b <x>",
    " <mask> a <mask>", "b <B> a<B>b", "</s>a<s>", "▁a▁▁b", "aaaaaaaaaabbbbbbbbb ab ab ab ab ab ab", "\u00a0a\u2003b A",
]  # fmt: skip
PIECES = [
    ("▁", -2.0), ("▁a", -1.5), ("a", -2.5), ("b", -2.0), ("ab", -3.0), ("▁ab", -2.5), ("c", -4.0), ("fi", -3.5),
    ("x", -3.0), ("é", -5.0), ("▁b", -2.75), ("e", -3.0), ("A", -4.0),
]  # fmt: skip


@cache
def small_charsmap(folder: Path) -> bytes:
    """A table with a few rules: ﬁ -> fi, ﬂ -> fl, a tab -> a space, e and an accent -> é, U+2003 -> nothing."""
    rules = {"FB01": "66 69", "FB02": "66 6C", "9": "20", "65 301": "E9", "2003": ""}
    tsv = folder / "rules.tsv"
    tsv.write_text("".join(f"{source}\t{target}\n" for source, target in rules.items()))
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab c d e f g h"] * 10), model_writer=file, vocab_size=12, model_type="unigram",
        normalization_rule_tsv=str(tsv), minloglevel=2,
    )  # fmt: skip
    return fields_of(fields_of(file.getvalue(), 3)[0], 2)[0]


def like_t5(folder: Path) -> Tokenizer:
    """As transformers converts T5: </s> at the end, and here with a longest length and padding too."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *PIECES, ("<x>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 2, False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(small_charsmap(folder)),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<x>"])
    tokenizer.enable_truncation(14)
    tokenizer.enable_padding(length=9, pad_id=0, pad_token="<pad>")
    return tokenizer


def like_xlm_roberta(folder: Path) -> Tokenizer:
    """As XLM-RoBERTa and multilingual-e5: <s> ... </s>, and a mask that takes the space before it."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *PIECES, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 3, False))
    tokenizer.normalizer = normalizers.Precompiled(small_charsmap(folder))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens([AddedToken("<B>", single_word=True, rstrip=True), AddedToken("ba", normalized=True)])
    return tokenizer


def with_bytes(folder: Path) -> Tokenizer:
    """NFKC, and bytes for what is unknown."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((name, -9.0) for name in BYTES), *PIECES]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


FILES = {"T5": like_t5, "XLM-RoBERTa": like_xlm_roberta, "bytes": with_bytes}


@pytest.fixture(scope="module", params=FILES)
def their(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return FILES[request.param](tmp_path_factory.mktemp("rules"))


def outcome(errors: type[BaseException], call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What a call gives, or that it cannot be done: a tokenizer may only find out when it gets a text."""
    try:
        return call(*given, **named)
    except errors:
        return "refused"


def differences(our: UnigramTokenizer, their: Tokenizer) -> list[str]:
    """Where the two do not give the same ids, segments or texts, and ours does not refuse."""
    found = []
    for text in TEXTS:
        plain = outcome(BaseException, their.encode, text, add_special_tokens=False)
        pairs = [
            (outcome(ValueError, our.encode, text), plain),
            (
                outcome(ValueError, our.encode, text, add_special_tokens=True),
                outcome(BaseException, their.encode, text),
            ),
            (outcome(ValueError, our.encode_pair, text, "b a"), outcome(BaseException, their.encode, text, "b a")),
        ]
        checked = [(got, expected, getattr(expected, "ids", expected)) for got, expected in pairs]
        for got, expected, ids in checked:
            wanted = (ids, expected.type_ids) if isinstance(got, tuple) and ids != "refused" else ids
            if got not in (wanted, "refused"):
                found.append(f"{text!r}: {got!r} and {wanted!r}")
        if plain != "refused":
            for skip in (True, False):
                got = outcome(ValueError, our.decode, plain.ids, skip_special_tokens=skip)
                wanted = their.decode(plain.ids, skip_special_tokens=skip)
                if got not in (wanted, "refused"):
                    found.append(f"{plain.ids}: {got!r} and {wanted!r}")
    return found


def test_files_like_the_published_ones_are_read(their):
    our = UnigramTokenizer.from_json(their.to_str())
    assert differences(our, their) == []
    for text in TEXTS:  # which refuses nothing
        our.decode(our.encode(text) + our.encode_pair(text, text)[0])
    assert differences(UnigramTokenizer.from_json(our.to_json()), their) == []
    assert differences(our, Tokenizer.from_str(our.to_json())) == []
    assert UnigramTokenizer.from_json(our.to_json()).to_json() == our.to_json()


def test_files_of_before_2024_are_read(tmp_path):
    """Metaspace with add_prefix_space and str_rep, as t5-small's own file has it."""
    content = json.loads(like_xlm_roberta(tmp_path).to_str())
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    content["pre_tokenizer"]["pretokenizers"][1] = content["decoder"] = old
    text = json.dumps(content)
    assert differences(UnigramTokenizer.from_json(text), Tokenizer.from_str(text)) == []


# --- every entry ---

ABSENT = object()
# Of these, what the package tokenizers itself does not read (a number of 70 bits, a list as a dict) is clear to us.
OF_TYPE_ONLY = {
    "max_length", "Fixed", "pad_id", "pad_type_id", "type_id", "added_tokens", "special_tokens", "replacement", "type",
}  # fmt: skip
OTHER_STRINGS = ["", "x", "▁", "never", "first", "NFKC", "Left", "</s>"]


def paths(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of a file; of long lists the first two and the last."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from paths(value, (*path, key))
    elif isinstance(content, list):
        for i in sorted({*range(len(content))} & {0, 1, len(content) - 1}):
            yield from paths(content[i], (*path, i))


def edits(value: Any) -> list[Any]:
    found: list[Any] = [ABSENT, None, True, 3, -1, 0.5, "other", [], {}]
    if isinstance(value, bool):
        found.append(not value)
    elif isinstance(value, int | float):
        found += [value + 1, value - 1, 0, 10**6, 2**70]
    elif isinstance(value, str):
        found += [*OTHER_STRINGS, value.upper(), value + "x"]
    elif isinstance(value, list):
        found += [value[::-1], value[:1], value + value, [None], [[]]]
    elif isinstance(value, dict):
        found += [[value], {**value, "more": 1}]
    return [edit for edit in found if edit is ABSENT or json.dumps(edit) != json.dumps(value)]


def edited(content: Any, path: tuple[str | int, ...], edit: Any) -> str:
    content = copy.deepcopy(content)
    *way, last = path
    place = content
    for step in way:
        place = place[step]
    if edit is ABSENT:
        del place[last]
    else:
        place[last] = edit
    return json.dumps(content)


def ours(text: str) -> tuple[UnigramTokenizer | None, str]:
    """Our tokenizer, or why not; any error but a ValueError is one of the test."""
    try:
        return UnigramTokenizer.from_json(text), ""
    except ValueError as error:
        return None, str(error)


def theirs(text: str) -> Tokenizer | None:
    """Theirs, if they can. Rust's panics are no Exception."""
    try:
        return Tokenizer.from_str(text)
    except BaseException:
        return None


def test_every_entry_is_obeyed_or_refused(their):
    """Ids and texts are those of the package tokenizers, or a ValueError names the entry or what holds it."""
    content = json.loads(their.to_str())
    counts: Counter[str] = Counter()
    for path in paths(content):
        value = content
        for step in path:
            value = value[step]
        for edit in edits(value):
            text = edited(content, path, edit)
            counts["tried"] += 1
            our, refused = ours(text)
            names = [step for step in path if isinstance(step, str)]
            shown = (path, "deleted" if edit is ABSENT else edit, refused)
            if our is None:
                assert any(name in refused for name in (*names[-2:], "added token", "special token")), shown
                counts["refused"] += 1
            elif (other := theirs(text)) is None:
                assert path[-1] in OF_TYPE_ONLY, shown
                counts["only ours"] += 1
            else:
                assert differences(our, other) == [], shown
                counts["equal"] += 1
    print(dict(counts))  # pytest -s shows it
    assert counts["tried"] >= 1100
    assert counts["equal"] >= 140
    assert counts["refused"] >= 850


@pytest.mark.parametrize("score", ["1e999", "-1e999", "Infinity", "-Infinity", "NaN"])
def test_a_score_that_is_not_finite_is_refused_by_its_place(score, tmp_path):
    text = like_xlm_roberta(tmp_path).to_str().replace("-2.75", score)
    our, refused = ours(text)
    assert our is None
    assert "model.vocab[" in refused


def test_the_unknown_piece_is_one_of_the_pieces(tmp_path):
    content = json.loads(like_xlm_roberta(tmp_path).to_str())
    n = len(content["model"]["vocab"])
    for unk_id in (n, n + 1):
        our, refused = ours(edited(content, ("model", "unk_id"), unk_id))
        assert our is None
        assert f"the place of one of the {n} pieces" in refused
    our, refused = ours(edited(content, ("model", "unk_id"), n - 1))
    assert our is not None, refused
