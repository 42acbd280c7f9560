"""Command `segment`: the user's own images, each as a mask and as an overlay, from a trained segmentation network."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitx import weights
from vitx.data.palette import encode_mask, encode_png, voc_palette
from vitx.data.transforms import resize_maps
from vitx.data.user_images import (
    RESULT,
    find_images,
    printable,
    read_user_image,
    result_name,
)
from vitx.models.segmenter import Segmenter, segment
from vitx.runtime.files import write_bytes
from vitx.runtime.progress import busy, progress

_COVER = 0.55  # the colour's share in an overlay


def segment_images(
    images: str | Sequence[str],
    model: str | Path,
    out: str | Path,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> None:
    """Writes for each image `<name>-mask.explained.png`, and the image under it, `<name>-overlay.explained.png`.

    A mask is a palette PNG of the image's size, whose values are the classes of the network's training, 0 background.

    Args:
        images: files and folders, see `find_images`.
        model: folder or file of a `Segmenter`.
        out: folder of the results.
        scales: of the network's input size, see `segment`.
        flip: whether it sees mirror images, too.

    Raises:
        ValueError: for a file that is no segmentation network, or where no image can be read; others are left out.
    """
    paths, broken = find_images(images), list[str]()
    with busy("segment: loading the network"):
        net = weights.load(model)
    if not isinstance(net, Segmenter):
        raise ValueError(
            f"{model} holds a {type(net).__name__}, which does not segment: give the folder `segmenter` of a run"
        )
    with progress(len(paths), "segment", compiles=True) as bar:
        for path in paths:
            try:
                pixels = read_user_image(path)
            except ValueError as error:
                broken.append(str(error))
                bar.advance()
                continue
            mask = mask_of(net, pixels, scales, flip)
            name = result_name(path).removesuffix(RESULT)
            file, drawn = (
                Path(out).expanduser() / f"{name}{part}{RESULT}.png"
                for part in ("-mask", "-overlay")
            )
            write_bytes(file, encode_mask(mask))
            write_bytes(drawn, encode_png(painted(pixels, mask)))
            shares = np.bincount(mask.ravel(), minlength=net.num_classes) / mask.size
            seen = ", ".join(
                f"class {c}: {100 * shares[c]:.1f} %" for c in shares.nonzero()[0] if c
            )
            print(f"{printable(path)}: {seen or 'background alone'}; {file}")
            bar.advance()
    for reason in broken:
        print(f"left out: {reason}", file=sys.stderr)
    if len(broken) == len(paths):
        raise ValueError(f"none of {len(paths)} files is an image: {broken[0]}")


def mask_of(
    net: Segmenter, pixels: np.ndarray, scales: Sequence[float] = (1.0,), flip: bool = False
) -> np.ndarray:
    """The most probable class of each pixel of an image, uint8 (H, W), whatever its size."""
    found = np.asarray(segment(net, net.preprocess(pixels), scales, flip)[0])  # (h, w, C)
    maps = resize_maps(np.exp(found.transpose(2, 0, 1)), pixels.shape[:2])
    return maps.argmax(0).astype(np.uint8)


def painted(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) under the palette's colours of its mask; background stays as it is."""
    colours = (1 - _COVER) * pixels + _COVER * voc_palette()[mask]
    return np.where(mask[..., None] == 0, pixels, np.rint(colours)).astype(np.uint8)
