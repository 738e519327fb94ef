"""Each platform's ways of the mathematics, which does not know them."""

from jxent._src.platforms import cpu as cpu, gpu as gpu, tpu as tpu
