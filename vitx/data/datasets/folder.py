"""`folder`: images of the user's, a folder for each class."""

from pathlib import Path

from vitx.data.formats.class_folders import FolderRecords, images_in, subfolders
from vitx.data.formats.files import SUFFIXES


def open_records(config: str, split: str, data_dir: Path) -> FolderRecords:
    """The images of a folder that has a folder for each class; no other layout is guessed at.

    `split` names the folder in `data_dir` that holds the class folders, such as "val"; "" or "all"
    is `data_dir` itself. The sorted names are the classes, numbered from 0, so that ImageNet's 1000 synset ids come in
    ImageNet's order. Raises FileNotFoundError or ValueError where a folder is missing or a class has no images.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"no folder {data_dir}; dataset 'folder' reads class folders in it")
    known = subfolders(data_dir)
    if split not in ("", "all", *known):
        has = f"it has {', '.join(known[:8]) or 'none'}" + (", ..." if len(known) > 8 else "")
        raise ValueError(
            f"{data_dir} has no folder {split!r}; {has}. Where these are the classes themselves: "
            "--config.data.val_split=all"
        )
    folder = data_dir if split in ("", "all") else data_dir / split
    classes = subfolders(folder)
    if not classes:
        raise ValueError(f"{folder} holds no class folders; wanted <class>/<image>.jpg in it")
    images = []
    for label, name in enumerate(classes):
        found = images_in(folder, name, label)
        if not found:
            raise ValueError(
                f"class folder {folder / name} holds no images ({' '.join(SUFFIXES)}); where it is "
                "a split, name it as one"
            )
        images += [image._replace(id=f"{name}/{image.id}") for image in found]
    name = f"folder/{data_dir.resolve().name}"
    return FolderRecords(name, split, ("background", *classes), folder, images)
