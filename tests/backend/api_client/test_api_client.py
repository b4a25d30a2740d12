import json
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from backend.api_client.client import ApiClient
from backend.api_client.errors import (
    ApiError,
    ApiUnreachableError,
    UnauthenticatedError,
    UnexpectedAnswerError,
)
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister
from backend.contracts.enums import TaskKind
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import RunCreate

FEDERATION_ID = UUID(int=7)
CLIENT_ID = UUID(int=8)
RUN_ID = UUID(int=9)

USER = {
    "id": str(UUID(int=1)),
    "username": "ada",
    "role": "administrator",
    "created_at": "2026-01-01T00:00:00Z",
}


def client(handler: Callable[[httpx.Request], httpx.Response], **options: object) -> ApiClient:
    return ApiClient(
        "http://api.test/",
        transport=httpx.MockTransport(handler),
        backoff_seconds=0,
        **options,  # type: ignore[arg-type]
    )


def test_sign_in_sends_the_password_in_clear_and_uses_the_token() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/api/v1/sessions":
            return httpx.Response(
                201, json={"token": "fbs_1", "expires_at": "2026-01-02T00:00:00Z", "user": USER}
            )
        return httpx.Response(200, json=USER)

    with client(handler) as api:
        api.sign_in("ada", "correct horse battery")
        assert api.users.me().username == "ada"

    assert json.loads(seen[0].content) == {
        "username": "ada",
        "password": "correct horse battery",
        "code": None,
    }
    assert "Authorization" not in seen[0].headers
    assert seen[1].headers["Authorization"] == "Bearer fbs_1"


def test_registration_reveals_the_enrolment_key_to_the_server_only() -> None:
    bodies: list[dict[str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(500, text="enough")

    registration = ClientRegister(
        enrolment_key=SecretStr("fbe_secret"),
        name="north",
        base_model=BaseModelRef(source="builtin", id="tiny_llama"),
        lora_rank=8,
        task=TaskKind.FILL_IN,
    )
    with client(handler) as api, pytest.raises(ApiError):
        api.clients.register(registration)
    assert bodies[0]["enrolment_key"] == "fbe_secret"
    assert "fbe_secret" not in repr(registration)


def test_lists_walk_all_pages_in_order() -> None:
    cursors: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("cursor")
        cursors.append(cursor)
        name, following = {None: ("first", "2"), "2": ("second", "3"), "3": ("third", None)}[cursor]
        return httpx.Response(
            200, json={"items": [{**USER, "username": name}], "next_cursor": following}
        )

    with client(handler) as api:
        assert [user.username for user in api.users.list()] == ["first", "second", "third"]
    assert cursors == [None, "2", "3"]


def test_lists_fetch_no_page_before_it_is_needed() -> None:
    calls = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(200, json={"items": [USER], "next_cursor": "more"})

    with client(handler) as api:
        next(api.users.list())
    assert calls == 1


def test_a_problem_becomes_a_readable_error_with_its_fields() -> None:
    problem = {
        "title": "Unprocessable",
        "status": 422,
        "code": "invalid",
        "detail": "The request has 1 wrong field.",
        "errors": [
            {
                "field": "training.learning_rate",
                "value": 7,
                "message": "must be at most 1",
            }
        ],
    }
    with (
        client(lambda _: httpx.Response(422, json=problem)) as api,
        pytest.raises(ApiError) as caught,
    ):
        api.federations.create_run(FEDERATION_ID, RunCreate(strategy=H2TuneParams()))
    assert str(caught.value) == (
        "The request has 1 wrong field. training.learning_rate: must be at most 1"
    )
    assert (caught.value.status, caught.value.code) == (422, "invalid")
    assert [error.field for error in caught.value.field_errors] == ["training.learning_rate"]


def test_401_is_its_own_error() -> None:
    problem = {"title": "Unauthorized", "status": 401, "code": "expired", "detail": "Over."}
    with (
        client(lambda _: httpx.Response(401, json=problem)) as api,
        pytest.raises(UnauthenticatedError, match=r"^Over\.$"),
    ):
        api.users.me()


def test_an_answer_of_a_proxy_is_still_an_api_error() -> None:
    with (
        client(lambda _: httpx.Response(502, text="<html>")) as api,
        pytest.raises(ApiError, match=r"HTTP 502 Bad Gateway from http://api\.test/api/v1/users"),
    ):
        list(api.users.list())


def test_an_answer_of_another_program_is_named() -> None:
    with (
        client(lambda _: httpx.Response(200, text="<html>hello")) as api,
        pytest.raises(UnexpectedAnswerError, match="same version"),
    ):
        api.users.me()


@pytest.mark.parametrize(("max_retries", "succeeds"), [(0, False), (1, False), (2, True)])
def test_gets_are_retried_a_bounded_number_of_times(max_retries: int, succeeds: bool) -> None:
    calls = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=USER)

    with client(handler, max_retries=max_retries) as api:
        if succeeds:
            assert api.users.me().username == "ada"
        else:
            with pytest.raises(ApiUnreachableError):
                api.users.me()
    assert calls == max_retries + 1


def test_other_methods_are_never_repeated() -> None:
    calls = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise httpx.ReadError("broken")

    with client(handler) as api, pytest.raises(ApiUnreachableError) as caught:
        api.runs.start(RUN_ID)
    assert calls == 1
    assert str(caught.value) == (
        "The FedBraid API at http://api.test does not answer (broken). "
        "Check the address and that the platform is running (`fedbraid up`)."
    )


def test_refusals_are_not_retried() -> None:
    calls = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(503, text="busy")

    with client(handler) as api, pytest.raises(ApiError):
        api.users.me()
    assert calls == 1


def test_adapter_is_streamed_into_the_file(tmp_path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == f"/api/v1/runs/{RUN_ID}/clients/{CLIENT_ID}/adapter"
        return httpx.Response(200, content=iter([b"PK", b"\x03\x04", b"rest"]))

    with client(handler) as api:
        target = api.runs.download_adapter(RUN_ID, CLIENT_ID, tmp_path / "north.zip")
    assert target.read_bytes() == b"PK\x03\x04rest"
    assert [path.name for path in tmp_path.iterdir()] == ["north.zip"]


def test_a_refused_adapter_leaves_no_complete_file(tmp_path) -> None:
    problem = {"title": "Not found", "status": 404, "code": "not_found", "detail": "No adapter."}
    with (
        client(lambda _: httpx.Response(404, json=problem)) as api,
        pytest.raises(ApiError, match="No adapter"),
    ):
        api.runs.download_adapter(RUN_ID, CLIENT_ID, tmp_path / "north.zip")
    assert not (tmp_path / "north.zip").exists()


def test_dataset_upload_streams_lines_with_their_media_type(tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"question": "1+1"}\n{"question": "2+2"}\n')
    seen: list[tuple[str, str, bytes]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.headers["Content-Type"], request.read()))
        return httpx.Response(400, text="enough")

    with client(handler) as api, path.open("rb") as lines, pytest.raises(ApiError):
        api.clients.upload_dataset(CLIENT_ID, lines)
    assert seen == [("PUT", "application/x-ndjson", path.read_bytes())]


def test_live_passes_its_cursor() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, text=request.url.params["after"])

    with client(handler) as api, pytest.raises(ApiError, match="after=17"):
        api.runs.live(RUN_ID, after=17)
