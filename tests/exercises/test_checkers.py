"""Every checker: passes what is right, names what is wrong, and says something useful about the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from work import (
    EXERCISES,
    FUNCTIONS,
    PARAMETERS,
    cell_of,
    examined,
    learners_notebook,
    load,
    names,
    patches,
    wrong_solutions,
)

from llm_core.exercises import Report, catalogue, check, draw
from llm_core.exercises.catalogue import Exercise
from llm_core.exercises.exam import Exam, Mistake, Work, mistakes
from llm_core.exercises.s03_01_self_attention import checker as self_attention_checker
from llm_core.exercises.s03_02_residual_block import checker as residual_block_checker
from llm_core.exercises.s03_03_rope import checker as rope_checker
from llm_core.exercises.s03_04_training_step import checker as training_step_checker
from llm_core.exercises.s03_06_three_sentences import checker as three_sentences_checker
from llm_core.exercises.s04_01_dot_product_attention import checker as dot_product_checker
from llm_core.exercises.s04_02_multi_head import checker as multi_head_checker
from llm_core.exercises.s04_03_worked_example import checker as worked_example_checker
from llm_core.exercises.s04_04_backpropagation import checker as backpropagation_checker
from llm_core.layers.attention import MultiHeadAttention, attention
from llm_core.layers.blocks import PreNormBlock
from llm_core.layers.masks import causal
from llm_core.layers.positions import Alibi, Rope
from llm_core.training.batches import shift
from llm_core.training.losses import CrossEntropy
from llm_core.training.step import train_step

BACK = catalogue.find("04/04_backpropagation")
BLOCK = catalogue.find("03/02_residual_block")
COMPUTE = catalogue.find("04/06_compute")
HEADS = catalogue.find("04/02_multi_head")
PARALLEL = catalogue.find("03/08_data_parallel")
PERPLEXITY = catalogue.find("04/05_perplexity")
TRAINING = catalogue.find("03/04_training_step")
DOT = catalogue.find("04/01_dot_product_attention")
SELF = catalogue.find("03/01_self_attention")
EXAMPLE = catalogue.find("04/03_worked_example")
SAMPLING = catalogue.find("03/05_sampling")
SENTENCES = catalogue.find("03/06_three_sentences")

NAMED = [(exercise, mistake) for exercise in EXERCISES for mistake in wrong_solutions(exercise.name)]


@pytest.fixture(autouse=True)
def _same_dropout_every_time():
    torch.manual_seed(0)


def tables(exercise: Exercise) -> dict[str, tuple[Any, ...]]:
    """The tables of mistakes in an exercise's checker, by their names there."""
    found = {name: value for name, value in vars(exercise.checker()).items() if isinstance(value, tuple) and value}
    return {name: value for name, value in found.items() if all(isinstance(entry, Mistake) for entry in value)}


def assert_solution_passes(exercise: Exercise, parameters: dict[str, Any]) -> None:
    report = examined(exercise, parameters, exercise.solution)
    assert report.status == "passed", report


def assert_mistake_is_named(exercise: Exercise, mistake: str, parameters: dict[str, Any], first: bool) -> Report:
    report = examined(exercise, parameters, wrong_solutions(exercise.name)[mistake])
    found = [finding.id for finding in report.findings]
    assert report.status == "failed"
    assert mistake in found, report
    if first:  # with sizes of one, a mistake can look like another one in some part
        assert found[0] == mistake, report
    return report


# --- solutions, stubs, wrong solutions ---


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_spec_is_about_the_solution_and_the_notebook(exercise: Exercise):
    for function in exercise.spec.functions:
        assert callable(exercise.right(function.name))
        assert f"def {function.name}(" in cell_of(learners_notebook(exercise), "stub").source
    assert len(PARAMETERS[exercise.name]) == 4
    assert "type: ignore" not in exercise.solution


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_solution_passes(exercise: Exercise):
    for parameters in PARAMETERS[exercise.name]:
        assert_solution_passes(exercise, parameters)
    for seed in range(1, 6):
        assert_solution_passes(exercise, {**PARAMETERS[exercise.name][0], "seed": seed})


