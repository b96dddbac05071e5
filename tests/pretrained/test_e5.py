"""multilingual-e5-small: small files of its format give transformers' BERT; the real one ids, weights and answers."""

from __future__ import annotations

import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from llm_core.models.bert import Bert
from llm_core.models.heads import SentenceEncoder
from llm_core.pretrained.e5 import E5File, e5_table, e5_tokenizer, load_e5, read_e5
from llm_core.text.unigram_fast import UnigramTokenizer

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.5), ("b", -2.5)]
PIECES += [("1/2", -3.0), ("é", -3.5), ("<mask>", 0.0)]
D, F, N_LAYERS, VOCAB, CONTEXT = 32, 64, 2, 12, 9


def small_bert() -> transformers.BertModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=D, num_hidden_layers=N_LAYERS, num_attention_heads=4, intermediate_size=F,
        max_position_embeddings=CONTEXT, pad_token_id=1,
    )  # fmt: skip
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.3)
    return theirs


def in_the_file(theirs: transformers.BertModel) -> dict[str, torch.Tensor]:
    """Its tensors by the file's names."""
    state = theirs.state_dict()
    names = {
        "emb.word": "embeddings.word_embeddings", "emb.pos": "embeddings.position_embeddings",
        "emb.type": "embeddings.token_type_embeddings", "emb.ln": "embeddings.LayerNorm",
    }  # fmt: skip
    for i in range(N_LAYERS):
        layer = f"encoder.layer.{i}"
        names |= {f"l{i}.{part[0]}": f"{layer}.attention.self.{part}" for part in ("query", "key", "value")}
        names |= {
            f"l{i}.ao": f"{layer}.attention.output.dense", f"l{i}.aln": f"{layer}.attention.output.LayerNorm",
            f"l{i}.fi": f"{layer}.intermediate.dense", f"l{i}.fo": f"{layer}.output.dense",
            f"l{i}.oln": f"{layer}.output.LayerNorm",
        }  # fmt: skip
    found = {}
    for ours, name in names.items():
        bare = ours in ("emb.word", "emb.pos", "emb.type")
        for kind in ["weight"] if bare else ["weight", "bias"]:
            found[ours if bare else f"{ours}.{kind[0]}"] = state[f"{name}.{kind}"]
    return found


def write(path: Path, tensors: dict[str, torch.Tensor], **changed: int) -> dict[str, torch.Tensor]:
    """A file of the format; returns the tensors as a reader has to find them, after 4 bits."""
    sizes = {"version": 1, "d": D, "layers": N_LAYERS, "heads": 4, "ff": F, "vocab": VOCAB, "context": CONTEXT}
    sizes |= {"segments": 2, "block": 32, "bos": 0, "eos": 2} | changed
    texts = [piece.encode() for piece, _ in PIECES]
    places = np.cumsum([0, *map(len, texts)])
    replaced = b"".join(
        struct.pack(f"<IB{len(new)}I", ord(old), len(new), *map(ord, new))
        for old, new in {"½": "1/2", "\t": " "}.items()
    )
    head = struct.pack("<4sI7i", b"E5S1", *(sizes[key] for key in list(sizes)[:8]))
    head += struct.pack("<fi5iQ", 1e-12, sizes["block"], len(PIECES), sizes["bos"], sizes["eos"], 1, 3, places[-1])
    head += struct.pack(f"<{len(places)}I", *places) + struct.pack(f"<{len(PIECES)}f", *(s for _, s in PIECES))
    head += b"".join(texts) + struct.pack("<iI", 2, len(replaced)) + replaced + struct.pack("<i", len(tensors))
    stored, kept = {}, {}
    for name, tensor in tensors.items():
        numbers = tensor.numpy()
        if name == "emb.word" or (name[0] == "l" and name.endswith(".w") and tensor.ndim == 2):
            blocks = quantize(numbers.reshape(-1), GGMLQuantizationType.Q4_0)
            stored[name] = (1, blocks.tobytes())
            kept[name] = torch.from_numpy(dequantize(blocks, GGMLQuantizationType.Q4_0)).reshape(tensor.shape)
        else:
            stored[name], kept[name] = (0, numbers.astype("<f4").tobytes()), tensor
    at = len(head) + sum(2 + len(name) + 21 for name in tensors)
    directory = b""
    for name, (kind, content) in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, tensors[name].numel(), at, len(content))
        at += len(content)
    path.write_bytes(head + directory + b"".join(content for _, content in stored.values()))
    return kept


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write(tmp_path / "e5.bin", in_the_file(small_bert()))
    return tmp_path / "e5.bin"


