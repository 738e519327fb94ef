"""What is wrong with the arguments of a loss of a projection is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import losses
from tests.projection.members import LOSSES, per_example, scalar

X, W, Y = np.zeros((2, 3), np.float32), np.zeros((3, 5), np.float32), np.zeros(2, int)


@pytest.mark.parametrize("form", [scalar, per_example])
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"inputs": np.zeros((2, 4), np.float32)}, ValueError, r"inputs and kernel must.*\(2, 4"),
        ({"kernel": np.zeros(3, np.float32)}, ValueError, "kernel must be"),
        ({"kernel": np.zeros((3, 0), np.float32)}, ValueError, "kernel must have at least one"),
        ({"kernel": np.zeros((3, 5), int)}, TypeError, "kernel must be floating"),
        ({"kernel": jnp.zeros((3, 5), jnp.bfloat16)}, TypeError, "inputs, float32, got bfloat16"),
        ({"inputs": jnp.zeros((2, 3), jnp.bfloat16), "kernel": jnp.zeros((3, 5), jnp.float16)},
         TypeError, "kernel must have the dtype of inputs, bfloat16, or float32, got float16"),
        ({"bias": np.zeros(3)}, ValueError, r"bias must have one number a class, shape \(5,\)"),
        ({"bias": np.zeros((1, 5))}, ValueError, "bias must have one number a class"),
        ({"labels": np.zeros((5, 5, 5), np.float32)}, (TypeError, ValueError), "labels must"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 1.5}, TypeError, "block_size must be a Python integer or None, got 1.5"),
        ({"block_size": True}, TypeError, "block_size must be a Python integer"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be in"),
        ({"logit_softcap": 0}, ValueError, "logit_softcap must be in"),
    ],
)  # fmt: skip
def test_wrong_arguments(form, loss_name, changed, error, message):
    labels = {"sparse_softmax": Y, "sparse_sigmoid": Y[:, None]}.get(
        loss_name, np.zeros((2, 5), np.float32)
    )
    arguments = {"labels": labels, "inputs": X, "kernel": W, **changed}
    with pytest.raises(error, match=message):
        form(loss_name)(**arguments)


def test_more_wrong_arguments():
    with pytest.raises(ValueError, match=r"pos_weight must be a number or one a class.*\(2, 5\)"):
        scalar("sigmoid")(np.zeros((2, 5)), X, W, pos_weight=np.ones((2, 5)))
    with pytest.raises(TypeError, match="labels must have the dtype of inputs, float32"):
        per_example("softmax")(np.zeros((2, 5), np.float16), X, W)
    with pytest.raises(ValueError, match="labels must be lists of ids"):
        jxent.sparse_sigmoid_cross_entropy_with_logits(labels=Y, logits=X)
    with pytest.raises(TypeError, match="labels must be integer class ids"):
        losses.sparse_sigmoid_cross_entropy(np.zeros((2, 1)), X)
    with pytest.raises(ValueError, match="weights must be a number"):
        scalar("sparse_softmax")(Y, X, W, weights=np.ones((2, 2)))
    with pytest.raises(TypeError, match="block_size is an option, compiled in"):
        jax.jit(lambda b: scalar("sparse_softmax")(Y, X, W, block_size=b))(2)
