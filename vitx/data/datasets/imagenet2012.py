"""`imagenet2012`: ImageNet's validation images (ILSVRC 2012) with their classes, in the order of their numbers.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from vitx.data.class_names import imagenet_names
from vitx.data.formats.class_folders import FolderRecords, ImageFile, images_in, subfolders
from vitx.data.formats.files import SUFFIXES, read_file, tar_files
from vitx.data.prepared import PreparedBuilder, open_prepared
from vitx.data.records import Records

SPLIT = "validation"

_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_LABEL_FILES = ("val.txt", "labels.txt", "LOC_val_solution.csv")  # the last is Kaggle's
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # the devkit's


@functools.cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1000 classes ("n01440764", ...), in the order models count them."""
    return tuple(_lines("labels.txt"))


@functools.cache
def _numbers() -> dict[str, int]:
    return {wnid: number for number, wnid in enumerate(wnids())}


@functools.cache
def _validation_classes() -> tuple[int, ...]:
    """The class of each of the 50,000 images, by their numbers in the files' names."""
    return tuple(_numbers()[wnid] for wnid in _lines("validation_labels.txt"))


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


class Imagenet2012Validation(PreparedBuilder):
    """The images of ILSVRC2012_img_val.tar, as they are; TFDS's own builder asks for TensorFlow.

    Features: id, the file's name without its suffix; image, the file; label, from 0.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILE = "ILSVRC2012_img_val.tar"
    MISSING = (
        "no ImageNet in {root}: register at image-net.org, download ILSVRC2012_img_val.tar (ILSVRC "
        '2012, "Validation images (all tasks)", 6.3 GB) and put it at {path}; or have its images '
        "in {root}/val, sorted into class folders such as n01440764 or all in one"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(wnids(), "https://image-net.org", "jpeg", mask=False, one_class=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {SPLIT: self._generate_examples(self.sources[0])}

    def _generate_examples(self, path: Path) -> Iterator[dict]:
        for name, place in sorted(tar_images(path).items()):
            image = read_file(path, str(path), *place)
            yield {"id": PurePosixPath(name).stem, "image": image, "label": class_of(name)}


def tar_images(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each image in the validation tar; ValueError where it holds anything else, or nothing."""

    def published(name: str) -> str:
        if class_of(name) is None:
            raise ValueError(
                f"{path} holds {name!r}, but ILSVRC2012_img_val.tar has only the files "
                "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG; get it again"
            )
        return name

    found = tar_files(path, published)
    if not found:
        raise ValueError(f"{path} holds no images; get it again")
    return found


def open_records(config: str, split: str, data_dir: Path) -> Records:
    """The one split, validation, from what there is, in this order.

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
    classes = ("background", *imagenet_names())
    for folder in (data_dir / "val", data_dir):
        images = _folder_images(folder, data_dir) if folder.is_dir() else []
        if images:
            if split != SPLIT:
                raise ValueError(
                    f"imagenet2012 in {folder} has no split {split!r}; it has {SPLIT}, and parts "
                    f'of it such as "{SPLIT}[:400]"'
                )
            return FolderRecords("imagenet2012", split, classes, folder, images, upright=False)
    return open_prepared(Imagenet2012Validation, classes, config, split, data_dir)


def _folder_images(folder: Path, data_dir: Path) -> list[ImageFile]:
    images = []
    for name in subfolders(folder):
        if re.fullmatch(r"n\d{8}", name):
            if name not in _numbers():
                raise ValueError(f"{folder / name} is none of the 1000 classes of imagenet2012")
            images += images_in(folder, name, _numbers()[name])
    if flat := images_in(folder, "", -1):
        images += _labelled(flat, folder, list(dict.fromkeys((folder, data_dir))))
    return sorted(images)


def _labelled(images: list[ImageFile], folder: Path, places: Sequence[Path]) -> list[ImageFile]:
    """The images in `folder` with the classes of the file of labels in `places`, or of their names."""
    files = [place / name for place in places for name in _LABEL_FILES]
    files = [file for file in files if file.is_file()]
    if len(files) > 1:
        raise ValueError(f"{files[0]} and {files[1]} both label the images in {folder}; keep one")
    listed = _read_labels(files[0]) if files else {}
    found = {i: listed.get(_stem(i.path)) if files else class_of(i.path) for i in images}
    if unknown := [image.path for image, label in found.items() if label is None]:
        which = f"{len(unknown)} of the {len(images)} images in {folder}, the first {unknown[0]}"
        if files:
            raise ValueError(f"{files[0]} has no line for {which}; add what is missing")
        if any((place / _GROUND_TRUTH).is_file() for place in places):
            which += f" ({_GROUND_TRUTH} does not: it names no images and has its own order)"
        raise ValueError(
            f"nothing gives the classes of {which}: name them as published "
            "(ILSVRC2012_val_00000001.JPEG), sort them into class folders such as n01440764, move "
            "them away if they are not of ImageNet, or label all images in a file "
            f'{folder}/val.txt, with lines such as "{unknown[0]} n01440764"'
        )
    return [image._replace(label=label) for image, label in found.items() if label is not None]


def _stem(name: str) -> str:
    """The name of an image file without folders and suffixes, of which converting may add one."""
    path = PurePosixPath(name)
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.name


def _read_labels(path: Path) -> dict[str, int]:
    """The classes of images by their names without suffix; ValueError naming file and line."""
    known = _numbers() | {str(number): number for number in range(len(wnids()))}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the labels in {path}: {error}") from error
    labels: dict[str, int] = {}
    numbered = None
    for line, text in enumerate(lines, 1):
        if not text.strip() or text.startswith("ImageId,"):  # Kaggle's first line
            continue
        place = f"{path}, line {line}"
        words = text.strip().rsplit(maxsplit=1)
        if path.suffix == ".csv":  # after the class come boxes, and further classes
            name, _, rest = text.partition(",")
            words = [name, *rest.split()[:1]]
        if len(words) != 2:
            raise ValueError(f"{place}: wanted an image's name and its class, found {text[:99]!r}")
        name, label = words
        if label not in known:
            raise ValueError(
                f"{place}: {label[:99]!r} is no class; wanted a WordNet id of the 1000, or a number "
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
