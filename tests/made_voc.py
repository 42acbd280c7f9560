"""Makes datasets laid out like PASCAL VOC, and SBD's masks, in the forms that both are published in.

A picture shows one to three classes, as VOC's do, on a textured background. A class is told by the
outline, hue and stripes of its objects, so that a small model learns it.
"""

import colorsys
import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

from tests.made_imagenet import add_member
from vitx.data.formats.voc_annotations import VOC_CLASSES
from vitx.data.palette import encode_mask

FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass")
SHOWN = (0.64, 0.27, 0.09)  # of pictures with one, two and three classes, about VOC's
DIFFICULT = 0.08  # of objects
OUTLINES = 5


@dataclasses.dataclass
class Made:
    """What was made: ids of each split, and of each id its picture (H, W, 3) before JPEG, mask (H, W) with 255 along
    outlines, and labels, from 0 for the first class after the background."""

    folder: Path
    classes: tuple[str, ...]
    splits: dict[str, list[str]]
    pictures: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    labels: dict[str, list[int]]

    @property
    def train_aug(self) -> list[str]:
        """The ids of train_aug, sorted."""
        return sorted(self.splits["train"] + self.splits["aug"])


def make_voc(
    folder: Path,
    train: int = 8,
    aug: int = 0,
    val: int = 4,
    size: tuple[int, int] = (60, 80),
    classes: Sequence[str] = VOC_CLASSES,
    seed: int = 0,
    masked: float = 1.0,
    prefix: str = "2007_",
    keep: bool = True,
) -> Made:
    """Writes the four folders of VOC2012 into `folder`.

    `aug` more pictures are in JPEGImages and Annotations alone, and in no list: `write_sbd` and its
    like give masks for them. Every fourth picture stands upright, as tall as the others are wide.
    `classes` begin with "background"; `masked` is the share of train and val that has masks; ids
    are `prefix` and a number. Without `keep` the result holds no pictures and masks.
    """
    generator = np.random.default_rng(seed)
    for name in (*FOLDERS, "ImageSets/Segmentation", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = generator.permutation(train + val + aug)
    names = [f"{prefix}{number:06d}" for number in numbers]
    splits = {
        "train": sorted(names[:train]),
        "val": sorted(names[train : train + val]),
        "aug": sorted(names[train + val :]),
    }
    made = Made(folder, tuple(classes), splits, {}, {}, {})
    held = len(classes) - 1
    for split, ids in splits.items():
        for place, identifier in enumerate(ids):
            shape = size[::-1] if place % 4 == 3 else size
            count = min(held, 1 + int(generator.choice(3, p=SHOWN)))
            labels = sorted(generator.choice(held, count, replace=False).tolist())
            picture, mask, objects = draw(shape, labels, generator)
            Image.fromarray(picture).save(folder / f"JPEGImages/{identifier}.jpg", quality=92)
            xml = annotation(
                identifier, shape, [(made.classes[o + 1], *box) for o, *box in objects]
            )
            (folder / f"Annotations/{identifier}.xml").write_text(xml, "utf-8")
            if split != "aug" and generator.random() < masked:
                (folder / f"SegmentationClass/{identifier}.png").write_bytes(encode_mask(mask))
            made.labels[identifier] = labels
            if keep:
                made.pictures[identifier], made.masks[identifier] = picture, mask
    for split in ("train", "val"):
        text = "".join(f"{identifier}\n" for identifier in splits[split])
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(text, "utf-8")
    # Of detection, with images that no mask belongs to.
    (folder / "ImageSets/Main/train.txt").write_text("".join(f"{i}\n" for i in made.train_aug))
    return made


def draw(
    shape: tuple[int, int], labels: Sequence[int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, bool, int, int, int, int]]]:
    """A picture (H, W, 3) and its mask (H, W), uint8, and objects: label, difficult, and box.

    Every label is visible; objects do not overlap by much, and have an outline of 255.
    """
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = background(shape, generator)
    mask = np.zeros(shape, np.uint8)
    objects = []
    wanted = [label for label in labels for _ in range(generator.choice((1, 1, 1, 2)))]
    radius = min(shape) / (3.2 if len(wanted) == 1 else 2.0 + 1.2 * len(wanted))
    centres: list[tuple[float, float]] = []
    for label in wanted:
        scale = radius * generator.uniform(0.75, 1.15)
        tries = [
            (generator.uniform(scale, height - scale), generator.uniform(scale, width - scale))
            for _ in range(40)
        ]
        apart = [min((np.hypot(a - c, b - d) for c, d in centres), default=1.0) for a, b in tries]
        row, column = tries[int(np.argmax(apart))]
        centres.append((row, column))
        inside = outline(label, (x - column) / scale, (y - row) / scale) < 0
        near = outline(label, (x - column) / (scale + 2), (y - row) / (scale + 2)) < 0
        picture[inside] = paint(label, x[inside], y[inside], generator)
        mask[near & ~inside] = 255
        mask[inside] = label + 1
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)
        objects.append((label, bool(generator.random() < DIFFICULT), *map(int, box)))
    picture += 4 * generator.standard_normal(picture.shape, np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8), mask, objects