def test_a_small_file_gives_the_hidden_states_of_transformers(tmp_path):
    theirs = small_bert()
    kept = write(tmp_path / "e5.bin", in_the_file(theirs))
    ours = load_e5(tmp_path / "e5.bin")
    assert not ours.training
    assert ours.config.norm_eps == 1e-12
    for line in e5_table(ours.config):
        assert torch.equal(ours.state_dict()[line.ours[0]], kept[line.theirs]), line.theirs  # as gguf dequantises
    table = dict(in_the_file(theirs))
    assert kept.keys() == table.keys()
    with torch.no_grad():
        for name, tensor in table.items():
            tensor.copy_(kept[name])  # the state dict's own tensors: theirs in 4 bits too
        ids = torch.tensor([[0, 5, 6, 8, 2], [0, 4, 2, 1, 1]])
        expected = theirs(ids, attention_mask=(ids != 1).long()).last_hidden_state
        torch.testing.assert_close(ours(ids)[ids != 1], expected[ids != 1], rtol=0, atol=1e-5)


def test_the_tokenizer_of_a_small_file(small):
    tokenizer = e5_tokenizer(small)
    assert tokenizer.tokens("½ \t b e\u0301x") == ["▁", "1/2", "▁", "b", "▁", "é", "<unk>"]
    assert tokenizer.tokens("b  b") == tokenizer.tokens("b b") == tokenizer.tokens("b   b")
    assert tokenizer.encode("a", add_special_tokens=True) == [0, 5, 2]
    assert tokenizer.encode_pair("a", "a") == ([0, 5, 2, 2, 5, 2], [0] * 6)
    assert tokenizer.encode("<mask>") == [9]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 2}, "version 2 with blocks of 32, expected 1 with 32"),
        ({"block": 16}, "blocks of 16"),
        ({"bos": 4}, "the special tokens are ▁, <pad>, </s>, <unk>"),
        ({"heads": 5}, "n_heads must divide"),
        ({"layers": 3}, r"lacks l2\.q\.w"),
        ({"vocab": 13}, r"emb\.word is of another shape"),
        ({"ff": 32}, r"l0\.fi\.w is of another shape"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path, changed, message):
    write(tmp_path / "e5.bin", in_the_file(small_bert()), **changed)
    with pytest.raises(ValueError, match=message):
        load_e5(tmp_path / "e5.bin")


def test_a_last_piece_that_is_no_mask_is_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PIECES", [*PIECES[:-1], ("last", -3.0)])
    write(tmp_path / "e5.bin", in_the_file(small_bert()))
    assert list(read_e5(tmp_path / "e5.bin").special) == ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize(
    ("name", "place", "kind", "value", "message"),
    [
        ("l0.q.w", 0, "B", 0, r"l0\.q\.w has .* expected Q4_0"),
        ("l0.q.w", 0, "B", 2, r"l0\.q\.w has .* of kind 2 .* expected Q4_0"),
        ("l0.q.b", 0, "B", 1, r"l0\.q\.b has .* expected Q4_0"),
        ("l0.q.w", 13, "Q", 18, r"l0\.q\.w has .* in 18 bytes: expected Q4_0"),
        ("l0.q.w", 13, "Q", 1800, r"l0\.q\.w has .* in 1800 bytes: expected Q4_0"),
        ("l0.q.w", 13, "Q", 10**9, r"l0\.q\.w would end behind the end of the file"),
        ("l0.q.w", 1, "I", 32, r"l0\.q\.w is of another shape"),
    ],
)
def test_a_tensor_that_is_stored_in_another_way_than_it_says_is_named(small, name, place, kind, value, message):
    content = bytearray(small.read_bytes())
    entry = content.index(struct.pack("<H", len(name)) + name.encode()) + 2 + len(name)
    struct.pack_into(f"<{kind}", content, entry + place, value)
    small.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_e5(small)


