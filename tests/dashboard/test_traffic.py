from datetime import UTC, datetime

from backend.contracts.quotas import QuotaName, QuotaUse
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform, three_clinics
from tests.dashboard.reading import Open


def test_operators_see_what_is_used(platform: FakePlatform, open_page: Open) -> None:
    federation = three_clinics(platform)
    platform.usage = [
        QuotaUse(
            name=QuotaName.REQUESTS_PER_HOUR, used=1200, allowed=36000, resets_at=datetime.now(UTC)
        ),
        QuotaUse(name=QuotaName.BYTES_PER_DAY, used=2048, allowed=None, resets_at=None),
    ]
    app = open_page(pages.CLIENT, id=str(federation.clients[0].id))
    assert [(tile.label, tile.value) for tile in app.metric] == [
        ("Requests this hour of 36,000", "1,200"),
        ("Bytes today", "2.0 KiB"),
    ]
