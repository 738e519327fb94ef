"""A user's losses by blocks of rows that are split over a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from tests.projection.blockwise import BLOCKS, EACH, C, D, close, data, normed


def meshed(case, kind):
    """Value and gradients, rows split over one axis and classes over the other."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    arrays = data(rows=16, classes=8)
    specs = {"x": P("data"), "y": P("data"), "weights": P("data"), "kernel": P(None, "model")}
    moved = {k: jax.device_put(arrays[k], NamedSharding(mesh, s)) for k, s in specs.items()}

    def head(axis_name, kernel, row):
        logits = jxent.linear_logits(inputs=row["x"], kernel=kernel)
        return EACH(labels=row["y"], logits=logits, axis_name=axis_name)

    def total(axis_name, kernel, x, weights, y):
        return BLOCKS(
            partial(head, axis_name), kernel, {"x": x, "y": y}, block_size=4, weights=weights,
            reduction=case,
        )  # fmt: skip

    names = ("kernel", "x", "weights")
    wanted = jax.value_and_grad(partial(total, None), (0, 1, 2))(
        *(arrays[k] for k in names), arrays["y"]
    )
    return mesh, specs, names, moved, total, wanted


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.long
def test_split_by_jit(kind):
    mesh, _, names, moved, total, wanted = meshed("weighted_mean", kind)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(partial(total, None), (0, 1, 2)))
        got = step(*(moved[k] for k in names), moved["y"])
    close(jax.tree.map(np.asarray, got), wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.long
def test_split_by_hand():
    """Differentiated from outside and from inside; the second order too."""
    mesh, specs, names, moved, total, wanted = meshed("weighted_sum", AxisType.Auto)
    order = (*names, "y")

    def local(*arguments):
        return jax.lax.psum(total("model", *arguments), "data")

    given = tuple(specs[k] for k in order)
    outside = jax.shard_map(local, mesh=mesh, in_specs=given, out_specs=P())
    inside = jax.shard_map(
        jax.grad(local, (0, 1, 2)), mesh=mesh, in_specs=given, out_specs=given[:3]
    )
    arguments = [moved[k] for k in order]
    got = jax.jit(jax.value_and_grad(outside, (0, 1, 2)))(*arguments)
    close(jax.tree.map(np.asarray, got), wanted, rtol=2e-5, atol=1e-6)
    close(jax.tree.map(np.asarray, jax.jit(inside)(*arguments)), wanted[1], rtol=2e-5, atol=1e-6)

    def along(function, kernel, x, weights, y):
        def of(*differentiated):
            return function(*differentiated, y)

        differentiated = (kernel, x, weights)
        return jax.jvp(jax.grad(of, (0, 1, 2)), differentiated, differentiated)[1]

    second = jax.jit(partial(along, outside))(*arguments)
    whole = partial(along, partial(total, None))(*(np.asarray(moved[k]) for k in order))
    close(jax.tree.map(np.asarray, second), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_what_is_the_same_on_all_chips_is_refused_in_the_closure():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    kernel, x = jnp.ones((D, C)), jnp.ones((16, D))
    y = jnp.zeros(16, int)

    def gradients(head):
        def local(kernel, x, y):
            return jax.lax.psum(head(kernel, x, y), "data")

        split = jax.shard_map(
            jax.grad(local), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
        )
        return jax.jit(split)(kernel, x, y)

    def closing(kernel, x, y):
        return BLOCKS(lambda _, row: normed(kernel, row), (), {"x": x, "y": y}, block_size=2)

    def given(kernel, x, y):
        return BLOCKS(normed, kernel, {"x": x, "y": y}, block_size=2)

    def plain(kernel, x, y):
        return normed(kernel, {"x": x, "y": y}).mean()

    with pytest.raises(ValueError, match=r"loss_fn must not close over .*\['data'\].*in params"):
        gradients(closing)
    close(np.asarray(gradients(given)), np.asarray(gradients(plain)), rtol=1e-5, atol=1e-6)
