"""Whether a federation may store what a further round makes."""

from backend.db.models import Run
from backend.storage.usage import QuotaExceededError, require_room
from worker.federated.errors import FederatedError
from worker.platform import Platform


def require_room_for_round(platform: Platform, run: Run) -> None:
    """Passes while the federation of a run is not full.

    Raises:
        FederatedError: it is; the run fails with this sentence and can be resumed later.
    """
    with platform.session_factory() as session:
        try:
            require_room(session, run.federation_id, platform.settings)
        except QuotaExceededError as error:
            raise FederatedError(f"{error.message} Resume the run then.") from error
