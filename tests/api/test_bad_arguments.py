"""Each argument of each public function in turn: it works as documented, or the error names it."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
GOOD = {
    "logits": X, "losses": X, "inputs": X, "kernel": np.ones((3, 3), np.float32),
    "bias": np.zeros(3, np.float32), "weights": 1.0, "pos_weight": 2.0, "label_smoothing": 0.1,
    "z_loss": 0.1, "logit_softcap": 5.0, "focusing": 0.0, "negative_focusing": 2.0, "block_size": 2,
    "class_block_size": None, "axis": -1, "axis_name": None, "temperature": 2.0, "has_aux": False,
    "label_weights": None, "name": "head", "scope": "head", "reduction": "weighted_mean",
    "mask": None, "mean_over": "examples", "excluded": None,
}  # fmt: skip
DENSE, IDS, LISTS = np.full((2, 3), 0.5, np.float32), np.array([2, 0]), np.array([[2, -1], [0, 1]])
FUNCTIONS = {
    f"{prefix}{name}": function
    for prefix, module in (("", jxent), ("losses.", losses))
    for name, function in vars(module).items()
    if inspect.isfunction(function) and not name.startswith("_")
    and (function.__module__ or "").startswith("jxent") and name not in ("partial",)
    and ("cross_entropy" in name or "statistics" in name
         or name in ("compute_weighted_loss", "linear_logits"))
}  # fmt: skip


def good(function: str) -> dict:
    """Every argument of a function, right."""
    labels = DENSE
    if "sparse_softmax" in function:
        labels = IDS
    elif "sparse_sigmoid" in function:
        labels = LISTS
    named = dict.fromkeys(("labels", "multi_class_labels", "onehot_labels"), labels)
    return {
        name: (GOOD | named)[name] for name in inspect.signature(FUNCTIONS[function]).parameters
    }


def is_labels(argument):
    return argument.endswith("labels")


FLOATING = ("logits", "losses", "inputs", "kernel")
NUMBERS = ("label_smoothing", "z_loss", "logit_softcap", "focusing", "negative_focusing")
OPTIONS = (
    *NUMBERS,
    "block_size",
    "class_block_size",
    "axis",
    "axis_name",
    "has_aux",
    "name",
    "scope",
    "reduction",
    "mean_over",
)
ARRAYS = (*FLOATING, "weights", "pos_weight", "bias")


class Strange:
    """Not a number, not an array."""


VALUES = {
    "None": None, "a string": "1", "strings": ["1", "0"], "an object": Strange(),
    "objects": np.array([Strange(), None]), "a dictionary": {"a": 1.0}, "a set": {1.0},
    "complex": 1j, "a complex array": np.zeros((2, 3), complex), "a complex list": [1j, 0],
    "rank 4": np.zeros((1, 1, 1, 1), np.float32), "rank 4 ids": np.zeros((1, 1, 1, 1), int),
    "a bool": True, "bools": np.zeros((2, 3), bool), "a list of bools": [True, False],
    "a list of floats": [1.7, 0.2], "ragged": [[1.0], [1.0, 2.0]], "an empty list": [],
    "integers": np.ones((2, 3), int), "float16": np.ones((2, 3), np.float16),
    "a NumPy scalar": np.float32(0.5), "0-d": np.array(0.5), "a JAX number": jnp.float32(0.5),
    "negative": -1, "a negative float": -0.5, "NaN": float("nan"), "infinite": float("inf"),
    "huge": 10**400, "beyond int64": [2**70, 0], "beyond int32": [2**40, 0],
    "dates": np.array(["2020-01-01"], "datetime64[D]"), "a key": jax.random.key(0),
    "too many": np.ones((2, 7), np.float32), "no classes": np.ones((2, 0), np.float32),
    "an empty tuple": (), "a type": int,
}  # fmt: skip

NEVER = (  # an argument that would take one of these would take anything
    "strings", "an object", "objects", "a dictionary", "a set", "complex", "a complex array",
    "a complex list", "ragged", "dates", "a key", "beyond int64", "a type", "rank 4",
)  # fmt: skip
ALSO = {  # and these, beside it
    **dict.fromkeys(FLOATING, ("None", "a string", "a bool", "bools", "a list of bools", "integers",
                               "negative", "huge", "beyond int32")),
    **dict.fromkeys(NUMBERS, ("a string", "a bool", "bools", "0-d", "a JAX number", "negative",
                              "a negative float", "NaN", "infinite", "huge", "an empty list",
                              "an empty tuple")),
    "weights": ("None", "a string", "huge", "too many", "an empty list"),
    "pos_weight": ("None", "a string", "huge", "too many"),
    "bias": ("a string", "a bool", "huge", "too many", "negative"),
    **dict.fromkeys(("block_size", "class_block_size"),
                    ("a string", "a bool", "a NumPy scalar", "0-d", "negative", "a negative float",
                     "NaN", "infinite")),
    "axis": ("None", "a string", "a bool", "a NumPy scalar", "0-d", "a negative float", "NaN",
             "huge"),
    "axis_name": ("a string", "negative", "an empty tuple", "an empty list", "huge", "NaN"),
    "temperature": ("None", "a string", "a bool", "bools", "a list of bools", "negative", "NaN",
                    "a negative float", "infinite", "huge", "an empty list", "too many"),
    "has_aux": ("None", "a string", "bools", "a list of bools", "an empty tuple", "0-d", "negative",
                "a JAX number", "a NumPy scalar", "NaN"),
    "label_weights": ("None", "a string", "a bool", "a list of bools", "a NumPy scalar", "0-d",
                      "a JAX number", "negative", "NaN", "huge", "too many", "an empty list"),
    "excluded": ("a string", "a bool", "bools", "a list of bools", "a list of floats", "float16",
                 "a NumPy scalar", "0-d", "a JAX number", "negative", "NaN", "huge",
                 "an empty list"),
    "name": ("a bool", "negative", "NaN", "an empty tuple"),
    "scope": ("a bool", "negative", "NaN", "an empty tuple"),
    "reduction": ("None", "a string", "a bool", "negative", "NaN", "an empty tuple"),
    "mean_over": ("None", "a string", "a bool", "negative", "NaN", "an empty tuple"),
    "mask": ("a string", "a list of floats", "integers", "float16", "a NumPy scalar", "0-d",
             "a JAX number", "negative", "NaN", "huge", "an empty list", "too many"),
}  # fmt: skip
OF_IDS = ("None", "a string", "a bool", "bools", "a list of bools", "a list of floats", "float16",
          "a NumPy scalar", "0-d", "negative", "NaN", "huge", "too many")  # fmt: skip
OF_DENSE = ("None", "a string", "a list of floats", "0-d", "negative", "huge", "too many",
            "no classes", "beyond int32")  # fmt: skip


def refused(function, argument):
    """What must raise."""
    if is_labels(argument):
        optional = ("None",) if "statistics" in function else ()
        of_labels = OF_IDS if "sparse" in function else OF_DENSE
        return [what for what in NEVER + of_labels if what not in optional]
    fine = {"weights": ("beyond int64",), "losses": ("rank 4",)}.get(argument, ())
    return [what for what in NEVER + ALSO[argument] if what not in fine]


CASES = [(f, a) for f in FUNCTIONS for a in inspect.signature(FUNCTIONS[f]).parameters]


def named(message: str, argument: str) -> bool:
    """The error begins with the argument, or with the one that it does not fit."""
    others = {"kernel": ("inputs",), "logits": ("labels", "multi_class_labels", "onehot_labels",
              "pos_weight", "weights", "axis"), "inputs": ("kernel", "labels", "weights", "bias"),
              "losses": ("weights",), "label_weights": ("labels",)}.get(argument, ())  # fmt: skip
    if argument == "kernel":
        others = ("inputs", "labels", "bias", "pos_weight")
    return message.startswith((argument, *others))


@pytest.mark.parametrize(("function", "argument"), CASES)
@pytest.mark.one_in(8)
def test_every_invalid_value_of_every_argument(function, argument):
    must = refused(function, argument)
    for what, value in VALUES.items():
        message = error_of(function, {**beside(function, argument), argument: value})
        assert what not in must or message is not None, what
        assert message is None or named(message, argument), (what, message)


@pytest.mark.parametrize(("function", "argument"), CASES)
@pytest.mark.one_in(8)
@pytest.mark.usefixtures("asserts_disabled")
def test_no_invalid_value_gives_a_number_with_asserts_disabled(function, argument):
    for what in refused(function, argument):
        message = error_of(function, {**beside(function, argument), argument: VALUES[what]})
        assert message is not None, what
        assert named(message, argument), (what, message)


def beside(function, argument) -> dict:
    """What is right for an argument in turn."""
    arguments = good(function)
    return arguments | {"labels": LISTS} if argument == "label_weights" else arguments


def error_of(function, arguments) -> str | None:
    """The message of the error that a call raises, if it does: all are raised before it computes.

    Arguments are as a user passes them, not traced; what would be computed from them is not.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cast to inf, as the user asked for
        try:
            jax.eval_shape(lambda: FUNCTIONS[function](**arguments))
        except (TypeError, ValueError) as error:
            return str(error)
    return None


