"""Seed maps and seed masks: where a classifier's explanations place its classes."""

from typing import Any

import jax
import jax.numpy as jnp

from vitx.data.transforms import Maps, resize_maps
from vitx.explainable import Explainable
from vitx.models.vit import VisionTransformer
from vitx.ops import Array
from vitx.pseudomasks.attention import box_mask, patch_affinity, spread
from vitx.pseudomasks.label_values import require_byte_classes
from vitx.relevance.explain import explain

NORMALISATIONS = ("min-max", "maximum")


def class_seed_maps(
    model: Explainable,
    images: Array,
    classes: Array,
    *,
    size: tuple[int, int],
    start_layer: int = 0,
    root: float = 3,
    rules: str = "published",
    method: str = "transformer_attribution",
    contrast: bool = False,
    refine: str = "",
    normalise: str = "min-max",
) -> Array:
    """Seed maps of an image's classes, the mean over the image and its mirror image (docs/protocol.md, "Seed maps").

    Args:
      model: a vitx classifier.
      images: normalised, (B, S, S, 3).
      classes: ints (B, K), outputs of the classifier; -1 is padding.
      size: (H, W) of the seed maps, the image's own.
      start_layer: see `vitx.explain`.
      root: exponent 1 / root before min-max: 3 is the cube root, 1 none.
      rules: see `vitx.explain`.
      method: one of `vitx.METHODS`. Negative values of its maps count as zero.
      contrast: take from each map the mean of the image's other maps, see `contrasted`.
      refine: "", or one of `attention.KINDS`, which needs a `VisionTransformer`; see `refined`.
      normalise: of `NORMALISATIONS`. "min-max" stretches each map to [0, 1]. "maximum" leaves that to `over_maximum`,
        once views are added, and takes the root before upsampling, as psa (Ahn & Kwak, CVPR 2018).

    Returns:
      (B, K, H, W), zero for padding, in [0, 1] under "min-max". Runs under `jit`; images do not influence each other.

    Raises:
      ValueError: for classes of another shape, an option that `explain` refuses, an unknown `refine`, or one for a
        method whose maps are not on the token grid.
    """
    classes = jnp.asarray(classes)
    if classes.ndim != 2:
        raise ValueError(f"classes must be (B, K), padded with -1, not {classes.shape}")
    both = jnp.concatenate([images, images[:, :, ::-1]])  # (2 B, S, S, 3)
    twice = jnp.concatenate([classes, classes])
    options: dict[str, Any] = {"method": method, "start_layer": start_layer, "rules": rules}
    _, maps = explain(model, both, jnp.maximum(twice, 0), **options)  # (2 B, K, h, w)
    if contrast:
        maps = contrasted(maps, twice >= 0)
    if refine:
        if not isinstance(model, VisionTransformer):
            raise ValueError(f"refine wants a VisionTransformer, not a {type(model).__name__}")
        maps = refined(model, both, maps, refine)
    if normalise == "maximum":
        seed_maps = resize_maps(_rooted(maps, root), size)
    else:
        seed_maps = seed_maps_of(maps, images.shape[1:3], size, root)
    plain, mirrored = jnp.split(seed_maps, 2)
    mean = (plain + mirrored[..., ::-1]) / 2
    return jnp.where((classes >= 0)[..., None, None], mean, 0)


def contrasted(maps: Array, present: Array) -> Array:
    """Maps (B, K, h, w), each less the mean of the image's other maps; `present` (B, K) is False for padding.

    The only map of an image stays as it is.
    """
    others = (present.sum(1) - 1).astype(maps.dtype).reshape(-1, 1, 1, 1)
    # A sum of differences, not a difference of sums: equal maps leave no rounding for min-max to stretch.
    differences = maps[:, :, None] - maps[:, None]  # (B, K, K, h, w)
    differences = jnp.where(present[:, None, :, None, None], differences, 0)
    return jnp.where(others > 0, differences.sum(2) / jnp.maximum(others, 1), maps)


