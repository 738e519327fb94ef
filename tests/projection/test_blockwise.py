"""Losses that a user writes, a block of rows at a time: what a projection's own functions give."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from benchmarks.lib.programs import temporaries
from jxent import losses
from tests.compile_options import quick

N, D, C = 10, 4, 6
EACH = jxent.sparse_softmax_cross_entropy_with_logits
BLOCKS = losses.blockwise


def data(dtype=np.float32, rows=N, features=D, classes=C):
    rng = np.random.default_rng(0)
    return {
        "x": jnp.asarray(rng.normal(size=(rows, features)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(features, classes)), dtype),
        "scale": jnp.asarray(1.3, dtype),
        "y": jnp.asarray(rng.integers(0, classes, rows)),
        "weights": jnp.asarray(np.resize([1, 2, 0, 1, 0.5, 0], rows), dtype),
    }


def loss_fn(params, row):
    """A head in a user's code: a scaled kernel."""
    logits = jxent.linear_logits(inputs=row["x"], kernel=params["kernel"] * params["scale"])
    return EACH(labels=row["y"], logits=logits, z_loss=0.1)


def by_blocks(moving, y, **options):
    params = {"kernel": moving["kernel"], "scale": moving["scale"], "step": jnp.int32(3)}
    weights = moving.get("weights", 1.0)
    rows = {"x": moving["x"], "y": y}
    return BLOCKS(loss_fn, params, rows, block_size=4, weights=weights, **options)


def by_projection(moving, y, **options):
    return losses.linear_sparse_softmax_cross_entropy(
        y, moving["x"], moving["kernel"] * moving["scale"], weights=moving.get("weights", 1.0),
        z_loss=0.1, **options,
    )  # fmt: skip


def all_orders(loss, moving):
    """Value, gradient, its derivatives both ways, and a third one."""
    slope = jax.grad(loss)

    def along(moving):
        return jax.jvp(slope, (moving,), (moving,))[1]

    def back(function):
        return jax.vjp(function, moving)[1](moving)[0]

    return loss(moving), slope(moving), along(moving), back(slope), back(along)


def close(got, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), got, wanted)


@pytest.mark.parametrize("reduction", [r.value for r in losses.Reduction])
@pytest.mark.parametrize("moving", ["all", "without weights", "weights alone"])
@pytest.mark.long
def test_every_derivative_is_the_projections(reduction, moving):
    """Of ragged blocks, rows of weight 0 and their weights' slopes among them."""
    with jax.enable_x64(True):
        arrays = data(np.float64)
        y = arrays.pop("y")
        fixed = {}
        if moving == "without weights":
            fixed = {"weights": arrays.pop("weights")}
        elif moving == "weights alone":
            fixed, arrays = arrays, {"weights": arrays.pop("weights")}

        def of(function):
            def loss(moving):
                return jnp.sum(jnp.sin(function({**moving, **fixed}, y, reduction=reduction)))

            return quick(partial(all_orders, loss))(arrays)

        close(of(by_blocks), of(by_projection), rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_a_weight_that_moves_only_in_the_last_derivative():
    """The row that stands for one of weight 0 must not lend it its slope."""
    with jax.enable_x64(True):
        arrays = data(np.float64)
        y = arrays["y"]

        def of(function, reduction):
            def loss(kernel, weights):
                given = {**arrays, "kernel": kernel, "weights": weights}
                return jnp.sum(function(given, y, reduction=reduction))

            def along(kernel, weights):
                slope = partial(jax.grad(loss), weights=weights)
                return jax.jvp(slope, (kernel,), (jnp.cos(kernel),))[1]

            def last(kernel, weights):
                return jax.grad(lambda w: jnp.sum(jnp.sin(along(kernel, w))))(weights)

            return quick(last)(arrays["kernel"], arrays["weights"])

        for reduction in ("weighted_sum", "none"):
            got, wanted = (of(f, reduction) for f in (by_blocks, by_projection))
            assert np.all(wanted != 0)
            close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 7, 8])
