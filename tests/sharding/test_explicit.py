"""Explicit sharding: weights of every kind, and block sizes that the mesh does not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jxent
from jxent import losses
from tests.compile_options import quick

pytestmark = [pytest.mark.eight_devices, pytest.mark.xdist_group("eight devices")]

EXAMPLES, FEATURES, CLASSES = 24, 3, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((EXAMPLES, FEATURES)).astype(np.float32)
K = RNG.standard_normal((FEATURES, CLASSES)).astype(np.float32)
Y = (np.arange(EXAMPLES) % CLASSES).astype(np.int32)
Z = RNG.uniform(0, 1, (EXAMPLES, CLASSES)).astype(np.float32)

FUNCTIONS = {
    "linear ids": lambda x, y, z, w, **o: losses.linear_sparse_softmax_cross_entropy(
        y, x, K, weights=w, **o
    ),
    "linear dense": lambda x, y, z, w, **o: losses.linear_softmax_cross_entropy(
        z, x, K, weights=w, **o
    ),
    "linear lists": lambda x, y, z, w, **o: losses.linear_sparse_sigmoid_cross_entropy(
        y[:, None], x, K, weights=w, **o
    ),
    "linear sigmoid": lambda x, y, z, w, **o: losses.linear_sigmoid_cross_entropy(
        z, x, K, weights=w, **o
    ),
    "linear KL": lambda x, y, z, w, **o: losses.linear_softmax_kl_divergence(
        2 * x, K, x, K, weights=w, **o
    ),
    "blockwise": lambda x, y, z, w, block_size=8, **o: losses.blockwise(
        lambda k, row: jxent.sparse_softmax_cross_entropy_with_logits(
            labels=row["y"], logits=row["x"] @ k
        ),
        jnp.asarray(K), {"x": x, "y": y}, block_size=block_size, weights=w, **o,
    ),
    "ids": lambda x, y, z, w, **o: losses.sparse_softmax_cross_entropy(y, x @ K, w, **o),
    "dense": lambda x, y, z, w, **o: losses.softmax_cross_entropy(z, x @ K, w, **o),
    "KL": lambda x, y, z, w, **o: losses.softmax_kl_divergence(2 * x @ K, x @ K, w, **o),
    "given": lambda x, y, z, w, **o: losses.compute_weighted_loss(x[:, 0], w, **o),
}  # fmt: skip
WEIGHTS = {
    "number": 1.5,
    "0": 0.0,
    "traced": np.float32(1.5),
    "[1]": np.full(1, 1.5, np.float32),
    "[N]": np.linspace(0, 2, EXAMPLES, dtype=np.float32),
    "[N, 1]": np.linspace(0, 2, EXAMPLES, dtype=np.float32)[:, None],
}
CHIPS = 4


def mesh():
    return jax.make_mesh((CHIPS,), ("data",), devices=jax.devices()[:CHIPS])


def program(function, weights, **options):
    traced = not isinstance(weights, float)

    @quick
    def of(x, y, z, w):
        def loss(x):
            return jnp.sum(function(x, y, z, w if traced else weights, **options))

        return jax.value_and_grad(loss)(x)

    return of


def on_mesh(of, weights):
    """With the examples split, and weights that are not."""
    with jax.set_mesh(mesh()):
        rows = [jax.device_put(a, P("data")) for a in (X, Y, Z)]
        value, gradient = of(*rows, jax.device_put(weights, P()))
        assert jax.typeof(gradient).sharding.spec[0] == "data"
        return np.asarray(value), np.asarray(gradient)


def same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["weighted_mean", "none"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_in(60)
def test_weights_of_every_kind(name, weights, reduction):
    given = WEIGHTS[weights]
    of = program(FUNCTIONS[name], given, reduction=reduction)
    got = on_mesh(of, given)
    jax.clear_caches()
    same(got, of(X, Y, Z, given))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 7, 9, 20, 24, 30])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n.startswith(("linear", "block"))])
@pytest.mark.one_in(30)
def test_any_block_size(name, size):
    """JAX cuts no block whose size the chips do not divide: sizes are rounded."""
    of = program(FUNCTIONS[name], 1.0, block_size=size)
    got = on_mesh(of, 1.0)
    jax.clear_caches()
    same(got, of(X, Y, Z, 1.0))
