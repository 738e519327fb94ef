"""Second derivatives of projections: in float16, and what they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from jxent import losses
from tests.compile_options import quick
from tests.reference import tolerance

EXAMPLES, FEATURES, CLASSES = 6, 3, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((EXAMPLES, FEATURES)).astype(np.float16)
K = RNG.standard_normal((FEATURES, CLASSES)).astype(np.float16)
V = RNG.standard_normal((FEATURES, CLASSES)).astype(np.float16)
IDS = RNG.integers(CLASSES, size=EXAMPLES)
LISTS = RNG.integers(-1, CLASSES, size=(EXAMPLES, 2))


def softmax_of(x, k):
    logits = x.astype(np.float32) @ k.astype(np.float32)
    return np.asarray(jax.nn.softmax(logits), np.float16)


# Dense labels that the model predicts, but for a little: slopes that are far smaller than what
# they change by.
DENSE = softmax_of(X, K) + np.float16(1e-3) * (np.arange(CLASSES) == 0).astype(np.float16)
FUNCTIONS = {
    "ids": lambda x, k, **o: losses.linear_sparse_softmax_cross_entropy(IDS, x, k, **o),
    "dense": lambda x, k, **o: losses.linear_softmax_cross_entropy(
        DENSE.astype(x.dtype), x, k, **o
    ),
    "lists": lambda x, k, **o: losses.linear_sparse_sigmoid_cross_entropy(LISTS, x, k, **o),
    "sigmoid": lambda x, k, **o: losses.linear_sigmoid_cross_entropy(
        DENSE.astype(x.dtype), x, k, **o
    ),
    "each": lambda x, k, **o: jnp.sum(
        jxent.linear_sparse_softmax_cross_entropy(labels=IDS, inputs=x, kernel=k, **o)
    ),
}


def nestings(f):
    """Forward over reverse and reverse over reverse, to both operands."""

    def of(x, k, tangents):
        gradients = jax.grad(f, (0, 1))
        forward = jax.jvp(gradients, (x, k), tangents)[1]
        return forward, jax.vjp(gradients, x, k)[1](tangents)

    return of


@pytest.mark.parametrize("blocks", [{"block_size": 4}, {"class_block_size": 2}], ids=str)
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.one_in(12)
def test_float16_does_not_overflow(name, size, blocks):
    """The tangent of a slope has another scale than the slope, which float16 is scaled for."""
    if "class_block_size" in blocks and name == "dense":
        pytest.skip("dense labels of exclusive classes are not computed by blocks of classes")

    def results(dtype):
        x, k = X.astype(dtype), K.astype(dtype)
        tangents = (np.zeros_like(x), (np.float32(size) * V).astype(dtype))
        f = nestings(lambda x, k: FUNCTIONS[name](x, k, **blocks))
        return jax.tree.leaves(quick(f)(x, k, tangents))

    for got, wanted in zip(results(np.float16), results(np.float32), strict=True):
        # Products of float16 operands round their results to 11 bits, sums of them likewise.
        allowed = 16 * tolerance(jnp.float16, EXAMPLES) * float(jnp.abs(wanted).max())
        np.testing.assert_allclose(np.float32(got), wanted, rtol=0, atol=allowed)


def temporaries(loss, *shapes):
    """Bytes of a Hessian-vector product by forward over reverse, along the kernel."""

    def product(labels, inputs, kernel, along):
        gradient = jax.grad(lambda kernel: loss(labels, inputs, kernel))
        return jax.jvp(gradient, (kernel,), (along,))[1]

    compiled = jax.jit(product).lower(*shapes, shapes[-1]).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


@pytest.mark.optimized
@pytest.mark.parametrize(
    "fused",
    [
        losses.linear_sparse_softmax_cross_entropy,
        lambda labels, inputs, kernel: jnp.mean(
            jxent.linear_sparse_softmax_cross_entropy(labels=labels, inputs=inputs, kernel=kernel)
        ),
    ],
    ids=["reduced", "per example"],
)
@pytest.mark.one_in(2)
def test_a_hessian_vector_product_holds_a_third_of_stored_logits(fused):
    examples, features, classes = 4096, 256, 65536
    shapes = (
        jax.ShapeDtypeStruct((examples,), jnp.int32),
        jax.ShapeDtypeStruct((examples, features), jnp.float32),
        jax.ShapeDtypeStruct((features, classes), jnp.float32),
    )

    def stored(labels, inputs, kernel):
        each = optax.softmax_cross_entropy_with_integer_labels(inputs @ kernel, labels)
        return jnp.mean(each)

    assert 3 * temporaries(fused, *shapes) <= temporaries(stored, *shapes)
