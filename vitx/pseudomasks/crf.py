"""The dense CRF of Kraehenbuehl & Koltun (NeurIPS 2011), and confident labels from its posteriors.

Three backends with the same parameters and normalisation: "jax" filters on permutohedral lattices, which approximate
the kernels, for images of any size; "pydensecrf" is the published C++ code, which does the same; "exact" computes the
kernels themselves in JAX, in memory that grows with the square of the number of pixels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitx.data.palette import IGNORED
from vitx.data.transforms import Maps, resize_maps
from vitx.pseudomasks import crf_exact, crf_lattice
from vitx.pseudomasks.crf_exact import CRFParameters
from vitx.pseudomasks.label_values import require_byte_classes

__all__ = [
    "BACKENDS",
    "CRFParameters",
    "background_channel",
    "confident_labels",
    "dense_crf",
    "pool_posteriors",
]

Array = jax.Array

BACKENDS = ("exact", "jax", "pydensecrf")
EXACT_MAX_PIXELS = 128 * 128  # a kernel of 1 GiB
MISSING_BACKEND = 'the backend "pydensecrf" needs the package pydensecrf2: pip install "vitx[crf]"'


def dense_crf(
    images: np.ndarray,
    probabilities: Maps,
    *,
    parameters: CRFParameters | None = None,
    backend: str | None = None,
    present: np.ndarray | None = None,
) -> Maps:
    """Mean-field posteriors of a fully connected CRF with Gaussian edge potentials.

    Args:
      images: uint8 (B, H, W, 3).
      probabilities: (B, L, H, W), or (B, A, L, H, W) for A sets of unaries of the same image, which
        share its kernels. They need not sum to 1: the unary is -log(clip(p, 1e-5, 1)).
      parameters: default: those of docs/protocol.md.
      backend: "exact", up to 128 x 128 pixels; "jax"; or "pydensecrf", which needs the extra `vitx[crf]`. Default:
        "exact" up to that size, else "jax".
      present: bool (B, L), the labels that take part; others get probability 0. Default: all.

    Returns:
      posteriors of the shape of `probabilities`, NumPy or JAX arrays as they are, summing to 1 over the labels, in
      float32; "exact" computes float64 in float64. With NumPy arrays "pydensecrf" does not use JAX.

    Raises:
      ValueError: for shapes or types that do not fit, probabilities that are not finite, an image that has no label
        present, an unknown backend, or an image too large for it.
      ImportError: where pydensecrf is not installed.
    """
    parameters = parameters or CRFParameters()
    images, on_host = np.asarray(images), isinstance(probabilities, np.ndarray)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    shape = probabilities.shape
    labels = shape[-3] if len(shape) in (4, 5) else 0
    if present is None:
        present = np.ones((len(images), labels), bool)
    present = np.asarray(present)
    _check(images, probabilities, present)
    if backend is None:
        small = images.shape[1] * images.shape[2] <= EXACT_MAX_PIXELS
        backend = "exact" if small else "jax"
    require_size(images.shape[1], images.shape[2], backend, parameters)
    if 0 in shape:
        return probabilities
    sets = probabilities.reshape(shape[0], -1, *shape[-3:])  # (B, A, L, H, W)
    result: Any
    if backend == "pydensecrf":
        result = _pydensecrf(images, np.asarray(sets, np.float32), parameters, present)
    elif backend == "jax":
        result = crf_lattice.mean_field(images, sets, present, parameters)
    else:
        single = sets.dtype.itemsize < 4  # colours' squared distances overflow in half precision
        unnormalised = jnp.asarray(sets.astype(np.float32) if single else sets)
        result = crf_exact.mean_field(
            jnp.asarray(images), unnormalised, jnp.asarray(present), parameters
        )
    result = (np if on_host else jnp).asarray(result)  # mypy does not follow this to one type
    return result.reshape(shape)


def require_size(height: int, width: int, backend: str, parameters: CRFParameters) -> None:
    """ValueError where images are too large for a backend with these parameters."""
    if backend == "jax":
        crf_lattice.boxes(height, width, parameters)
    elif backend == "exact" and height * width > EXACT_MAX_PIXELS:
        raise ValueError(
            f"images of {height} x {width} are too large for the exact CRF, "
            'which takes up to 128 x 128 pixels: use backend="jax"'
        )


def _check(images: np.ndarray, probabilities: Any, present: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (B, H, W, 3), not {images.dtype} {images.shape}")
    shape, size = probabilities.shape, images.shape[1:3]
    if len(shape) not in (4, 5) or shape[0] != len(images) or shape[-2:] != size:
        raise ValueError(f"probabilities {shape} do not fit the images {images.shape}")
    if not jnp.issubdtype(probabilities.dtype, jnp.floating):
        raise ValueError(f"probabilities must be floats, not {probabilities.dtype}")
    isfinite = probabilities.__array_namespace__().isfinite
    finite = np.asarray(isfinite(probabilities).all(axis=tuple(range(1, len(shape)))))
    if not finite.all():
        raise ValueError(f"probabilities of image {int(finite.argmin())} are not finite")
    if present.shape != (len(images), shape[-3]) or present.dtype != bool:
        raise ValueError(
            f"present must be bool {(len(images), shape[-3])}, not {present.dtype} {present.shape}"
        )
    if not present.any(1).all():
        raise ValueError(f"image {int(present.any(1).argmin())} has no label present")


def _pydensecrf(
    images: np.ndarray, probabilities: np.ndarray, parameters: CRFParameters, present: np.ndarray
) -> np.ndarray:
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise ImportError(MISSING_BACKEND) from error
    posteriors = np.zeros_like(probabilities)
    height, width = images.shape[1:3]
    for b, image in enumerate(images):
        for a, unnormalised in enumerate(probabilities[b]):
            chosen = unnormalised[present[b]].reshape(present[b].sum(), -1)  # (L', N)
            crf: Any = DenseCRF2D(width, height, len(chosen))
            crf.setUnaryEnergy(-np.log(np.clip(chosen, 1e-5, 1)))
            crf.addPairwiseGaussian(sxy=parameters.sxy_gaussian, compat=parameters.compat_gaussian)
            crf.addPairwiseBilateral(
                sxy=parameters.sxy_bilateral,
                srgb=parameters.srgb,
                rgbim=np.require(image, requirements=("C", "W")),  # it refuses read-only ones
                compat=parameters.compat_bilateral,
            )
            result = np.asarray(crf.inference(parameters.iterations))  # (L', N)
            posteriors[b, a, present[b]] = result.reshape(-1, height, width)
    return posteriors


def background_channels(seed_maps: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """`background_channel` for each of A alphas: seed maps (K, H, W) -> (A, H, W)."""
    return np.stack([background_channel(seed_maps, alpha) for alpha in alphas])


def background_channel(seed_maps: Maps, alpha: float) -> Maps:
    """The background's score (1 - max_k map)^alpha: seed maps (..., K, H, W) in [0, 1] -> (..., H, W); 1 if K is 0."""
    return (1 - seed_maps.max(-3, initial=0).clip(0, 1)) ** alpha


