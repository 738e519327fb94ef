"""What XLA:TPU wants spelled otherwise: each way with its reason."""

from jaxtyping import Array

from jxent import _softmax
from jxent._dispatch import way
from jxent.platforms import _one_pass

# Passes over 4096 x 32768 bfloat16 logits as compiled for a v5e, value and gradient: ids 3.00
# instead of 4.00, smoothed 3.00 instead of 4.00 to 5.00, dense labels 5.00 instead of 7.00; on any
# axis. A product that makes the logits is fused with the reduction.


for function, in_one_pass in _one_pass.WAYS.items():
    way(function, "tpu")(in_one_pass)


@way(_softmax.stored, "tpu", applies=lambda has_ids, _: has_ids)
def _capped_in_each_pass(_: bool, x: Array) -> Array:
    """The maximum and the label's logit are of one reduction: 3 passes; stored it would be 9."""
    return x
