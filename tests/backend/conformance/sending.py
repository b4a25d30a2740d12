"""Cases that schemathesis makes from the schema, sent to the application in this process."""

from typing import Any
from uuid import UUID

import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from starlette.testclient import TestClient

from backend.contracts.agent import PIECE_MEDIA_TYPE, SHARED_MEDIA_TYPE

ORIGIN = "http://testserver"
schemathesis.serializer.alias(
    [
        SHARED_MEDIA_TYPE,
        PIECE_MEDIA_TYPE,
        *("application/x-ndjson", "application/jsonl", "application/zip"),
    ],
    "application/octet-stream",
)


def cases(
    operation: APIOperation, ids: dict[str, UUID], references: dict[str, Any]
) -> st.SearchStrategy[Case]:
    """Requests to an operation that fit the schema, and such as do not.

    Half of them name things that exist: a path of random numbers alone would only ever meet 404.

    Args:
        operation: which operation.
        ids: real values of parameters of paths, by name.
        references: real values of fields of bodies, by name.
    """
    known = {
        parameter.name: str(ids[parameter.name])
        for parameter in operation.path_parameters
        if parameter.name in ids
    }
    paths: list[dict[str, str] | None] = [known, None] if known else [None]
    return st.one_of(
        operation.as_strategy(generation_mode=mode, path_parameters=path).map(
            lambda case: _with_references(case, references)
        )
        for mode in GenerationMode
        for path in paths
    )


def _with_references(case: Case, references: dict[str, Any]) -> Case:
    """The case with real values in the fields of its body that name other things."""
    if isinstance(case.body, dict):
        for name in references.keys() & case.body.keys():
            case.body[name] = references[name]
    return case


def send(case: Case, http: TestClient, token: str) -> Any:
    """The application's answer."""
    prepared = requests.Request(**case.as_transport_kwargs(base_url=ORIGIN)).prepare()
    assert prepared.method is not None
    headers = {**prepared.headers, "Authorization": f"Bearer {token}"}
    return http.request(
        prepared.method,
        str(prepared.url),
        content=prepared.body or b"",
        headers=headers,
        follow_redirects=False,
    )
