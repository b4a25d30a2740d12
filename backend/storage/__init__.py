"""Stored bytes: what the other rooms need of this one."""

from backend.storage.blobs import (
    BlobCorruptedError,
    BlobMissingError,
    BlobRef,
    BlobStore,
    BlobStoreUnavailableError,
    Content,
)
from backend.storage.direct import DirectTransfers, open_direct_transfers
from backend.storage.object_store import open_blob_store
from backend.storage.records import add_blob_row, save_blob

__all__ = [
    "BlobCorruptedError",
    "BlobMissingError",
    "BlobRef",
    "BlobStore",
    "BlobStoreUnavailableError",
    "Content",
    "DirectTransfers",
    "add_blob_row",
    "open_blob_store",
    "open_direct_transfers",
    "save_blob",
]
