"""Refusals of runs, signing keys and traffic on the platform in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from fastapi import FastAPI, Response

from backend.contracts.common import Page
from backend.contracts.quotas import QuotaUse
from backend.contracts.refusals import Refusal, RefusalCreate
from backend.contracts.signatures import SigningKey

if TYPE_CHECKING:
    from tests.dashboard.fake_platform import FakePlatform


def add_trust_routes(
    app: FastAPI, platform: FakePlatform, guards: list[Any], route: Any, find: Any
) -> None:
    """The endpoints that the dashboard calls."""

    @route(app, "GET", "/runs/{run_id}/refusals", guards)
    def refusals(run_id: UUID) -> list[Refusal]:
        return [one for one in platform.refusals if one.run_id == run_id]

    @route(app, "POST", "/clients/{client_id}/refusals", guards, 201)
    def refuse(client_id: UUID, body: RefusalCreate) -> Refusal:
        refusal = Refusal(
            id=uuid4(),
            client_id=client_id,
            client_name=find(platform.clients, client_id).name,
            refused_by="ada",
            created_at=datetime.now(UTC),
            **body.model_dump(),
        )
        platform.refusals.append(refusal)
        return refusal

    @route(app, "GET", "/clients/{client_id}/usage", guards)
    def client_usage(client_id: UUID) -> list[QuotaUse]:
        find(platform.clients, client_id)
        return platform.usage

    @route(app, "GET", "/federations/{federation_id}/usage", guards)
    def federation_usage(federation_id: UUID) -> list[QuotaUse]:
        find(platform.federations, federation_id)
        return platform.usage

    @route(app, "GET", "/clients/{client_id}/signing-keys", guards)
    def signing_keys(client_id: UUID) -> Page[SigningKey]:
        return Page(items=platform.signing_keys.get(client_id, []))

    @route(app, "DELETE", "/clients/{client_id}/signing-key", guards, 204)
    def retire(client_id: UUID) -> Response:
        platform.signing_keys[client_id][0].retired_at = datetime.now(UTC)
        return Response(status_code=204)

    @route(app, "DELETE", "/clients/{client_id}/refusals/{refusal_id}", guards, 204)
    def withdraw(client_id: UUID, refusal_id: UUID) -> Response:
        platform.refusals.remove(find(platform.refusals, refusal_id))
        return Response(status_code=204)
