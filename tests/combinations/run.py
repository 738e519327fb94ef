"""Combinations of options and contexts: covering arrays of `table.py`, run and compared.

`python -m tests.combinations` runs every pair, `--triples` traces and lowers every triple for CPU,
TPU and GPU, and `--operands` every function with each of its arrays mapped or varying over a mesh
axis, alone and all but it. `--only` takes functions whose name has that in it. A row that fails is
printed as Python, and `run(function, row)` or `lower(function, row)` repeats it.
"""

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections import Counter
from functools import cache
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jxent
from tests.combinations.arrays import DATA, MODEL, Arrays, Call
from tests.combinations.covering import Covering
from tests.combinations.expected import Expected
from tests.combinations.table import BY_NAME, FUNCTIONS, Row, each_operand, never
from tests.compile_options import OPTIONS
from tests.reference import tolerance

PLATFORMS = ("cpu", "tpu", "cuda")
CHIPS = (2, 2)


# Covering arrays.


@cache
def rows(name: str, strength: int = 2) -> list[Row]:
    """Rows that cover all levels of every `strength` factors of a function, but for `never`."""
    function = BY_NAME[name]
    factors = function.factors()
    if strength == 3:  # they are lowered for each platform
        factors["platform"] = (None,)
    names = list(factors)
    rules = [rule.as_bits(factors) for rule in never(function)]
    numbers = Covering([len(x) for x in factors.values()], rules, strength).rows()
    return [{name: factors[name][k] for name, k in zip(names, row, strict=True)} for row in numbers]


# One call as a program.


def mesh_of(call: Call) -> Any:
    kind = AxisType.Explicit if call.row["mesh"] == "explicit" else AxisType.Auto
    return jax.make_mesh(CHIPS, (DATA, MODEL), axis_types=(kind, kind))


def derived(call: Call, total: Any) -> Any:
    """Of a total of all arrays: its value, what is beside it, its gradient and what `what` asks."""
    if call.row["call"] == "checkpoint":
        total = jax.checkpoint(total)

    def results(differentiated: Arrays, fixed: Arrays, directions: Arrays) -> Any:
        gradients = jax.value_and_grad(
            lambda differentiated: total(fixed | differentiated), has_aux=True
        )
        if call.row["what"] == "first":
            (value, beside), gradient = gradients(differentiated)
            _, along = jax.jvp(lambda m: total(fixed | m)[0], (differentiated,), (directions,))
        elif call.row["what"] == "forward over reverse":
            ((value, beside), gradient), (_, along) = jax.jvp(
                gradients, (differentiated,), (directions,)
            )
        else:
            ((value, beside), gradient), pull = jax.vjp(gradients, differentiated)
            still = jax.tree.map(jnp.zeros_like, (value, beside))
            (along,) = pull((still, directions))
        return value, beside, gradient, along

    return results


def mapped(call: Call) -> Any:
    """Of one chip: a total, or with derivatives taken inside its results, all places added up."""
    inside = call.row["inside"]

    def one(arrays: Arrays) -> Any:
        totals = call.run(arrays)
        return jax.lax.psum(totals, call.summed_over) if call.summed_over else totals

    kind = call.row["mapped"]
    if kind == "none":
        return derived(call, one) if inside else one
    function = derived(call, one) if inside else one

    def axes(*trees: Arrays) -> Any:
        return tuple({name: 0 if call.mapped(name) else None for name in tree} for tree in trees)

    def of_trees(*trees: Arrays) -> Any:
        if kind == "scan":
            return scanned(*trees)
        # The size, as weights may be the only other operand, and be a number.
        return jax.vmap(function, in_axes=axes(*trees), axis_size=2)(*trees)

    def scanned(*trees: Arrays) -> Any:
        # JAX differentiates such a scan twice only if its body and all of it are rematerialized.
        again = call.row["what"] != "first" and not inside
        remat = jax.checkpoint if again else lambda f: f
        return remat(lambda trees: jax.lax.map(remat(lambda t: function(*t)), trees))(trees)

    def added(*trees: Arrays) -> Any:
        def added_up(name: str, x: Any) -> Any:
            return x if call.mapped(name) else jnp.sum(x, 0, dtype=x.dtype)

        found = of_trees(*trees)
        return tuple(
            {name: added_up(name, x) for name, x in one.items()}
            if isinstance(one, dict) else jnp.sum(one)
            for one in found
        )  # fmt: skip

    return added


