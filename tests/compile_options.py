"""Compile options for tests of what holds of a program however it is optimized.

Which transforms a loss has, and that their results agree with the formula, does not depend on how
much the compiler improves the program, and most of a test's time is the compiler's. Not for tests
of digits, of memory, or of which fast path is taken: these run what users run.
"""

from functools import partial

import jax

OPTIONS: dict[str, bool | int] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

quick = partial(jax.jit, compiler_options=OPTIONS)