@pytest.mark.parametrize(("exercise", "mistake"), NAMED, ids=[f"{e.name}-{m}" for e, m in NAMED])
def test_the_mistake_is_named(exercise: Exercise, mistake: str):
    defaults, _, other, _ = PARAMETERS[exercise.name]
    report = assert_mistake_is_named(exercise, mistake, defaults, first=True)
    assert_mistake_is_named(exercise, mistake, {**other, "seed": 11}, first=False)
    # `<eos>` outside a code span is a tag to Markdown, and is not shown.
    outside = re.sub(r"`[^`\n]*`", "", report.to_markdown())
    assert "<" not in outside, outside
    assert "`" not in outside, outside


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_unusual_right_solutions_are_accepted(exercise: Exercise):
    """Einstein sums, loops, NumPy where the task allows it, float64 inside, another order."""
    right = patches(exercise, "right")
    assert len(right) >= 10
    for patch in right:
        report = examined(exercise, PARAMETERS[exercise.name][0], patch.applied(exercise.solution))
        assert report.status == "passed", (patch.name, report)


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_every_mistake_that_a_checker_knows_has_its_wrong_solution(exercise: Exercise):
    known = {mistake.id for table in tables(exercise).values() for mistake in table}
    known |= {value.id for value in vars(exercise.checker()).values() if getattr(value, "known", False) is True}
    assert known
    assert known <= set(wrong_solutions(exercise.name))


def test_a_patch_that_does_not_fit_exactly_once_is_refused():
    patch = patches(DOT)[0]
    with pytest.raises(ValueError, match="stands 0 times"):
        patch.applied("import torch\n")
    with pytest.raises(ValueError, match="stands 2 times"):
        patch.applied(DOT.solution * 2)


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_the_untouched_stub_gets_a_friendly_answer(exercise: Exercise):
    stub = "import torch\nfrom torch import Tensor\n" + cell_of(learners_notebook(exercise), "stub").source
    report = examined(exercise, PARAMETERS[exercise.name][0], stub)
    assert report.status == "not started"
    assert report.passed == 0
    for name in FUNCTIONS[exercise.name]:
        assert f"`{name}` still raises NotImplementedError" in repr(report)
    assert "Traceback" not in repr(report)
    assert "Not started yet" in report.to_markdown()


@pytest.mark.parametrize("exercise", [EXAMPLE, SAMPLING, SENTENCES], ids=names)
def test_half_of_the_work_is_half_of_the_report(exercise: Exercise):
    stub = cell_of(learners_notebook(exercise), "stub").source
    second = stub[stub.index(f"def {FUNCTIONS[exercise.name][1]}") :]
    report = examined(exercise, PARAMETERS[exercise.name][0], exercise.solution, second)
    assert report.status == "failed"
    assert 0 < report.passed < report.total
    assert [finding.id for finding in report.findings] == ["not_started"]


# --- a wrong checker is noticed ---


def break_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        dot_product_checker.F, "scaled_dot_product_attention", lambda *a, **k: right(*a, **{**k, "scale": 1.0})
    )


def test_a_checker_with_a_wrong_reference_is_noticed(monkeypatch: pytest.MonkeyPatch):
    break_reference(monkeypatch)
    with pytest.raises(AssertionError, match="failed"):
        assert_solution_passes(DOT, PARAMETERS[DOT.name][0])


def test_a_checker_that_accepts_everything_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Exam, "same", lambda *a, **k: True)
    for exercise, mistake in [(DOT, "not_scaled"), (SELF, "no_output_projection"), (SENTENCES, "no_shift")]:
        with pytest.raises(AssertionError):
            assert_mistake_is_named(exercise, mistake, PARAMETERS[exercise.name][0], first=True)


