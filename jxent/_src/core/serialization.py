"""Under which names exported programs that hold this library's trees are written to files."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from jax import export

Tree = TypeVar("Tree", bound=type)


def register_serialization(name: str) -> Callable[[Tree], Tree]:
    """Marks a class of trees of arrays: what is exported with one of them can be serialized."""

    def register(tree: Tree) -> Tree:
        with suppress(ValueError):  # a module that is imported once more: the first one's stays
            if issubclass(tree, tuple):
                export.register_namedtuple_serialization(tree, serialized_name=name)
            else:
                export.register_pytree_node_serialization(
                    tree,
                    serialized_name=name,
                    serialize_auxdata=lambda _: b"",
                    deserialize_auxdata=lambda _: (),
                )
        return tree

    return register
