"""Datasets that TFDS builds once, as array_record, and reads without TensorFlow."""

import contextlib
import fcntl
import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from vitx.data.records import Record, Records
from vitx.runtime.files import WriteError, first_line
from vitx.runtime.progress import busy

_SKIP = tfds.decode.SkipDecoding()


class PreparedBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset that is built once from the user's files: one array_record a split, in the order of its examples.

    A subclass has `_info`, see `describe`; FILE and MISSING, or its own `sources` and `content`; `_split_generators`,
    which gives the splits' examples; and `_generate_examples`, which yields them without numbers. Their ids and labels
    go into the dataset's metadata too, to be found without the images.

    TFDS itself sorts the examples of a split and, beyond 1 GB, asks TensorFlow to.
    """

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside the code, with a package it does not require.
    code_path = None
    FILE: ClassVar[str]  # in TFDS's folder for what the user fetches
    MISSING: ClassVar[str]  # where to get it; {path} is where it goes, {root} the data's folder

    def describe(
        self,
        names: Sequence[str],
        homepage: str = "",
        image: str = "png",
        mask: bool = True,
        one_class: bool = False,
    ) -> tfds.core.DatasetInfo:
        """The features id, image, mask, and labels or for images of one class label, numbers from 0 of `names`."""
        label = tfds.features.ClassLabel(names=list(names))
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format=image),
            "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            **({"label": label} if one_class else {"labels": tfds.features.Sequence(label)}),
        }
        if not mask:
            del features["mask"]
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            homepage=homepage or None,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @property
    def sources(self) -> list[Path]:
        """The files it is built from; FileNotFoundError, saying where to get it, for one that is missing."""
        root = Path(self.data_dir_root)
        path = root / "downloads" / "manual" / self.FILE
        if not path.is_file():
            raise FileNotFoundError(self.MISSING.format(path=path, root=root))
        return [path]

    def content(self) -> str:
        """A digest of what the examples follow from; called after all are written."""
        with self.sources[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        del download_config
        if sources := " and ".join(map(str, self.sources)):
            print(f"{self.name}: built from {sources}, once", file=sys.stderr)
        listed, splits = {}, []
        for split, examples in self._split_generators(dl_manager).items():
            template = self._get_filename_template(split_name=split)
            path = template.sharded_filepath(shard_index=0, num_shards=1)
            writer = ArrayRecordWriter(str(path), "group_size:1")  # each can be read alone
            size, ids, labels = 0, [], []
            with busy(f"{self.name}: writing {split}"):
                for example in examples:
                    data = self.info.features.serialize_example(example)
                    writer.write(data)
                    size += len(data)
                    ids.append(example["id"])
                    labels.append(_labels(example))
            writer.close()
            listed[split] = {"ids": ids, "labels": labels}
            splits.append(tfds.core.SplitInfo(split, [len(ids)], size, template))
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.metadata.update(sha256=self.content(), examples=listed)


def _labels(example: Mapping[str, Any]) -> list[int]:
    return [int(i) for i in ([example["label"]] if "label" in example else example["labels"])]


class PreparedRecords(Records):
    """A split of a dataset that a `PreparedBuilder` has built."""

    def __init__(
        self, builder: tfds.core.DatasetBuilder, classes: tuple[str, ...], split: str
    ) -> None:
        info = builder.info
        if split not in info.splits:
            known = ", ".join(info.splits)
            raise ValueError(
                f"{info.full_name} has no split {split!r}; it has {known}, and parts of them such as "
                f'"{next(iter(info.splits))}[:400]"'
            )
        metadata = info.metadata or {}
        self._content = metadata.get("sha256") or repr(builder.builder_config)
        self._has_masks, self._folder = "mask" in info.features, str(builder.data_path)
        encoded = {key: _SKIP for key in ("image", "mask") if key in info.features}
        with self._explained():
            self._examples = builder.as_data_source(split=split, decoders=encoded)
            listed = metadata.get("examples", {}).get(split)
            if listed is None:  # written by TFDS itself
                found = list(self._examples)
                listed = {
                    "ids": [example["id"].decode() for example in found],
                    "labels": list(map(_labels, found)),
                }
        self._labels = listed["labels"]
        super().__init__(
            info.full_name, split, classes, listed["ids"], one_class="label" in info.features
        )

    def read(self, index: int) -> Record:
        """The example at `index`; ValueError naming the dataset's folder where that is damaged."""
        with self._explained():
            example = self._examples[index]
        origin = f"{self.ids[index]} of {self.name}"
        return Record(
            self.ids[index], origin, example["image"], example.get("mask"), self._labels[index]
        )

    def content(self, places: Sequence[int]) -> str:
        """See `Records`: one digest for all examples of the dataset."""
        return self._content

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`."""
        return self._labels[index]

    def masked(self, index: int) -> bool:
        """See `Records`; all are, or none is."""
        return self._has_masks

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:  # array_record's and TFDS's for damaged files
            raise ValueError(
                f"the dataset in {self._folder} is damaged ({str(error)[:150]}); "
                "delete that folder to have it built again"
            ) from error


def open_prepared(
    builder_class: type[PreparedBuilder],
    classes: tuple[str, ...],
    config: str,
    split: str,
    data_dir: Path,
) -> PreparedRecords:
    """A split of the dataset of a TFDS builder, which is built under `data_dir` if it is not there.

    One process builds, all or nothing. `config` is empty for the builder's first. Raises ValueError
    for an unknown split and for bad files, FileNotFoundError for missing ones before anything is written, and
    WriteError where building fails for want of space or permission.
    """

    def builder() -> PreparedBuilder:
        return builder_class(data_dir=data_dir, config=config or None, file_format="array_record")

    found = builder()
    if not found.data_path.exists():
        _ = found.sources
        try:
            _build(builder, data_dir / f".{found.name}.lock")
        except (OSError, RuntimeError) as error:
            raise WriteError(
                f"cannot build {found.name} in {data_dir}: {first_line(error)}; fix that (free "
                "space, permissions) and start again"
            ) from error
        found = builder()
    return PreparedRecords(found, classes, split)


def _build(make: Callable[[], PreparedBuilder], lock: Path) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, also by death
        builder = make()
        if builder.data_path.exists():
            return  # another process was first
        for leftover in Path(builder.data_path).parent.glob("incomplete.*"):
            shutil.rmtree(leftover)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS talks of downloading
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
