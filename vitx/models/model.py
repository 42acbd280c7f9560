"""What all models share beside weights and design: the names of their outputs, and a short description."""

import math
from typing import Any, Final

import jax
from flax import nnx

SCORES: Final = ("softmax", "sigmoid")
"""One class an image, or several: then each output has a probability of its own."""


class Model(nnx.Module):
    """A model that knows the names of its outputs, and prints as one line, with its sizes.

    Attributes:
      class_names: of each output, where they are known, else None.
      class_names_source: where they are from, such as "file" or "assumed ImageNet" (`vitx.weights.class_names`).
      scores: one of `SCORES`, what makes probabilities of the outputs; None where that is not known.
      assumed: the settings that were guessed, as no file specifies them: "num_heads".
    """

    class_names: tuple[str, ...] | None
    class_names_source: str | None
    scores: str | None
    assumed: tuple[str, ...]

    def name_classes(
        self,
        names: tuple[str, ...] | None = None,
        source: str | None = None,
        scores: str | None = None,
    ) -> None:
        """Sets what is known of the outputs: names, their source, and `scores`; without arguments, nothing is."""
        self.class_names, self.class_names_source, self.scores = names, source, scores

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