def pool_posteriors(posteriors: Maps, grid: tuple[int, int], pool: int = 8) -> Maps:
    """Posteriors (..., H, W) on a coarser grid (..., h, w).

    Resized to the network's input, which is `pool` times the grid, bilinear without antialiasing,
    then averaged over pool x pool pixels (docs/protocol.md, "Labels").
    """
    height, width = grid
    full = resize_maps(posteriors, (height * pool, width * pool))
    return full.reshape(*full.shape[:-2], height, pool, width, pool).mean((-3, -1))


def confident_labels(low: Maps, high: Maps, classes: Maps) -> Maps:
    """Labels from two posteriors, 255 where they are not confident (docs/protocol.md, "Labels").

    Args:
      low: posteriors (B, K + 1, h, w), background first, with the background's low alpha, which
        favours it: objects are confident there.
      high: the same with the high alpha: background is confident there.
      classes: ints (B, K) below 254, the classifier's outputs of the K channels, -1 where padding.

    Returns:
      uint8 (B, h, w): 0 where high has background, else class + 1 where low has an object, else 255.

    Raises:
      ValueError: for shapes that do not fit, or a class that does not fit into a byte.
    """
    require_byte_classes(classes)
    if low.shape != high.shape or low.shape[:2] != (classes.shape[0], classes.shape[1] + 1):
        raise ValueError(
            f"posteriors {low.shape} and {high.shape} do not fit classes {classes.shape}: "
            "they must be (B, K + 1, h, w)"
        )
    xp: Any = low.__array_namespace__()
    absent = xp.pad(classes < 0, ((0, 0), (1, 0)))[..., None, None]  # (B, K + 1, 1, 1)
    names = xp.pad(classes + 1, ((0, 0), (1, 0)))[..., None, None]

    def labels_of(posteriors: Maps) -> Maps:
        scores = xp.where(absent, -xp.inf, posteriors)
        winner = scores.argmax(1, keepdims=True)
        return xp.take_along_axis(xp.broadcast_to(names, scores.shape), winner, axis=1)[:, 0]

    objects = labels_of(low)
    labels = xp.where(objects == 0, IGNORED, objects)
    return xp.where(labels_of(high) == 0, 0, labels).astype(xp.uint8)
