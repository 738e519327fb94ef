"""Implementations that replace the reference ones on a platform, which do not know them."""

from jxent._src.platforms import cpu as cpu, gpu as gpu, tpu as tpu
