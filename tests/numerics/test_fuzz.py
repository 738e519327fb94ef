"""Every public function on drawn shapes, dtypes, options and logits, against a wider type.

A drawn program is compiled once and run on several batches, each row of which is of another kind:
undecided, confident, drifted, spread, masked, infinite, NaN. Value, gradient and Hessian-vector
product; here on one device, where rows may be cut, and in `test_fuzz_split.py` on eight.

The bound of an element is a number of roundings of what its terms add up to, more where a
difference of logits is exponentiated: see `Bound` in `fuzz_bounds.py`.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jxent._src.numerics import logsumexp, softmax_rows
from jxent._src.platforms.cpu import dense_labels, sigmoid, softmax
from tests.numerics.fuzz import FEW, bounded, each_count, each_function, fuzz, try_batches
from tests.numerics.fuzz_programs import FUNCTIONS, Program

pytestmark = pytest.mark.optimized


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@each_count
@each_function
@pytest.mark.one_in(16)
def test_on_one_device(function, examples, request):
    """A few programs as users have them, many with every way at every width."""
    if examples == FEW:
        request.getfixturevalue("narrow_rows")

    @bounded(examples)
    @given(st.data())
    def test(data):
        fuzz(data, function, jnp.asarray)

    test()


# What a fast path accepts is what its exact form gives.


def both(fast, exact):
    """`with_fallback` that runs both and compares them where the fast one says it is usable."""

    def tried(*arrays):
        usable, result = fast(*arrays)
        other = exact(*arrays)
        sizes = [x.shape[-1] for x in jax.tree.leaves(arrays) if x.ndim]
        jax.debug.callback(partial(compare, max(sizes, default=1)), usable, result, other)
        return jax.tree.map(partial(jnp.where, usable), result, other)

    return tried


COMPARED = {"fast": 0, "exact": 0}  # elements, so that nothing is compared with nothing


def compare(classes, usable, fast, exact):
    COMPARED["fast"] += int(np.sum(usable))
    COMPARED["exact"] += int(np.sum(~np.asarray(usable)))
    if isinstance(fast, logsumexp.SparseLabelResiduals):
        # Each has its own shift; what both mean is the logarithm of the sum.
        fast, exact = (
            (n.loss, n.complement, n.log_normalizer + 1e3, n.shift - np.log(n.scale) + 1e3)
            for n in (fast, exact)
        )
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(exact), strict=True):
        got, wanted, ok = np.broadcast_arrays(a, b, usable)
        info = np.finfo(got.dtype)
        allowed = (64 + 4 * classes**0.5 - np.log(info.tiny)) * info.eps * np.abs(wanted)
        with np.errstate(invalid="ignore"):
            fine = (np.abs(got - wanted) <= allowed + info.tiny) | (got == wanted)
        assert np.all(fine | ~ok), (got, wanted)


@pytest.mark.usefixtures("x64")
@each_count
@pytest.mark.parametrize("function", [f for f in FUNCTIONS if "linear" not in f])
@pytest.mark.one_in(4)
def test_fast_paths_agree_with_their_exact_forms(function, examples, monkeypatch):
    jax.clear_caches()
    for module in (softmax, dense_labels, sigmoid):
        monkeypatch.setattr(module, "with_fallback", both)
    COMPARED.update(fast=0, exact=0)

    @bounded(examples // 2)
    @given(st.data())
    def test(data):
        fuzz(data, function, jnp.asarray)
        jax.effects_barrier()

    test()
    jax.clear_caches()
    per_class = function in (
        "sigmoid_cross_entropy_with_logits", "weighted_cross_entropy_with_logits",
        "sparse_sigmoid_cross_entropy_with_logits", "losses.sparse_sigmoid_cross_entropy",
    )  # fmt: skip
    assert COMPARED["fast"] or per_class or examples == FEW


# The net catches what it was made for: each fix taken out again.

MUTANTS = {
    "the quotient's guard": (
        softmax, ("_without_shift",), " & (odds < float(info.max))", "",
        "sparse_softmax_cross_entropy_with_logits", 64, 0.0,
    ),
    "NaN dropped by a minimum": (
        softmax, ("_in_pieces",), "exp(upcast(x) - row_max)",
        "jnp.where(jnp.isnan(x), 0, exp(upcast(x) - row_max))",
        "softmax_cross_entropy_with_logits", 640, None,
    ),
    "a leader's label taken from the sum": (
        softmax_rows, ("grads_of_labels",),
        "jnp.where(given == rows.largest, rows.others, rows.largest + rows.others - given)",
        "rows.largest + rows.others - given",
        "softmax_cross_entropy_with_logits", 64, None,
    ),
    "probabilities without a shift": (
        softmax, ("_without_shift",),
        "SparseLabelResiduals(loss, log_normalizer, log_normalizer, scale, others / total)",
        "SparseLabelResiduals(loss, log_normalizer, 0 * logit, 1 / total, others / total)",
        "sparse_softmax_cross_entropy_with_logits", 7, 0.0,
    ),
    "the smoothed label's slope": (
        logsumexp, ("label_grads", "_label_grads_jvp"),
        "of_label = (smoothing - uniform_mass) * p\n"
        "    of_label -= (1 - smoothing + uniform_mass) * normalizer.complement",
        "of_label = smoothing - uniform_mass - normalizer.complement",
        "sparse_softmax_cross_entropy_with_logits", 20_000, 1.0,
    ),
}  # fmt: skip


def mutated(module, names, right, wrong):
    """The module's names with the fix taken out."""
    source = "\n".join(inspect.getsource(getattr(module, name)) for name in names)
    assert source.count(right) == 1, f"{right!r} does not stand once in {names}"
    copy = dict(vars(module))
    exec(source.replace(right, wrong), copy)
    return copy


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_can_be_made(mutant):
    """In the fast suite, so that the full one finds its place in the source."""
    module, names, right, wrong, *_ = MUTANTS[mutant]
    assert mutated(module, names, right, wrong)[names[0]] is not getattr(module, names[0])


@pytest.mark.long
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_killed(mutant, monkeypatch):
    module, names, right, wrong, function, classes, smoothing = MUTANTS[mutant]
    copy = mutated(module, names, right, wrong)
    monkeypatch.setattr(module, names[0], copy[names[0]])
    jax.clear_caches()
    options = {"z_loss": 0.0, "logit_softcap": None}
    if smoothing is not None:
        options["label_smoothing"] = smoothing
    program = Program(function, "float32", (70,), classes, options, second_order=False)
    with pytest.raises(AssertionError, match="the truth is"):
        try_batches(program, range(20), jnp.asarray)
    jax.clear_caches()