def refined(model: VisionTransformer, images: Array, maps: Array, kind: str) -> Array:
    """Maps on the token grid, spread along the model's own attention (docs/method.md, "Other seed maps").

    Args:
      model: a `VisionTransformer`.
      images: normalised, (B, H, W, 3).
      maps: (B, K, h, w); negative values count as zero.
      kind: of `attention.patch_affinity`. "clip_es" stretches the maps to [0, 1] first, and leaves out what is outside
        the boxes of `attention.box_mask`.

    Raises:
      ValueError: for maps on another grid than the model's, or an unknown kind.
    """
    if maps.shape[-2:] != model.grid:
        raise ValueError(
            f"refine={kind!r} wants maps on the grid {model.grid}, not {maps.shape[-2:]}"
        )
    affinity = patch_affinity(model, images, kind)
    maps = jnp.where(maps < 0, 0, maps)
    if kind == "clip_es":
        maps = min_max(maps)
        maps = maps * box_mask(maps).astype(maps.dtype)
    return spread(affinity, maps)


def seed_maps_of(
    maps: Array, input_size: tuple[int, ...], size: tuple[int, int], root: float = 3
) -> Array:
    """Raw maps (..., h, w) to seed maps (..., H, W) in [0, 1].

    Upsampled to the network's input, root, min-max, resized to `size`. A map without contrast
    becomes zero.
    """
    if root <= 0:
        raise ValueError(f"root must be above 0, not {root}")
    full = resize_maps(maps, (input_size[0], input_size[1]))
    return resize_maps(min_max(_rooted(full, root)), size)


def _rooted(maps: Array, root: float) -> Array:
    return jnp.where(maps < 0, 0, maps) ** (1 / root)


def over_maximum(maps: Maps) -> Maps:
    """Maps (..., H, W) from 0 up, each over its maximum and 1e-5, as in psa: zero maps stay so."""
    return maps / (maps.max((-2, -1), keepdims=True) + 1e-5)


def min_max(maps: Array) -> Array:
    """Maps (..., H, W), each stretched to [0, 1]; zero where its values are equal, NaN where one is not finite."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    # Resizing a constant map leaves a contrast of a few units in the last place.
    noise = 8 * jnp.finfo(maps.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    real = high - low > noise
    stretched = jnp.where(real, (maps - low) / jnp.where(real, high - low, 1), 0)
    return jnp.where(
        jnp.isfinite(maps), stretched, jnp.nan
    )  # XLA's minimum on a CPU may ignore NaN


def seed_mask(seed_maps: Maps, classes: Maps, background: float | Maps = 0.2) -> Maps:
    """Argmax of the seed maps and a constant background (docs/protocol.md, "Seed mask"), in NumPy or JAX as its input.

    Args:
      seed_maps: (..., K, H, W) in [0, 1]; K may be 0.
      classes: ints (..., K) below 254, the classifier's outputs, -1 where padding.
      background: its score, or several that broadcast to (..., H, W); it wins ties.

    Returns:
      uint8 (..., H, W), broadcast with `background`: 0 background, otherwise class + 1.

    Raises:
      ValueError: for shapes that do not fit, seed maps that are not finite, or a class that does not fit into a byte.
        Values are not checked inside a `jit`.
    """
    require_byte_classes(classes)
    if classes.shape != seed_maps.shape[:-2]:
        raise ValueError(
            f"classes {classes.shape} must be {seed_maps.shape[:-2]}, as of the seed maps"
        )
    xp: Any = seed_maps.__array_namespace__()
    finite = xp.isfinite(seed_maps).all()
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError("the seed maps hold NaN or infinite values")
    # A further class, padding, so that argmax has an entry where K is 0.
    more: Any = [(0, 0)] * (classes.ndim - 1) + [(0, 1)]
    seed_maps = xp.pad(seed_maps, [*more, (0, 0), (0, 0)])
    classes = xp.pad(classes, more, constant_values=-1)
    scores = xp.where((classes >= 0)[..., None, None], seed_maps, -xp.inf)
    best = scores.argmax(-3)  # (..., H, W)
    names = xp.broadcast_to((classes + 1)[..., None, None], scores.shape)
    label = xp.take_along_axis(names, best[..., None, :, :], axis=-3)[..., 0, :, :]
    return xp.where(scores.max(-3) > background, label, 0).astype(xp.uint8)
