"""Stores the tensors of a checkpoint with a checksum of every file, and reads them without running code from a file.

Both are thin layers over the fsspec storage of ``torch.distributed.checkpoint`` (DCP), local or remote.
"""

import hashlib
import io
import os
import pathlib
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

# Everything that the pickle in .metadata may name; other names are refused.
_ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (kind.__module__, kind.__qualname__): kind
        for kind in (
            *(dcp_metadata.Metadata, dcp_metadata.MetadataIndex, dcp_metadata.StorageMeta, _StorageInfo),
            *(dcp_metadata.TensorStorageMetadata, dcp_metadata.BytesStorageMetadata),
            *(dcp_metadata.ChunkStorageMetadata, dcp_metadata.TensorProperties, dcp_metadata._MEM_FORMAT_ENCODING),
        )
    },
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    **{
        ("torch", str(kind).removeprefix("torch.")): kind
        for kind in vars(torch).values()
        if isinstance(kind, torch.dtype)
    },
    # The folder that a checkpoint was written to, in checkpoints of the first version; the module is Python 3.13's.
    **{(module, "PosixPath"): pathlib.PosixPath for module in ("pathlib", "pathlib._local")},
    ("nasrec_torchrec.paths", "RemotePath"): PurePosixPath,
}


class DigestingWriter(FsspecWriter):
    """Writes tensors, and computes the checksum of every file of this rank while writing it.

    ``digests`` maps the names of the files written so far to their SHA-256.

    Args:
        folder: local or remote folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        system: Any = _DigestingFileSystem()
        self.fs, self.path = system, system.init_path(str(folder))
        self.digests: dict[str, str] = system.digests


class _DigestingFileSystem(FileSystem):
    def __init__(self) -> None:
        super().__init__()
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            digesting = _DigestingStream(stream)
            try:
                yield digesting
            except RuntimeError:
                # torch.save says of a full disk only what it means for its archive.
                if digesting.error is not None:
                    raise digesting.error from None
                raise
            self.digests[PurePosixPath(path).name] = digesting.digest.hexdigest()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.digests[PurePosixPath(new_path).name] = self.digests.pop(PurePosixPath(path).name)


class _DigestingStream(io.IOBase):
    def __init__(self, stream: Any) -> None:
        self._stream, self.digest = stream, hashlib.sha256()
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def tell(self) -> int:
        return self._stream.tell()

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def load_tensors(state: dict[str, Any], folder: Path, collective: bool = True) -> None:
    """Loads a checkpoint into a state.

    Args:
        state: nested state whose tensors are overwritten in place.
        folder: folder of the checkpoint.
        collective: whether all ranks load it together; otherwise this process loads it alone.

    Raises:
        ValueError: If the checkpoint cannot be read or lacks something; the message names it.
    """
    try:
        dcp.load(state, storage_reader=_SafeReader(str(folder)), planner=_SafePlanner(), no_dist=not collective)
    except (dcp.api.CheckpointException, OSError, ValueError, RuntimeError) as error:
        reason: BaseException = error
        if isinstance(error, dcp.api.CheckpointException) and error.failures:
            reason = next(iter(error.failures.values()))[0]
        lines = str(reason).splitlines() or [type(reason).__name__]
        raise ValueError(f"{folder}: the checkpoint cannot be read: {lines[0]}") from None


class _SafeReader(FsspecReader):
    def read_metadata(self, *_: Any, **__: Any) -> dcp_metadata.Metadata:
        path = self._get_metadata_path()
        with self.fs.create_stream(path, "rb") as file:
            try:
                metadata = _RestrictedUnpickler(file).load()
            except OSError:
                raise
            except Exception as error:  # a damaged pickle raises anything
                raise ValueError(f"{path}: not a checkpoint's metadata: {error}") from None
        if not isinstance(metadata, dcp_metadata.Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(f"{path}: not a checkpoint's metadata")
        for place in metadata.storage_data.values():
            if PurePosixPath(place.relative_path).name != place.relative_path:
                raise ValueError(f"{path}: names a file outside of the checkpoint: {place.relative_path}")
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        return metadata


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no metadata needs") from None


class _SafePlanner(DefaultLoadPlanner):
    """Reads values other than tensors without unpickling classes."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # refuses what the other load would run
        value.seek(0)
        super().load_bytes(read_item, value)
