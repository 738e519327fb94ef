"""The divergence from a teacher whose logits are a projection, too."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from jxent._src.loss_fns.kl_divergence import Divergence
from jxent._src.projection.matmuls import project


@dataclass(frozen=True)
class ProjectedDivergence(Divergence):
    """The same of a teacher's inputs, its kernel and its bias."""

    has_teacher = True

    def of_operands(self, labels: Any, parameters: Any) -> tuple[Array, Array | None]:
        """The teacher's logits, and the temperature."""
        temperature, kernel, bias = parameters
        return project(labels, kernel.astype(labels.dtype), bias), temperature
