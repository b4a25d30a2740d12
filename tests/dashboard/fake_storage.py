"""Stored bytes and limits of the federations of a fake platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Request, Response

from backend.contracts.archives import ImportedFederation
from backend.contracts.storage import (
    BlobUse,
    FederationStorage,
    StoragePolicy,
    StoragePolicyChange,
    StoredBytes,
)

if TYPE_CHECKING:
    from tests.dashboard.fake_platform import FakePlatform


class FakeStorage:
    """The same for all federations."""

    def __init__(self) -> None:
        self.own = StoragePolicyChange()
        self.received: list[bytes] = []
        self.uses = [StoredBytes(use=BlobUse.ADAPTERS, num_blobs=2, size_bytes=3 * 2**20)]

    def describe(self) -> FederationStorage:
        return FederationStorage(
            used_bytes=sum(use.size_bytes for use in self.uses),
            uses=self.uses,
            policy=StoragePolicy(
                quota_bytes=self.own.quota_bytes,
                retention_days=self.own.retention_days,
                retention_rounds=self.own.retention_rounds or 0,
            ),
            own=self.own,
        )


def add_storage_routes(
    app: FastAPI, platform: FakePlatform, guards: list[Any], route: Any, find: Any
) -> None:
    """The endpoints that the dashboard calls."""

    @route(app, "GET", "/federations/{federation_id}/storage", guards)
    def storage(federation_id: UUID) -> FederationStorage:
        find(platform.federations, federation_id)
        return platform.storage.describe()

    @route(app, "PATCH", "/federations/{federation_id}/storage", guards)
    def change(federation_id: UUID, body: StoragePolicyChange) -> FederationStorage:
        find(platform.federations, federation_id)
        platform.storage.own = body
        return platform.storage.describe()

    @app.get("/api/v1/federations/{federation_id}/archive", dependencies=guards)
    def export(federation_id: UUID) -> Response:
        return Response(f"archive of {federation_id}".encode(), media_type="application/zip")

    @app.post("/api/v1/federations/import", dependencies=guards, status_code=201)
    async def bring_in(request: Request) -> ImportedFederation:
        platform.storage.received.append(await request.body())
        return ImportedFederation(
            federation_id=uuid4(), name="Three clinics (2)", is_copy=True, num_clients=3,
            num_runs=2, num_blobs=9, size_bytes=100,
        )  # fmt: skip