@pytest.mark.parametrize("exercise", EXERCISES, ids=names)
def test_a_checker_that_forgets_a_mistake_is_noticed(exercise: Exercise, monkeypatch: pytest.MonkeyPatch):
    for table, known in tables(exercise).items():
        mistake = known[len(known) // 2]  # a sample: each costs a full search for what explains it
        with monkeypatch.context() as patched:
            patched.setattr(exercise.checker(), table, tuple(entry for entry in known if entry is not mistake))
            with pytest.raises(AssertionError):
                assert_mistake_is_named(exercise, mistake.id, PARAMETERS[exercise.name][0], first=True)


def test_a_checker_that_mixes_up_two_names_is_noticed(monkeypatch: pytest.MonkeyPatch):
    first, second, *rest = dot_product_checker.MISTAKES
    swapped = (replace(first, id=second.id), replace(second, id=first.id), *rest)
    monkeypatch.setattr(dot_product_checker, "MISTAKES", swapped)
    with pytest.raises(AssertionError):
        assert_mistake_is_named(DOT, first.id, PARAMETERS[DOT.name][0], first=True)


# --- the checkers' knobs, turned to right, against what we did not write, and the package's own layers ---


def test_attention_agrees_with_the_package_and_with_torch():
    query, key, value = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 6)
    mask = causal(4, 5)
    ours = dot_product_checker.variant(query, key, value, mask)
    torch.testing.assert_close(ours, attention(query, key, value, mask))
    torch.testing.assert_close(ours, torch.nn.functional.scaled_dot_product_attention(query, key, value, mask))


