"""What an archive of a federation is: a plain zip without compression, and its table of contents.

    manifest.json              format, schema, and size and SHA-256 of every other entry
    tables/<table>.jsonl       one row a line, parents before children
    blobs/<sha256>             stored bytes

Entries are stored as they are, so that an archive never unpacks to more than its own size, and no
name is ever used as a path.
"""

import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.errors import InvalidError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TABLE = re.compile(r"tables/([a-z_]{1,40})\.jsonl")
BLOB = re.compile(r"blobs/([0-9a-f]{64})")
MAX_MANIFEST_BYTES = 256 * 2**20
MAX_LINE_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20


class ArchiveError(InvalidError):
    """The bytes are no archive of a federation that this platform takes."""

    code = "archive_refused"


class Entry(BaseModel):
    """One file in the archive."""

    model_config = ConfigDict(extra="forbid")

    name: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The table of contents."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["fedbraid-federation"] = "fedbraid-federation"
    format_version: int = FORMAT_VERSION
    schema_revision: str = Field(description="newest migration of the platform that wrote it")
    platform_version: str
    federation: str = Field(description="its name, for people")
    created_at: datetime
    entries: list[Entry]


def table_entry(table: str) -> str:
    """Where the rows of a table lie."""
    return f"tables/{table}.jsonl"


def blob_entry(sha256: str) -> str:
    """Where a blob lies."""
    return f"blobs/{sha256}"
