"""What every job needs of the platform: database, blobs, settings."""

from dataclasses import dataclass
from functools import lru_cache

from backend.db.session import SessionFactory, create_database_engine, create_session_factory
from backend.settings import Settings, get_settings
from backend.storage.blobs import BlobStore
from backend.storage.object_store import open_blob_store
from worker.patient_store import PatientBlobStore


@dataclass(frozen=True, slots=True)
class Platform:
    """Handles that live as long as the process."""

    session_factory: SessionFactory
    store: BlobStore
    settings: Settings


def open_platform(settings: Settings) -> Platform:
    """Connects to the configured services.

    Raises:
        ValueError: no database or no blob store is configured.
    """
    if settings.database_url is None or settings.blob_url is None:
        raise ValueError(
            "DATABASE_URL and BLOB_URL must both be set; start through `fedbraid up` or set them"
        )
    engine = create_database_engine(settings.database_url.get_secret_value())
    return Platform(
        session_factory=create_session_factory(engine),
        store=PatientBlobStore(open_blob_store(settings.blob_url), settings.blob_patience_seconds),
        settings=settings,
    )


@lru_cache
def get_platform() -> Platform:
    """The platform of this process, opened once."""
    return open_platform(get_settings())
