"""What sets families of Vision Transformers apart, beside their sizes, and the statistics of their input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from vitx.images.evaluation_crop import resized
from vitx.images.pixels import Picture, each_as_pixels, normalise
from vitx.models.checks import checked, image_size, one_of, share, three_numbers, three_positive

INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
"""Pillow's filters."""
CROP_MODES: Final = ("squash", "center")


@dataclass(frozen=True)
class Preprocess:
    """Input statistics of a model's weights: input = (pixels in [0, 1] - mean) / std at `size`.

    Called with images, it returns the model's input, see `__call__`.

    Lists, arrays and numbers of NumPy or JAX become tuples of Python's numbers, so that equal
    values compare equal, hash, and can be saved.

    Args:
      mean: of each colour channel (red, green, blue).
      std: standard deviation of each channel, above 0.
      size: (H, W) of the input in pixels, or one side for both.
      interpolation: one of `INTERPOLATIONS`, by which the weights' own evaluation resizes.
      crop_mode: how it makes a picture the input's size: "squash" to it, whatever the aspect, or "center", which keeps
        the aspect and shows the middle.
      crop_pct: the share of the resized picture's (shorter) side that is shown, in (0, 1].

    Raises:
      ValueError: for a value of another shape, type or range.
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size: tuple[int, int] = (224, 224)
    interpolation: str = "bilinear"
    crop_mode: str = "squash"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[Any], Any]] = {
            "mean": three_numbers,
            "std": three_positive,
            "size": image_size,
            "interpolation": one_of(INTERPOLATIONS),
            "crop_mode": one_of(CROP_MODES),
            "crop_pct": share,
        }
        for name, check in checks.items():
            value = checked(name, getattr(self, name), check)
            object.__setattr__(self, name, value)  # a frozen dataclass refuses to assign

    def __call__(self, images: Picture | Sequence[Picture]) -> jax.Array:
        """The model's input of one image or several, float32 (B, H, W, 3): each squashed to `size` and normalised.

        Args:
          images: a path, a file's bytes, a Pillow image, or a uint8 array (H, W, 3), (H, W, 4) or (H, W); or a list of
            them, or an array (B, H, W, 3). Files and Pillow images are turned as their EXIF orientation says.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: an image cannot be read, an array has another shape or type, or there is no image.
        """
        pixels = [resized(image, self.size, self) for image in each_as_pixels(images)]
        return jnp.asarray(normalise(np.stack(pixels), self))


CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "positions": ("all", "no registers", "patches", "none"),
    "rotary": ("none", "dinov3", "eva"),
    "qkv_bias": ("all", "no key", "none"),
    "mlp": ("plain", "gated"),
    "activation": ("gelu", "quick_gelu", "tanh_gelu", "silu"),
    "pooling": ("class", "mean", "class+mean", "class+distillation", "attention"),
    "head": ("pooled", "each", "best", "pooled+best"),
    "resampling": ("antialias", "bicubic"),
}


@dataclass(frozen=True)
class Design:
    """The parts of a Vision Transformer; the defaults are the ViT of Dosovitskiy et al., 2021.

    Args:
      class_token: whether the tokens begin with one.
      distillation_token: a second one (Touvron et al., ICML 2021).
      registers: number of tokens after these that nothing reads (Darcet et al., ICLR 2024).
      positions: the tokens that the learned position embedding has entries for.
      rotary: how the patches' coordinates become angles, see `vitx.models.rotary`.
      rotary_base: the wavelengths' base, theta.
      patch_bias: whether the patch embedding has a bias.
      pre_norm: a LayerNorm before the first block.
      qkv_bias: the biases of queries, keys and values.
      layer_scale: a learned scale of each block's branches (Touvron et al., ICCV 2021).
      mlp: "gated" is fc2(activation(a) b), a and b the halves of fc1 (Shazeer, 2020).
      activation: of the MLPs.
      mlp_norm: a LayerNorm before the MLPs' last layer.
      final_norm: a LayerNorm after the last block, on each token.
      pooling: what the head reads, see `VisionTransformer.pooled`.
      pooled_norm: a LayerNorm after the pooling.
      projection: outputs of a linear map without bias after the pooling; 0 for none.
      head: "pooled": one on the pooled output. "each": one on the class token, one on the distillation token, whose
        logits are averaged. "best": one on each patch; a class's logit is the mean over its best patches.
        "pooled+best": the mean of both.
      best_patches: how many patches count as the best.
      resampling: of positions for another image size, see `vitx.models.variants.resample_positions`.

    Raises:
      ValueError: for a choice that is none of `CHOICES`, or parts that do not fit together.
    """

    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0
    positions: str = "all"
    rotary: str = "none"
    rotary_base: float = 100.0
    patch_bias: bool = True
    pre_norm: bool = False
    qkv_bias: str = "all"
    layer_scale: bool = False
    mlp: str = "plain"
    activation: str = "gelu"
    mlp_norm: bool = False
    final_norm: bool = True
    pooling: str = "class"
    pooled_norm: bool = False
    projection: int = 0
    head: str = "pooled"
    best_patches: int = 1
    resampling: str = "antialias"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r:.100}")
        least = {"registers": 0, "projection": 0, "best_patches": 1}
        for name, lowest in least.items():
            if (value := getattr(self, name)) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, not {value}")
        read = {"class": 1, "class+mean": 1, "class+distillation": 2}.get(self.pooling, 0)
        if read > self.class_token + self.distillation_token:
            raise ValueError(f"pooling {self.pooling!r} needs a token that the design leaves out")
        if self.head == "each" and self.pooling != "class+distillation":
            raise ValueError('head "each" needs pooling "class+distillation"')
        if self.mlp_norm and self.mlp != "gated":
            raise ValueError("mlp_norm needs a gated mlp")
        if self.distillation_token and not self.class_token:
            raise ValueError("a distillation token comes after a class token, which is left out")

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.class_token + self.distillation_token + self.registers

    @property
    def position_prefix(self) -> int:
        """How many prefix tokens have an entry in the position embedding; they are the first ones."""
        entries = {"all": self.prefix_tokens, "no registers": self.prefix_tokens - self.registers}
        return entries.get(self.positions, 0)

    @property
    def queries(self) -> int | None:
        """How many tokens, from the first, the output reads; None for all."""
        if self.head in ("best", "pooled+best"):
            return None
        return {"class": 1, "class+distillation": 2}.get(self.pooling)

    def heads(self, width: int) -> dict[str, int]:
        """The names of the linear heads, and how many channels each reads in a model of some width."""
        pooled = self.projection or width * (2 if self.pooling == "class+mean" else 1)
        read = {"head": pooled} if self.head != "best" else {}
        if self.head == "each":
            read["head_dist"] = width
        if self.head in ("best", "pooled+best"):
            read["head_patches"] = width
        return read

    def require_fit(self, channels: int, patches: int) -> None:
        """Raises ValueError where a model with such heads and so many patches cannot have this design."""
        if self.rotary != "none" and channels % 4:
            raise ValueError(
                f"rotary positions need heads of a multiple of 4 channels, not {channels}"
            )
        if self.head in ("best", "pooled+best") and self.best_patches > patches:
            raise ValueError(f"best_patches {self.best_patches} is more than the {patches} patches")

    def differences(self) -> dict[str, Any]:
        """The parts that differ from the defaults, by name."""
        return {
            item.name: value
            for item in fields(self)
            if (value := getattr(self, item.name)) != item.default
        }


VIT: Final = Design()
"""The ViT of 2021."""
