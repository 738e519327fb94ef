"""The programs and rows of the fuzz, their arrays split over eight devices."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.numerics.fuzz import bounded, each_count, each_function, fuzz

pytestmark = [pytest.mark.eight_devices, pytest.mark.xdist_group("eight devices")]


def over_eight(x):
    """Split over a mesh of 2 x 4 devices, where the sizes allow it."""
    x = jnp.asarray(x)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec: list[str | None] = [None] * x.ndim
    if x.ndim and x.shape[0] % 2 == 0 and x.shape[0]:
        spec[0] = "a"
    if x.ndim > 1 and x.shape[-1] % 4 == 0 and x.shape[-1] and x.dtype != jnp.int32:
        spec[-1] = "b"
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


@each_count
@each_function
@pytest.mark.one_in(9)
def test_on_eight_devices(function, examples):
    """Where rows may be split, and are where the sizes allow it."""

    @bounded(examples // 2)
    @given(st.data())
    def test(data):
        fuzz(data, function, over_eight)

    with jax.enable_x64(True):
        test()