@pytest.mark.parametrize(("function", "argument"), [c for c in CASES if c[1] in OPTIONS])
def test_a_traced_option_says_what_it_is(function, argument):
    arguments = good(function)

    def traced(value):
        return FUNCTIONS[function](**{**arguments, argument: value})

    kind = "must be a string" if argument in ("name", "scope") else "is an option, compiled in"
    with pytest.raises(TypeError, match=f"^{argument} {kind}"):
        jax.jit(traced)(1)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.one_in(2)
def test_the_table_starts_from_what_is_right(function):
    assert np.isfinite(FUNCTIONS[function](**good(function))).all()


@pytest.mark.parametrize("huge", [2**31, 2**32, 2**32 + 1, -(2**32) + 1, 2**63 - 1])
def test_wide_ids_never_wrap(huge):
    """With 64 bits off JAX would cut them to 32."""
    for ids in (np.array([huge, 0]), [huge, 0], np.array([huge, 0], object).astype(np.int64)):
        loss = jxent.sparse_softmax_cross_entropy_with_logits(labels=ids, logits=X)
        np.testing.assert_array_equal(np.isnan(loss), [True, False])
        loss = jxent.sparse_sigmoid_cross_entropy_with_logits(
            labels=np.reshape(ids, (2, 1)), logits=X
        )
        np.testing.assert_array_equal(np.isnan(loss), [huge > 0, False])
    loss = jxent.sparse_softmax_cross_entropy_with_logits(
        labels=np.array([2**64 - 1, 0], np.uint64), logits=X
    )
    np.testing.assert_array_equal(np.isnan(loss), [True, False])


def test_ids_of_lists_may_hold_jax_numbers():
    loss = jxent.sparse_softmax_cross_entropy_with_logits(labels=[jnp.int32(1), 0], logits=X)
    assert np.isfinite(loss).all()
    with pytest.raises(TypeError, match="labels must be integer class ids"):
        jxent.sparse_softmax_cross_entropy_with_logits(labels=[jnp.float32(1), 0], logits=X)
    empty = jxent.sparse_sigmoid_cross_entropy_with_logits(labels=[[], []], logits=X)
    assert np.isfinite(empty).all()
