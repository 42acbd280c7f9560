"""Places for a run's files: a folder, and a bucket that fsspec's in-memory file system replaces."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from etils.epath import backend, gpath
from fsspec.implementations.memory import MemoryFileSystem

from vitx.runtime.paths import as_path


class Upload(io.BytesIO):
    """An object on its way: it is in the bucket once it is closed."""

    def __init__(self, store, path):
        super().__init__()
        self.keep = lambda data: store.__setitem__(path, io.BytesIO(data))

    def close(self):
        if not self.closed:
            self.keep(self.getvalue())
        super().close()


class Bucket(MemoryFileSystem):
    """As strict as an object store: whole objects, no append, no folders but those that names spell."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("gs://"))

    def mkdir(self, path, create_parents=True, **options):
        raise AssertionError(f"{path}: there are no folders to make")

    makedirs = mkdir

    def _open(self, path, mode="rb", **options):
        if not self._strip_protocol(path).startswith("/bucket/"):
            raise FileNotFoundError(path)
        if mode == "rb":
            return io.BytesIO(self.cat_file(path))
        assert mode == "wb", f"an object cannot be opened for {mode}"
        return Upload(self.store, self._strip_protocol(path))

    def pipe_file(self, path, value, mode="overwrite", **options):
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        with self.open(path, "wb") as file:
            file.write(value)

    def info(self, path, **options):
        path = self._strip_protocol(path)
        if path in self.store:
            return {"name": path, "size": len(self.store[path].getvalue()), "type": "file"}
        return super().info(path)

    def ls(self, path, detail=True, **options):
        inside = self._strip_protocol(path) + "/"
        found = {
            inside + key[len(inside) :].split("/")[0]
            for key in self.store
            if key.startswith(inside)
        }
        if not found:
            raise FileNotFoundError(path)
        return [self.info(name) for name in sorted(found)] if detail else sorted(found)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict]:
    """The objects of an empty bucket gs://bucket by their names."""
    for name in Bucket.protocol:
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    clear = backend.fsspec_backend._get_filesystem.cache_clear
    Bucket.store.clear()
    clear()
    yield Bucket.store
    clear()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path for a run in a folder of this machine, and in a bucket."""
    if request.param == "folder":
        return tmp_path / "run"
    request.getfixturevalue("bucket")
    return as_path("gs://bucket/run")
