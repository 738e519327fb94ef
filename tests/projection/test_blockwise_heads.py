"""What a user's loss of a block of rows may be, take, close over and give beside the loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.projection.blockwise import BLOCKS, EACH, C, D, N, close, data


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
    (_, sums), gradient = step(arrays["kernel"], arrays["weights"])
    logits = arrays["x"] @ arrays["kernel"]
    right = (logits.argmax(-1) == arrays["y"]).astype(np.float32)
    weights = arrays["weights"]
    close(sums["right"], (weights * right).sum(), rtol=1e-6)
    close(sums["logits"], weights @ logits, rtol=1e-5, atol=1e-5)
    wanted = jax.grad(lambda k: jnp.vdot(weights, EACH(labels=arrays["y"], logits=arrays["x"] @ k)))
    close(gradient, wanted(arrays["kernel"]), rtol=2e-5, atol=1e-6)
    none = jax.grad(lambda kernel: loss(kernel, weights)[1]["logits"].sum())(arrays["kernel"])
    assert not np.any(none)


def test_what_is_closed_over_has_its_gradient():
    arrays = data()

    def loss(kernel, scale):
        def inside(_, row):
            return EACH(labels=row["y"], logits=scale * (row["x"] @ kernel))

        rows = {"x": arrays["x"], "y": arrays["y"]}
        return BLOCKS(inside, (), rows, block_size=4)

    gradients = jax.jit(jax.grad(loss, (0, 1)))(arrays["kernel"], arrays["scale"])
    differentiated = {k: arrays[k] for k in ("x", "kernel", "scale")}

    def plain(differentiated):
        return losses.linear_sparse_softmax_cross_entropy(
            arrays["y"], differentiated["x"], differentiated["kernel"] * differentiated["scale"]
        )

    wanted = jax.grad(plain)(differentiated)
    close(gradients, (wanted["kernel"], wanted["scale"]), rtol=2e-5, atol=1e-6)


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


def test_steps_of_a_scan_may_close_over_its_inputs():
    x, kernel = data()["x"], data()["kernel"]

    def loss(kernel):
        def body(total, count):
            def head(kernel, row):
                return count.astype(x.dtype) * jnp.sum(row @ kernel, -1)

            found = BLOCKS(head, kernel, x, block_size=3)
            return total + found, None

        return jax.lax.scan(body, 0.0, jnp.arange(1, 4))[0]

    close(jax.grad(loss)(kernel), jax.grad(lambda k: 6 * (x @ k).sum(-1).mean())(kernel), rtol=2e-5)


def test_none_leaves():
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
