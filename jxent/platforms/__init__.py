"""Each platform's ways of the mathematics, which does not know them."""

from jxent.platforms import cpu as cpu
from jxent.platforms import cpu_divergence as cpu_divergence
from jxent.platforms import cpu_label_lists as cpu_label_lists
from jxent.platforms import cpu_labels as cpu_labels
from jxent.platforms import cpu_sigmoid as cpu_sigmoid
from jxent.platforms import cpu_step as cpu_step
from jxent.platforms import gpu as gpu
from jxent.platforms import tpu as tpu
