"""The lowered programs of the library, to be compared before and after a change that keeps them.

    python -m tests.lowered_programs --save before.json
    python -m tests.lowered_programs --compare before.json

Covers each case of `tests/catalog.py` (value, gradient, Hessian-vector product) and each case that
`benchmarks` compiles, lowered for CPU, TPU and GPU. Names of functions in the program come from
Python's and are replaced by their order, so a renamed or moved function leaves its program equal.
"""

import argparse
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks import tpu
from benchmarks.compiled import h100
from benchmarks.compiled.cases import programs, shapes
from tests import conftest
from tests.catalog import CASES, Case

PLATFORMS = ("cpu", "tpu", "cuda")


def without_names(text: str) -> str:
    """The program with its functions named in the order in which they are defined."""
    names = re.findall(r"func\.func \w+ @([\w.$-]+)", text)
    numbers = {name: str(number) for number, name in enumerate(names)}
    text = re.sub(r"@([\w.$-]+)", lambda m: "@" + numbers.get(m[1], m[1]), text)
    return re.sub(r"^module @\S+", "module", text)


def of_family(case: Case) -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """Name, function and arrays of the value, the gradient, and the gradient's tangent."""
    arrays = case.arrays(jnp.float32)
    differentiated = {name: arrays[name] for name in case.differentiable()}
    fixed = {name: array for name, array in arrays.items() if name not in differentiated}

    def value(differentiated, fixed):
        return case.loss(**differentiated, **fixed).sum()

    def product(differentiated, fixed):
        def gradient(differentiated):
            return jax.grad(value)(differentiated, fixed)

        return jax.jvp(gradient, (differentiated,), (differentiated,))

    yield f"{case.name}, value", value, (differentiated, fixed)
    yield f"{case.name}, gradient", jax.grad(value), (differentiated, fixed)
    yield f"{case.name}, Hessian-vector product", product, (differentiated, fixed)


def all_programs() -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """First with the limits that the tests set, so that small arrays take every implementation."""
    for case in CASES:
        yield from of_family(case)
    conftest.softmax.NARROW = conftest.USUAL_NARROW
    for name, limit in conftest.USUAL_LIMITS.items():
        setattr(conftest.tpu, name, limit)
    jax.clear_caches()
    for benchmark in dict.fromkeys(tpu.CASES + h100.CASES):
        yield f"{benchmark.name}, benchmark", programs(benchmark)["jxent"], shapes(benchmark)


def lowered() -> dict[str, str]:
    """By name and platform, the program's digest."""
    found = {}
    for name, function, arrays in tqdm(all_programs(), desc="programs"):
        traced = jax.jit(function).trace(*arrays)
        for platform in PLATFORMS:
            text = without_names(traced.lower(lowering_platforms=(platform,)).as_text())
            found[f"{name}, {platform}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the programs' digests")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="with those written before")
    options = parser.parse_args()
    found = lowered()
    if options.save:
        options.save.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.compare:
        before = json.loads(options.compare.read_text(encoding="utf-8"))
        names = before.keys() | found.keys()
        different = sorted(n for n in names if before.get(n) != found.get(n))
        print(*different, sep="\n")
        print(f"{len(names) - len(different)} of {len(names)} programs are equal")
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
