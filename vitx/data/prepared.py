"""Datasets that TFDS builds once, as array_record, and reads without TensorFlow."""

import contextlib
import fcntl
import functools
import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from vitx.data.records import Record
from vitx.runtime.files import WriteError, first_line

Builder = TypeVar("Builder", bound=tfds.core.GeneratorBasedBuilder)

_SKIP = tfds.decode.SkipDecoding()


class StreamedBuilder(tfds.core.GeneratorBasedBuilder):
    """A dataset whose splits are written as they are generated, in the order they are kept in.

    A subclass has `_info`, `_split_generators`, which gives the splits' numbers and examples,
    `source` and `content`. The examples' ids and labels are kept in the dataset's metadata too,
    where they are found without the images.

    TFDS itself sorts the examples of a split and, beyond 1 GB of them, asks TensorFlow to; here
    each split goes into one file.
    """

    # TFDS looks for checksums of downloads beside the code, with a package it does not require.
    code_path = None

    @property
    def source(self) -> str:
        """What it is made from, for the user."""
        raise NotImplementedError

    def content(self) -> str:
        """A digest of what the examples follow from; called when all are written."""
        raise NotImplementedError

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig,
    ) -> None:
        del download_config
        print(f"{self.name}: made from {self.source}, once", file=sys.stderr)
        generators = self._split_generators(dl_manager)
        listed: dict[str, dict[str, list]] = {}
        splits = [self._write(split, generators[split], listed) for split in generators]
        self.info.set_splits(tfds.core.SplitDict(splits))
        self.info.metadata.update(sha256=self.content(), examples=listed)

    def _write(
        self,
        split: str,
        examples: Iterator[tuple[int, Mapping[str, Any]]],
        listed: dict[str, dict[str, list]],
    ) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split_name=split)
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        writer = ArrayRecordWriter(str(path), "group_size:1")  # each can be read alone
        listed[split] = {"ids": [], "labels": []}
        size = 0
        for _, example in examples:
            data = self.info.features.serialize_example(example)
            writer.write(data)
            listed[split]["ids"].append(example["id"])
            labels = [example["label"]] if "label" in example else example["labels"]
            listed[split]["labels"].append(labels)
            size += len(data)
        writer.close()
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(listed[split]["ids"])],
            num_bytes=size,
            filename_template=template,
        )


class ManualBuilder(StreamedBuilder):
    """A dataset of one split, made from one file that the user has to fetch.

    A subclass has `_info`, and `_generate_examples(path)`, which yields numbers and examples in the
    order they are kept in. The file's SHA-256 is kept as the dataset's metadata.
    """

    SPLIT: ClassVar[str]
    FILE: ClassVar[str]
    MISSING: ClassVar[str]  # where to get it; {path} is where it goes, {root} the data's folder

    @property
    def manual_file(self) -> Path:
        """Where the file belongs: TFDS's folder for what is fetched by hand."""
        return Path(self.data_dir_root) / "downloads" / "manual" / self.FILE

    @property
    def source(self) -> str:
        """See `StreamedBuilder`."""
        return str(self.manual_file)

    def content(self) -> str:
        """See `StreamedBuilder`."""
        with self.manual_file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {self.SPLIT: self._generate_examples(self.manual_file)}


