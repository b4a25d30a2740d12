from datetime import UTC, datetime
from uuid import uuid4

from backend.contracts.enums import Execution
from backend.contracts.signatures import SigningKey
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of
from tests.dashboard.test_pages import button


def test_an_operator_sees_and_retires_a_remote_clients_key(
    platform: FakePlatform, open_page: Open
) -> None:
    client = platform.add_client("north", execution=Execution.REMOTE)
    assert "its updates are unsigned" in text_of(open_page(pages.CLIENT, id=str(client.id)))
    platform.signing_keys[client.id] = [
        SigningKey(
            id=uuid4(), client_id=client.id, public_key="A" * 43 + "=", fingerprint="ab" * 32,
            created_at=datetime.now(UTC), retired_at=None,
        )
    ]  # fmt: skip
    app = open_page(pages.CLIENT, id=str(client.id))
    assert app.dataframe[0].value["Fingerprint (SHA-256)"].tolist() == ["ab" * 32]
    button(app, "Yes, retire it").click().run()
    assert platform.signing_keys[client.id][0].retired_at is not None
    assert "Yes, retire it" not in [item.label for item in app.button]