def test_the_ways_back_agree_with_central_differences():
    checker = backpropagation_checker
    draw = torch.Generator().manual_seed(0)
    query, key, value, d_output = (
        torch.randn(2, n, d, generator=draw, dtype=torch.float64) for n, d in [(3, 4), (5, 4), (5, 2), (3, 2)]
    )

    def loss(query: Tensor, key: Tensor, value: Tensor) -> float:
        return float((attention(query, key, value) * d_output).sum())

    weights = (query @ key.mT / 2).softmax(-1)
    inputs = {"d_query": query, "d_key": key, "d_value": value}
    for which, x in inputs.items():
        ours = checker.attention_variant(query, key, value, weights, d_output, which)
        for place in range(x.numel()):
            step = torch.zeros_like(x)
            step.view(-1)[place] = 1e-5
            ahead, behind = (loss(*({**inputs, which: x + s}).values()) for s in (step, -step))
            assert ours.flatten()[place] == pytest.approx((ahead - behind) / 2e-5, rel=1e-5, abs=1e-8)

    logits, targets = torch.randn(3, 5, generator=draw, dtype=torch.float64), torch.tensor([4, 0, 2])
    ours = checker.cross_entropy_variant(logits, targets)
    for place in range(15):
        step = torch.zeros(3, 5, dtype=torch.float64)
        step.view(-1)[place] = 1e-5
        ahead, behind = (float(torch.nn.functional.cross_entropy(logits + s, targets)) for s in (step, -step))
        assert ours.flatten()[place] == pytest.approx((ahead - behind) / 2e-5, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_self_attention_agrees_with_the_package_and_with_torch(n_heads: int):
    x, *weights = torch.randn(3, 5, 8), *(torch.randn(8, 8) for _ in range(4))
    right = self_attention_checker.reference(x, *weights, n_heads)
    torch.testing.assert_close(self_attention_checker.variant(x, *weights, n_heads), right, atol=1e-4, rtol=1e-4)

    layer = MultiHeadAttention(8, n_heads, bias=False)
    for part, weight in zip((layer.query, layer.key, layer.value, layer.output), weights, strict=True):
        part.weight = nn.Parameter(weight.T.clone())
    torch.testing.assert_close(layer(x, mask=causal(5)).detach(), right, atol=1e-4, rtol=1e-4)

    theirs = nn.MultiheadAttention(8, n_heads, bias=False, batch_first=True)
    theirs.in_proj_weight = nn.Parameter(torch.cat([w.T for w in weights[:3]]))
    theirs.out_proj.weight = nn.Parameter(weights[3].T.clone())
    output, _ = theirs(x, x, x, attn_mask=~causal(5))
    torch.testing.assert_close(output.detach(), right, atol=1e-4, rtol=1e-4)


def test_splitting_and_joining_heads_agrees_with_the_package():
    checker, x, layer = multi_head_checker, torch.randn(2, 5, 12), MultiHeadAttention(12, 3, bias=False)
    heads = checker.split_reference(x, 3)
    torch.testing.assert_close(heads, layer._split(x, 3))
    torch.testing.assert_close(checker.split_variant(x, 3), heads)
    torch.testing.assert_close(checker.join_variant(heads), x)
    terms = checker.contributions_reference(heads, layer.output.weight.T)
    torch.testing.assert_close(checker.contributions_variant(heads, layer.output.weight.T), terms)
    torch.testing.assert_close(terms.sum(1), layer.output(x))


def test_the_residual_block_agrees_with_the_package_and_with_torch():
    x, D = torch.randn(2, 5, 8), 8
    theirs = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    for norm in (theirs.norm1, theirs.norm2):
        nn.init.normal_(norm.weight, mean=2.0)

    class Attend(nn.Module):
        def forward(self, y: Tensor, mask: Any = None, cache: Any = None) -> Tensor:
            return theirs.self_attn(y, y, y, need_weights=False)[0]

    feed_forward = nn.Sequential(theirs.linear1, nn.ReLU(), theirs.linear2)
    pieces: Any = (Attend(), feed_forward, (theirs.norm1, theirs.norm2), lambda y: y)
    right = residual_block_checker.reference(x, *pieces)
    torch.testing.assert_close(right, theirs(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(residual_block_checker.block_variant(x, *pieces), right)
    torch.testing.assert_close(PreNormBlock(*pieces[:3])(x), right)
    post = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=False)
    post.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(
        residual_block_checker.block_variant(x, *pieces, place="post"), post(x), atol=1e-5, rtol=1e-4
    )


def test_a_training_step_agrees_with_the_package():
    checker = training_step_checker
    task = checker.draw(0, 3, 6, 9)
    loss, weights = checker.reference(task, checker._sgd, 0.05)
    model, optimizer = checker._ready(task, checker._sgd, 0.0)
    parts = [shift(part) for part in task.parts]
    record = train_step(model, parts, optimizer, lr=0.5, loss=CrossEntropy(ignore_id=0), max_norm=0.05)
    torch.testing.assert_close(torch.tensor(record.loss), loss)
    torch.testing.assert_close(checker._weights(model), weights)
    for what, right in (("loss", loss), ("weights", weights)):
        ours = checker.step_variant(task, checker._sgd, 0.3, 0.05, what)
        torch.testing.assert_close(ours, right)


def test_the_worked_example_by_hand():
    Q, K = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    V = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right = worked_example_checker._right_head(Q, K, V)
    assert right["scores"].tolist() == [[3.0, 0.0], [7.0, 2.0]]
    e = np.exp(3 / np.sqrt(2))
    np.testing.assert_allclose(right["weights"][0], [e / (e + 1), 1 / (e + 1)], rtol=1e-6)
    torch.testing.assert_close(right["output"], right["weights"] @ V)
    for step, value in right.items():
        torch.testing.assert_close(worked_example_checker.one_head_variant(Q, K, V, step), value)


@pytest.mark.parametrize("base", [10.0, 10_000.0])
def test_rope_agrees_with_the_package_and_with_transformers(base: float):
    x, positions = torch.randn(2, 3, 5, 8), torch.arange(7, 12)
    ours = rope_checker.rotate_reference(x, positions, base)
    torch.testing.assert_close(rope_checker.rotate_variant(x, positions, base), ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Rope(8, 20, base=base)(x, 7), ours, atol=1e-5, rtol=1e-4)
    angles = torch.outer(positions, base ** -(torch.arange(0, 8, 2) / 8)).repeat(1, 2)[None]
    theirs, _ = apply_rotary_pos_emb(x, x, angles.cos(), angles.sin())
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    for n_heads, T, S in [(1, 1, 1), (4, 3, 3), (8, 2, 6)]:
        bias = rope_checker.alibi_reference(n_heads, T, S)
        torch.testing.assert_close(rope_checker.alibi_variant(n_heads, T, S), bias)
        torch.testing.assert_close(Alibi(n_heads)(T, S), bias)


def test_the_batch_by_hand():
    right = three_sentences_checker.reference([[7, 8], []], bos=1, eos=2, pad=0)
    assert right["inputs"].tolist() == [[1, 7, 8], [1, 0, 0]]
    assert right["targets"].tolist() == [[7, 8, 2], [2, 0, 0]]
    assert right["mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_log_softmax_twice_is_no_mistake():
    """It is often listed as one, but log_softmax leaves log-probabilities as they are; only softmax twice is."""
    logits = torch.randn(4, 9, dtype=torch.float64)
    once = logits.log_softmax(-1)
    torch.testing.assert_close(once.log_softmax(-1), once)


# --- anything may come back ---

HEADER = (
    "import numpy as np\nimport torch\nfrom torch import Tensor\n\n\ndef attention(query, key, value, mask=None):\n"
)


def found(body: str, **changed: Any) -> dict[str, str]:
    """The findings about an `attention` with this body."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    report = examined(DOT, {**PARAMETERS[DOT.name][0], **changed}, HEADER + indented)
    assert report.status != "passed"
    return {finding.id: finding.message for finding in report.findings}


@pytest.mark.parametrize(
    ("body", "id", "message"),
    [
        ("pass", "returned_none", "returned None"),
        ("return None", "returned_none", "needs a tensor"),
        ("return 3", "type", "an int"),
        ("return query, key", "type", "a tuple of 2"),
        ("return 'text'", "type", "a str"),
        ("return query @ key", "raised", "RuntimeError"),
        ("return 1 / 0", "raised", "line 7 of its cell: `return 1 / 0`"),
        ("x = query\nraise KeyError('d_k')", "raised", "`KeyError: 'd_k'` (line 8"),
        ("return undefined", "raised", "name 'undefined' is not defined"),
        ("raise SystemExit(3)", "raised", "SystemExit: 3"),
        ("return attention(query, key, value, mask)", "raised", "RecursionError"),
        ("return torch.zeros(2, 2)", "shape", "(2, 2); with these inputs it has to be (4, 3)"),
        ("return value.new_zeros(*query.shape[:-1], value.shape[-1])", "constant", "All numbers"),
        ("return torch.full((*query.shape[:-1], value.shape[-1]), float('nan'))", "not_finite", "12 of 12"),
        ("query.zero_()\nreturn value", "input_changed", "its first argument"),
        ("value += 1\nreturn value", "input_changed", "its third argument"),
    ],
)
def test_whatever_comes_back_is_described(body: str, id: str, message: str):
    findings = found(body)
    assert id in findings
    assert message in findings[id]


def test_an_error_inside_a_helper_names_the_line_of_the_helper():
    helper = "def softmax(x):\n    y = x.exp()\n    return y / y.sun()\n"
    body = HEADER + "    return softmax(query @ key.transpose(-2, -1)) @ value\n"
    report = examined(DOT, PARAMETERS[DOT.name][0], helper + body)
    assert "`return y / y.sun()`" in report.message


def test_an_error_of_not_implemented_from_a_library_is_no_stub():
    findings = found("import io\nreturn io.IOBase().fileno() or io.RawIOBase().read(1) or object.__reduce_ex__()")
    assert "not_started" not in findings


@pytest.mark.parametrize("thing", [None, 3, "attention", torch.zeros(2)], ids=repr)
def test_something_that_is_no_function(thing: Any):
    report = check(DOT.name, attention=thing, **PARAMETERS[DOT.name][0])
    assert [finding.id for finding in report.findings] == ["not_a_function"]


def test_an_input_with_nan_in_it_counts_as_unchanged_if_it_is():
    given, exam = torch.tensor([1.0, float("nan"), float("inf")]), Exam(DOT.name, {})
    assert exam.call(lambda x: x.isfinite().sum(), given).item() == 1
    with exam.part("changed"):
        exam.call(lambda x: x.nan_to_num_(), given)
    assert [finding.id for finding in exam.report().findings] == ["input_changed"]


def test_the_wrong_number_of_arguments():
    report = check(DOT.name, attention=lambda query: query, **PARAMETERS[DOT.name][0])
    assert "takes 1 positional argument" in report.message


def test_numpy_is_welcome():
    code = """
import numpy as np

def attention(query, key, value, mask=None):
    query, key, value = (np.asarray(x) for x in (query, key, value))
    scores = query @ np.swapaxes(key, -2, -1) / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(np.asarray(mask), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ value
"""
    assert examined(DOT, PARAMETERS[DOT.name][0], code).status == "passed"


def test_two_mistakes_at_once_are_both_named():
    both = wrong_solutions(DOT.name)["not_scaled"].replace("~mask", "mask")
    report = examined(DOT, {**PARAMETERS[DOT.name][0], "causal": True}, both)
    assert [finding.id for finding in report.findings][:2] == ["not_scaled", "mask_inverted"]


def test_a_right_answer_for_another_seed_is_wrong():
    """Numbers come from the seed: what one learner typed in does not pass for another one."""
    rows = [draw(EXAMPLE.name, **{**PARAMETERS[EXAMPLE.name][0], "seed": seed}).Q.tolist() for seed in range(5)]
    assert len({str(row) for row in rows}) == 5
    assert draw(EXAMPLE.name, **PARAMETERS[EXAMPLE.name][0]).Q.tolist() == rows[0]


def test_the_same_work_gives_the_same_report():
    for mistake in ("not_scaled", "raised"):
        text = wrong_solutions(SELF.name)[mistake]
        first, second = (examined(SELF, PARAMETERS[SELF.name][0], text).to_dict() for _ in range(2))
        assert first == second


# --- a state of its own, bans, types, gradients ---


@contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "state",
    [
        float64_by_default,
        torch.no_grad,
        lambda: torch.device("meta"),
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["float64 by default", "no gradients", "another default device", "inference mode", "autocast"],
)
def test_a_check_has_a_state_of_its_own(state: Callable[[], Any]):
    def seen() -> tuple[Any, ...]:
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return torch.get_default_dtype(), torch.get_default_device(), grad, inference, torch.initial_seed()

    with state():
        before, numbers = seen(), torch.get_rng_state()
        report = examined(HEADS, PARAMETERS[HEADS.name][0], HEADS.solution)
        assert report.status == "passed", report
        assert seen() == before
        assert bool((torch.get_rng_state() == numbers).all())


def one(exercise: Exercise, patch: tuple[str, str], parameters: dict[str, Any] | None = None) -> list[str]:
    """The findings about the solution with one piece of text changed."""
    assert exercise.solution.count(patch[0]) == 1
    text = exercise.solution.replace(*patch)
    return [f.id for f in examined(exercise, parameters or PARAMETERS[exercise.name][0], text).findings]


def test_what_a_function_sets_in_torch_ends_with_the_call():
    setting = "    torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.manual_seed(9)\n"
    line = "    query, key, value = (\n"
    assert one(SELF, (line, setting + line)) == ["no_gradient"]
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_an_emptied_list_is_a_finding():
    """A learner may use up the list of parts."""
    work = {
        "clip": lambda g, c: [x.clone() for x in g],
        "training_step": lambda m, parts, *_: parts.clear() or torch.zeros(()),
    }
    report = check("03/04_training_step", **work, **PARAMETERS["03/04_training_step"][0])
    assert "input_changed" in [finding.id for finding in report.findings]


@pytest.mark.parametrize(
    ("exercise", "patch", "id"),
    [
        (
            BLOCK,
            (
                "    return centred / (variance + eps).sqrt() * gain + bias\n",
                "    return torch.layer_norm(x, x.shape[-1:], gain, bias, eps)\n",
            ),
            "banned",
        ),
        (
            BACK,
            (
                "    mean = (weights * d_weights)",
                "    torch.ones(1, requires_grad=True).backward()\n    mean = (weights * d_weights)",
            ),
            "banned",
        ),
        (
            BLOCK,
            ("    x = x + drop(attention(norms[0](x)))\n", "    x = x.detach() + drop(attention(norms[0](x)))\n"),
            "gradient_differs",
        ),
        (
            DOT,  # a task that allows NumPy: only what carries a gradient has to carry the right one
            (".sum(dim=-1, keepdim=True)\n", ".sum(dim=-1, keepdim=True).detach()\n"),
            "gradient_differs",
        ),
        (
            COMPUTE,
            ("    return 2 * L * K * (D // H) * S * number\n", "    return 2 * L * K * (D / H) * S * number\n"),
            "not_whole",
        ),
        (SENTENCES, ("dtype=torch.bool)", "dtype=torch.long)"), "dtype"),
        (
            TRAINING,
            (
                "    return [factor * gradient for gradient in gradients]\n",
                "    return [factor * g if factor < 1 else g for g in gradients]\n",
            ),
            "not_new",
        ),
        (SELF, ('float("-inf")', "-1e4"), "differs"),
        (
            SENTENCES,
            ('targets.flatten(), reduction="none")', 'targets.flatten(), ignore_index=0, reduction="none")'),
            "differs",
        ),
    ],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_what_the_task_says_is_enforced(exercise: Exercise, patch: tuple[str, str], id: str):
    assert id in one(exercise, patch)


def test_a_default_that_is_typed_in_does_not_pass():
    """The notebook's default width, written where the argument belongs."""
    assert one(HEADS, ("    return x.reshape(B, T, n_heads, D // n_heads)", "    return x.reshape(B, T, -1, 4)"))
    assert one(SAMPLING, ("topk(min(top_k, ", "topk(min(5, "))


def test_the_formula_as_it_is_printed_passes_with_every_seed():
    """The printed formula has no softmax that is safe from overflow."""
    printed = EXAMPLE.solution.replace(
        "    weights = torch.softmax(scores / Q.shape[-1] ** 0.5, dim=-1)\n",
        "    e = torch.exp(scores / Q.shape[-1] ** 0.5)\n    weights = e / e.sum(1, keepdim=True)\n",
    )
    assert printed != EXAMPLE.solution
    for seed in range(20):
        report = examined(EXAMPLE, {**PARAMETERS[EXAMPLE.name][0], "seed": seed}, printed)
        assert report.status == "passed", report


def test_the_smallest_failing_input_is_shown():
    report = examined(
        PERPLEXITY,
        PARAMETERS[PERPLEXITY.name][0],
        PERPLEXITY.solution.replace('text.encode("utf-8")', 'text.strip().encode("utf-8")'),
    )
    assert "most = 1" in report.message  # the smallest size; the notebook has 5 tokens
    assert "you return" in report.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: 2 * x, "Every number is 2 times what it has to be."),
        (lambda x: -x, "Every number has the wrong sign."),
        (lambda x: x + 1, "Every number is off by 1."),
        (lambda x: x.flip(-1), "The numbers are the right ones, in the wrong places."),
        (lambda x: torch.cat([x[:1], x[1:] + torch.rand(x[1:].shape)]), "right at index 0 only"),
        (lambda x: torch.cat([x[:2], x[2:] + torch.rand(x[2:].shape)]), "right up to index 1, and not after"),
    ],
)
def test_a_difference_is_described_by_what_can_be_measured(change: Callable[[Tensor], Tensor], words: str):
    x = torch.randn(4, 3)
    exam = Exam("", {})
    with exam.part("x"):
        exam.compare(change(x), x, what="x")
    assert words in exam.report().message


def test_a_name_is_withheld_where_it_does_not_explain_everything():
    mistake = Mistake("halved", "It is half of what it has to be.", "", ({"factor": 0.5},))
    exam, x = Exam("", {}), torch.randn(3, 2)
    function = Work("f", lambda x, factor: factor * x)
    for factor in (0.5, 0.3):
        with exam.part(str(factor)):
            known = mistakes(lambda x, factor=1.0: factor * x, [mistake], x=x)
            exam.compare(exam.call(function, x, factor), x, known, what="f")
    assert [finding.id for finding in exam.report().findings] == ["differs"]


# --- the call ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check("04/99_nothing"), "there is no exercise '04/99_nothing'"),
        (lambda: check("04/01_dot_product_atention"), "did you mean '04/01_dot_product_attention'"),
        (lambda: check("04/"), "could be any of"),
        (lambda: check(DOT.name, attention=None), "seed= is missing"),
        (lambda: check(DOT.name, attention=None, heads=3, **PARAMETERS[DOT.name][0]), "heads= is unknown"),
        (lambda: draw(DOT.name, seed=0), "nothing to draw"),
        (lambda: draw(EXAMPLE.name, seed=-1, n_tokens=3, d_k=4), "seed must be a whole number from 0 on, got -1"),
        (lambda: draw(EXAMPLE.name, seed=0, n_tokens=0, d_k=4), "n_tokens must be a whole number from 1 to 512"),
        (lambda: draw(EXAMPLE.name, seed=0, n_tokens=3, d_k=10_000), "got 10000"),
        (
            lambda: check(SELF.name, self_attention=None, seed=0, n_tokens=3, d_model=8, n_heads=3),
            "n_heads must divide d_model: got d_model=8, n_heads=3",
        ),
    ],
)
def test_a_call_that_cannot_work_says_why(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# --- the report ---


def test_a_report_shows_itself_in_three_ways():
    report = examined(DOT, PARAMETERS[DOT.name][0], wrong_solutions(DOT.name)["not_scaled"])
    bundle = report._repr_mimebundle_()
    assert bundle["text/plain"].startswith("1 of 9 checks passed. (seed 0, n_tokens 4")
    assert "**The scores are not divided by the square root of d_k.**" in bundle["text/markdown"]
    assert "| a single token | passed |" in bundle["text/markdown"]
    data = bundle["application/vnd.llm-core.report+json"]
    assert (data["status"], data["passed"], data["total"]) == ("failed", 1, 9)
    assert data["findings"][0]["id"] == "not_scaled"
    assert len(data["findings"][0]["checks"]) == 6


def test_a_report_says_the_same_thing_once():
    report = examined(DOT, PARAMETERS[DOT.name][0], wrong_solutions(DOT.name)["not_scaled"])
    assert repr(report).count("not divided by the square root") == 1


def test_a_passed_report_names_no_mistake():
    report = examined(DOT, PARAMETERS[DOT.name][0], DOT.solution)
    assert repr(report) == "All 9 checks passed. (seed 0, n_tokens 4, d_k 4, d_v 3, causal False)"
    assert report.message == ""


def test_no_message_gives_the_answer_away():
    """A finding says what is wrong; the right numbers stay out of it."""
    report = examined(EXAMPLE, PARAMETERS[EXAMPLE.name][0], wrong_solutions(EXAMPLE.name)["all_rows_equal"])
    given: tuple[Tensor, ...] = draw(EXAMPLE.name, **PARAMETERS[EXAMPLE.name][0])
    right = load(EXAMPLE.solution)["one_head"](*given[:3])
    for table in right[1:]:
        for number in table.flatten().tolist():
            assert f"{number:.3f}" not in repr(report)
