"""Small tokenizers in the forms of published ones, made by the package tokenizers: what a tokenizer.json looks like.

The forms are those of the files of these models; the vocabularies are trained on a few kilobytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from corpus import chinese, code, english
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm_core.text.pretokenize import CL100K, O200K

BYTES = functools.partial(pre_tokenizers.ByteLevel, add_prefix_space=False)
QWEN = str(CL100K.pattern).replace(r"\p{N}{1,3}", r"\p{N}")
SPACE = "▁"


def sample(size: int = 6000) -> list[str]:
    text = english()[:size] + chinese()[: size // 4] + code()[: size // 2] + "naïve Übung e\u0301 1234 😀👍 ×÷ ﬁ①"
    return text.splitlines(keepends=True)


def _trained(tokenizer: Tokenizer, special: list[str], size: int, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, show_progress=False, min_frequency=2, **options
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def _bytes(pre_tokenizer: Any, special: list[str], normalizer: Any = None, size: int = 500) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _trained(tokenizer, special, size, initial_alphabet=BYTES().alphabet())


def _split(pattern: str) -> Any:
    first = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([first, BYTES(use_regex=False)])


def gpt2() -> Tokenizer:
    return _bytes(BYTES(), ["<|endoftext|>"])


def smollm2() -> Tokenizer:
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES()])
    return _bytes(digits, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])


def qwen() -> Tokenizer:
    tokenizer = _bytes(_split(QWEN), [], normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|endoftext|>", "<|im_start|>")])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "<think>", "</think>")])
    return tokenizer


def llama3() -> Tokenizer:
    tokenizer = _bytes(_split(str(CL100K.pattern)), [])
    tokenizer.model.ignore_merges = True
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|>:0 $A:0 <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", begin)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def gpt4o() -> Tokenizer:
    return _bytes(_split(str(O200K.pattern)), ["<|endoftext|>"])


def deepseek() -> Tokenizer:
    steps = [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex("[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
        pre_tokenizers.Split(
            Regex(
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        BYTES(use_regex=False),
    ]
    tokenizer = _bytes(pre_tokenizers.Sequence(steps), [], normalizers.Sequence([]))
    tokenizer.add_special_tokens([AddedToken("<｜begin▁of▁sentence｜>", normalized=True)])
    begin = tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<｜begin▁of▁sentence｜> $A",
        pair="<｜begin▁of▁sentence｜> $A <｜begin▁of▁sentence｜>:1 $B:1",
        special_tokens=[("<｜begin▁of▁sentence｜>", begin)],
    )
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = _bytes(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _characters() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _sentencepiece_like(tokenizer: Tokenizer, normalised: bool = False) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pre_tokenizer = tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # words, so that training learns no clauses
    content = json.loads(_trained(tokenizer, special, 700, limit_alphabet=80).to_str())
    # The bytes are tokens of the model, and no added ones.
    content["added_tokens"] = [token | {"normalized": normalised} for token in content["added_tokens"][:3]]
    content["pre_tokenizer"] = None
    fresh = Tokenizer.from_str(json.dumps(content))
    if pre_tokenizer is not None:
        fresh.pre_tokenizer = pre_tokenizer
    fresh.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return fresh


def llama2() -> Tokenizer:
    tokenizer = _characters()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return _sentencepiece_like(tokenizer)


def llama2_normalised_names() -> Tokenizer:
    tokenizer = _characters()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return _sentencepiece_like(tokenizer, normalised=True)


def mistral() -> Tokenizer:
    tokenizer = _characters()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece_like(tokenizer)


def metaspace() -> Tokenizer:
    """As T5's file cuts and decodes, with merges: words with the space before them."""
    tokenizer = _characters()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _sentencepiece_like(tokenizer)


def gemma() -> Tokenizer:
    tokenizer = _characters()
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _sentencepiece_like(tokenizer)


def gpt1() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _trained(tokenizer, ["<unk>"], 400, end_of_word_suffix="</w>", limit_alphabet=60)


def marked() -> Tokenizer:
    """Characters that go on are marked, as in WordPiece; words and other signs are cut."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, ["<unk>"], 400, continuing_subword_prefix="##", limit_alphabet=60)


def bert() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False, limit_alphabet=100)
    tokenizer.train_from_iterator(sample(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


BPE: dict[str, Callable[[], Tokenizer]] = {
    make.__name__: make
    for make in (
        gpt2, smollm2, qwen, llama3, gpt4o, deepseek, roberta, llama2, llama2_normalised_names, mistral, metaspace,
        gemma, gpt1, marked,
    )
}  # fmt: skip
