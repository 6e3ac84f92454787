"""The loss that makes its head's logits piece by piece equals one pass of torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.helpers import LANGUAGES, VOCABULARY, gradients, relative, rows, vision_lm, worst_gradient
from vlmzoo.config import read_part
from vlmzoo.data.collate import LanguageCollate
from vlmzoo.nn import language as lm
from vlmzoo.nn.cross_entropy import Tail, head_losses, probe, rows_at_once, tail_of
from vlmzoo.nn.language import language_config

TOKENS, WIDTH, WORDS = 23, 8, 37
SCALES = {
    "gemma2": {"final_logit_softcapping": 0.4},
    "cohere": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
}
EXTRA = {
    "cohere": {**LANGUAGES["llama"], "kind": "cohere"},
    "granite": {**LANGUAGES["llama"], "kind": "granite"},
}


def inputs(dtype: torch.dtype = torch.float64, bias: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(size, generator=generator, dtype=dtype)
        for size in ((TOKENS, WIDTH), (WORDS, WIDTH), (WORDS,))
    ]
    leaves = [one.requires_grad_() for one in made]
    return [
        *leaves[: 2 + bias],
        *([] if bias else [None]),
        torch.randint(WORDS, (TOKENS,), generator=generator),
    ]


def reference(
    hidden: Any, weight: Any, bias: Any, targets: Any, tail: Tail, smoothing: float
) -> torch.Tensor:
    logits = F.linear(hidden, weight, bias) * tail.scale
    logits = logits if tail.cap is None else tail.cap * torch.tanh(logits / tail.cap)
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("rows", [1, 5, TOKENS, 1000])
@pytest.mark.parametrize(
    "bias, tail, smoothing",
    [(False, Tail(), 0.0), (True, Tail(0.3), 0.1), (True, Tail(2.0, 1.5), 0.2), (False, Tail(1.0, 3.0), 0.0)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_one_pass(rows: int, bias: bool, tail: Tail, smoothing: float, weighted: bool) -> None:
    hidden, weight, offset, targets = inputs(bias=bias)
    leaves = [one for one in (hidden, weight, offset) if one is not None]
    pull = torch.linspace(-1, 2, TOKENS, dtype=torch.float64) if weighted else torch.tensor(0.37).double()
    wanted = reference(hidden, weight, offset, targets, tail, smoothing)
    found = head_losses(hidden, weight, targets, offset, tail, smoothing, rows)
    assert torch.allclose(found, wanted, rtol=1e-13, atol=1e-13)
    by = [
        torch.autograd.grad((losses * pull).sum() if weighted else losses.sum() * pull, leaves)
        for losses in (found, wanted)
    ]
    for one, other in zip(*by, strict=True):
        assert relative(one, other) < 1e-13


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_given_apart(bias: bool, frozen: bool, weighted: bool) -> None:
    """Added tokens: as of one pass under the matrix with these rows in it, gradients of both included."""
    found, wanted = inputs(bias=bias), inputs(bias=bias)
    ids = torch.tensor([30, 2, 5])
    pull = torch.linspace(0.5, 2.0, TOKENS, dtype=torch.float64) if weighted else torch.ones(TOKENS).double()
    rows = [
        torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for _ in "ab"
    ]
    for leaves, own in zip((found, wanted), rows):
        own.requires_grad_()
        leaves[1].requires_grad_(not frozen)
    losses = head_losses(*found[:2], found[3], found[2], Tail(0.7, 4.0), rows=4, own=(ids, rows[0]))
    full = wanted[1].index_copy(0, ids, rows[1])
    expected = reference(wanted[0], full, wanted[2], wanted[3], Tail(0.7, 4.0), 0.0)
    assert relative(losses, expected) < 1e-12
    (losses * pull).sum().backward(), (expected * pull).sum().backward()
    pairs = [(rows[0], rows[1]), *zip(found[: 2 + bias], wanted[: 2 + bias])]
    for one, other in pairs:
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or relative(one.grad, other.grad) < 1e-12


def test_float32_and_extreme_logits() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    big = (hidden * 300).detach().requires_grad_()
    for states in (hidden, big):
        wanted, found = (
            reference(states, weight, None, targets, Tail(), 0.0),
            head_losses(states, weight, targets, rows=4),
        )
        assert relative(found, wanted) < 1e-6
        pairs = [torch.autograd.grad(losses.sum(), (states, weight)) for losses in (found, wanted)]
        assert all(relative(a, b) < 1e-6 for a, b in zip(*pairs, strict=True))


class Products(TorchDispatchMode):
    """Notes the shape of everything that a matrix product gives."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "mm" in func.__name__:
            self.made.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("learns", [True, False])