def sharded(call: Call, mesh: Any) -> Any:
    """The same of all chips."""
    function = mapped(call)
    if not call.is_shard_map:
        return function
    inside = call.row["inside"]

    def own(tree: Arrays) -> Arrays:
        return {name: x[0] if call.varies(name) else x for name, x in tree.items()}

    def local(*trees: Arrays) -> Any:
        return tuple(
            {name: x[None] if call.varies(name) else x for name, x in one.items()}
            if isinstance(one, dict) else one
            for one in function(*map(own, trees))
        )  # fmt: skip

    def specs(tree: Arrays) -> Any:
        return {name: call.spec(name) for name in tree}

    def on_mesh(*trees: Arrays) -> Any:
        out: Any = (P(), P())
        if inside:
            own_specs = specs(trees[0])
            out = (P(), P(), own_specs, P() if call.row["what"] == "first" else own_specs)
        return jax.shard_map(
            local, mesh=mesh, in_specs=tuple(map(specs, trees)), out_specs=out,
            check_vma=call.row["check_vma"],
        )(*trees)  # fmt: skip

    return on_mesh


def program(call: Call, mesh: Any) -> Any:
    function = sharded(call, mesh)
    is_derived = call.row["inside"]
    return function if is_derived else derived(call, function)


def arguments(call: Call, mesh: Any) -> tuple[Arrays, Arrays, Arrays]:
    """What moves, what does not, and the directions, placed on the mesh."""
    differentiated = {name: call.arrays[name] for name in call.differentiable()}
    fixed = {name: x for name, x in call.arrays.items() if name not in differentiated}

    def placed(name: str, x: Any) -> Any:
        return x if mesh is None else jax.device_put(x, NamedSharding(mesh, call.spec(name)))

    trees = (differentiated, fixed, call.directions)
    return tuple({name: placed(name, x) for name, x in t.items()} for t in trees)  # type: ignore


def compiled(call: Call, mesh: Any) -> Any:
    function = program(call, mesh)
    if call.row["call"] == "eager":
        return function
    donated = (0,) if call.row["call"] == "donated" else ()
    return jax.jit(function, donate_argnums=donated, compiler_options=OPTIONS)


def assumed(call: Call) -> Any:
    platform = call.row["platform"]
    return contextlib.nullcontext() if platform is None else jxent.assume_platform(platform)


def results(call: Call) -> Any:
    with jax.enable_x64(call.x64), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        mesh = None if call.row["mesh"] == "none" else mesh_of(call)
        with jax.set_mesh(mesh) if mesh is not None else jax.enable_x64(call.x64):
            differentiated, fixed, directions = arguments(call, mesh)
            differentiated = jax.tree.map(jnp.asarray, differentiated)
            with assumed(call):
                found = compiled(call, mesh)(differentiated, fixed, directions)
        return jax.tree.map(lambda x: np.array(x, np.float64), found)


def expected(call: Call) -> Any:
    """The same by plain formulas, and the size of the terms that a first `along` is made of."""
    names = call.differentiable()
    with jax.enable_x64(True):
        of = Expected(call)
        differentiated = {name: of.fixed[name] for name in names}
        directions = {
            name: jnp.asarray(np.asarray(x, np.float64)) for name, x in call.directions.items()
        }
        gradients = jax.value_and_grad(of.totals, has_aux=True)

        def program(differentiated: Arrays, directions: Arrays) -> Any:
            if call.row["what"] != "first":
                ((value, beside), gradient), (_, along) = jax.jvp(
                    gradients, (differentiated,), (directions,)
                )
                return (value, beside, gradient, along), jnp.zeros(())
            (value, beside), gradient = gradients(differentiated)
            terms = {name: gradient[name] * directions[name] for name in names}
            along = sum((jnp.sum(x) for x in terms.values()), jnp.zeros(()))
            size = sum((jnp.sum(jnp.abs(x)) for x in terms.values()), jnp.zeros(()))
            return (value, beside, gradient, along), size

        found, size = jax.jit(program, compiler_options=OPTIONS)(differentiated, directions)
        return jax.tree.map(np.asarray, found), float(size)


