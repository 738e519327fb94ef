"""The covering arrays find each fault that they were built after, where its fix is taken out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jxent._src.core import elementary
from jxent._src.core.versions import SECOND_ORDER_BY_CLASSES
from jxent._src.loss_fns import base
from jxent._src.loss_fns.softmax import ListedSoftmax
from jxent._src.projection import (
    class_blocks,
    matmuls,
    one_block,
    per_example,
    plan,
)
from jxent._src.run import entry
from jxent._src.sharding import explicit, varying
from tests.combinations.arrays import MODEL
from tests.combinations.run import failure, lower, rows, run
from tests.combinations.table import BY_NAME, Row, each_operand


def _unmatched(patch):
    patch.setattr(entry, "_match_all_varying", lambda loss_name, arrays: arrays)


def _mask_of_varying_inputs(patch):
    weights_of_padding = per_example._weights_of_padding

    def of_varying_inputs(weights, blocks, inputs):
        # As the inputs were that the mask was made from: varying over the axis of the classes.
        manual = MODEL in jax.sharding.get_abstract_mesh().manual_axes
        return weights_of_padding(
            weights, blocks, varying.varying_over(inputs, {MODEL}) if manual else inputs
        )

    patch.setattr(per_example, "_weights_of_padding", of_varying_inputs)


def _subclasses(kind):
    return [c for k in kind.__subclasses__() for c in (k, *_subclasses(k))]


def _transposed_after_the_sum(patch):
    """The transpose of a tangent with its sum over the chips."""
    for kind in _subclasses(base.Loss):
        if "local_tangent" not in vars(kind):
            continue
        local = kind.local_tangent

        def across(self, *arguments, local=local):
            found = local(self, *arguments)
            return found if isinstance(self, ListedSoftmax) else self.classes.psum(found)

        patch.setattr(kind, "local_tangent", across)
        patch.setattr(kind, "tangent", across)


def _constant_zero(patch):
    for module in (elementary, class_blocks):
        patch.setattr(module, "zero_from", lambda *arrays: jnp.zeros_like(arrays[0]))


def _weights_as_they_are(patch):
    patch.setattr(explicit, "broadcast_row_weights", lambda x, w: jnp.broadcast_to(w, x.shape[:-1]))


def _blocks_of_any_size(patch):
    patch.setattr(plan, "chips_of", lambda rows: 1)


def _narrow_tangents(patch):
    """The tangent of a slope takes the scale and the dtype of the slope."""
    narrowed = matmuls.scaled_cast

    class Narrow(matmuls.ScaledCast):
        def times(self, multiply, operand):
            product = multiply(self.low, operand)
            return product if self.down is None else product * self.down

    def with_tangent(gradient, dtype):
        _, low, down = narrowed(gradient, dtype)
        if down is not None:
            low = (gradient / down).astype(dtype)
        return Narrow(gradient, low, down)

    patch.setattr(one_block, "scaled_cast", with_tangent)


@dataclass(frozen=True)
class Mutant:
    """A fix that is taken out, and where to look for what it fixed."""

    without: Callable[[Any], None]
    functions: tuple[str, ...]  # they are tried in this order
    where: dict[str, Any]  # levels of the rows that are tried
    strength: int = 2
    action: Callable[[str, Row], None] = lower
    operands: bool = False  # whether rows are those of `each_operand`


# The array of one function may miss what takes three levels, or certain numbers, to show.
LINEAR = tuple(name for name in BY_NAME if name.startswith("losses.linear_"))
STATISTICS = ("linear_sparse_softmax_statistics",)
MUTANTS = {
    "axes that operands vary over": Mutant(
        _unmatched, ("softmax_cross_entropy_with_logits",), {"mesh": "varying"}, operands=True
    ),
    "mask of blocks that are filled up": Mutant(
        _mask_of_varying_inputs, LINEAR,
        {"mesh": "shard_map", "fit": "ragged", "blocks": "examples", "check_vma": True}, 3,
    ),
    "check_vma=False": Mutant(
        _transposed_after_the_sum, LINEAR,
        {"mesh": "shard_map", "check_vma": False, "split": ("classes", "both")}, action=run,
    ),
    "vmap inside of second derivatives": Mutant(
        _constant_zero, ("losses.linear_sparse_softmax_cross_entropy",),
        {"mapped": ("some", "all"), "blocks": "classes", "inside": False,
         "what": ("forward over reverse", "reverse over reverse")}, 3,
    ),
    "vmap of labels beside a temperature": Mutant(
        _constant_zero, STATISTICS, {"mapped": ("some", "all"), "temperature": ("number", "traced")}
    ),
    "weights on an explicit mesh": Mutant(
        _weights_as_they_are, LINEAR,
        {"mesh": "explicit", "split": ("examples", "both"), "weights": ("number", "traced")},
    ),
    "block sizes on an explicit mesh": Mutant(
        _blocks_of_any_size, LINEAR,
        {"mesh": "explicit", "split": ("examples", "both"), "blocks": "examples"},
    ),
    "tangents in float16": Mutant(
        _narrow_tangents, LINEAR,
        {"dtype": "float16", "what": ("forward over reverse", "reverse over reverse")}, action=run,
    ),
}  # fmt: skip


def tried(mutant: Mutant, function: str) -> list[Row]:
    found = each_operand(BY_NAME[function]) if mutant.operands else rows(function, mutant.strength)

    def is_there(row: Row) -> bool:
        return all(
            row[factor] in levels if isinstance(levels, tuple) else row[factor] == levels
            for factor, levels in mutant.where.items()
        )

    return [row for row in found if is_there(row)]


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.eight_devices
@pytest.mark.xdist_group("combinations 2")
@pytest.mark.long
def test_the_arrays_find_it(name, monkeypatch):
    mutant = MUTANTS[name]
    if mutant.where.get("blocks") == "classes" and not SECOND_ORDER_BY_CLASSES:
        pytest.skip("this JAX takes blocks of examples in second order")
    mutant.without(monkeypatch)
    jax.clear_caches()
    try:
        found = (
            failure(mutant.action, function, row)
            for function in mutant.functions
            for row in tried(mutant, function)
        )
        assert any(message is not None for message in found)
    finally:
        jax.clear_caches()