def test_work_done(learns: bool) -> None:
    """Each logit once, never more than a piece of them, and no product for the weight of a frozen head."""
    hidden, weight, _, targets = inputs()
    weight.requires_grad_(learns)
    with Products() as seen:
        head_losses(hidden, weight, targets, rows=10).sum().backward()
    logits = [shape for shape in seen.made if shape[1] == WORDS]
    assert [n for n, _ in logits] == [10, 10, 3]
    assert seen.made.count((WORDS, WIDTH)) == 3 * learns
    assert (weight.grad is not None) == learns


def test_no_gradient_wanted_and_nothing_supervised() -> None:
    hidden, weight, _, targets = inputs()
    with torch.no_grad():
        losses = head_losses(hidden, weight, targets, rows=7)
    assert not losses.requires_grad
    assert relative(losses, reference(hidden, weight, None, targets, Tail(), 0.0)) < 1e-13
    head_losses(hidden[:0], weight, targets[:0]).sum().backward()
    assert not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """Products in the half type with master gradients in float32, as near to full precision as torch's own."""
    hidden, weight, _, targets = inputs(torch.float32)
    exact = torch.autograd.grad(reference(hidden, weight, None, targets, Tail(), 0.0).sum(), (hidden, weight))
    with torch.autocast("cpu", dtype):
        found = head_losses(hidden, weight, targets, rows=6)
        stock = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    assert found.dtype == torch.float32
    ours, theirs = (torch.autograd.grad(losses.sum(), (hidden, weight)) for losses in (found, stock))
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        assert one.dtype == torch.float32
        assert relative(one, wanted) < 1.5 * relative(other, wanted) + 1e-3


