"""The API keeps what its OpenAPI document says, whatever is sent to it.

schemathesis makes requests from the schema, right ones and wrong ones. No answer may be a server
error, have an undocumented status or content type, or a body other than documented. Few cases for
each operation here; `make test-api` makes many.
"""

from collections import Counter
from functools import lru_cache

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from sqlalchemy.orm import Session

from backend.main import create_app
from backend.settings import Settings
from backend.storage import BlobStore
from tests.backend.auth.test_every_endpoint import TABLE, Access
from tests.backend.conformance.sending import cases, send
from tests.backend.world import World, make_world
from tests.factories import Caller

# Not `negative_data_rejection`: where a number is due, pydantic takes "5" and true for numbers too.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
PRINCIPALS = {
    Access.CLIENT: ["client"],
    Access.OWN_UPDATE: ["client"],
    Access.READ_OR_ITSELF: ["administrator", "client"],
    Access.CHANGE_OR_ITSELF: ["administrator", "client"],
}


@lru_cache
def _schema() -> BaseSchema:
    settings = Settings(database_url="postgresql://nowhere", blob_url="file:///nowhere")  # type: ignore[arg-type]
    document = create_app(settings).openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation.pop("security", None)  # who may call is the table's business; we sign in
    return schemathesis.openapi.from_dict(document)


def _operations() -> list[APIOperation]:
    return [result.ok() for result in _schema().get_all_operations()]


@pytest.fixture
def world(session: Session, blob_store: BlobStore, broker: Redis) -> World:
    return make_world(session, blob_store)


@pytest.mark.parametrize("operation", _operations(), ids=lambda operation: operation.label)
def test_answers_are_as_documented(
    operation: APIOperation,
    anonymous: Caller,
    world: World,
    num_cases: int,
    answers: Counter[str],
) -> None:
    principals = PRINCIPALS.get(TABLE[operation.label], ["administrator"])
    references = {
        "client_ids": [str(world.ids["client_id"])],
        "user_id": str(world.users["viewer"].id),
    }

    @hypothesis_settings(
        max_examples=num_cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # cases are small, and shrinking would ask again and again
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation, world.ids, references), name=st.sampled_from(principals))
    def ask(case: schemathesis.Case, name: str) -> None:
        token = world.caller(anonymous, name).token
        assert token is not None
        response = send(case, anonymous.http, token)
        answers[str(response.status_code)] += 1
        case.validate_response(response, checks=CHECKS)

    ask()
