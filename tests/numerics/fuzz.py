"""Draws programs and rows, runs them, and compares them with the truth."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st

import jxent
from jxent import losses
from tests.numerics.fuzz_batches import Batch, _with_axis, draw_batch
from tests.numerics.fuzz_bounds import check, cotangents
from tests.numerics.fuzz_programs import FUNCTIONS, Program, draw_program

BATCHES = 3  # of data for every program that is compiled


def public(name: str):
    module, _, function = name.rpartition(".")
    return getattr(losses if module else jxent, function)


def compiled(program: Program, batch: Batch):
    """Losses, gradient for the cotangents given, and Hessian-vector product, as one program."""
    function = public(program.function)
    options = dict(program.options)
    if program.axis != -1:
        options["axis"] = program.axis
    if program.block_size is not None:
        options["block_size"] = program.block_size
    if program.class_block_size is not None:
        options["class_block_size"] = program.class_block_size
    if program.reduction is not None:
        options["reduction"] = program.reduction
    if program.mean_over is not None:
        options["mean_over"] = program.mean_over
    if program.weights == "number":
        options["weights"] = batch.arguments["weights"]
    names = [*inspect.signature(function).parameters]
    renamed = {"labels": names[0]} if program.is_scalar else {}

    def loss(differentiated, fixed):
        arguments = {renamed.get(k, k): v for k, v in (fixed | differentiated).items()}
        return function(**arguments, **options)

    @jax.jit
    def run(differentiated, fixed, directions, cotangent):
        def total(differentiated):
            value = loss(differentiated, fixed)
            return jnp.sum(value * cotangent.astype(value.dtype)), value

        gradient = jax.grad(total, has_aux=True)
        if not program.second_order:
            return (*gradient(differentiated)[::-1], None)
        (slope, value), (curve, _) = jax.jvp(gradient, (differentiated,), (directions,))
        return value, slope, curve

    return run


def run(program, function, batch, cotangent, split):
    fixed = {
        k: v for k, v in batch.arguments.items()
        if k not in batch.differentiated and not (k == "weights" and program.weights == "number")
    }  # fmt: skip
    differentiated = {k: batch.arguments[k] for k in batch.differentiated}
    arrays = jax.tree.map(split, (differentiated, fixed, batch.directions))
    return jax.tree.map(np.asarray, function(*arrays, cotangent))


def fuzz(data, function, split):
    program = draw_program(data, function)
    seed = data.draw(st.integers(0, 10**6), label="seed") * BATCHES
    try_batches(program, range(seed, seed + BATCHES), split)


def try_batches(program, seeds, split):
    """The program on a batch a seed."""
    call = None
    for seed in seeds:
        batch = draw_batch(program, seed)
        if call is None:
            call = compiled(program, batch)
        c = cotangents(program, len(batch.logits))
        if program.reduction not in (None, "none"):
            c = np.float64(1)
        elif program.is_elementwise:
            c = _with_axis(program, c)
        else:
            c = c.reshape(program.batch)
        with jax.numpy_rank_promotion("allow"):
            results = run(program, call, batch, jnp.asarray(c), split)
        check(program, batch, results)


def bounded(examples):
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # every simpler program would be compiled anew
    )  # fmt: skip


FEW, MANY = 2, 20  # programs a function; on eight devices half of that
each_function = pytest.mark.parametrize("function", FUNCTIONS)
each_count = pytest.mark.parametrize(
    "examples", [FEW, pytest.param(MANY, marks=pytest.mark.long)], ids=["few", "many"]
)
