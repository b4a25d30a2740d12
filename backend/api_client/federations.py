"""Federations, and what they are made of."""

import builtins
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from backend.api_client.transport import Transport
from backend.contracts.archives import ARCHIVE_MEDIA_TYPE, ImportedFederation
from backend.contracts.base_models import BaseModelInfo
from backend.contracts.datasets import BuiltinTaskInfo
from backend.contracts.federations import (
    Federation,
    FederationCreate,
    FederationDetail,
    FederationMember,
    FederationMemberAdd,
    FederationUpdate,
)
from backend.contracts.metric_catalogue import MetricCatalogue
from backend.contracts.probe_sets import JSON_LINES, ProbeSet
from backend.contracts.quotas import QuotaUse
from backend.contracts.runs import Run, RunCreate
from backend.contracts.storage import FederationStorage, StoragePolicyChange
from backend.contracts.strategies import StrategyInfo


class Catalogue:
    """What this platform can do: strategies, base models and built-in tasks."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def strategies(self) -> list[StrategyInfo]:
        """Every strategy with its parameters as JSON Schema."""
        return self._transport.get("/strategies", list[StrategyInfo])

    def base_models(self) -> list[BaseModelInfo]:
        """Base models that ship with the platform."""
        return self._transport.get("/base-models", list[BaseModelInfo])

    def metrics(self) -> MetricCatalogue:
        """Unit and meaning of every measured value."""
        return self._transport.get("/metrics", MetricCatalogue)

    def builtin_tasks(self) -> list[BuiltinTaskInfo]:
        """Seeded task generators that ship with the platform."""
        return self._transport.get("/builtin-tasks", list[BuiltinTaskInfo])


class Federations:
    """`/federations`: who works together, and their runs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, federation: FederationCreate) -> FederationDetail:
        """Make a federation of registered clients."""
        return self._transport.post("/federations", FederationDetail, federation)

    def list(self) -> Iterator[Federation]:
        """All federations, newest first."""
        return self._transport.walk("/federations", Federation)

    def get(self, federation_id: UUID) -> FederationDetail:
        """One federation with its members."""
        return self._transport.get(f"/federations/{federation_id}", FederationDetail)

    def update(self, federation_id: UUID, change: FederationUpdate) -> FederationDetail:
        """Open a federation to all users, or close it to all but its members."""
        return self._transport.patch(f"/federations/{federation_id}", FederationDetail, change)

    def storage(self, federation_id: UUID) -> FederationStorage:
        """What a federation stores, how much it may, and how long it keeps what."""
        return self._transport.get(f"/federations/{federation_id}/storage", FederationStorage)

    def change_storage(self, federation_id: UUID, change: StoragePolicyChange) -> FederationStorage:
        """Set the limits that are given; null gives one back to the platform's settings."""
        path = f"/federations/{federation_id}/storage"
        return self._transport.patch(path, FederationStorage, change)

    def stream_archive(self, federation_id: UUID) -> Iterator[bytes]:
        """A whole federation as one archive, chunk by chunk; for administrators."""
        with self._transport.stream(f"/federations/{federation_id}/archive") as chunks:
            yield from chunks

    def export(self, federation_id: UUID, target: Path) -> Path:
        """Store a whole federation as one archive; for administrators.

        The bytes go to `<target>.part` first, so that a broken download never looks complete.

        Args:
            federation_id: which one.
            target: the file to write; its folder must exist.

        Returns:
            `target`.
        """
        part = target.with_name(target.name + ".part")
        with part.open("wb") as file:
            for chunk in self.stream_archive(federation_id):
                file.write(chunk)
        return part.replace(target)

    def import_archive(self, content: BinaryIO) -> ImportedFederation:
        """Make a federation of an archive; for administrators. It may take minutes."""
        return self._transport.post_file(
            "/federations/import", ImportedFederation, content, ARCHIVE_MEDIA_TYPE
        )

    def members(self, federation_id: UUID) -> builtins.list[FederationMember]:
        """The users who work in a federation, by name."""
        path = f"/federations/{federation_id}/members"
        return self._transport.get(path, builtins.list[FederationMember])

    def add_member(self, federation_id: UUID, member: FederationMemberAdd) -> FederationMember:
        """Let a user work in a federation, or change the user's role there."""
        path = f"/federations/{federation_id}/members"
        return self._transport.post(path, FederationMember, member)

    def remove_member(self, federation_id: UUID, user_id: UUID) -> None:
        """Take a user out of a federation."""
        self._transport.call("DELETE", f"/federations/{federation_id}/members/{user_id}")

    def probe_set(self, federation_id: UUID) -> ProbeSet:
        """Where a federation's probe texts come from, how many there are, and the first ones."""
        return self._transport.get(f"/federations/{federation_id}/probe-set", ProbeSet)

    def upload_probe_set(
        self,
        federation_id: UUID,
        lines: bytes | Iterable[bytes],
        media_type: str = JSON_LINES,
    ) -> ProbeSet:
        """Replace the probe texts of a federation; all its clients receive them.

        Args:
            federation_id: whose texts.
            lines: one text each; an open binary file works.
            media_type: one of `contracts.probe_sets.MEDIA_TYPES`: JSON objects with `text`, or
                plain text.

        Returns:
            The new set. A wrong text refuses all of them; the `ApiError` names its line.
        """
        path = f"/federations/{federation_id}/probe-set"
        return self._transport.put_bytes(path, ProbeSet, lines, media_type)

    def download_probe_set(self, federation_id: UUID) -> bytes:
        """The uploaded probe texts of a federation as JSON lines; refused if it has none."""
        with self._transport.stream(f"/federations/{federation_id}/probe-set/content") as chunks:
            return b"".join(chunks)

    def remove_probe_set(self, federation_id: UUID) -> None:
        """Go back to the built-in probe texts, for runs that are made from now on."""
        self._transport.call("DELETE", f"/federations/{federation_id}/probe-set")

    def create_run(self, federation_id: UUID, run: RunCreate) -> Run:
        """Prepare a run; it begins with `ApiClient.runs.start`."""
        return self._transport.post(f"/federations/{federation_id}/runs", Run, run)

    def usage(self, federation_id: UUID) -> builtins.list[QuotaUse]:
        """How much of its quotas a federation has used; empty: nothing is counted."""
        return self._transport.get(f"/federations/{federation_id}/usage", builtins.list[QuotaUse])

    def runs(self, federation_id: UUID) -> Iterator[Run]:
        """A federation's runs, newest first."""
        return self._transport.walk(f"/federations/{federation_id}/runs", Run)
