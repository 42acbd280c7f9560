"""ImageNet's validation images (ILSVRC 2012) with their classes, in the order of their numbers.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

import functools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import tensorflow_datasets as tfds

from vitx.data.class_names import imagenet_names
from vitx.data.folders import FolderRecords, ImageFile, base_split, images_in, subfolders
from vitx.data.prepared import ManualBuilder, open_prepared
from vitx.data.records import Records

SPLIT = "validation"

_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@functools.cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1000 classes ("n01440764", ...), in the order models count them."""
    return tuple(_lines("labels.txt"))


def classes() -> tuple[str, ...]:
    """Their names, after "background", which every dataset here begins with."""
    return ("background", *imagenet_names())


@functools.cache
def _validation_classes() -> tuple[int, ...]:
    """The class of each of the 50,000 images, by their numbers in the files' names."""
    index = {wnid: number for number, wnid in enumerate(wnids())}
    return tuple(index[wnid] for wnid in _lines("validation_labels.txt"))


def _lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()


def class_of(name: str) -> int | None:
    """The class of a validation image, from its file's name; None for other names.

    The names as published number the images, so no file of labels is needed; the devkit's
    `ILSVRC2012_validation_ground_truth.txt` counts classes from 1, in an order of its own.
    """
    match = _IMAGE.fullmatch(name)
    number = int(match[1]) if match else 0
    known = _validation_classes()
    return known[number - 1] if 1 <= number <= len(known) else None


class Imagenet2012Validation(ManualBuilder):
    """The images of ILSVRC2012_img_val.tar, as they are; TFDS's own builder asks for TensorFlow.

    Features: id, the file's name without its suffix; image, the file; label, from 0.
    """

    VERSION = tfds.core.Version("1.0.0")
    SPLIT = SPLIT
    FILE = "ILSVRC2012_img_val.tar"
    MISSING = (
        "no ImageNet in {root}: register at image-net.org, download ILSVRC2012_img_val.tar (ILSVRC "
        '2012, "Validation images (all tasks)", 6.3 GB) and put it at {path}; or have its images '
        "in {root}/val, sorted into class folders such as n01440764 or all in one"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(wnids())),
                }
            ),
            homepage="https://image-net.org",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict]]:
        with path.open("rb") as file:
            for number, member in enumerate(_members(file, path)):
                file.seek(member.offset_data)
                name = PurePosixPath(member.name)
                yield (
                    number,
                    {
                        "id": name.stem,
                        "image": file.read(member.size),
                        "label": class_of(name.name),
                    },
                )


def _members(file: BinaryIO, path: Path) -> list[tarfile.TarInfo]:
    """The images in the validation tar by their numbers; ValueError where it is not just that."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = [member for member in tar if not member.isdir()]
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or no tar file ({error}); get it anew") from error
    names = [member.name.removeprefix("./") for member in members]
    for name, member in zip(names, members, strict=True):
        if class_of(name) is None or not member.isreg() or member.issparse():
            raise ValueError(
                f"{path} holds {name!r}, but ILSVRC2012_img_val.tar has only the files "
                "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG; get it anew"
            )
    if not members:
        raise ValueError(f"{path} holds no images; get it anew")
    # At a damaged or missing header tarfile just ends; a whole archive ends with blocks of zeros.
    last = members[-1]
    file.seek(last.offset_data + -(-last.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"{path} is cut short or damaged after {names[-1]}; get it anew")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} holds {twice} twice; get it anew")
    return sorted(members, key=lambda member: PurePosixPath(member.name).name)


def open_records(config: str, split: str, data_dir: Path) -> Records:
    """The validation images, from what there is, in this order.

    `data_dir`/val or `data_dir` itself with class folders named by WordNet id (n01440764, ...), or
    with the images as published all in one folder, or with both; else the dataset built from
    `data_dir`/downloads/manual/ILSVRC2012_img_val.tar. In each the images come by their numbers
    (those of other names by name), and any part of them will do. Raises ValueError for an unknown
    split or class folder, FileNotFoundError where there are no images, saying where to get them.
    """
    if config:
        raise ValueError(f"imagenet2012 has no config {config!r}; it has none")
    for folder in (data_dir / "val", data_dir):
        images = _folder_images(folder) if folder.is_dir() else []
        if images:
            if base_split(split) != SPLIT:
                raise ValueError(
                    f"imagenet2012 in {folder} has no split {split!r}; it has {SPLIT}, and parts "
                    f'of it such as "{SPLIT}[:400]"'
                )
            return FolderRecords("imagenet2012", split, classes(), folder, images)
    return open_prepared(Imagenet2012Validation, classes(), config, split, data_dir)


def _folder_images(folder: Path) -> list[ImageFile]:
    index = {wnid: number for number, wnid in enumerate(wnids())}
    images = []
    for name in subfolders(folder):
        if re.fullmatch(r"n\d{8}", name):
            if name not in index:
                raise ValueError(f"{folder / name} is none of the 1000 classes of imagenet2012")
            images += images_in(folder, name, index[name])
    for image in images_in(folder, "", -1):
        label = class_of(image.path)
        if label is not None:
            images.append(image._replace(label=label))
    return sorted(images)
