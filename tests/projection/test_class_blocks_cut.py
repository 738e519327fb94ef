"""How classes are cut into blocks, and classes that are split over chips."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from benchmarks.compiled.collectives import collectives
from jxent._src.core.blocks import Block, ClassBlocks
from jxent._src.projection import plan
from tests.projection.members import operands, scalar


@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.one_in(15)
def test_every_class_is_in_one_block(runs, width):
    """Ragged and not: cut out, put back, named by id, and all blocks at once."""
    cut = ClassBlocks(classes=24, runs=runs, width=min(width, 24 // runs))
    x = jnp.arange(48, dtype=jnp.float32).reshape(2, 24)
    blocks = [Block(cut, cut.width, k) for k in range(cut.number)]
    blocks += [Block(cut, cut.remainder, cut.number)] * bool(cut.remainder)
    assert sum(block.size for block in blocks) == 24
    whole, ids, seen = jnp.zeros_like(x), jnp.arange(-2, 26), np.zeros(28, int)
    stacked, rest = cut.stacked(x)
    for block, columns in zip(blocks, [*stacked, rest], strict=False):
        own = block.of(x)
        np.testing.assert_array_equal(own, columns)
        whole = block.put(whole, own)
        places = np.asarray(block.local_ids(ids))
        seen += places >= 0
        found = ids[places >= 0]
        np.testing.assert_array_equal(own[0][places[places >= 0]], x[0][found])
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(seen, [0, 0, *[1] * 24, 0, 0])


def test_the_default_block_of_classes():
    def width(examples, features, classes, runs=1):
        return plan.class_blocks(examples, (features, classes), runs, None).width

    assert width(4096, 256, 65536) == 1024
    assert width(8192, 1024, 131072) == 4096
    assert width(8192, 256, 1048576) == 5504  # a sixth of the kernel
    assert width(8192, 2304, 65536) == 9216  # four a feature
    assert width(8192, 2304, 262144) == 12288  # 3 * 2^25 logits
    assert width(8, 4, 100) == 100
    assert width(2**20, 64, 2**21) == 128
    assert width(8192, 1024, 131072, runs=16) == 2048
    assert width(2048, 128, 10_000_384, runs=16) == 8192
    assert width(4, 2, 2 * 3001) == 1024


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
@pytest.mark.parametrize("classes", [20, 12, 8])
@pytest.mark.one_in(3)
def test_classes_split_over_some_of_the_chips(classes):
    """20 in 4 runs of 5 over 8 chips: no kernel is gathered."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=classes)
    f = jax.value_and_grad(partial(scalar("sparse_sigmoid"), class_block_size=4), (1, 2))
    wanted = f(labels, inputs, kernel)
    split = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((labels, P("data")), (inputs, P("data")), (kernel, P(None, "model")))
    ]
    program = jax.jit(f).lower(*split).compile()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), program(*split), wanted)
    assert {c.kind for c in collectives(program.as_text())} <= {"all-reduce"}


@pytest.mark.eight_devices
@pytest.mark.xdist_group("eight devices")
def test_explicitly_split_classes_have_no_class_blocks():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    labels, inputs, kernel = operands("sparse_sigmoid", examples=4, classes=20)
    f = scalar("sparse_sigmoid")
    wanted = f(labels, inputs, kernel)
    split = jax.device_put(kernel, NamedSharding(mesh, P(None, "model")))
    inputs = jax.device_put(inputs, NamedSharding(mesh, P("data", None)))
    labels = jax.device_put(labels, NamedSharding(mesh, P("data", None)))
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(jax.jit(f)(labels, inputs, split), wanted, rtol=1e-6)
        with pytest.raises(ValueError, match="class_block_size must be None where"):
            jax.jit(partial(f, class_block_size=4))(labels, inputs, split)
