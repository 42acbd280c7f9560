"""Makes small files in the formats of ImageNet's validation tar and of ImageNet-Segmentation."""

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

SIDES = (33, 90)  # of the pictures, pixels


def make_validation_tar(path: Path, count: int, seed: int = 0) -> dict[str, bytes]:
    """Writes the images 1 to `count` as ILSVRC2012_img_val.tar has them; name -> its bytes.

    They are in no order, of all sizes, and mostly RGB JPEG, but as in ImageNet some are grey, CMYK,
    a PNG called .JPEG, or have an EXIF orientation.
    """
    generator = np.random.default_rng(seed)
    files = {
        f"ILSVRC2012_val_{number:08d}.JPEG": _image_file(number, generator)
        for number in range(1, count + 1)
    }
    names = list(files)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for index in generator.permutation(count):
            add_member(tar, names[index], files[names[index]])
    return files


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 1339717806, 0o644
    tar.addfile(member, io.BytesIO(data))


def _image_file(number: int, generator: np.random.Generator) -> bytes:
    picture, _ = _picture(generator)
    image, file, options = Image.fromarray(picture), io.BytesIO(), {"quality": 92}
    match number % 16:
        case 3:
            image = image.convert("L")
        case 6:
            image = image.convert("CMYK")
        case 9:
            image.save(file, "PNG")
            return file.getvalue()
        case 12:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 6  # orientation: on its side
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _picture(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A disc on a gradient, uint8 (H, W, 3), and the disc's mask, bool (H, W)."""
    height, width = generator.integers(*SIDES, 2)
    y, x = np.mgrid[:height, :width]
    radius = generator.uniform(0.15, 0.45) * min(height, width)
    mask = np.hypot(
        y - generator.uniform(0.3, 0.7) * height, x - generator.uniform(0.3, 0.7) * width
    )
    mask = mask < radius
    ramp = (x / width + y / height)[..., None] * generator.uniform(20, 100, 3)
    picture = np.where(mask[..., None], generator.uniform(0, 255, 3), ramp)
    picture = picture + generator.normal(0, 4, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def make_gtsegs(
    path: Path, count: int, seed: int = 0
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Writes gtsegs_ijcv.mat as MATLAB's save("-v7.3") does; names, images as written, and masks.

    Images are uint8 (H, W, 3), every seventh (H, W) grey; masks uint8 (H, W) of 0 and 1, every
    second stored as MATLAB's logical.
    """
    generator = np.random.default_rng(seed)
    names, images, masks = [], [], []
    for number in range(count):
        picture, mask = _picture(generator)
        names.append(f"n{1440764 + 11 * number:08d}_{number * 37 + 5}")
        images.append(picture[..., 0] if number % 7 == 5 else picture)
        masks.append(mask.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        cells = Cells(file)
        value = file.create_group("value")
        value.attrs["MATLAB_class"] = np.bytes_("struct")
        codes = [np.array([[ord(letter) for letter in name]], np.uint16) for name in names]
        cells.write("value/id", [cells.array(code, "char") for code in codes])
        cells.write("value/img", [cells.array(image, "uint8") for image in images])
        kinds = ("logical", "uint8")
        inner = [cells.array(mask, kinds[i % 2]) for i, mask in enumerate(masks)]
        cells.write("value/gt", [cells.cell([reference]) for reference in inner])
    _write_header(path)
    return names, images, masks


class Cells:
    """Writes arrays and cell arrays where MATLAB keeps what is referred to, transposed."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.held = file.require_group("#refs#")

    def array(self, array: np.ndarray, kind: str) -> h5py.Reference:
        options = {"chunks": True, "compression": "gzip", "compression_opts": 3}
        stored = self.held.create_dataset(self._name(), data=array.T, **options)
        stored.attrs["MATLAB_class"] = np.bytes_(kind)
        if kind in ("char", "logical"):
            stored.attrs["MATLAB_int_decode"] = np.int32(2 if kind == "char" else 1)
        return stored.ref

    def cell(self, references: list[h5py.Reference]) -> h5py.Reference:
        return self._cell(f"#refs#/{self._name()}", references).ref

    def write(self, key: str, references: list[h5py.Reference]) -> None:
        """A cell array, 1 x N in MATLAB and so N x 1 here; replaces one of the same name."""
        self.file.pop(key, None)
        self._cell(key, references)

    def _cell(self, key: str, references: list[h5py.Reference]) -> h5py.Dataset:
        stored = self.file.create_dataset(key, (len(references), 1), h5py.ref_dtype)
        for index, reference in enumerate(references):
            stored[index, 0] = reference
        stored.attrs["MATLAB_class"] = np.bytes_("cell")
        return stored

    def _name(self) -> str:
        return f"r{len(self.held)}"


def _write_header(path: Path) -> None:
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Fri Mar 14 12:00:00 2014 HDF5 schema 1.00 ."
    with path.open("r+b") as file:
        file.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")
