"""Every test runs in JAX's strict modes, on one device as on a laptop, or on eight if it asks."""

import gc
import importlib
import os
import sys
from collections import Counter
from types import ModuleType
from zlib import crc32

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import chex
import jax
import pytest
from jax.extend.backend import clear_backends
from jaxtyping import install_import_hook

import jxent
from jxent._src.platforms import tpu
from jxent._src.platforms.cpu import sigmoid, softmax

# The family's rows are narrow and its lists short, and its tests are to be tests of every way.
USUAL_NARROW, softmax.NARROW = softmax.NARROW, 0
sigmoid.SHORT = 2
LIMITS = {"LONG": 2, "LANES": 1, "TILE": 1, "LONG_INPUTS": 0}
USUAL_LIMITS = {name: getattr(tpu, name) for name in LIMITS}
for name, small in LIMITS.items():
    setattr(tpu, name, small)

jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Tracing makes millions of small objects that live as long as a test, and the collector walks over
# all of them again and again: a fifth of the time of tests that trace much.
gc.set_threshold(200_000, 20, 100)


# In the fast suite, which is waited for with each change, XLA optimizes little, but for tests of
# digits, of memory and of fast paths. By `-m ''` it is never told so here.
FAST_SUITE = "not long"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before any fixture: the marks `eight_devices` and `optimized`, where the last test had not.

    Whatever order the tests are in, and whichever process they are given to. What was compiled is
    compiled again; arrays do not outlive a switch of devices, so modules hold NumPy's.
    """
    unoptimized = item.config.option.markexpr == FAST_SUITE and not item.get_closest_marker(
        "optimized"
    )
    if jax.config.read("jax_disable_most_optimizations") != unoptimized:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", unoptimized)
    since = item.get_closest_marker("since")
    if since and jax.__version_info__ < tuple(map(int, since.args[0].split("."))):
        pytest.skip(f"more is stored before jax {since.args[0]}")
    devices = 8 if item.get_closest_marker("eight_devices") else 1
    if getattr(jax.config, "jax_num_cpu_devices") != devices:  # noqa: B009 - it has no type
        jax.clear_caches()
        clear_backends()
        jax.config.update("jax_num_cpu_devices", devices)
    assert jax.device_count() == devices


@pytest.fixture(params=["reference", "tpu", "cuda"])
def lowered_for(request):
    """Runs on CPU what is lowered for another platform."""
    with jxent.assume_platform(request.param):
        yield


@pytest.fixture
def asserts_disabled():
    """What users set who want none of chex's assertions."""
    chex.disable_asserts()
    yield
    chex.enable_asserts()


@pytest.fixture
def narrow_rows(monkeypatch):
    """Narrow rows are computed as users have them."""
    jax.clear_caches()
    monkeypatch.setattr(softmax, "NARROW", USUAL_NARROW)
    yield
    jax.clear_caches()


@pytest.fixture
def usual_limits(monkeypatch):
    """Long lists and inputs on a TPU are computed as users have them."""
    jax.clear_caches()
    for name, value in USUAL_LIMITS.items():
        monkeypatch.setattr(tpu, name, value)
    yield
    jax.clear_caches()


# One copy in a process: beartype knows a union of classes by their names alone.
CHECKED: dict[str, ModuleType] = {}


def _of_package() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "jxent"}


@pytest.fixture(scope="module")
def checked():
    """A copy of the package, every annotation of which is checked at every call."""
    kept = _of_package()
    sys.modules.update(CHECKED)
    try:
        with install_import_hook("jxent", "beartype.beartype"):
            yield importlib.import_module("jxent")
    finally:
        CHECKED.update(_of_package())
        sys.modules.update(kept)


def pytest_addoption(parser):
    parser.addoption("--part", type=part, default=(0, 1), metavar="K/N", help="of N parts the K-th")
    parser.addoption("--turn", type=int, default=0, metavar="N", help="which, of what has turns")


def part(text):
    """Which of how many parts: "2/3" or, for any whole number 5, "5/3"."""
    which, parts = map(int, text.split("/"))
    return which % parts, parts


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """The mark `one_in(n)`: of a test's parameters every n-th is in the fast suite."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is None or item.get_closest_marker("long"):
            continue
        name = item.nodeid.split("[")[0]
        if seen[name] % mark.args[0]:
            item.add_marker(pytest.mark.long)
        seen[name] += 1
    which, parts = config.getoption("--part")
    kept: list[pytest.Item] = []
    rest: list[pytest.Item] = []
    for item in items:
        mine = crc32(item.nodeid.encode()) % parts == which
        (kept if mine else rest).append(item)
    items[:] = kept
    if rest:
        config.hook.pytest_deselected(items=rest)
