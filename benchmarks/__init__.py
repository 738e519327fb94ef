"""Measurements of jxent beside its peers; one module a question, `python -m benchmarks` for all."""

import os

# Both are read when the libraries load. OpenMP's threads otherwise spin after each of PyTorch's
# loops and take the cores from whatever runs next; and JAX would take most of a GPU's memory
# before the other libraries are asked.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
