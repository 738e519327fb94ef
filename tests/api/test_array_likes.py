"""Arrays of other libraries, and what is not quite an array: taken as it is, or refused by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.api.test_bad_arguments import CASES, FLOATING, FUNCTIONS, LISTS, X, good, is_labels

IDS = np.array([2, 0])
SPARSE = jxent.sparse_softmax_cross_entropy_with_logits
ALL: dict[str, Any] = FUNCTIONS | {
    "softmax_kl_divergence_with_logits": jxent.softmax_kl_divergence_with_logits,
    "linear_softmax_kl_divergence": jxent.linear_softmax_kl_divergence,
    "losses.softmax_kl_divergence": losses.softmax_kl_divergence,
    "losses.linear_softmax_kl_divergence": losses.linear_softmax_kl_divergence,
}
TEACHER = {"teacher_logits": X, "teacher_inputs": X, "teacher_kernel": np.eye(3, dtype=np.float32)}
ARRAYS = (*FLOATING, *TEACHER, "teacher_bias", "bias", "weights", "pos_weight", "temperature",
          "label_weights")  # fmt: skip


def arguments(function: str, argument: str) -> dict:
    """Every argument of a function, the one in question an array."""
    required = {
        name
        for name, parameter in inspect.signature(ALL[function]).parameters.items()
        if parameter.default is parameter.empty or name == "labels"
    }
    named = {name: value for name, value in _known(function).items() if name in required}
    if argument == "label_weights":
        named |= {"labels": LISTS, argument: np.full(LISTS.shape, 0.5, np.float32)}
    elif argument == "weights":
        per_class = "sigmoid" in function and "sparse" not in function and "linear" not in function
        shape = (1, 1) if per_class or function == "losses.compute_weighted_loss" else (2,)
        named[argument] = np.ones(shape, np.float32)
    elif argument in ("pos_weight", "bias", "teacher_bias"):
        named[argument] = np.ones(3, np.float32)
    elif argument == "temperature":
        named[argument] = np.array(2, np.float32)
    return named


def _known(function):
    return TEACHER | (
        {"logits": X, "inputs": X, "kernel": TEACHER["teacher_kernel"]}
        if "divergence" in function
        else good(function)
    )


EACH = [
    *((f, a) for f, a in CASES if a in ARRAYS or is_labels(a)),
    *(
        (f, a)
        for f in ALL
        if "divergence" in f
        for a in inspect.signature(ALL[f]).parameters
        if a in ARRAYS
    ),
]


def ids_of(argument) -> dict:
    """What labels are where they have no weights."""
    return {"labels": IDS} if argument == "label_weights" else {}


class Table:
    """A table of another library, which has a dtype for each column and none for all."""

    def __init__(self, array, error=None):
        self._array, self._error = array, error

    def __array__(self, dtype=None, copy=None):
        if self._error is not None:
            raise self._error
        return np.asarray(self._array, dtype)


class Foreign(Table):
    """An array or a tensor of another library, with a dtype of its own."""

    dtype = "int64, as another library writes it"


def rows(function, array):
    return [function(row) for row in array]


def refused(array):
    """What would lose something on its way, or is no array of numbers."""
    yield np.ma.array(array)
    yield np.ma.array(array, mask=np.ones(array.shape, bool))
    yield array.astype(object)
    yield array.astype(str)
    yield np.zeros(array.shape, "timedelta64[D]")
    yield Foreign(array, RuntimeError("it requires grad"))
    yield Foreign(array, TypeError("it is on another device"))
    yield Foreign(array.astype(object))
    if array.ndim:
        yield rows(np.ma.array, array)
        yield [np.ma.masked, *array.tolist()[1:]]
        yield [None, *array.tolist()[1:]]
        yield array.astype(str).tolist()
        yield iter(array.tolist())
        yield dict(enumerate(array.tolist()))
    if array.ndim == 2:
        yield [[None, *array.tolist()[0][1:]], *array.tolist()[1:]]
        yield [*array.tolist()[:-1], [Foreign(array, RuntimeError("it requires grad"))]]


def accepted(array):
    yield Foreign(array)
    yield Table(array)
    if array.ndim:
        yield rows(Foreign, array)
        yield tuple(rows(Table, array))


def test_every_array_argument_is_here():
    found = {a for _, a in EACH}
    assert {a for a in found if not is_labels(a)} == set(ARRAYS)


@pytest.mark.parametrize(("function", "argument"), EACH)
@pytest.mark.one_in(4)
def test_nothing_is_dropped_from_what_is_no_plain_array(function, argument):
    given = arguments(function, argument)
    array = np.asarray(given[argument])
    for value in refused(array):
        with pytest.raises(TypeError, match=f"^{argument} must"):
            jax.eval_shape(lambda value=value: ALL[function](**given | {argument: value}))


@pytest.mark.parametrize(("function", "argument"), EACH)
def test_none_is_no_array(function, argument):
    given = arguments(function, argument)
    default = inspect.signature(ALL[function]).parameters[argument].default
    if default is None:
        jax.eval_shape(lambda: ALL[function](**given | {argument: None, **ids_of(argument)}))
    else:
        with pytest.raises(ValueError, match=f"^{argument} must be a number or .* got None$"):
            ALL[function](**given | {argument: None})


@pytest.mark.parametrize(("function", "argument"), EACH)
@pytest.mark.one_in(8)
def test_arrays_of_other_libraries_are_read(function, argument):
    given = arguments(function, argument)
    array = np.asarray(given[argument])
    wanted = ALL[function](**given)
    for value in accepted(array):
        got = ALL[function](**given | {argument: value})
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_leaves_of_blockwise():
    def loss_fn(params, row):
        return row @ params

    for params, row, name in [(np.ma.array(X[0]), X, "params"), (X[0], np.ma.array(X), "rows")]:
        with pytest.raises(TypeError, match=f"^{name} must not be a masked array"):
            losses.blockwise(loss_fn, params, row, block_size=1)
    wanted = losses.blockwise(loss_fn, X[0], X, block_size=1)
    assert losses.blockwise(loss_fn, Foreign(X[0]), Foreign(X), block_size=1) == wanted


@pytest.mark.parametrize("ids", [[[0], [1, 2]], [0, [1]], [jnp.int32(0), [1]]])
def test_ragged_ids_name_the_argument(ids):
    with pytest.raises((TypeError, ValueError), match=r"^labels must"):
        SPARSE(labels=ids, logits=X)


def test_a_range_is_a_list_of_ids():
    np.testing.assert_array_equal(
        SPARSE(labels=range(2), logits=X), SPARSE(labels=[0, 1], logits=X)
    )
    lists = [range(2), range(1, 3)]
    np.testing.assert_array_equal(
        jxent.sparse_sigmoid_cross_entropy_with_logits(labels=lists, logits=X),
        jxent.sparse_sigmoid_cross_entropy_with_logits(labels=[[0, 1], [1, 2]], logits=X),
    )
    with pytest.raises(ValueError, match=r"^labels must be class ids that int64 holds"):
        SPARSE(labels=range(2**70, 2**70 + 2), logits=X)


def test_what_jax_reads_stays_a_tracer():
    """Variables of Flax and Keras, under `jit` too."""

    class Variable:
        def __init__(self, value):
            self.value, self.dtype = value, value.dtype

        def __jax_array__(self):
            return self.value

    def loss(ids, x):
        return SPARSE(labels=Variable(ids), logits=Variable(x))

    wanted = SPARSE(labels=IDS, logits=X)
    np.testing.assert_allclose(jax.jit(loss)(IDS, X), wanted, rtol=1e-6)
    np.testing.assert_array_equal(loss(jnp.asarray(IDS), jnp.asarray(X)), wanted)


# The libraries themselves, where they are installed.


def test_pandas():
    pandas = pytest.importorskip("pandas")
    wanted = SPARSE(labels=IDS, logits=X)
    for ids in (pandas.Series(IDS), pandas.Series(IDS, dtype="Int64")):
        np.testing.assert_array_equal(SPARSE(labels=ids, logits=pandas.DataFrame(X)), wanted)
    for ids in (pandas.Series([1, None], dtype="Int64"), pandas.Series(["a", "b"])):
        with pytest.raises(TypeError, match=r"^labels must be integer"):
            SPARSE(labels=ids, logits=X)


def test_polars():
    polars = pytest.importorskip("polars")
    wanted = SPARSE(labels=IDS, logits=X)
    got = SPARSE(labels=polars.Series(IDS), logits=polars.DataFrame(X))
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(TypeError, match=r"^labels must be integer"):
        SPARSE(labels=polars.Series([1, None]), logits=X)


def test_xarray():
    xarray = pytest.importorskip("xarray")
    got = SPARSE(labels=xarray.DataArray(IDS), logits=xarray.DataArray(X))
    np.testing.assert_array_equal(got, SPARSE(labels=IDS, logits=X))


def test_torch():
    torch = pytest.importorskip("torch")
    wanted = SPARSE(labels=IDS, logits=X)
    got = SPARSE(labels=torch.tensor(IDS), logits=torch.tensor(X))
    np.testing.assert_array_equal(got, wanted)
    with pytest.raises(TypeError, match=r"^logits must be .* got Tensor: "):
        SPARSE(labels=IDS, logits=torch.tensor(X, requires_grad=True))