def test_files_that_are_not_whole_are_refused(small, tmp_path):
    content = small.read_bytes()
    for end in (*range(0, 700, 7), len(content) // 2, len(content) - 1):
        (tmp_path / "cut.bin").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut\.bin"):
            load_e5(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match=r"none\.bin cannot be read"):
        read_e5(tmp_path / "none.bin")


# --- the real one ---


@pytest.fixture(scope="module")
def opened(e5_file: Path) -> E5File:
    return read_e5(e5_file)


@pytest.fixture(scope="module")
def tokenizer(e5_file: Path) -> UnigramTokenizer:
    return e5_tokenizer(e5_file)


@pytest.fixture(scope="module")
def encoder(e5_file: Path) -> Bert:
    return load_e5(e5_file)


TEXTS = [
    "query: how much protein should a woman eat each day?",
    "passage: ½ cup of ﬁne ﬂour, 20 ㎏, ２０２４年",
    "Wie viel regnet es im Jahr in Hamburg? Straße, Öl, Übung",
    "¿Cuánto cuesta un café? ¡Mañana no!",
    "Сколько дождя выпадает за год?",
    "北京一年下多少雨?　全角，标点。",
    "東京の雨は年にどれくらい?",
    "كم تمطر في السنة؟",
    "हर साल कितनी बारिश होती है?",
    "ปีหนึ่งฝนตกเท่าไร",
    "매년 비가 얼마나 오나요?",
    "Việt Nam mưa nhiều thế nào",
    "Ελλάδα πόσο βρέχει",
    "a  b\tc\nd   e",
    "😀 👍🏽 <mask> <s> x</s>",
    "<unk> unknown \u0378 \U000e0000",
    "e\u0301 a\u0308 o\u0302",
    " ",
    "",
]


def test_ids_are_those_of_tokenizers_with_the_same_pieces(opened, tokenizer):
    """Theirs with the normaliser that the file holds in parts: NFC, each character's replacement, runs of spaces."""
    their = Tokenizer(models.Unigram(opened.pieces, 3, False))
    their.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(" {2,}"), " ")])
    their.pre_tokenizer = pre_tokenizers.Metaspace()
    their.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    their.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    for text in TEXTS:
        plain = text.translate(opened.replaced)
        assert tokenizer.encode(text, add_special_tokens=True) == their.encode(plain).ids, text
    assert sum(tokenizer.encode(text).count(3) for text in TEXTS) < 8  # hardly anything is unknown
    assert tokenizer.vocab_size == 250_002


def test_what_characters_are_replaced_by_is_what_nfkc_says(opened):
    """But for spaces, what has no width, and characters that are younger than the table, of 2018."""
    for code, new in opened.replaced.items():
        if new.strip() and unicodedata.category(chr(code)) != "Cn":
            assert unicodedata.normalize("NFKC", new) == unicodedata.normalize("NFKC", chr(code)).replace(
                "\xa0", " "
            ), hex(code)
    assert len(opened.replaced) == 4837


def test_a_question_finds_its_passage_in_five_languages(tokenizer, encoder):
    passages = [
        "passage: Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
        "passage: The Great Wall of China was built over many centuries to guard the northern border.",
        "passage: Adults need about 0.8 grams of protein for each kilogram of body weight a day.",
        "passage: The violin has four strings, which are played with a bow.",
        "passage: Mount Everest, 8849 metres high, is the tallest mountain on Earth.",
    ]
    questions = {
        "query: How high is the tallest mountain in the world?": 4,
        "query: Wie viel Eiweiß braucht ein Erwachsener am Tag?": 2,
        "query: ¿Cuántas cuerdas tiene un violín?": 3,
        "query: Как растения превращают солнечный свет в сахар?": 0,
        "query: 长城是为什么修建的？": 1,
    }
    vectors = embed(tokenizer, encoder, [*questions, *passages])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(10), rtol=0, atol=1e-5)
    scores = vectors[:5] @ vectors[5:].T
    assert scores.argmax(dim=1).tolist() == list(questions.values())
    # Alone or beside longer ones, a text has the same vector.
    alone = embed(tokenizer, encoder, passages[3:4])
    torch.testing.assert_close(alone[0], vectors[8], rtol=0, atol=1e-5)


def embed(tokenizer: UnigramTokenizer, encoder: Bert, texts: list[str]) -> torch.Tensor:
    rows = [torch.tensor(tokenizer.encode(text, add_special_tokens=True)) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    with torch.no_grad():
        vectors: torch.Tensor = SentenceEncoder(encoder, pad_id=1)(ids)
    return vectors


def test_its_weights_are_those_that_gguf_reads(opened, encoder):
    """Each matrix by blocks of 18 bytes, straight from the file."""
    state = encoder.state_dict()
    content = np.memmap(opened.path, np.uint8, "r")
    for line in e5_table(opened.config):
        kind, _, offset, n_bytes = opened.tensors[line.theirs]
        block = content[offset : offset + min(n_bytes, 18 * 4096)]
        expected = dequantize(block, GGMLQuantizationType.Q4_0) if kind else block.view("<f4")
        assert np.array_equal(state[line.ours[0]].flatten()[: len(expected)].numpy(), expected), line.theirs
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 117_505_920
