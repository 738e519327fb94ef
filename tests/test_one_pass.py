"""A row's statistics by one reduction of tuples: how it joins, and in what order."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent import _dispatch, _logsumexp
from jxent._mesh import Classes
from jxent.platforms import _one_pass
from jxent.platforms._one_pass import Row

inf, nan = np.inf, np.nan
ODD = [0.0, 1.5, -2.0, 40.0, -120.0, 5e37, -5e37, inf, -inf, nan]

UNIT = 0.25  # of the classes that are left


def truth(x, ids, z) -> dict[str, np.ndarray]:
    """The statistics of rows `x` by their definition, in float64."""
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    row_max = x.max(-1)  # NaN where one is
    top = row_max[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(x == top, 0, top - x)
        first = np.arange(x.shape[-1]) == np.argmax(x, -1)[:, None]
        rest = np.where(first, 0 * gap, np.exp(-gap)).sum(-1)
        left = (x > -inf).astype(np.float64)
        return {
            "row_max": row_max,
            "rest": rest,
            "logit": np.take_along_axis(x, ids[:, None], -1)[:, 0],
            "labels": np.where(z == 0, 0, z * gap).sum(-1),
            "left": np.where(left == 0, 0, left * gap).sum(-1),
            "total": z.sum(-1),
            "count": left.sum(-1),
        }


def rows_of(x, ids, z) -> Row:
    """Each class of the rows alone."""
    logit = jnp.where(jnp.arange(x.shape[-1])[None] == ids[:, None], x, 0)
    return _one_pass.row_of_one(jnp.asarray(x), logit, jnp.asarray(z), UNIT)


def known(row: Row) -> dict[str, np.ndarray]:
    assert row.labels is not None
    assert row.left is not None
    found = {
        "row_max": row.row_max, "rest": row.rest, "logit": row.logit, "labels": row.labels.below,
        "left": row.left.below / UNIT, "total": row.labels.total, "count": row.left.total / UNIT,
    }  # fmt: skip
    return {k: np.asarray(v)[..., 0] for k, v in found.items()}


def agree(got, wanted, rtol=2e-6):
    """What a row of NaN has beside the NaN in `rest` is nobody's."""
    fine = ~np.isnan(wanted["row_max"])
    np.testing.assert_array_equal(np.isnan(got["rest"]), ~fine)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            got[name][fine], np.float64(value)[fine], rtol=rtol, atol=1e-37, err_msg=name
        )


@pytest.fixture(scope="module")
def edges():
    """Every row of three of the odd logits, a label each, and dense labels of which one is 0."""
    x = np.float32(list(itertools.product(ODD, repeat=3)))
    ids = np.arange(len(x)) % 3
    z = np.float32([0.3, 0.0, 1.1])[(np.arange(len(x))[:, None] + np.arange(3)) % 3]
    return x, ids, z


merged = jax.jit(_one_pass.merged)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
@pytest.mark.parametrize("right", [False, True], ids=["(ab)c", "a(bc)"])
def test_joined_in_any_order_rows_are_what_they_are_defined_to_be(edges, order, right):
    rows = rows_of(*edges)
    a, b, c = (jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in order)
    got = merged(a, merged(b, c)) if right else merged(merged(a, b), c)
    agree(known(got), truth(*edges))


def test_nothing_joined_with_a_row_changes_no_bit(edges):
    rows = rows_of(*edges)
    pairs = merged(*(jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in (0, 1)))
    nothing = jax.tree.map(lambda e, v: jnp.full_like(v, e), _one_pass.empty(pairs), pairs)
    for got in (merged(pairs, nothing), merged(nothing, pairs)):
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(pairs), strict=True):
            fine = ~np.isnan(pairs.rest)
            np.testing.assert_array_equal(np.asarray(one)[fine], np.asarray(other)[fine])
        np.testing.assert_array_equal(np.isnan(got.rest), np.isnan(pairs.rest))


def test_a_maximum_that_drops_nan_loses_none(edges, monkeypatch):
    """Some compilers' do: `rest` says where one is."""
    plain = jnp.maximum

    def dropping(a, b):
        return plain(jnp.where(jnp.isnan(a), b, a), jnp.where(jnp.isnan(b), a, b))

    monkeypatch.setattr(jnp, "maximum", dropping)
    x, *_ = edges
    rows = rows_of(*edges)
    a, b, c = (jax.tree.map(lambda v, k=k: v[:, k : k + 1], rows) for k in range(3))
    got = _one_pass.merged(_one_pass.merged(a, b), c)
    np.testing.assert_array_equal(np.isnan(np.asarray(got.rest)[:, 0]), np.isnan(x).any(-1))


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_reduction_is_the_definition(edges, classes):
    x, ids, z = (v[:, :classes] if v.ndim == 2 else v % classes for v in edges)
    got = jax.jit(partial(_one_pass.reduced, Classes(-1)))(rows_of(x, ids, z))
    agree(known(got), truth(x, ids, z))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_every_row_has_the_statistics_of_the_plain_spelling(edges, smoothing):
    """Bit for bit where they are 0, infinite or NaN, of the same sign, and else to rounding."""
    x, ids, z = edges
    classes = Classes(-1)
    for one, plain, data in (
        (_one_pass.label_statistics, _logsumexp.label_statistics.plain, (x, ids[:, None])),
        (_one_pass.labels_statistics, _logsumexp.labels_statistics.plain, (x, z)),
    ):
        got = jax.jit(partial(one, _one_pass.reduced, classes, smoothing))(*data)
        with _dispatch.as_on("none"):
            wanted = jax.jit(partial(plain, classes, smoothing))(*data)
        for name, value in wanted._asdict().items():
            if value is not None:
                np.testing.assert_allclose(
                    getattr(got, name), value, rtol=2e-6, atol=1e-37, err_msg=name
                )