@pytest.mark.long
def test_vmap_is_a_loop(rows):
    arrays = data(rows=rows)
    y = arrays.pop("y")
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), arrays)
    batch["weights"] = batch["weights"] ** 2
    step = jax.value_and_grad(partial(by_blocks, y=y))
    got = jax.jit(jax.vmap(step))(batch)
    each = [step(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(3)]
    close(got, jax.tree.map(lambda *x: jnp.stack(x), *each), rtol=2e-5, atol=1e-6)


# Rows that do not count.


def normed(kernel, row):
    """NaN for a row of zeros, with its derivatives."""
    x = row["x"] / jnp.linalg.norm(row["x"], axis=-1, keepdims=True)
    return EACH(labels=row["y"], logits=x @ kernel)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.one_in(10)
def test_rows_that_do_not_count_reach_nothing(bad, reduction):
    arrays = data()
    weights = arrays["weights"]
    rows = {"x": arrays["x"].at[weights == 0].set(bad), "y": arrays["y"]}

    def loss(kernel, x, weights, y=rows["y"]):
        per_row = BLOCKS(
            normed, kernel, {"x": x, "y": y}, block_size=4, weights=weights, reduction=reduction
        )
        return jnp.sum(per_row)

    got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(arrays["kernel"], rows["x"], weights)
    kept = weights != 0
    alone = jax.value_and_grad(loss, (0, 1, 2))(
        arrays["kernel"], rows["x"][kept], weights[kept], rows["y"][kept]
    )
    close(got[0], alone[0], rtol=1e-6)
    close(got[1][0], alone[1][0], rtol=1e-5, atol=1e-7)
    close(got[1][1][kept], alone[1][1], rtol=1e-5, atol=1e-7)
    assert not np.any(got[1][1][~kept])
    assert np.isfinite(got[1][2]).all()
    close(got[1][2][kept], alone[1][2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.one_in(2)
def test_debug_nans_takes_padding_for_what_it_is(reduction):
    arrays = data()
    weights = arrays["weights"] != 0
    x = arrays["x"].at[~weights].set(0)

    def loss(kernel, x):
        rows = {"x": x, "y": arrays["y"]}
        options = {"block_size": 4, "weights": weights, "reduction": reduction}
        return jnp.sum(BLOCKS(normed, kernel, rows, **options))

    with jax.debug_nans(True):
        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(arrays["kernel"], x)
        jax.jit(jax.jvp, static_argnums=0)(
            jax.grad(loss), (arrays["kernel"], x), (arrays["kernel"], x)
        )
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))


@pytest.mark.parametrize("reduction", ["weighted_mean", "weighted_sum", "none"])
@pytest.mark.one_in(2)
def test_nothing_that_counts_is_0(reduction):
    x = jnp.full((5, D), jnp.nan)

    def loss(kernel, x):
        rows = {"x": x, "y": jnp.zeros(5, int)}
        weights = np.zeros(5, bool)
        return jnp.sum(
            BLOCKS(normed, kernel, rows, block_size=2, weights=weights, reduction=reduction)
        )

    value, slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))(data()["kernel"], x)
    assert value == 0
    assert not any(map(np.any, slopes))


def test_no_rows():
    empty = {"x": jnp.zeros((0, D)), "y": jnp.zeros(0, int)}
    for weights in (1.0, jnp.zeros(0)):
        value, slope = jax.value_and_grad(
            lambda kernel, w: BLOCKS(normed, kernel, empty, block_size=3, weights=w)
        )(data()["kernel"], weights)
        assert value == 0
        assert not np.any(slope)


def test_a_loss_of_nan_that_counts_is_seen():
    arrays = data()
    arrays["x"] = arrays["x"].at[0].set(jnp.nan)
    y = arrays.pop("y")
    value, slope = jax.value_and_grad(by_blocks)(arrays, y)
    assert np.isnan(value)
    assert np.isnan(slope["kernel"]).all()


# What is beside the loss, and what is given.


def test_sums_beside_the_loss():
    arrays = data()

    def with_more(params, row):
        logits = row["x"] @ params
        right = logits.argmax(-1) == row["y"]
        return EACH(labels=row["y"], logits=logits), {"right": right, "logits": logits}

    def loss(kernel, weights):
        return BLOCKS(
            with_more, kernel, {"x": arrays["x"], "y": arrays["y"]}, block_size=4,
            weights=weights, has_aux=True, reduction="weighted_sum",
        )  # fmt: skip

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, sums), slope = step(arrays["kernel"], arrays["weights"])
    logits = arrays["x"] @ arrays["kernel"]
    right = (logits.argmax(-1) == arrays["y"]).astype(np.float32)
    weights = arrays["weights"]
    close(sums["right"], (weights * right).sum(), rtol=1e-6)
    close(sums["logits"], weights @ logits, rtol=1e-5, atol=1e-5)
    wanted = jax.grad(lambda k: jnp.vdot(weights, EACH(labels=arrays["y"], logits=arrays["x"] @ k)))
    close(slope, wanted(arrays["kernel"]), rtol=2e-5, atol=1e-6)
    none = jax.grad(lambda kernel: loss(kernel, weights)[1]["logits"].sum())(arrays["kernel"])
    assert not np.any(none)


