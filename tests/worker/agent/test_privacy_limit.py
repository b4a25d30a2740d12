from uuid import uuid4

import pytest

from backend.contracts.agent import SecureTask, Work
from backend.contracts.enums import RoundKind
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings
from backend.contracts.training import TrainingConfig
from worker.agent.errors import PrivacyLimitError
from worker.agent.privacy_limit import require_masked, require_within


def work(
    noise: DifferentialPrivacy | None, round_number: int = 1, kind: RoundKind = RoundKind.TRAIN
) -> Work:
    return Work(
        client_update_id=uuid4(),
        fence=1,
        lease_seconds=60,
        run_id=uuid4(),
        round_number=round_number,
        num_rounds=5,
        kind=kind,
        strategy=FedItParams(),
        training=TrainingConfig(),
        privacy=PrivacySettings(differential_privacy=noise),
        plan_sha256="0" * 64,
        plan_size_bytes=1,
    )


STRONG = DifferentialPrivacy(noise_multiplier=10)  # epsilon 1.76 after 5 rounds


def test_the_whole_run_counts() -> None:
    require_within(work(STRONG), STRONG.epsilon_after(5))
    with pytest.raises(PrivacyLimitError, match=r"epsilon of 1\.76 over 5 rounds.*at most 1\.7 "):
        require_within(work(STRONG), 1.7)


def test_more_rounds_than_announced_count_too() -> None:
    with pytest.raises(PrivacyLimitError, match="raise noise_multiplier"):
        require_within(work(STRONG, round_number=6), STRONG.epsilon_after(5))


def test_no_noise_and_published_measurements_are_refused() -> None:
    with pytest.raises(PrivacyLimitError, match="no differential privacy"):
        require_within(work(None), 100.0)
    published = STRONG.model_copy(update={"publish_measurements": True})
    with pytest.raises(PrivacyLimitError, match="publishes measurements"):
        require_within(work(published), 100.0)


def test_without_a_limit_and_in_the_deliver_round_everything_passes() -> None:
    require_within(work(None), None)
    require_within(work(None, round_number=6, kind=RoundKind.DELIVER), 0.1)


def test_an_owner_may_demand_masks() -> None:
    with pytest.raises(PrivacyLimitError, match="sends updates behind masks only"):
        require_masked(work(STRONG))
    require_masked(work(STRONG, kind=RoundKind.DELIVER))
    task = SecureTask(session=1, threshold=3)
    require_masked(work(None).model_copy(update={"secure": task}))
