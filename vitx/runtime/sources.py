"""The images of an experiment's splits, each split opened once and without what is left out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from vitx import parallel
from vitx.data.unreadable import find_unreadable, recorded, refuse
from vitx.runtime.signals import StopRequest

if TYPE_CHECKING:  # its package TFDS is needed only where a dataset is read
    from vitx.data.source import Source

_SPLITS = ("train_split", "val_split", "split")  # options of a section that name a split


class Sources:
    """The splits of `config.data`, opened as they are needed.

    Args:
        config: The experiment.
        folder: Where lists of unreadable images are kept.
        stop: Checked while images are decoded.
    """

    def __init__(self, config: ConfigDict, folder: Path, stop: StopRequest):
        self._config, self._folder, self._stop = config, folder, stop
        self._opened: dict[str, Source] = {}  # complete
        self._sources: dict[str, Source] = {}  # without what is left out
        self._unreadable: dict[str, dict[str, str]] = {}

    def __getitem__(self, split: str) -> Source:
        """A split such as "val" or "train[:400]".

        Under `config.on_bad_image` "skip" all processes call it together.
        """
        if split not in self._sources:
            source = self._open(split)
            if self._skips:
                source = source.without(self.unreadable(split))
            self._sources[split] = source
        return self._sources[split]

    def unreadable(self, split: str) -> dict[str, str]:
        """Ids of images that cannot be read, with the reason.

        Decodes the whole split of `config.data` that `split` is a part of, once in a workdir. All processes call it
        together.
        """
        whole = self._whole(split)
        if whole not in self._unreadable:
            source = self._open(whole)
            found = find_unreadable(source, self._folder, self._stop, keep=self._skips)
            self._unreadable[whole] = found
            if found and self._skips and parallel.is_first_process():
                print(
                    f"{whole}: {len(found)} of {len(source)} images cannot be read and are left out; "
                    f"{self._folder} lists them",
                    file=sys.stderr,
                )
        found, source = self._unreadable[whole], self._open(split)
        if not found or split == whole:
            return found
        ids = map(source.identifier, range(len(source)))
        return {identifier: found[identifier] for identifier in ids if identifier in found}

    def require_readable(self, split: str) -> None:
        """Raises ValueError where an image of a split cannot be read and is not left out."""
        if not self._skips:
            refuse(self.unreadable(split), self._open(split))

    def left_out(self) -> dict[str, dict[str, str]]:
        """Images that this or an earlier start has left out: by split of the config their ids, with the reason."""
        if not self._skips:
            return {}
        sections = [value for value in self._config.values() if isinstance(value, ConfigDict)]
        named = [section.get(key, "") for section in sections for key in _SPLITS]
        wholes = dict.fromkeys(self._whole(split) for split in named if split)
        found = {split: recorded(self._open(split), self._folder) for split in wholes}
        return {split: ids for split, ids in found.items() if ids}

    @property
    def _skips(self) -> bool:
        return self._config.get("on_bad_image") == "skip"

    def _whole(self, split: str) -> str:
        data = self._config.data
        wholes = [data[name] for name in ("train_split", "val_split") if name in data]
        return next((name for name in wholes if split.startswith(f"{name}[")), split)

    def _open(self, split: str) -> Source:
        if split not in self._opened:
            from vitx.data.source import open_source

            data = self._config.data
            self._opened[split] = open_source(
                data.name, split, data.root, classes=data.get("classes", "")
            )
        return self._opened[split]
