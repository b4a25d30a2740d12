"""Probe texts of the federations of a fake platform."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastapi import FastAPI, Request, Response

from backend.contracts.common import Problem
from backend.contracts.probe_sets import (
    JSON_LINES,
    NUM_BUILT_IN,
    ProbeSet,
    ProbeSetError,
    ProbeSource,
    encode_probe_set,
    parse_probe_set,
)

if TYPE_CHECKING:
    from tests.dashboard.fake_platform import FakePlatform


def described(texts: list[str], username: str) -> ProbeSet:
    """No texts: the built-in ones."""
    if not texts:
        return ProbeSet(
            source=ProbeSource.BUILT_IN, num_texts=NUM_BUILT_IN, sha256=None, size_bytes=None,
            uploaded_at=None, uploaded_by=None, examples=[],
        )  # fmt: skip
    content = encode_probe_set(texts)
    return ProbeSet(
        source=ProbeSource.UPLOADED,
        num_texts=len(texts),
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        uploaded_at=datetime.now(UTC),
        uploaded_by=username,
        examples=texts[:5],
    )


def add_probe_set_routes(
    app: FastAPI, platform: FakePlatform, guards: list[Any], route: Any
) -> None:
    """The endpoints that the dashboard calls."""
    path = "/federations/{federation_id}/probe-set"

    @route(app, "GET", path, guards)
    def probe_set(federation_id: UUID) -> ProbeSet:
        return described(platform.probe_sets.get(federation_id, []), platform.user.username)

    @app.put(f"/api/v1{path}", dependencies=guards, response_model=None)
    async def upload(federation_id: UUID, request: Request) -> ProbeSet | Response:
        media_type = request.headers["content-type"]
        try:
            texts = parse_probe_set(io.BytesIO(await request.body()), media_type)
        except ProbeSetError as error:
            problem = Problem(title="", status=422, code="probe_set_refused", detail=str(error))
            return Response(problem.model_dump_json(), 422)
        platform.probe_sets[federation_id] = texts
        return described(texts, platform.user.username)

    @route(app, "DELETE", path, guards, 204)
    def remove(federation_id: UUID) -> Response:
        del platform.probe_sets[federation_id]
        return Response(status_code=204)

    @route(app, "GET", f"{path}/content", guards)
    def content(federation_id: UUID) -> Response:
        texts = platform.probe_sets[federation_id]
        return Response(encode_probe_set(texts), media_type=JSON_LINES)
