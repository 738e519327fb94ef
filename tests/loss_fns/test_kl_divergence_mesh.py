"""Distillation on a mesh."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jxent import losses


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("form", ["", "linear"])
@pytest.mark.parametrize("kind", ["shard_map", "automatic", "explicit"])
@pytest.mark.long
def test_on_a_mesh(form, kind):
    """Classes split over one axis, examples over the other: the same numbers as on one device."""
    rng = np.random.default_rng(0)
    weights = np.linspace(0, 2, 8, dtype=np.float32)
    shapes = [(8, 2), (2, 12), (8, 3), (3, 12)] if form else [(8, 12), (8, 12)]
    operands = tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    rows, columns = P("data", None), P(None, "model")
    specs = (rows, columns) * 2 if form else (P("data", "model"),) * 2
    function = losses.linear_softmax_kl_divergence if form else losses.softmax_kl_divergence
    function = partial(function, temperature=1.5, reduction="weighted_sum")
    function = partial(function, block_size=2) if form else function

    def program(operands, weights, across=lambda x: x, **options):
        def total(operands):
            return across(function(*operands, weights=weights, **options))

        return jax.value_and_grad(total)(operands)

    wanted = program(operands, weights)
    explicit = kind == "explicit"
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=kinds)
    if kind == "shard_map":
        split = jax.shard_map(
            partial(program, across=lambda x: jax.lax.psum(x, "data"), axis_name="model"),
            mesh=mesh, in_specs=(specs, P("data")), out_specs=(P(), specs),
        )  # fmt: skip
        got = jax.jit(split)(operands, weights)
    else:

        def put(x, spec):
            return jax.device_put(x, NamedSharding(mesh, spec))

        with jax.set_mesh(mesh):
            got = jax.jit(program)(tuple(map(put, operands, specs)), put(weights, P("data")))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=3e-6), got, wanted
    )
