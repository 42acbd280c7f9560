"""Fits a file's tensors to what the caller asks for: positions for another image size, a head for other classes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitx.models.design import Design
from vitx.models.heads import with_head
from vitx.models.layers import Linear
from vitx.models.variants import resample_positions
from vitx.weights.metadata import Metadata, Overrides
from vitx.weights.tensor import Tensor

Size = tuple[int, int]


def shape_of(tensors: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that must exist; ValueError for another number of axes, or an empty one."""
    if name not in tensors:
        raise ValueError(f"- {name} is missing, without which the model's sizes are not known")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{name} has shape {shape}, where {axes} axes are expected")
    return shape


@dataclass(frozen=True)
class Table:
    """A position table: its entries, and the sizes in pixels of the image that its grid may be that of.

    `own` is the only one where the file specifies it; `trained` counts where it has as many cells. `wanted` is the
    caller's, or else the file's, size of the model.
    """

    entries: int
    cell: int  # side of a patch in pixels
    own: Size | None
    trained: Size | None
    wanted: Size | None

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], cell: int, metadata: Metadata, wanted: Size | None
    ) -> "Table":
        """The table of a file; without one, it has no entries."""
        entries = shape_of(tensors, "pos_embed", 3)[1] if "pos_embed" in tensors else 0
        # Of timm's sizes, none is sure to be that of the embedding.
        own, trained = metadata.image_size, None
        if own is None:
            trained, wanted = metadata.img_size or metadata.input_size, wanted or metadata.img_size
        if metadata.crop_size and not any(side % cell for side in metadata.crop_size):
            wanted = wanted or metadata.crop_size
        return cls(entries, cell, own, trained, wanted)

    def size(self, prefix: int) -> tuple[Size | None, Size]:
        """The size that the table is known to be for, if any, and its grid, which need not fit."""
        cells = self.entries - prefix
        side = math.isqrt(max(cells, 0))

        def fits(size: Size | None) -> bool:
            return size is not None and math.prod(self.grid(size)) == cells

        own = self.own or (self.trained if fits(self.trained) else None)
        if side**2 != cells and fits(self.wanted) and not fits(own):
            own = self.wanted  # not square: nothing else specifies the grid
        return own, self.grid(own) if own else (side, side)

    def grid(self, size: Size) -> Size:
        """Cells of an image of some size."""
        return size[0] // self.cell, size[1] // self.cell

    def first_fit(self, prefixes: Iterable[int]) -> int | None:
        """The first number of prefix tokens whose entries leave those of a grid; None where none does.

        The wanted size is not that of the table: it counts only where no other grid fits.
        """
        prefixes = tuple(prefixes)
        tables = (replace(self, wanted=None), self)
        return next((n for table in tables for n in prefixes if table.fits(n)), None)

    def fits(self, prefix: int) -> bool:
        """Whether there is an entry for each cell of a grid and `prefix` more."""
        cells = self.entries - prefix
        return cells > 0 and math.prod(self.size(prefix)[1]) == cells

    def fit(self, tensors: dict[str, Tensor], design: Design) -> Size:
        """Resamples the position embedding to the wanted image size; returns the size."""
        prefix, cell = design.position_prefix, self.cell
        if design.positions == "none":
            size = self.wanted or self.own or self.trained
            if size is None:
                raise ValueError(
                    "it has no position table, whose length would show its size: give image_size"
                )
            self._check(size)
            return size
        own, old = self.size(prefix)
        if not self.fits(prefix):
            raise ValueError(
                f"pos_embed has {self.entries} entries, not {prefix} for tokens before the patches and one for each "
                f"cell of {'a square' if own is None else f'{old[0]} x {old[1]}'}"
            )
        size = self.wanted or own or (old[0] * cell, old[1] * cell)
        self._check(size)
        if (new := self.grid(size)) != old:
            tensor = tensors["pos_embed"]
            shape = (1, prefix + math.prod(new), tensor.shape[2])
            resample = partial(_resampled, tensor, prefix, old, new, design.resampling)
            tensors["pos_embed"] = Tensor(shape, resample)
        return size

    def _check(self, size: Size) -> None:
        rows, columns = (max(side // self.cell, 1) * self.cell for side in size)
        if size != (rows, columns):
            give = rows if rows == columns else (rows, columns)
            raise ValueError(
                f"image_size {size} is not a multiple of the patch, {self.cell} pixels: give image_size={give}"
            )


def _resampled(tensor: Tensor, prefix: int, old: Size, new: Size, kind: str) -> np.ndarray:
    """`resample_positions` in float32 as in timm, or float64."""
    array = tensor.read()
    table = jnp.asarray(array if array.dtype == np.float64 else array.astype(np.float32))
    return np.asarray(resample_positions(table, prefix, old, new, kind))


def fit_head(
    tensors: dict[str, Tensor], design: Design, width: int, metadata: Metadata, overrides: Overrides
) -> tuple[Design, int]:
    """Replaces the heads by new ones where the overrides need that; returns the design and the number of classes."""
    count, kind = overrides.num_classes, overrides.head
    hidden = [name for name in tensors if name.startswith("pre_logits.")]
    own = next((shape_of(tensors, name, 2)[0] for name in _HEADS if name in tensors), None)
    wanted = design if kind is None else with_head(design, kind, count or 0)
    if count is None:
        if own is not None and not hidden:
            return design, own
        if own is None and not hidden and _comes_without(design, metadata):
            return design, 0
        reason = "- head.weight is missing"
        if hidden:
            reason = f"its head has a hidden layer ({hidden[0]}), which vitx does not have"
        raise ValueError(f"{reason}: give num_classes for a new head")
    if own == count and wanted == design and not hidden:
        return design, count
    if kind is None and design.head == "each":
        wanted = replace(design, head="pooled")
    gone = ["pre_logits.", "head.", "head_dist.", "head_patches."]
    if kind == "class+mean":  # which reads the tokens themselves
        gone += ["fc_norm.", "projection.", "attn_pool."]
    for name in [name for name in tensors if name.startswith(tuple(gone))]:
        del tensors[name]
    rngs = nnx.Rngs(0)
    for name, inputs in wanted.heads(width).items():
        head = Linear(inputs, count, rngs=rngs)
        tensors[f"{name}.weight"] = Tensor((count, inputs), partial(_array, head.kernel))
        tensors[f"{name}.bias"] = Tensor((count,), partial(_array, head.bias))
    return wanted, count


_HEADS = ("head.weight", "head_patches.weight")


def _array(parameter: nnx.Param) -> np.ndarray:
    return np.asarray(parameter[...]).T


def _comes_without(design: Design, metadata: Metadata) -> bool:
    """Whether a file without a head is whole: its num_classes is 0, or its family is published without."""
    family = design.layer_scale or design.pre_norm or design.rotary != "none"
    return metadata.num_classes == 0 or family or design.pooling == "attention"
