"""How a platform says which blocks a projection is cut into, where the caller does not."""

from collections.abc import Callable
from typing import Any, TypeVar

from jxent._src.core.blocks import AnyBlocks, BlockCandidates
from jxent._src.core.dispatch import PerPlatform, implements
from jxent._src.projection.matmuls import Operands

Choose = TypeVar("Choose", bound=Callable[[Any, BlockCandidates, Operands], AnyBlocks | None])


def chooses_blocks(of: PerPlatform[Any], *platforms: str) -> Callable[[Choose], Choose]:
    """Registers a choice of blocks for a function of a projection, on these platforms.

    The choice is a function of the loss, the candidates and the operands; None leaves it to the
    function itself, which computes all choices.
    """

    def register(choice: Choose) -> Choose:
        def chosen(loss_fn: Any, blocks: AnyBlocks, *rest: Any) -> AnyBlocks | None:
            if not isinstance(blocks, BlockCandidates):
                return None  # the caller's
            return choice(loss_fn, blocks, next(x for x in rest if isinstance(x, Operands)))

        def in_chosen_blocks(loss_fn: Any, blocks: AnyBlocks, *rest: Any) -> Any:
            return of.reference(loss_fn, chosen(loss_fn, blocks, *rest), *rest)

        for platform in platforms:
            implements(of, platform, applies=lambda *given: chosen(*given) is not None)(
                in_chosen_blocks
            )
        return choice

    return register
