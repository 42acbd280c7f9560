"""What all models share: their short description."""

import math
from typing import Any

import jax
from flax import nnx


class Model(nnx.Module):
    """A module that prints as one line, with its sizes, and not as all of its parameters."""

    def __repr__(self: Any) -> str:
        shapes = self.attention_shapes()
        sizes = [f"width {self.width}"]
        if shapes:
            sizes.append(f"{len(shapes)} blocks of {shapes[0][0]} heads")
        sizes.append("images {} x {}".format(*self.preprocess.size))
        sizes.append(f"{self.num_classes} classes" if self.num_classes else "no head")
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)))
        return f"{type(self).__name__}({', '.join(sizes)}, {count / 1e6:.3g} M parameters)"

    __str__ = __repr__
