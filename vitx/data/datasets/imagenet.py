"""ImageNet's validation images (ILSVRC 2012) with their classes, in the order of their numbers.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

import csv
import functools
import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import tensorflow_datasets as tfds

from vitx.data.class_names import imagenet_names
from vitx.data.datasets.folders import (
    SUFFIXES,
    FolderRecords,
    ImageFile,
    base_split,
    images_in,
    subfolders,
)
from vitx.data.prepared import ManualBuilder, open_manual
from vitx.data.records import Records
from vitx.runtime.files import first_line

SPLIT = "validation"

_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LABEL_FILES = ("val.txt", "labels.txt", "LOC_val_solution.csv")
_CSV_HEADER = ["ImageId", "PredictionString"]  # Kaggle's
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # the devkit's


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
    with the images all in one folder, or with both; else the dataset built from
    `data_dir`/downloads/manual/ILSVRC2012_img_val.tar. In each the images come by their numbers
    (those of other names by name), and any part of them will do.

    Images in one folder are named as published, or a file there or in `data_dir` labels them:
    val.txt or labels.txt, each line an image's name, with or without suffix, and its class, as
    WordNet id or as number from 0 in the order of these; or Kaggle's LOC_val_solution.csv.

    Raises ValueError for an unknown split or class folder, an image of no known class and a bad
    file of labels, FileNotFoundError where there are no images, saying where to get them.
    """
    if config:
        raise ValueError(f"imagenet2012 has no config {config!r}; it has none")
    for folder in (data_dir / "val", data_dir):
        images = _folder_images(folder, data_dir) if folder.is_dir() else []
        if images:
            if base_split(split) != SPLIT:
                raise ValueError(
                    f"imagenet2012 in {folder} has no split {split!r}; it has {SPLIT}, and parts "
                    f'of it such as "{SPLIT}[:400]"'
                )
            return FolderRecords("imagenet2012", split, classes(), folder, images, upright=False)
    return open_manual(Imagenet2012Validation, classes(), config, split, data_dir)


def _folder_images(folder: Path, data_dir: Path) -> list[ImageFile]:
    index = {wnid: number for number, wnid in enumerate(wnids())}
    images = []
    for name in subfolders(folder):
        if re.fullmatch(r"n\d{8}", name):
            if name not in index:
                raise ValueError(f"{folder / name} is none of the 1000 classes of imagenet2012")
            images += images_in(folder, name, index[name])
    if flat := images_in(folder, "", -1):
        images += _labelled(flat, folder, dict.fromkeys((folder, data_dir)))
    return sorted(images)


def _labelled(
    images: list[ImageFile], folder: Path, places: Collection[Path]
) -> Iterator[ImageFile]:
    """The images in `folder` with the classes of the file of labels in `places`, or of their names."""
    files = [place / name for place in places for name in _LABEL_FILES]
    files = [file for file in files if file.is_file()]
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} both label the images in {folder}; keep one")
    if files:
        listed = _read_labels(files[0])
        labels = {i.path: listed[stem] for i in images if (stem := _stem(i.path)) in listed}
    else:
        labels = {i.path: label for i in images if (label := class_of(i.path)) is not None}
    if unknown := [image.path for image in images if image.path not in labels]:
        found = f"{len(unknown)} of the {len(images)} images in {folder}, the first {unknown[0]}"
        if files:
            raise ValueError(f"{files[0]} has no line for {found}; add what is missing")
        if any((place / _GROUND_TRUTH).is_file() for place in places):
            found += f" ({_GROUND_TRUTH} cannot: it names no images and has its own order)"
        raise ValueError(
            f"nothing tells the classes of {found}: name them as published "
            "(ILSVRC2012_val_00000001.JPEG), sort them into class folders such as n01440764, move "
            "them away if they are not of ImageNet, or label all images in a file "
            f'{folder}/val.txt, with lines such as "{unknown[0]} n01440764"'
        )
    for image in images:
        yield image._replace(label=labels[image.path])


def _stem(name: str) -> str:
    """The name of an image file without folders and suffixes, of which converting may add one."""
    path = PurePosixPath(name)
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.name


def _read_labels(path: Path) -> dict[str, int]:
    """The classes of images by their names without suffix; ValueError naming file and line."""
    known = {wnid: number for number, wnid in enumerate(wnids())}
    known |= {str(number): number for number in range(len(known))}
    labels: dict[str, int] = {}
    numbered = None
    for line, words in _lines_of_labels(path):
        place = f"{path}, line {line}"
        if len(words) != 2:
            raise ValueError(
                f"{place}: wanted the name of an image and its class, found {' '.join(words)!r}"
            )
        name, label = words
        if label not in known:
            raise ValueError(
                f"{place}: {label!r} is no class; wanted a WordNet id of the 1000, or a number "
                "from 0 to 999 in their order"
            )
        if numbered not in (None, label.isdecimal()):
            raise ValueError(f"{place}: some classes are numbers and some WordNet ids; write one")
        numbered = label.isdecimal()
        if (stem := _stem(name)) in labels:
            raise ValueError(f"{place}: {name} again; keep one line for each image")
        published = class_of(f"{stem}.JPEG")
        if published not in (None, known[label]):
            # Numbers from 1, or in the devkit's order, would go unnoticed.
            raise ValueError(
                f"{place}: {name} is published as class {published} ({wnids()[published]}), not "
                f"{label}; count from 0 in the order of WordNet ids, or, where the labels are "
                "your own, rename the images"
            )
        labels[stem] = known[label]
    return labels


def _lines_of_labels(path: Path) -> list[tuple[int, list[str]]]:
    """The numbers of lines, from 1, and what each has: a name and a class."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix != ".csv":
                lines = enumerate(file, 1)
                return [(n, line.strip().rsplit(maxsplit=1)) for n, line in lines if line.strip()]
            rows = csv.reader(file)
            # After the class Kaggle has boxes, and further classes and boxes.
            return [
                (rows.line_num, [*row[:1], *" ".join(row[1:]).split()[:1]])
                for row in rows
                if row and row != _CSV_HEADER
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read the labels in {path}: {first_line(error)}") from error
