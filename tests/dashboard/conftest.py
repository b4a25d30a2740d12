import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.api_client import ApiClient
from dashboard import pages, session
from tests.dashboard.fake_platform import TOKEN, FakePlatform
from tests.dashboard.reading import Open

ENTRY = Path(session.__file__).parent / "streamlit_app.py"


@pytest.fixture(autouse=True)
def the_main_module_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that runs takes the name `__main__`; processes that later tests start would run it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    fake = FakePlatform()
    transport = fake.transport()
    monkeypatch.setattr(
        session,
        "connect",
        lambda token: ApiClient("http://fake.test", token, transport=transport, backoff_seconds=0),
    )
    return fake


@pytest.fixture
def signed_out(platform: FakePlatform) -> AppTest:
    return AppTest.from_file(str(ENTRY), default_timeout=30).run()


@pytest.fixture
def open_page(platform: FakePlatform) -> Open:
    """Opens a page as the administrator; keyword arguments are the address's query."""

    def open_it(page: str = pages.FEDERATIONS, **query: str) -> AppTest:
        app = AppTest.from_file(str(ENTRY), default_timeout=30)
        api = session.connect(TOKEN)
        app.session_state[session.TOKEN] = TOKEN
        app.session_state[session.USER] = platform.user
        app.session_state[session.API] = api
        if page != pages.FEDERATIONS:
            app.run()
            app.switch_page(page)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception
        return app

    return open_it
