"""What a softmax predicts on a mesh."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from tests.loss_fns.softmax_statistics import LINEAR, WITH_LOGITS


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *itertools.product(("", "linear", "by classes"), ("shard_map", "automatic")),
        *itertools.product(("", "linear"), ("explicit",)),  # by classes it is refused
    ],
)
@pytest.mark.one_in(14)
def test_on_a_mesh(form, kind):
    """Classes split over one axis, examples over the other: the same numbers as on one device."""
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=8)
    shapes = [(8, 3), (3, 12)] if form else [(8, 12)]
    arrays = [rng.integers(-3, 4, shape).astype(np.float32) / 2 for shape in shapes]
    operands = (*arrays, np.float32(1.5))
    names = (*(("inputs", "kernel") if form else ("logits",)), "temperature")
    specs = (P("data", None), P(None, "model"), P()) if form else (P("data", "model"), P())
    blocks = {"linear": {"block_size": 2}, "by classes": {"class_block_size": 8}}
    function = partial(LINEAR, **blocks[form]) if form else WITH_LOGITS

    def program(labels, operands, across=lambda x: x, **options):
        def total(operands):
            found = function(labels=labels, **dict(zip(names, operands, strict=True)), **options)
            sums = found.log_prob + 2 * found.entropy + 3 * found.log_normalizer
            return across(jnp.sum(sums)), found

        gradient, found = jax.grad(total, has_aux=True)(operands)
        slope = jax.grad(lambda operands: total(operands)[0])
        return gradient, jax.jvp(slope, (operands,), (operands,))[1], found

    wanted = program(labels, operands)
    explicit = kind == "explicit"
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
    if kind == "shard_map":
        split = jax.shard_map(
            partial(program, across=lambda x: jax.lax.psum(x, "data"), axis_name="model"),
            mesh=mesh, in_specs=(P("data"), specs), out_specs=(specs, specs, P("data")),
        )  # fmt: skip
        got = jax.jit(split)(labels, operands)
    else:

        def put(x, spec):
            return jax.device_put(x, NamedSharding(mesh, spec))

        placed = put(labels, P("data")), tuple(map(put, operands, specs))
        with jax.set_mesh(mesh):
            got = jax.jit(program)(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=5e-6, atol=5e-6), got, wanted
    )