class PreparedRecords:
    """A split, or a part of one, of a dataset that has been built; see `Records`.

    Its features are id and image, mask where there are masks, and labels or, for images of one
    class, label.
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, classes: tuple[str, ...], split: str
    ) -> None:
        try:
            part = builder.info.splits[split]  # also of parts of splits, such as "train[:400]"
        except (KeyError, ValueError, AssertionError) as error:
            known = ", ".join(builder.info.splits)
            raise ValueError(
                f"{builder.info.full_name} has no split {split!r}; it has {known}, and parts of "
                f'them such as "{next(iter(builder.info.splits))}[:400]"'
            ) from error
        if not part.num_examples:
            raise ValueError(f"split {split!r} of {builder.info.full_name} has no examples")
        self.name, self.split, self.classes = builder.info.full_name, split, classes
        self.content = (builder.info.metadata or {}).get("sha256") or repr(builder.builder_config)
        self.mask_content = ""
        self.one_class = "label" in builder.info.features
        self.has_masks = "mask" in builder.info.features
        encoded = {"image": _SKIP, "mask": _SKIP} if self.has_masks else {"image": _SKIP}
        self._listed = _listed(builder, split)
        self._folder = str(builder.data_path)
        with self._explained():
            self._records = builder.as_data_source(split=split, decoders=encoded)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Record:
        """The example at `index`; ValueError naming the dataset's folder where that is damaged."""
        with self._explained():
            record = self._records[index]
        identifier = record["id"].decode()
        labels = [int(record["label"])] if self.one_class else [int(i) for i in record["labels"]]
        mask = record["mask"] if self.has_masks else None
        return Record(identifier, f"{identifier} of {self.name}", record["image"], mask, labels)

    def identifier(self, index: int) -> str:
        """See `Records`; reads the stored image where the builder lists no ids."""
        return self._listed[index][0] if self._listed else self.read(index).id

    def labels(self, index: int) -> Sequence[int]:
        """See `Records`; reads the stored image where the builder lists no labels."""
        return self._listed[index][1] if self._listed else self.read(index).labels

    def masked(self, index: int) -> bool:
        """See `Records`; all are, or none is."""
        return self.has_masks

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:  # array_record's and TFDS's for damaged files
            raise ValueError(
                f"the dataset in {self._folder} is damaged ({str(error)[:150]}); "
                "delete that folder to have it built again"
            ) from error


def _listed(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, list[int]]]:
    """Ids and labels of the examples of a split or a part, [] where the builder lists none."""
    listed = (builder.info.metadata or {}).get("examples", {})
    found: list[tuple[str, list[int]]] = []
    for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits):
        if part.splitname in listed:
            ids, labels = (listed[part.splitname][key] for key in ("ids", "labels"))
            found += list(zip(ids, labels, strict=True))[part.from_ : part.to]
    return found


def open_prepared(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    classes: tuple[str, ...],
    config: str,
    split: str,
    data_dir: Path,
) -> PreparedRecords:
    """A split of the dataset of a TFDS builder, which is built under `data_dir` if it is not there.

    One process builds, all or nothing. `config` is empty for the builder's first. Raises ValueError
    for an unknown config or split and for bad files, WriteError where building fails for want of
    space or permission.
    """
    configs = [known.name for known in builder_class.BUILDER_CONFIGS]
    if config and config not in configs:
        has = f"it has {', '.join(configs)}" if configs else "it has none"
        raise ValueError(f"{builder_class.name} has no config {config!r}; {has}")

    make = functools.partial(_builder, builder_class, config, data_dir)
    builder = make()
    if not builder.data_path.exists():
        try:
            _build(make, data_dir / f".{builder.name}.lock")
        except (OSError, RuntimeError) as error:
            raise WriteError(
                f"cannot build {builder.name} in {data_dir}: {first_line(error)}; mend that (free "
                "space, permissions) and start again"
            ) from error
        builder = make()
    return PreparedRecords(builder, classes, split)


def open_manual(
    builder_class: type[ManualBuilder],
    classes: tuple[str, ...],
    config: str,
    split: str,
    data_dir: Path,
) -> PreparedRecords:
    """As `open_prepared`, of a dataset that is made from a file which the user has to fetch.

    Raises FileNotFoundError where that is missing and the dataset not built, saying where to get it
    and where to put it; nothing is written then.
    """
    builder = _builder(builder_class, "", data_dir)
    if not (is_built(builder_class, "", data_dir) or builder.manual_file.is_file()):
        raise FileNotFoundError(builder.MISSING.format(path=builder.manual_file, root=data_dir))
    return open_prepared(builder_class, classes, config, split, data_dir)


def is_built(
    builder_class: type[tfds.core.GeneratorBasedBuilder], config: str, data_dir: Path
) -> bool:
    """Whether `open_prepared` would find the dataset there."""
    return _builder(builder_class, config, data_dir).data_path.exists()


def _builder(builder_class: type[Builder], config: str, data_dir: Path) -> Builder:
    return builder_class(data_dir=data_dir, config=config or None, file_format="array_record")


def _build(make: Callable[[], tfds.core.DatasetBuilder], lock: Path) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed, by death too
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
