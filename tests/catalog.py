"""The family in one table: every property test runs over these cases."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import jax.numpy as jnp

import jxent
from jxent import losses
from tests import reference
from tests.catalog_case import Case, as_table, passed_of


def _per_example(name, function, plain, shape, suffix="", **kwargs):
    options = kwargs.pop("options", {})
    axis = kwargs.get("axis", -1)
    placed = dict(options) if axis in (None, -1) else {**options, "axis": axis}

    def loss(*, labels, **arrays):
        return function(**{kwargs.get("labels_name", "labels"): labels}, **arrays, **placed)

    def expected(**arrays):
        return plain(**arrays, **placed)

    public = f"jxent.{function.__name__}"
    return Case(
        name + suffix, public, loss, expected, shape, options=options, passed=placed, **kwargs
    )


def _reduced(name, function, plain, shape, labels_name, reduction, **kwargs):
    options = kwargs.pop("options", {})
    over = kwargs.pop("mean_over", "elements") if "sigmoid" in name else None
    classes = None if kwargs.get("axis", -1) is None else shape[-1]
    axis = kwargs.get("axis", -1)
    placed = dict(options) if axis in (None, -1) else {**options, "axis": axis}
    passed = {**placed, "reduction": reduction}
    if over == "examples":
        passed["mean_over"] = over
    if kwargs.pop("has_aux", False):
        passed["has_aux"], kwargs["pick"] = True, itemgetter(0)
    pick = kwargs.get("pick", lambda result: result)

    def loss(*, labels, **arrays):
        return pick(function(**{labels_name: labels}, **arrays, **passed))

    def expected(*, weights, labels, **arrays):
        if kwargs.get("labels") == "hard":
            labels = labels.astype(arrays["logits"].dtype)
        each = plain(labels=labels, **arrays, **placed)
        return reference.reduced(each, weights, reduction, over, classes)

    title, public = f"losses.{name} {reduction}", f"losses.{function.__name__}"
    return Case(
        title, public, loss, expected, shape, options=options,
        passed=passed, labels_name=labels_name, is_wide=True, **kwargs,
    )  # fmt: skip


SIGMOID = (jxent.sigmoid_cross_entropy_with_logits, reference.sigmoid)
WEIGHTED = (jxent.weighted_cross_entropy_with_logits, reference.sigmoid)
SOFTMAX = (jxent.softmax_cross_entropy_with_logits, reference.softmax)
SPARSE = (jxent.sparse_softmax_cross_entropy_with_logits, reference.sparse_softmax)
CAP = {"logit_softcap": 2.5}
Z = {"z_loss": 0.3}
SMOOTH = {"label_smoothing": 0.2}

PER_EXAMPLE = (
    _per_example("sigmoid", *SIGMOID, (3, 5), axis=None),
    _per_example(
        "sigmoid", *SIGMOID, (7,), " capped", axis=None, pos_weight=(), options=CAP | SMOOTH
    ),
    _per_example("weighted", *WEIGHTED, (3, 5), axis=None, pos_weight=()),
    _per_example("weighted", *WEIGHTED, (2, 1, 5), " a class", axis=None, pos_weight=(5,)),
    _per_example(
        "weighted", *WEIGHTED, (3, 5), " all", axis=None, pos_weight=(5,), options=CAP | SMOOTH
    ),
    _per_example("softmax", *SOFTMAX, (3, 5)),
    _per_example("softmax", *SOFTMAX, (5, 3), " axis 0", axis=0),
    _per_example("softmax", *SOFTMAX, (7,), " z_loss", options=Z),
    _per_example("softmax", *SOFTMAX, (2, 5), " all", options=CAP | Z | SMOOTH),
    _per_example("sparse", *SPARSE, (3, 5), labels="ids"),
    _per_example("sparse", *SPARSE, (2, 5, 3), " axis 1", axis=1, labels="ids"),
    _per_example("sparse", *SPARSE, (3, 5), " smoothed", labels="ids", options=SMOOTH),
    _per_example("sparse", *SPARSE, (7,), " z_loss", labels="ids", options=Z),
    _per_example("sparse", *SPARSE, (2, 5), " all", labels="ids", options=CAP | Z | SMOOTH),
)

FOCUS = {"focusing": 1.5, "negative_focusing": 2.0}
FOCUSED: tuple[Case, ...] = (
    _per_example(
        "weighted", *WEIGHTED, (3, 5), " focused", axis=None, pos_weight=(5,), options=FOCUS
    ),
    _per_example(
        "sparse", *SPARSE, (3, 5), " focused", labels="ids", options=Z | {"focusing": 0.7}
    ),
)

REDUCED = (
    _reduced(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (3, 5),
        "multi_class_labels", "none", axis=None, weights=(3, 5), pos_weight=(), options=SMOOTH,
    ),
    _reduced(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (3, 5),
        "multi_class_labels", "weighted_mean", axis=None, weights=(3, 1), pos_weight=(5,),
        options=CAP,
    ),
    _reduced(
        "sigmoid", losses.sigmoid_cross_entropy, reference.sigmoid, (7, 2),
        "multi_class_labels", "weighted_sum_by_nonzero_weights", axis=None, labels="hard",
        weights=(1, 2),
    ),
    _reduced(
        "sigmoid examples", losses.sigmoid_cross_entropy, reference.sigmoid, (3, 5),
        "multi_class_labels", "weighted_mean", axis=None, weights=(3, 1), mean_over="examples",
    ),
    _reduced(
        "softmax", losses.softmax_cross_entropy, reference.softmax, (3, 5),
        "onehot_labels", "weighted_sum", weights=(3,), options=SMOOTH,
    ),
    _reduced(
        "softmax", losses.softmax_cross_entropy, reference.softmax, (3, 2, 5),
        "onehot_labels", "weighted_sum_over_batch_size", weights=(3, 1), options=CAP | Z | SMOOTH,
        has_aux=True,
    ),
    _reduced(
        "sparse", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5),
        "labels", "weighted_sum_by_nonzero_weights", labels="ids", weights=(3,),
    ),
    _reduced(
        "sparse", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5),
        "labels", "weighted_mean", labels="ids", weights=(3,), options=CAP | Z | SMOOTH,
        has_aux=True,
    ),
    _reduced(
        "sparse axis 1", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5, 2),
        "labels", "weighted_mean", labels="ids", weights=(3, 2), axis=-2,
    ),
)  # fmt: skip


SPARSE_SIGMOID = (jxent.sparse_sigmoid_cross_entropy_with_logits, reference.sparse_sigmoid)
LINEAR: dict[str, tuple[Callable[..., Any], str]] = {
    "sparse_softmax": (reference.sparse_softmax, "ids"),
    "softmax": (reference.softmax, "dense"),
    "sparse_sigmoid": (reference.sparse_sigmoid, "lists"),
    "sigmoid": (reference.sigmoid_sum, "dense"),
}


def _linear(loss_name, shape, features, block_size, suffix="", reduction=None, **kwargs):
    """Of a projection cut into blocks: per example, or reduced by a reduction."""
    plain, labels = LINEAR[loss_name]
    options = kwargs.pop("options", {})
    blocks = block_size if isinstance(block_size, dict) else {"block_size": block_size}
    passed = {**options, **blocks}
    over = kwargs.pop("mean_over", "elements") if "sigmoid" in loss_name else None
    if reduction is not None:
        passed["reduction"] = reduction
    if over == "examples":
        passed["mean_over"] = over
    if kwargs.pop("has_aux", False):
        passed["has_aux"], kwargs["pick"] = True, itemgetter(0)
    pick = kwargs.get("pick", lambda result: result)
    name = f"linear_{loss_name}_cross_entropy"
    plain = reference.projected(plain)

    def loss(**arrays):
        function = getattr(jxent if reduction is None else losses, name)
        return pick(function(**passed_of(kwargs.get("tied"), arrays), **passed))

    def expected(*, weights=1.0, **arrays):
        each = plain(**arrays, **options)
        if reduction is None:
            return each
        return reference.reduced(each, weights, reduction, over, shape[-1])

    title = f"linear {loss_name}{suffix} {reduction or ''}".rstrip()
    public = f"jxent.{name}" if reduction is None else f"losses.{name}"
    labels = kwargs.pop("labels", labels)
    return Case(
        title, public, loss, expected, shape, labels=labels, features=features, options=options,
        passed=passed, **kwargs,
    )  # fmt: skip


IDS = (
    _per_example("sparse_sigmoid", *SPARSE_SIGMOID, (3, 5), labels="lists"),
    _per_example("sparse_sigmoid", *SPARSE_SIGMOID, (2, 1, 5), " all", labels="lists",
             pos_weight=(5,), options=CAP | SMOOTH),
    _reduced(
        "sparse_sigmoid", losses.sparse_sigmoid_cross_entropy, reference.sparse_sigmoid, (3, 5),
        "labels", "weighted_mean", labels="lists", weights=(3,), pos_weight=(),
    ),
)  # fmt: skip

CLASSES_2 = {"class_block_size": 2}  # divides 6 classes; of 5 it leaves one

# Blocks that divide the examples and that do not, one block, one example a block.
LINEAR_PER_EXAMPLE = (
    _linear("sparse_softmax", (7, 5), 3, 2, bias=True),
    _linear("sparse_softmax", (2, 4, 5), 3, None, " all", options=CAP | Z | SMOOTH),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " by classes", bias=True,
            options=CAP | Z | SMOOTH),
    _linear("softmax", (7, 5), 3, 3, " all", bias=True, options=Z | SMOOTH),
    _linear("sparse_sigmoid", (7, 5), 3, 3, pos_weight=(5,)),
    _linear("sigmoid", (7, 5), 3, 1, " all", bias=True, pos_weight=(), options=CAP | SMOOTH),
    _linear("sparse_sigmoid", (3, 5), 2, CLASSES_2, " by classes", bias=True, pos_weight=(5,),
            options=CAP | SMOOTH),
    _linear("sigmoid", (3, 2, 6), 2, CLASSES_2, " by classes", bias=True, pos_weight=()),
)  # fmt: skip

LINEAR_LOSSES = (
    _linear("sparse_softmax", (7, 5), 3, 2, "", "weighted_mean", weights=(7,)),
    _linear("sparse_softmax", (7, 5), 3, 3, " all", "weighted_sum", weights=(7,), bias=True,
            options=CAP | Z | SMOOTH, has_aux=True),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " by classes", "weighted_mean", weights=(3,),
            bias=True, options=CAP | Z | SMOOTH),
    # Where classes are as many as this, some platforms cut them by themselves.
    _linear("sparse_softmax", (2, 12), 2, None, " wide", "weighted_sum", bias=True, options=Z),
    _linear("softmax", (7, 5), 3, 3, "", "weighted_sum_over_batch_size", weights=(7, 1),
            has_aux=True),
    _linear("softmax", (2, 4, 5), 3, 8, " all", "none", weights=(2, 1), bias=True,
            options=Z | SMOOTH),
    _linear("sparse_sigmoid", (7, 5), 3, 4, "", "weighted_sum_by_nonzero_weights", weights=(7,),
            bias=True, pos_weight=(5,), options=SMOOTH),
    _linear("sparse_sigmoid", (7, 5), 3, 4, " examples", "weighted_mean", weights=(7,),
            mean_over="examples"),
    _linear("sigmoid", (7, 5), 3, 3, "", "weighted_mean", weights=(7,), pos_weight=()),
    _linear("sparse_sigmoid", (3, 5), 2, CLASSES_2, " by classes", "weighted_mean", weights=(3,),
            bias=True, pos_weight=(), options=SMOOTH),
    _linear("sigmoid", (3, 5), 2, CLASSES_2, " by classes", "weighted_sum", weights=(3,), bias=True,
            pos_weight=(5,), options=CAP),
)  # fmt: skip

FOCUSED += (
    _per_example("sparse_sigmoid", *SPARSE_SIGMOID, (3, 5), " focused", labels="lists",
             pos_weight=(5,), options=FOCUS | SMOOTH),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " focused", options=Z | {"focusing": 2.0}),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " focused", "weighted_mean", weights=(3,),
            options=CAP | {"focusing": 1.5}),
    _linear("sigmoid", (7, 5), 3, 3, " focused", "weighted_sum", weights=(7,), pos_weight=(),
            options=FOCUS | SMOOTH),
)  # fmt: skip


# A teacher's most probable classes.
WEIGHTED_IDS = (
    _per_example("sparse", *SPARSE, (3, 5), " weighted", labels="weighted"),
    _per_example("sparse", *SPARSE, (2, 5, 3), " weighted axis 1", axis=-2, labels="weighted",
             options=CAP | Z | SMOOTH),
    _reduced(
        "sparse weighted", losses.sparse_softmax_cross_entropy, reference.sparse_softmax, (3, 5),
        "labels", "weighted_mean", labels="weighted", weights=(3,), options=SMOOTH, has_aux=True,
    ),
    _linear("sparse_softmax", (7, 5), 3, 2, " weighted", bias=True, labels="weighted"),
    _linear("sparse_softmax", (2, 4, 5), 3, None, " weighted", "weighted_mean", weights=(2, 4),
            options=CAP | Z | SMOOTH, has_aux=True, labels="weighted"),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " weighted by classes", bias=True,
            labels="weighted", options=SMOOTH),
    _linear("sparse_softmax", (2, 4, 5), 3, CLASSES_2, " weighted by classes", "weighted_mean",
            weights=(2, 4), options=CAP | Z | SMOOTH, has_aux=True, labels="weighted"),
)  # fmt: skip


# Accidental hits of in-batch retrieval.
EXCLUDED = (
    _per_example("sparse", *SPARSE, (3, 5), " excluded", labels="ids", excluded=True),
    _per_example("sparse", *SPARSE, (2, 7, 3), " excluded axis 1", axis=-2, labels="ids",
             excluded=True, options=CAP | Z | SMOOTH),
    _reduced(
        "sparse weighted excluded", losses.sparse_softmax_cross_entropy, reference.sparse_softmax,
        (3, 7), "labels", "weighted_mean", labels="weighted", excluded=True, weights=(3,),
        options=SMOOTH, has_aux=True,
    ),
    _linear("sparse_softmax", (7, 5), 3, 2, " excluded", bias=True, excluded=True,
            options={"focusing": 1.5}),
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " excluded by classes", "weighted_mean",
            weights=(3,), excluded=True, options=CAP | Z | SMOOTH),
    _linear("sparse_softmax", (2, 4, 7), 3, 3, " weighted excluded", "weighted_sum",
            weights=(2, 4), excluded=True, options=Z | SMOOTH, has_aux=True, labels="weighted"),
)  # fmt: skip


def _statistics(field, shape, features=None, axis=-1, **kwargs):
    """One field of what a softmax predicts; with features, from a projection."""
    options = kwargs.pop("options", {})
    blocks = kwargs.pop("blocks", {} if axis == -1 else {"axis": axis})
    name = "sparse_softmax_statistics_with_logits"
    plain = partial(reference.statistics, field)
    if features is not None:
        name, plain = "linear_sparse_softmax_statistics", reference.projected(plain)
    of_axis = {} if axis == -1 else {"axis": axis}
    passed = {**options, **blocks}

    def loss(**arrays):
        arrays = passed_of(kwargs.get("tied"), arrays)
        return getattr(getattr(jxent, name)(**arrays, **passed), field)

    def expected(**arrays):
        return plain(**arrays, **options, **of_axis)

    tied = ["tied"] * kwargs.get("tied", False)
    by = ["by classes"] * ("class_block_size" in blocks)
    out = ["excluded"] * kwargs.get("excluded", False)
    out += ["of lists"] * (kwargs.setdefault("labels", "ids") == "lists")
    title = " ".join([*["linear"] * (features is not None), field, *options, *by, *tied, *out])
    return Case(
        title, f"jxent.{name}", loss, expected, shape, axis=axis, features=features,
        options=options, passed=passed, pick=attrgetter(field), is_wide=True, **kwargs,
    )  # fmt: skip


TEMPERATURE = {"temperature": 1.7}
STATISTICS = (
    _statistics("log_prob", (2, 5, 3), axis=-2),
    _statistics("log_normalizer", (7,), options=TEMPERATURE),
    _statistics("entropy", (3, 5), options=TEMPERATURE | CAP),
    _statistics("log_prob", (2, 4, 5), 3, blocks={}, options=TEMPERATURE),
    _statistics(
        "entropy", (7, 5), 3, blocks={"block_size": 2}, bias=True, options=TEMPERATURE | CAP
    ),
    _statistics("entropy", (3, 5), 2, blocks=CLASSES_2, bias=True, options=TEMPERATURE | CAP),
    _statistics("log_prob", (3, 6), 2, blocks=CLASSES_2, options=TEMPERATURE),
    _statistics("log_prob", (3, 5), labels="lists", options=TEMPERATURE | CAP),
    _statistics("log_prob", (2, 4, 5), 3, blocks=CLASSES_2, labels="lists", bias=True),
    _statistics("entropy", (3, 7), excluded=True, options=TEMPERATURE | CAP),
    _statistics("entropy", (3, 7), 2, blocks=CLASSES_2, excluded=True, options=TEMPERATURE),
)


def _linear_divergence(shape, features, block_size, reduction=None, **kwargs):
    """Of two projections; the teacher's inputs stand in the labels' place, its kernel is fixed."""
    options = kwargs.pop("options", {})
    passed = {**options, "block_size": block_size}
    if reduction is not None:
        passed["reduction"] = reduction
    name = "linear_softmax_kl_divergence"
    student = reference.projected(reference.kl_divergence)

    def kernel_of_teacher(labels):
        classes = labels.shape[-1]
        return (jnp.eye(classes) + jnp.eye(classes, k=1) / 2).astype(labels.dtype)

    def of_teacher(labels):
        kernel = kernel_of_teacher(labels)
        return {
            "teacher_inputs": labels,
            "teacher_kernel": as_table(kernel) if kwargs.get("tied") else kernel,
        }

    def loss(*, labels, **arrays):
        function = getattr(jxent if reduction is None else losses, name)
        arrays = passed_of(kwargs.get("tied"), arrays)
        return function(**of_teacher(labels), **arrays, **passed)

    def expected(*, labels, weights=1.0, **arrays):
        each = student(labels @ kernel_of_teacher(labels), **arrays, **options)
        return each if reduction is None else reference.reduced(each, weights, reduction)

    tied = ["tied"] * kwargs.get("tied", False)
    title = " ".join(["linear KL", *options, *tied, *[reduction] * (reduction is not None)])
    public = f"jxent.{name}" if reduction is None else f"losses.{name}"
    return Case(
        title, public, loss, expected, shape, features=features, options=options, passed=passed,
        taught=of_teacher, **kwargs,
    )  # fmt: skip


KL = (jxent.softmax_kl_divergence_with_logits, reference.kl_divergence)
DIVERGENCES = (
    _per_example("KL", *KL, (2, 5, 3), " axis 1", axis=-2, labels_name="teacher_logits"),
    _per_example("KL", *KL, (3, 5), " all", labels_name="teacher_logits",
             options=TEMPERATURE | CAP | {"teacher_logit_softcap": 4.0}),
    _reduced("KL", losses.softmax_kl_divergence, reference.kl_divergence, (3, 5),
             "teacher_logits", "weighted_mean", weights=(3,), options=TEMPERATURE),
    _linear_divergence((7, 5), 3, 2, options=CAP),
    _linear_divergence((7, 5), 3, 3, "weighted_sum", weights=(7,), bias=True, options=TEMPERATURE),
)  # fmt: skip

# An embedding that is the output projection as well.
TIED = (
    _linear("sparse_softmax", (3, 5), 2, CLASSES_2, " tied by classes", bias=True, tied=True,
            options=CAP | Z),
    _linear("sparse_softmax", (7, 5), 3, 3, " tied", "weighted_mean", weights=(7,), bias=True,
            options=Z | SMOOTH, tied=True),
    _linear("sparse_sigmoid", (3, 5), 2, CLASSES_2, " tied by classes", "weighted_sum",
            weights=(3,), bias=True, pos_weight=(5,), tied=True),
    _statistics("entropy", (7, 5), 3, blocks={"block_size": 2}, options=TEMPERATURE, tied=True),
    _linear_divergence((7, 5), 3, 3, "weighted_sum", weights=(7,), options=TEMPERATURE, tied=True),
)  # fmt: skip

CASES = (
    PER_EXAMPLE + IDS + TIED + LINEAR_PER_EXAMPLE + REDUCED + LINEAR_LOSSES + STATISTICS + FOCUSED
)
CASES += DIVERGENCES + WEIGHTED_IDS + EXCLUDED
