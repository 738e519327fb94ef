"""optax's own tests of these losses, as its wheel ships them, run against ours."""

import importlib
import inspect
import unittest
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jxent.compat import optax as compat

pytest.importorskip("optax")
# What is tested as optax's `_classification` and `_smoothing`, and of which classes.
CLASSES = {
    "_classification": (
        "SoftmaxCrossEntropyTest",
        "SafeSoftmaxCrossEntropyTest",
        "SoftmaxCrossEntropyWithIntegerLabelsTest",
        "SigmoidCrossEntropyTest",
        "PolyLossTest",
        "GeneralizedKLDivergenceTest",
        "KLDivergenceTest",
        "KLDivergenceWithLogTargetsTest",
        "SigmoidFocalLossTest",
    ),
    "_smoothing": ("SmoothLabelsTest",),
}
OURS = SimpleNamespace(**{name: getattr(compat, name) for name in compat.__all__})


def _module_of_tests(name):
    """optax's module of tests, None where the wheel has none."""
    try:
        return importlib.import_module(f"optax.losses.{name}_test")
    except ImportError:
        return None


MODULES = {name: _module_of_tests(name) for name in CLASSES}
CASES = [
    (name, case, method)
    for name, module in MODULES.items()
    if module is not None
    for case in CLASSES[name]
    for method in unittest.TestLoader().getTestCaseNames(getattr(module, case))
]


@pytest.mark.skipif(None in MODULES.values(), reason="optax is installed without its tests")
@pytest.mark.parametrize(("name", "case", "method"), CASES)
@pytest.mark.one_in(4)
def test_optax_own(name, case, method, monkeypatch):
    monkeypatch.setattr(MODULES[name], name, OURS)
    np.random.seed(0)  # theirs draw without a seed
    test = getattr(MODULES[name], case)(method)
    result = unittest.TestResult()
    # As their users have them: JAX's defaults, not the strict modes of these tests.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        test.run(result)
    failed = "\n".join(text for _, text in (*result.errors, *result.failures))
    assert result.testsRun == 1
    assert not failed, failed[-2000:]
    assert not result.skipped


@pytest.mark.skipif(None in MODULES.values(), reason="optax is installed without its tests")
def test_all_of_them_are_run():
    assert len(CASES) >= 96
    assert sum(map(len, CLASSES.values())) == 10


@pytest.mark.parametrize("name", compat.__all__)
def test_signature_is_that_of_optax(name):
    theirs = inspect.signature(getattr(importlib.import_module("optax.losses"), name))
    mine = inspect.signature(getattr(compat, name))
    for one, other in zip(mine.parameters.values(), theirs.parameters.values(), strict=True):
        assert (one.name, one.kind, one.default) == (other.name, other.kind, other.default)