def run(name: str, row: Row) -> None:
    """Runs a call and compares it; an AssertionError says what differs."""
    call = Call(BY_NAME[name], row)
    try:
        got = results(call)
    except jax.errors.JaxRuntimeError as error:
        # XLA:CPU lacks products of bfloat16 rows with a batch of kernels. What is traced for a CPU
        # has none.
        if row["platform"] in (None, "cpu") or "DotThunk" not in str(error):
            raise
        return
    wanted, size = expected(call)
    second = row["what"] != "first" and row["data"] == "masked class"
    if second and call.function.labels == "dense" and "labels" in got[3]:
        call.of_last_class("labels", got[3]["labels"])[...] = 0  # of a slope that is infinite
    terms = 8 * sum(x.size for x in call.arrays.values())
    allowed = 8 * tolerance(call.dtype, terms)
    wrong = []
    largest = {
        part: max((float(np.max(np.abs(x), initial=0)) for x in jax.tree.leaves(tree)), default=0)
        for part, tree in enumerate(wanted)
    }
    for path, (a, b) in zip(
        jax.tree_util.tree_leaves_with_path(wanted),
        zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True),
        strict=True,
    ):
        part = path[0][0].idx
        scale = max(float(np.max(np.abs(b), initial=0)), largest[part] / 8, 1e-2)
        scale = max(scale, size) if part == 3 else scale
        if a.shape != b.shape or not np.all(np.abs(a - b) <= allowed * scale):
            kind = ("value", "beside", "gradient", row["what"])[part]
            where = jax.tree_util.keystr(path[0][1:])
            wrong.append(f"{kind}{where}: {a} instead of {b}, allowed {allowed * scale:.3g}")
    assert not wrong, "\n".join(wrong)


def lower(name: str, row: Row) -> None:
    """Traces and lowers a call for each platform."""
    call = Call(BY_NAME[name], row)
    with jax.enable_x64(call.x64):
        mesh = None if row["mesh"] == "none" else mesh_of(call)
        with jax.set_mesh(mesh) if mesh is not None else jax.enable_x64(call.x64):

            def shaped(name: str, x: Any) -> Any:
                split = None if mesh is None else NamedSharding(mesh, call.spec(name))
                dtype = jax.dtypes.canonicalize_dtype(x.dtype)
                return jax.ShapeDtypeStruct(x.shape, dtype, sharding=split)

            differentiated = {n: shaped(n, call.arrays[n]) for n in call.differentiable()}
            fixed = {n: shaped(n, x) for n, x in call.arrays.items() if n not in differentiated}
            function = jax.jit(program(call, mesh))
            function.trace(differentiated, fixed, differentiated).lower(
                lowering_platforms=PLATFORMS
            )


def failure(action: Any, name: str, row: Row) -> str | None:
    """What went wrong, if something did, as one text."""
    try:
        action(name, row)
    except AssertionError as error:
        return str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text[:400]} ({last.name})"
    return None


def main() -> None:
    from tqdm import tqdm  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triples", action="store_true", help="trace triples")
    parser.add_argument("--operands", action="store_true", help="trace each operand by itself")
    parser.add_argument("--only", default="", help="functions whose name has this in it")
    parser.add_argument("--part", default="0/1", help="K/N: of every N rows the K-th")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    which, parts = map(int, options.part.split("/"))
    todo = []
    for function in tqdm([f for f in FUNCTIONS if options.only in f.name], desc="covering arrays"):
        chosen = rows(function.name, 2 + options.triples)
        chosen = each_operand(function) if options.operands else chosen
        todo += [(function.name, row) for row in chosen[which % parts :: parts]]
    action = lower if options.triples or options.operands else run
    failed: Counter[str] = Counter()
    for name, row in tqdm(todo, desc="rows"):
        message = failure(action, name, row)
        if message is not None:
            failed[name] += 1
            tqdm.write(f"{name!r}, {row}\n    {message}")
    for name, count in failed.items():
        print(f"{name}: {count} failed")
    print(f"{failed.total()} of {len(todo)} combinations failed")
    sys.exit(failed.total() > 0)