@pytest.mark.parametrize("tail", [Tail(), Tail(0.0625), Tail(1.0, 30.0), Tail(0.5, 50.0), Tail(1 / 8.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tail_is_read_from_its_probe(tail: Tail, dtype: torch.dtype) -> None:
    found = tail_of(tail(probe(torch.zeros(1, dtype=dtype), 50)))
    assert found is not None
    assert found.scale == pytest.approx(tail.scale, rel=1e-6) and (found.cap is None) == (tail.cap is None)
    if tail.cap is not None:
        assert found.cap == pytest.approx(tail.cap, rel=1e-7)


def test_unknown_tails_are_not_guessed() -> None:
    made = probe(torch.zeros(1), 50)
    for odd in (
        made.relu(),
        made + 1,
        made.square(),
        made.masked_fill(made == 0, float("-inf")),
        made[..., :5],
    ):
        assert tail_of(odd) is None


def test_rows_at_once_bounds_the_logits() -> None:
    assert rows_at_once(32000, torch.device("cpu")) * 32000 * 4 <= 2**25
    assert rows_at_once(256000, torch.device("cuda")) * 256000 * 4 <= 2**28
    assert rows_at_once(10**8, torch.device("cpu")) == 16


@pytest.mark.parametrize(
    "kind", ["llama", "gemma2", "cohere", "granite", "phi", "gpt2", "opt", "gptj", "mpt"]
)
def test_every_family_goes_through_pieces(kind: str) -> None:
    """Soft caps, scales, head biases and tied heads: stock logits and torch's loss against the pieces, in float64."""
    torch.manual_seed(0)
    tree = {**LANGUAGES, **EXTRA}[kind]
    model = (
        AutoModelForCausalLM.from_config(language_config({**tree, **SCALES.get(kind, {})})).double().eval()
    )
    ids = torch.randint(4, VOCABULARY, (2, 9))
    positions = torch.rand(2, 9) < 0.5
    targets = torch.randint(4, VOCABULARY, (int(positions.sum()),))

    def run() -> torch.Tensor:
        return model(input_ids=ids, use_cache=False).logits

    wanted = F.cross_entropy(run()[positions], targets, reduction="none")
    wanted.sum().backward()
    stock = gradients(model)
    model.zero_grad()
    found = lm.losses_at(model, run, positions, targets, rows=3)
    found.sum().backward()
    assert model not in lm._IN_ONE_PASS
    assert relative(found, wanted) < 1e-12
    assert worst_gradient(gradients(model), stock) < 1e-9


def test_strange_heads_take_one_pass() -> None:
    """A head of another class, and logits that something else is done to, give the plain loss."""
    torch.manual_seed(0)
    positions = torch.ones(1, 5, dtype=torch.bool)
    ids, targets = torch.randint(4, VOCABULARY, (1, 5)), torch.randint(4, VOCABULARY, (5,))

    class Other(torch.nn.Linear):
        pass

    for odd in ("head", "tail"):
        model = AutoModelForCausalLM.from_config(language_config(LANGUAGES["llama"])).double()
        bend = torch.nn.Identity() if odd == "head" else torch.nn.ELU()
        if odd == "head":
            model.lm_head.__class__ = Other

        def run(model: Any = model, bend: Any = bend) -> torch.Tensor:
            return bend(model(input_ids=ids, use_cache=False).logits)

        wanted = F.cross_entropy(run()[0], targets, reduction="none", label_smoothing=0.1)
        for _ in range(2):
            assert relative(lm.losses_at(model, run, positions, targets, 0.1), wanted) < 1e-12
        assert (model in lm._IN_ONE_PASS) == (odd == "tail")


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_models_give_the_same_step_for_any_pieces(fusion: str, checkpointing: bool) -> None:
    model, processor = vision_lm(fusion=fusion)
    model = model.double().train()
    model.checkpoint_activations(checkpointing)
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(4)])
    batch["pixel_values"] = batch["pixel_values"].double()
    made = []
    for options in ({"logit_rows": 3}, {"logit_rows": 10**6}, {}):
        model.zero_grad()
        losses = (
            read_part("objectives", {"kind": "language", **options})
            .build(model)(model, batch)["language"]
            .sum
        )
        losses.backward()
        made.append((losses.detach(), gradients(model)))
    with lm.head_only_at(model.language, F.pad(batch["labels"][:, 1:] != -100, (0, 1))):
        model.zero_grad()
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0]
    wanted = F.cross_entropy(logits, batch["labels"][:, 1:][batch["labels"][:, 1:] != -100], reduction="sum")
    wanted.backward()
    for total, found in made:
        assert relative(total, wanted) < 1e-12
        assert worst_gradient(found, gradients(model)) < 1e-9


def test_objective_options_are_checked() -> None:
    for wrong in ({"label_smoothing": 1.0}, {"logit_rows": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            read_part("objectives", {"kind": "language", **wrong})
    model, processor = vision_lm()
    collate = LanguageCollate(processor)
    batch = collate.join([collate.encode(row) for row in rows(2)])
    smooth, plain = (
        read_part("objectives", {"kind": "language", "label_smoothing": amount}).build(model)(model, batch)[
            "language"
        ]
        for amount in (0.2, 0.0)
    )
    assert not torch.allclose(smooth.sum, plain.sum) and smooth.count == plain.count