def test_what_is_closed_over_has_its_gradient():
    arrays = data()

    def loss(kernel, scale):
        def inside(_, row):
            return EACH(labels=row["y"], logits=scale * (row["x"] @ kernel))

        rows = {"x": arrays["x"], "y": arrays["y"]}
        return BLOCKS(inside, (), rows, block_size=4)

    slopes = jax.jit(jax.grad(loss, (0, 1)))(arrays["kernel"], arrays["scale"])
    moving = {k: arrays[k] for k in ("x", "kernel", "scale")}

    def plain(moving):
        return losses.linear_sparse_softmax_cross_entropy(
            arrays["y"], moving["x"], moving["kernel"] * moving["scale"]
        )

    wanted = jax.grad(plain)(moving)
    close(slopes, (wanted["kernel"], wanted["scale"]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.parametrize("around", [jax.jit, jax.checkpoint])
@pytest.mark.one_in(4)
def test_integers_and_keys_may_be_closed_over(around, reduction):
    """They are tracers of a program that is gone when the rule for the derivative runs."""
    x, key = data()["x"], jax.random.key(0)
    keys = jax.random.split(key, N)

    @around
    def step(kernel, count, key):
        def inside(kernel, row):
            noise = jax.vmap(jax.random.uniform)(row["key"]) + jax.random.uniform(key)
            return jnp.sum((row["x"] @ kernel) ** 2, -1) * count[0].astype(x.dtype) + noise

        rows = {"x": x, "key": keys}
        return BLOCKS(inside, kernel, rows, block_size=4, reduction=reduction).sum()

    got = jax.grad(step)(data()["kernel"], jnp.array([3, 1]), key)
    size = N if reduction == "weighted_mean" else 1
    wanted = jax.grad(lambda k: 3 * jnp.sum((x @ k) ** 2) / size)(data()["kernel"])
    close(got, wanted, rtol=2e-5)


def test_steps_of_a_scan_may_close_over_what_it_cuts():
    x, kernel = data()["x"], data()["kernel"]

    def loss(kernel):
        def body(total, count):
            def head(kernel, row):
                return count.astype(x.dtype) * jnp.sum(row @ kernel, -1)

            found = BLOCKS(head, kernel, x, block_size=3)
            return total + found, None

        return jax.lax.scan(body, 0.0, jnp.arange(1, 4))[0]

    close(jax.grad(loss)(kernel), jax.grad(lambda k: 6 * (x @ k).sum(-1).mean())(kernel), rtol=2e-5)


def test_what_is_none():
    """An optional bias."""
    x, kernel = data()["x"], data()["kernel"]

    def head(params, row):
        assert params["bias"] is None
        assert row["more"] is None
        return jnp.sum((row["x"] @ params["kernel"]) ** 2, -1)

    def loss(kernel, reduction):
        params, rows = {"kernel": kernel, "bias": None}, {"x": x, "more": None}
        return BLOCKS(head, params, rows, block_size=4, reduction=reduction).sum()

    wanted = jax.grad(lambda k: jnp.sum((x @ k) ** 2))(kernel)
    for reduction in ("weighted_sum", "none"):
        close(jax.grad(loss)(kernel, reduction), wanted, rtol=2e-5)
        jax.jvp(jax.grad(partial(loss, reduction=reduction)), (kernel,), (kernel,))


@pytest.mark.long
def test_weights_in_a_list_are_learned_too():
    x = data()["x"]

    def loss(weights, wrap):
        return BLOCKS(
            lambda _, b: jnp.sum(b, -1), (), x[:3], block_size=2, weights=wrap(weights),
            reduction="none",
        ).sum()  # fmt: skip

    weights = jnp.array([0.0, 1.0, -1.0])
    close(jax.grad(loss)(weights, list), jax.grad(loss)(weights, lambda w: w), rtol=1e-6)
    close(jax.grad(loss)(weights, list), x[:3].sum(-1), rtol=1e-6)


def test_sums_keep_their_dtype():
    with jax.enable_x64(True):
        more = jnp.full(3, 1 + 1e-12)
        _, sums = BLOCKS(
            lambda _, b: (b, more), (), jnp.ones(3, np.float32), block_size=3, has_aux=True
        )
        np.testing.assert_allclose(sums, 3 + 3e-12, rtol=1e-15)


def test_an_object_that_changes_is_traced_anew():
    class Model:
        factor = jnp.float32(1.0)

        def loss(self, _, row):
            return self.factor * row

    model, rows = Model(), jnp.ones(4)
    assert BLOCKS(model.loss, (), rows, block_size=2) == 1
    model.factor = jnp.float32(5.0)
    assert BLOCKS(model.loss, (), rows, block_size=2) == 5


@pytest.mark.long
def test_heads_that_no_matrix_is():
    """DPO's difference of two heads, one of them frozen, and an adapter."""
    arrays = data()
    rng = np.random.default_rng(1)
    low = jnp.asarray(rng.normal(size=(D, 2)), np.float32)
    params = {"kernel": arrays["kernel"], "down": low, "up": jnp.zeros((2, C))}

    def log_prob(x, kernel, y):
        logits = jxent.linear_logits(inputs=x, kernel=kernel)
        return -EACH(labels=y, logits=logits)

    def preference(params, row):
        own = params["kernel"] + params["down"] @ params["up"]
        frozen = jax.lax.stop_gradient(params["kernel"])
        margin = log_prob(row["x"], own, row["y"]) - log_prob(row["x"], frozen, row["y"])
        return jax.nn.softplus(-margin)

    rows = {"x": arrays["x"], "y": arrays["y"]}
    got = jax.jit(jax.value_and_grad(partial(BLOCKS, preference, block_size=3)))(params, rows)
    wanted = jax.value_and_grad(lambda p: preference(p, rows).mean())(params)
    close(got, wanted, rtol=2e-5, atol=1e-6)


def test_low_precision_is_added_up_in_float32():
    """Losses in bfloat16 would stop growing at 256; so would a gradient of many blocks."""
    rows = jnp.ones(2048, jnp.bfloat16)

    def loss(scale):
        return BLOCKS(lambda s, r: s * r, scale, rows, block_size=1, reduction="weighted_sum")

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.bfloat16(1))
    assert (value, slope) == (2048, 2048)
    assert (value.dtype, slope.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.one_in(2)
def test_products_of_a_projection_are_in_its_dtype(dtype):
    """As JAX differentiates a product that is accumulated in float32, two of three would not be."""
    arrays = data(dtype, rows=64)
    rows = {"x": arrays["x"], "y": arrays["y"]}

    def loss(kernel, x, master=False):
        def inside(kernel, row):
            return EACH(labels=row["y"], logits=jxent.linear_logits(inputs=row["x"], kernel=kernel))

        return BLOCKS(inside, kernel, {**rows, "x": x}, block_size=16)

    for kernel in (arrays["kernel"], arrays["kernel"].astype(np.float32)):
        step = jax.jit(jax.value_and_grad(loss, (0, 1)))
        text = step.lower(kernel, arrays["x"]).as_text()
        found = re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\)", text)
        dtypes = {x.split("x")[-1] for pair in found for x in pair}
        assert len(found) == 3
        if dtype == jnp.bfloat16:  # float16 is too narrow for a slope over the number of rows
            assert dtypes == {"bf16"}
        value, slopes = step(kernel, arrays["x"])
        wanted = jax.value_and_grad(
            lambda k, x: losses.linear_sparse_softmax_cross_entropy(rows["y"], x, k), (0, 1)
        )(kernel, arrays["x"])
        close(value, wanted[0], rtol=1e-5)
        for slope, other in zip(slopes, wanted[1], strict=True):
            assert slope.dtype == other.dtype
            size = np.abs(np.asarray(other, np.float32)).max()
            close(slope, other, rtol=0, atol=2e-2 * size)


def test_logits_are_those_of_the_products():
    arrays = data()
    bias = jnp.arange(C, dtype=jnp.float32)

    def of(function):
        def loss(x, kernel, bias):
            return jnp.sum(jnp.sin(function(x, kernel, bias)))

        moving = (arrays["x"].reshape(2, 5, D), arrays["kernel"], bias)
        return all_orders(lambda moving: loss(*moving), moving)

    got = of(lambda x, k, b: jxent.linear_logits(inputs=x, kernel=k, bias=b))
    close(got, of(lambda x, k, b: x @ k + b[None, None]), rtol=2e-5, atol=2e-5)


# What it costs.


def projection_and_blocks(examples, features, classes, block):
    arrays = (
        jax.ShapeDtypeStruct((features, classes), np.float32),
        jax.ShapeDtypeStruct((examples, features), np.float32),
        jax.ShapeDtypeStruct((examples,), np.int32),
    )

    def head(kernel, row):
        return EACH(labels=row[1], logits=row[0] @ kernel)

    def blocks(kernel, x, y):
        return BLOCKS(head, kernel, (x, y), block_size=block)

    def own(kernel, x, y):
        return losses.linear_sparse_softmax_cross_entropy(y, x, kernel, block_size=block)

    return arrays, blocks, own


@pytest.mark.parametrize(("moving", "count"), [((0, 1), 3), (0, 2), (1, 2)])
def test_products(moving, count):
    arrays, blocks, _ = projection_and_blocks(64, 8, 32, 16)
    text = jax.jit(jax.value_and_grad(blocks, moving)).lower(*arrays).as_text()
    assert text.count("stablehlo.dot_general") == count


@pytest.mark.long
def test_a_plain_matrix_holds_what_the_projection_holds(narrow_rows):
    arrays, blocks, own = projection_and_blocks(4096, 256, 65536, 512)
    got, wanted = (temporaries(jax.value_and_grad(f, (0, 1)), *arrays) for f in (blocks, own))
    assert got <= 1.1 * wanted


# Meshes.


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
        def of(*moving):
            return function(*moving, y)

        moving = (kernel, x, weights)
        return jax.jvp(jax.grad(of, (0, 1, 2)), moving, moving)[1]

    second = jax.jit(partial(along, outside))(*arguments)
    whole = partial(along, partial(total, None))(*(np.asarray(moved[k]) for k in order))
    close(jax.tree.map(np.asarray, second), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_what_is_the_same_on_all_chips_is_refused_in_the_closure():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    kernel, x = jnp.ones((D, C)), jnp.ones((16, D))
    y = jnp.zeros(16, int)

    def slopes(head):
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
        slopes(closing)
    close(np.asarray(slopes(given)), np.asarray(slopes(plain)), rtol=1e-5, atol=1e-6)


# Wrong arguments.

ROWS = {"x": np.ones((6, D), np.float32), "y": np.zeros(6, int)}
GOOD = {
    "loss_fn": normed, "params": np.ones((D, C), np.float32), "rows": ROWS, "block_size": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function"),
        ({"loss_fn": lambda p, r: r["x"]}, ValueError, r"loss_fn must give one loss .*\(3,\), got"),
        ({"loss_fn": lambda p, r: r["y"]}, TypeError, "loss_fn must give floating losses, got int"),
        ({"loss_fn": lambda p, r: r["x"].sum()}, ValueError, "loss_fn must give one loss for each"),
        ({"loss_fn": lambda p, r: (r["x"], 1)}, TypeError, "loss_fn must give an array of losses"),
        ({"has_aux": True}, TypeError, "loss_fn must with has_aux give a tuple"),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], r["x"].sum())},
            ValueError,
            "loss_fn must with has_aux give arrays with an entry for each row",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], r["x"].astype(complex))},
            TypeError,
            "loss_fn must with has_aux give real arrays, got complex64",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], None), "reduction": "none"},
            ValueError,
            "has_aux must be False for Reduction.NONE",
        ),
        (
            {"has_aux": True, "loss_fn": lambda p, r: (r["x"][:, 0], "right")},
            TypeError,
            "loss_fn must with has_aux give a tree of arrays, got a leaf str",
        ),
        ({"params": np.ones((D, C), complex)}, TypeError, "params must be real, got a leaf of com"),
        ({"rows": np.ones((D, C), complex)}, TypeError, "rows must be real, got a leaf of complex"),
        ({"params": {"name": "head"}}, TypeError, "params must be a pytree of arrays, got a leaf"),
        ({"rows": {}}, ValueError, "rows must have an array at least"),
        ({"rows": 1.0}, ValueError, "rows must be arrays that share their first axis"),
        ({"rows": {**ROWS, "y": np.zeros(5, int)}}, ValueError, r"rows must be arrays that share"),
        ({"rows": {"x": "text"}}, TypeError, "rows must be a pytree of arrays"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"block_size": None}, TypeError, "block_size must be a Python integer, got None"),
        ({"block_size": 2.0}, TypeError, "block_size must be a Python integer"),
        ({"weights": np.ones(5)}, ValueError, "weights must be a number, or have the rank"),
        ({"weights": None}, ValueError, "weights must be a number or an array, got None"),
        ({"reduction": "sum"}, ValueError, "reduction must be"),
        ({"scope": 3}, TypeError, "scope must be a string"),
        ({"has_aux": 1}, TypeError, "has_aux must be True or False"),
    ],
)
def test_wrong_arguments(changed, error, message):
    with pytest.raises(error, match=message):
        BLOCKS(**{**GOOD, **changed})


def test_right_arguments():
    for changed in (
        {"weights": ROWS["y"] == 0}, {"weights": np.ones((6, 1))}, {"block_size": 100},
        {"loss_fn": lambda _, r: r["x"][:, 0], "params": None}, {"scope": "head"},
    ):  # fmt: skip
        assert np.isfinite(BLOCKS(**{**GOOD, **changed}))
