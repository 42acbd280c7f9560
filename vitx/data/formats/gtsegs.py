"""Reading gtsegs_ijcv.mat, the file of ImageNet-Segmentation.

It is MATLAB v7.3, that is HDF5. MATLAB writes columns first, so every array lies there transposed.
`value/img`, `value/gt` and `value/id` hold one reference an image: to the picture, to a cell that
refers to the mask, and to ImageNet's name of the picture, as UTF-16.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from vitx.data.palette import IGNORED

_LARGEST = 8 * 2**26  # bytes of an array; a damaged file may claim any size
_NAME = re.compile(r"n\d{8}_\d+")  # synset and number
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


def read_gtsegs(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, image uint8 (H, W, 3) and mask uint8 (H, W) of 0, 1, 255 of every picture in the file.

    Grey pictures come as RGB, mask values of -1 as 255. Raises ValueError, naming the file and the
    place in it, where it is another file or damaged.
    """
    try:
        # Reading needs no lock, which some network file systems refuse.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise ValueError(
            f"{path} is damaged, or no MATLAB v7.3 (HDF5) file ({error}); get it again"
        ) from error
    with file:
        try:
            images, masks = _cells(file, "value/img"), _cells(file, "value/gt")
            if len(images) != len(masks):
                raise ValueError(
                    f"it has {len(images)} images (value/img), {len(masks)} masks (value/gt)"
                )
            for number, name in enumerate(_names(file, len(images))):
                places = f"value/img[{number}]", f"value/gt[{number}]"
                image = _image(_array(file, images[number], places[0]), places[0])
                mask = _mask(_array(file, masks[number], places[1]), places[1])
                if image.shape[:2] != mask.shape:
                    raise ValueError(
                        f"{places[0]} has {image.shape[:2]} rows and columns, but its mask "
                        f"{places[1]} {mask.shape}"
                    )
                yield name, image, mask
        except _HDF5_ERRORS as error:
            raise ValueError(f"{path} is not as published: {error}; get it again") from error


def _cells(file: h5py.File, key: str) -> np.ndarray:
    """The references that a MATLAB cell array consists of."""
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.file != file:  # a link leads elsewhere
        raise ValueError(f"it has no array {key}")
    if not _refers(dataset):
        raise ValueError(f"{key} is {dataset.shape} {dataset.dtype}, wanted references")
    return _read(dataset, key).reshape(-1)


def _array(file: h5py.File, reference: h5py.Reference, place: str) -> np.ndarray:
    """The array referred to, transposed back; of a cell array in between, its first."""
    for _ in range(2):
        try:
            dataset = file[reference]
        except _HDF5_ERRORS as error:
            raise ValueError(f"{place} refers to nothing") from error
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{place} refers to a group, wanted an array")
        if not _refers(dataset):
            return _read(dataset, place).T
        reference = _read(dataset, place).flat[0]
    raise ValueError(f"{place} refers to references of references")


def _refers(dataset: h5py.Dataset) -> bool:
    return h5py.check_ref_dtype(dataset.dtype) is h5py.Reference and bool(dataset.size)


def _read(dataset: h5py.Dataset, place: str) -> np.ndarray:
    if dataset.shape is None or math.prod(dataset.shape) * dataset.dtype.itemsize > _LARGEST:
        raise ValueError(f"{place} has the shape {dataset.shape}, which no picture has")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{place} lies in another file")
    try:
        return dataset[()]
    except _HDF5_ERRORS as error:
        raise ValueError(f"{place} cannot be read ({error})") from error


def _image(array: np.ndarray, place: str) -> np.ndarray:
    shape = (*array.shape, 1) if array.ndim == 2 else array.shape
    if array.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or not array.size:
        raise ValueError(
            f"{place} is {array.shape} {array.dtype}, wanted a picture, (H, W, 3) or (H, W) uint8"
        )
    return np.ascontiguousarray(np.broadcast_to(array.reshape(shape), (*shape[:2], 3)))


def _mask(array: np.ndarray, place: str) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
        raise ValueError(f"{place} is {array.shape} {array.dtype}, wanted a mask, (H, W) numbers")
    ignored = (array == -1) | (array == IGNORED)
    strange = array[~ignored & (array != 0) & (array != 1)]
    if strange.size:
        raise ValueError(f"{place} has the value {strange[0]}, wanted 0, 1 and, ignored, 255 or -1")
    return np.where(ignored, IGNORED, array).astype(np.uint8)


def _names(file: h5py.File, count: int) -> list[str]:
    """ImageNet's names where each picture has one of its own, else "gtsegs_00001" and so on."""
    with contextlib.suppress(*_HDF5_ERRORS, OverflowError):
        cells = _cells(file, "value/id")
        names = ["".join(map(chr, _array(file, cell, "value/id").ravel())) for cell in cells]
        if len(set(names)) == count and all(map(_NAME.fullmatch, names)):
            return names
    return [f"gtsegs_{number + 1:05d}" for number in range(count)]
