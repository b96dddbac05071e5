"""Marian in the 2017 Transformer: the same weights give transformers' logits, gradients and translations."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.generation.adjust import Forbid
from llm_core.generation.beam_search import beam_search
from llm_core.generation.generate import generate
from llm_core.layers.feedforward import ACTIVATIONS
from llm_core.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from llm_core.pretrained.files import forbidden_ids
from llm_core.pretrained.marian import load_marian, marian_config, marian_table, save_marian
from llm_core.pretrained.names import to_ours, to_theirs

PAD, EOS, V = 28, 0, 29
CONFIG = EncoderDecoderConfig(
    vocab_size=V,
    context=14,
    n_layers=2,
    n_heads=3,
    d_model=12,
    d_ff=17,
    pad_id=PAD,
    activation="silu",
    attention_bias=True,
    logit_bias=True,
)
SOURCE = torch.tensor([[5, 7, 9, 11, 3, 0], [8, 4, 0, 28, 28, 28], [0, 28, 28, 28, 28, 28]])
TARGET = torch.tensor([[28, 9, 8, 7, 6], [28, 3, 4, 0, 28], [28, 22, 21, 20, 0]])  # begins with padding, as Marian does
# The entries that config.json of Helsinki-NLP/opus-mt-en-de has, from public copies; its labels are left out.
OPUS_MT = json.loads(
    """{
    "_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": false,
    "add_final_layer_norm": false, "architectures": ["MarianMTModel"], "attention_dropout": 0.0,
    "bad_words_ids": [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512,
    "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
    "decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "forced_eos_token_id": 0,
    "gradient_checkpointing": false, "init_std": 0.02, "is_encoder_decoder": true, "max_length": 512,
    "max_position_embeddings": 512, "model_type": "marian", "normalize_before": false, "normalize_embedding": false,
    "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": true,
    "share_encoder_decoder_embeddings": true, "static_position_embeddings": true, "use_cache": true, "vocab_size": 58101
    }"""
)


@cache
def their_model(n_heads: int = 3, activation: str = "swish") -> transformers.MarianMTModel:
    config = transformers.MarianConfig(
        vocab_size=V,
        max_position_embeddings=14,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=n_heads,
        decoder_attention_heads=n_heads,
        d_model=12,
        encoder_ffn_dim=17,
        decoder_ffn_dim=17,
        dropout=0.0,
        activation_function=activation,
        scale_embedding=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    theirs = transformers.MarianMTModel(config)
    for name, parameter in theirs.named_parameters():  # no zero bias, no norm of one: a swapped pair would not show
        if parameter.requires_grad:  # not the table of positions
            is_norm = name.endswith("norm.weight")
            nn.init.normal_(parameter, mean=float(is_norm), std=0.2 if parameter.ndim == 1 else 0.4)
    nn.init.normal_(theirs.final_logits_bias)
    for module in theirs.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # with one, torch drops that row's gradient; ours learns every row
    return theirs.eval()


@cache
def pair(n_heads: int = 3, activation: str = "swish") -> tuple[EncoderDecoder, nn.Module]:
    theirs = their_model(n_heads, activation)
    ours = EncoderDecoder(dataclasses.replace(CONFIG, n_heads=n_heads, activation=activation.replace("swish", "silu")))
    ours.load_state_dict(to_ours(marian_table(ours.config), theirs.state_dict()))
    return ours.eval(), theirs


def run_theirs(theirs: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    return theirs(input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=target).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A MarianMTModel, saved by transformers."""
    their_model().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def rewrite(folder: Path, change: dict[str, object]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize("n_heads", [1, 3, 12])
@pytest.mark.parametrize("activation", ["swish", "relu", "gelu"])
def test_logits_equal_transformers(n_heads, activation):
    ours, theirs = pair(n_heads, activation)
    expected = run_theirs(theirs, SOURCE, TARGET)
    torch.testing.assert_close(ours(SOURCE, TARGET), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ours(SOURCE[:1, -1:], TARGET[:1, :1]), run_theirs(theirs, SOURCE[:1, -1:], TARGET[:1, :1]), rtol=0, atol=1e-5
    )
    assert expected.std() > 0.5  # numbers that could differ


def test_gradients_equal_transformers():
    ours, theirs = pair()
    targets = TARGET[:, 1:].masked_fill(TARGET[:, 1:] == PAD, -100).flatten()
    for model, logits in (
        (ours, ours(SOURCE, TARGET[:, :-1])),
        (theirs, run_theirs(theirs, SOURCE, TARGET[:, :-1])),
    ):
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
    table = [line for line in marian_table(ours.config) if line.ours != ("logit_bias",)]  # a buffer there, not learned
    expected = to_ours(table, {name: p.grad for name, p in theirs.named_parameters()})
    assert {name for name, _ in ours.named_parameters()} == {*expected, "logit_bias"}
    for name, grad in expected.items():
        torch.testing.assert_close(ours.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-5, msg=name)


def without_copies(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is saved: the tied table once, and no table of positions."""
    copies = ("lm_head.weight", "embed_tokens.weight", "embed_positions.weight")
    return {name: tensor for name, tensor in theirs.items() if not name.endswith(copies)}


def assert_same_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_the_table_leads_there_and_back_bit_by_bit():
    ours, theirs = pair()
    table = marian_table(ours.config)
    assert_same_tensors(to_theirs(table, ours.state_dict()), without_copies(theirs.state_dict()))
    assert_same_tensors(to_ours(table, to_theirs(table, ours.state_dict())), ours.state_dict())


def test_the_order_of_the_columns_is_that_of_the_two_tables_of_positions():
    """Our table with its columns in their order is their table, to the rounding of float32."""
    ours, theirs = pair()
    in_their_order = ours.positions.table[:, [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]]
    torch.testing.assert_close(in_their_order, theirs.model.encoder.embed_positions.weight, rtol=0, atol=1e-6)
    embedding = next(line for line in marian_table(CONFIG) if line.theirs == "model.shared.weight")
    columns = torch.arange(12)[None]
    assert embedding.join([columns]).tolist() == [[0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]]


def test_a_checkpoint_is_read_as_transformers_wrote_it(folder):
    ours = load_marian(folder)
    assert ours.config == CONFIG
    assert not ours.training
    torch.testing.assert_close(ours(SOURCE, TARGET), run_theirs(their_model(), SOURCE, TARGET), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="15 tokens long, the context is 14"):
        ours(torch.ones(1, 15, dtype=torch.long), TARGET[:1])


def test_a_checkpoint_goes_to_transformers_and_back_bit_by_bit(folder, tmp_path):
    save_marian(load_marian(folder), tmp_path / "ours", eos_id=EOS)
    again, report = transformers.MarianMTModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_same_tensors(again.state_dict(), their_model().state_dict())
    written = load_file(tmp_path / "ours/model.safetensors")
    assert_same_tensors(written, load_file(folder / "model.safetensors"))
    said, expected = again.config.to_dict(), their_model().config.to_dict()
    differ = {name for name in expected if expected[name] != said.get(name)}
    assert differ <= {"_name_or_path", "activation_function"}  # swish is said as silu
    assert_same_tensors(load_marian(tmp_path / "ours").state_dict(), load_marian(folder).state_dict())


def test_copies_of_the_table_are_held_to_be_copies(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    state = {name: tensor.clone() for name, tensor in their_model().state_dict().items()}
    save_file(state, file)  # old checkpoints hold it all
    assert_same_tensors(load_marian(folder).state_dict(), pair()[0].state_dict())
    for copy in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        save_file({**tensors, copy: state[copy] + 1}, file)
        with pytest.raises(ValueError, match=f"{copy} and model.shared.weight are one table"):
            load_marian(folder)


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderDecoder, nn.Module, Tensor]:
    """Ours after learning for a moment to turn a text round, the same in transformers, and texts to translate.

    Random weights say one token again and again, whatever they read. These say different things, most of them wrong.
    """
    generator = torch.Generator().manual_seed(0)

    def texts(n: int) -> tuple[Tensor, Tensor]:
        """Sources `text <eos>` and targets `<pad> text backwards <eos>`, of up to five tokens, padded."""
        source, target = torch.full((n, 6), PAD), torch.full((n, 7), PAD)
        for row in range(n):
            length = int(torch.randint(1, 6, (), generator=generator))
            text = torch.randint(1, 9, (length,), generator=generator)
            source[row, : length + 1] = torch.cat([text, torch.tensor([EOS])])
            target[row, 1 : length + 2] = torch.cat([text.flip(0), torch.tensor([EOS])])
        return source, target

    torch.manual_seed(0)
    ours = EncoderDecoder(CONFIG)
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
    for _ in range(80):
        source, target = texts(32)
        logits = ours(source, target[:, :-1])
        targets = target[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(targets == PAD, -100).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("translator")
    save_marian(ours, folder, eos_id=EOS)
    return ours.eval(), transformers.MarianMTModel.from_pretrained(folder).eval(), texts(12)[0]


def until_eos(ids: list[int]) -> list[int]:
    """What comes after the end is filling: ours is the end again, theirs padding."""
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def test_greedy_translations_equal_transformers_generate(translators):
    ours, theirs, source = translators
    expected = theirs.generate(
        source, attention_mask=(source != PAD).long(), num_beams=1, do_sample=False, max_new_tokens=5
    )[:, 1:].tolist()
    with torch.no_grad():
        got = generate(ours.given(source), torch.full((12, 1), PAD), 5, stop_id=EOS).tolist()
    for ids, wanted in zip(got, expected, strict=True):
        assert until_eos(ids) == until_eos(wanted)
    # Worth comparing: some end and some do not, they differ, and many have several tokens.
    assert {EOS in ids for ids in got} == {True, False}
    assert len({tuple(ids) for ids in got}) > 6
    assert sum(len(set(ids)) > 2 for ids in got) >= 4


def test_what_a_checkpoint_forbids_is_not_translated_into(translators, tmp_path):
    ours, theirs, source = translators
    with torch.no_grad():
        free = generate(ours.given(source), torch.full((12, 1), PAD), 5, stop_id=EOS)
    often = [ids for ids, _ in Counter(free[free != EOS].tolist()).most_common(3)]
    bad = [[often[0]], [often[1], often[2]], [often[2], often[1]], [EOS], [PAD]]
    save_marian(ours, tmp_path, eos_id=EOS)
    (tmp_path / "generation_config.json").write_text(json.dumps({"bad_words_ids": bad, "eos_token_id": EOS}))
    assert forbidden_ids(tmp_path) == (*map(tuple, bad[:3]), (PAD,))
    forbid = Forbid(forbidden_ids(tmp_path))
    said = {"bad_words_ids": bad, "attention_mask": (source != PAD).long(), "do_sample": False, "max_new_tokens": 5}
    greedy = theirs.generate(source, num_beams=1, **said)[:, 1:].tolist()
    beams = theirs.generate(source, num_beams=3, length_penalty=1.0, early_stopping=False, **said)[:, 1:].tolist()
    with torch.no_grad():
        got = generate(ours.given(source), torch.full((12, 1), PAD), 5, stop_id=EOS, adjust=forbid).tolist()
        for row, one, several, ids in zip(source, greedy, beams, got, strict=True):
            assert until_eos(ids) == until_eos(one)
            found = beam_search(ours.given(row[None]), torch.tensor([[PAD]]), 5, n_beams=3, stop_id=EOS, adjust=forbid)[
                0
            ][0]
            assert list(found.ids) == until_eos(several)
    assert got != free.tolist()
    assert not any(often[0] in ids for ids in got)


@pytest.mark.parametrize("n_beams", [2, 4])
def test_beam_search_finds_transformers_translations(translators, n_beams):
    ours, theirs, source = translators
    expected = theirs.generate(
        source,
        attention_mask=(source != PAD).long(),
        num_beams=n_beams,
        do_sample=False,
        max_new_tokens=5,
        length_penalty=1.0,
        early_stopping=False,
        num_return_sequences=n_beams,
        output_scores=True,
        return_dict_in_generate=True,
    )
    wanted = zip(expected.sequences[:, 1:].tolist(), expected.sequences_scores.tolist(), strict=True)
    with torch.no_grad():
        for row in source:
            given = ours.given(row[None])
            found = beam_search(given, torch.tensor([[PAD]]), 5, n_beams=n_beams, n_best=n_beams, stop_id=EOS)[0]
            assert len(found) == n_beams
            for hypothesis in found:
                ids, score = next(wanted)
                assert list(hypothesis.ids) == until_eos(ids)
                assert hypothesis.score == pytest.approx(score, abs=1e-5)


def test_the_published_config_of_opus_mt_is_understood():
    config = marian_config(OPUS_MT)
    assert (config.vocab_size, config.context, config.pad_id, config.dropout) == (58101, 512, 58100, 0.1)
    assert (config.n_layers, config.n_heads, config.d_model, config.d_ff) == (6, 8, 512, 2048)
    assert (config.activation, config.attention_bias, config.logit_bias) == ("silu", True, True)
    with torch.device("meta"):
        ours = EncoderDecoder(config)
        theirs = transformers.MarianMTModel(transformers.MarianConfig(**OPUS_MT))
    learned = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert ours.n_parameters() == learned + config.vocab_size  # the bias on the logits, which is not learned there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_layers": 4}, '"encoder_layers": 2 and "decoder_layers": 4'),
        ({"decoder_attention_heads": 6}, '"encoder_attention_heads": 3 and "decoder_attention_heads": 6'),
        ({"decoder_ffn_dim": 18}, '"encoder_ffn_dim": 17 and "decoder_ffn_dim": 18'),
        ({"decoder_vocab_size": 30}, '"vocab_size": 29 and "decoder_vocab_size": 30'),
        ({"model_type": "bart"}, '"model_type": "bart"'),
        ({"scale_embedding": None}, '"scale_embedding": null, which is no bool'),
        ({"share_encoder_decoder_embeddings": False}, '"share_encoder_decoder_embeddings": false'),
        ({"tie_word_embeddings": False}, '"tie_word_embeddings": false'),
        ({"static_position_embeddings": False}, '"static_position_embeddings": false'),
        ({"normalize_before": True}, '"normalize_before": true'),
        ({"normalize_embedding": True}, '"normalize_embedding": true'),
        ({"add_final_layer_norm": True}, '"add_final_layer_norm": true'),
        ({"activation_function": "tanh"}, '"activation_function": "tanh", but this model only does relu, silu'),
        ({"activation_function": None}, '"activation_function": null'),
        ({"pad_token_id": None}, '"pad_token_id": null'),
        ({"pad_token_id": 29}, r"0 \.\.\. 28: got 29"),
        ({"d_model": 9}, "d_model=9"),
        ({"something_new": 1}, '"something_new": 1, which this loader does not know'),
    ],
)
def test_architectures_that_ours_is_not_are_refused(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_marian(folder)


def test_a_config_that_does_not_say_that_embeddings_are_scaled_has_them_as_they_are():
    assert not transformers.MarianConfig().scale_embedding  # what transformers would take it for
    said = {key: value for key, value in OPUS_MT.items() if key != "scale_embedding"}
    assert not marian_config(said).scaled_embedding
    assert marian_config(OPUS_MT).scaled_embedding


def test_layers_that_the_config_does_not_count_are_refused(folder):
    rewrite(folder, {"encoder_layers": 1, "decoder_layers": 1})
    with pytest.raises(ValueError, match=r"model\.decoder\.layers\.1\..* which a model with this config has not"):
        load_marian(folder)


def test_weights_come_in_the_type_that_is_asked_for(folder):
    file = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    for asked, expected in ((None, torch.float16), (torch.float64, torch.float64), (torch.float32, torch.float32)):
        assert {p.dtype for p in load_marian(folder, dtype=asked).parameters()} == {expected}


def test_a_model_that_marian_is_not_is_not_written(tmp_path):
    for change in ({"attention_bias": False}, {"logit_bias": False}):
        model = EncoderDecoder(dataclasses.replace(CONFIG, **change))
        with pytest.raises(ValueError, match=f"{next(iter(change))}=False"):
            save_marian(model, tmp_path / "none", eos_id=EOS)
    with pytest.raises(ValueError, match=r"0 \.\.\. 28: got 29"):
        save_marian(EncoderDecoder(CONFIG), tmp_path / "none", eos_id=29)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("change", [*({"activation": name} for name in ACTIVATIONS), {"scaled_embedding": False}])
def test_every_setting_of_ours_has_an_entry_there(change, tmp_path):
    model = EncoderDecoder(dataclasses.replace(CONFIG, **change)).eval()
    save_marian(model, tmp_path, eos_id=EOS)
    assert load_marian(tmp_path).config == model.config
    theirs = transformers.MarianMTModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(model(SOURCE, TARGET), run_theirs(theirs, SOURCE, TARGET), rtol=0, atol=1e-5)
    assert load_marian(tmp_path).config == model.config