def outline(label: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Negative inside of the label's outline in the unit circle."""
    match label % OUTLINES:
        case 0:
            return np.hypot(x, y) - 0.95
        case 1:
            return np.maximum(abs(x), abs(y)) - 0.75
        case 2:
            return np.maximum(1.7 * abs(x) - y, 2 * y) - 1.0
        case 3:
            return np.maximum(np.minimum(abs(x), abs(y)) - 0.3, np.maximum(abs(x), abs(y)) - 0.9)
        case _:
            return abs(np.hypot(x, y) - 0.68) - 0.25


def paint(label: int, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The label's colours at places (N,), striped in one of four directions, (N, 3)."""
    hue = (label * 0.381966 + generator.normal(0, 0.008)) % 1  # the golden ratio spreads hues
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.8, generator.uniform(0.75, 1))) * 255
    turn = np.pi / 4 * (label // OUTLINES % 4)
    stripes = np.sin((np.cos(turn) * x + np.sin(turn) * y) * (2 * np.pi / 7))
    return colour * (0.85 + 0.15 * stripes[..., None])


def background(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A dull colour with smooth and fine texture, (H, W, 3) float."""
    height, width = shape
    coarse = generator.uniform(-1, 1, (6, 8, 3)).astype(np.float32)
    smooth = np.stack(
        [
            np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.BICUBIC))
            for c in range(3)
        ],
        -1,
    )
    grey = (generator.uniform(60, 190) + generator.uniform(-15, 15, 3)).astype(np.float32)
    return grey + 22 * smooth + 8 * generator.standard_normal((height, width, 1), np.float32)


def annotation(
    identifier: str, shape: tuple[int, int], objects: Sequence[tuple[str, bool, int, int, int, int]]
) -> str:
    """The XML of a picture as VOC has it; people have parts, with names of their own."""
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin></bndbox></part>"
    found = "".join(
        f"""
	<object>
		<name>{escape(name)}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{int(difficult)}</difficult>
		<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>
		{parts if name == "person" else ""}
	</object>"""
        for name, difficult, left, top, right, bottom in objects
    )
    return f"""<annotation>
	<folder>VOC2012</folder>
	<filename>{identifier}.jpg</filename>
	<source><database>The VOC2007 Database</database></source>
	<size><width>{shape[1]}</width><height>{shape[0]}</height><depth>3</depth></size>
	<segmented>1</segmented>{found}
</annotation>
"""


def sbd_mat(mask: np.ndarray, compress: bool = True) -> bytes:
    """SBD's cls/<id>.mat of a mask, whose ignored pixels become background: SBD has none."""
    mask = np.where(mask == 255, 0, mask).astype(np.uint8)
    boundaries = np.empty((len(VOC_CLASSES) - 1, 1), object)
    for row in range(len(boundaries)):
        inside = mask == row + 1
        boundaries[row, 0] = scipy.sparse.csc_matrix(inside & ~np.roll(inside, 1, 0))
    present = np.setdiff1d(np.unique(mask), [0]).astype(np.uint8)[:, None]
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": content}, do_compression=compress)
    return file.getvalue()


def sbd_files(made: Made) -> dict[str, bytes]:
    """The files of benchmark_RELEASE/dataset by their paths there: lists, and masks of all images.

    SBD's lists share some images with VOC's train and val.
    """
    everything = sorted(made.splits["train"] + made.splits["val"] + made.splits["aug"])
    shared = made.splits["train"][::2] + made.splits["val"][::2] + made.splits["aug"]
    files = {f"cls/{name}.mat": sbd_mat(made.masks[name]) for name in everything}
    half = len(shared) // 2
    for name, ids in (("train", shared[:half]), ("val", shared[half:])):
        files[f"{name}.txt"] = "".join(f"{identifier}\n" for identifier in ids).encode()
    return files


def write_sbd(made: Made, folder: Path) -> None:
    """SBD's release, unpacked: folder/cls/*.mat, train.txt and val.txt."""
    for path, data in sbd_files(made).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def write_sbd_archive(made: Made, path: Path) -> None:
    """SBD's release as published, benchmark.tgz, with some of the other files that it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        add_folder(tar, "benchmark_RELEASE")
        add_member(tar, "benchmark_RELEASE/README", b"Semantic boundaries")
        add_member(tar, "benchmark_RELEASE/dataset/cls/._2008_000001.mat", b"\0\5\x16\7")
        for name, data in sbd_files(made).items():
            add_member(tar, f"benchmark_RELEASE/dataset/{name}", data)
            if name.endswith(".mat"):
                inst = name.replace("cls/", "inst/")
                add_member(tar, f"benchmark_RELEASE/dataset/{inst}", b"another file")


def write_pngs(made: Made, folder: Path) -> None:
    """SegmentationClassAug, grey PNGs for all images; as widely passed around, also those of val."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in made.masks.items():
        Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8)).save(
            folder / f"{name}.png"
        )


def write_voc_archive(folder: Path, path: Path) -> None:
    """VOCtrainval_11-May-2012.tar of a folder that `make_voc` made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add_folder(tar, "VOCdevkit")
        add_folder(tar, "VOCdevkit/VOC2012")
        for file in sorted(folder.rglob("*")):
            name = f"VOCdevkit/VOC2012/{file.relative_to(folder)}"
            if file.is_dir():
                add_folder(tar, name)
            else:
                add_member(tar, name, file.read_bytes())


def add_folder(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(member)
