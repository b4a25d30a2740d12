"""Signed updates, a refusal and turns of federations, against real processes over real HTTP."""

import base64
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import EventKind, Execution, RunStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.params.lora import FedItParams
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.runs import Run, RunCreate
from backend.contracts.training import TrainingConfig
from tests.e2e.test_remote_agent import agent_command, register, wait_for, write_data
from tests.running_platform import RunningPlatform, run_platform

TASK = BuiltinTaskName.ARITHMETIC_FILL_IN


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    with run_platform(tmp_path / "home") as running:
        yield running


def managed(api: ApiClient, secret: str, name: str) -> UUID:
    request = ClientRegister(
        enrolment_key=secret,
        name=name,
        base_model=BaseModelRef(source="builtin", id="tiny_gemma"),
        lora_rank=4,
        task=BUILTIN_TASK_KINDS[TASK],
        dataset=BuiltinDataset(task=TASK, num_train=8, num_validation=4, num_test=4),
    )
    return api.clients.register(request).client.id


def start(api: ApiClient, name: str, clients: list[UUID], **policy: int) -> Run:
    is_signed = any(api.clients.get(one).execution is Execution.REMOTE for one in clients)
    federation = api.federations.create(
        FederationCreate(name=name, client_ids=clients, require_signatures=is_signed)
    )
    create = RunCreate(
        strategy=FedItParams(),
        num_rounds=1,
        round_policy=RoundPolicy(**policy),
        training=TrainingConfig(local_steps=4, max_eval_examples=4),
    )
    return api.runs.start(api.federations.create_run(federation.id, create).id)


@pytest.mark.timeout(900)  # many processes start
def test_signatures_refusals_and_turns(platform: RunningPlatform, tmp_path: Path) -> None:
    write_data(tmp_path / "data.jsonl")
    with platform.sign_in() as api:
        key = api.enrolment_keys.create(EnrolmentKeyCreate(label="trust", max_uses=9)).secret
        register(platform, tmp_path, key)
        (remote,) = (one for one in api.clients.list() if one.execution is Execution.REMOTE)
        many = [managed(api, key, f"many-{number}") for number in range(4)]
        few = managed(api, key, "few")
        with (tmp_path / "agent.log").open("ab") as log:
            agent = subprocess.Popen(
                agent_command(
                    *("run", "--api-url", platform.api_url, "--model", "builtin:tiny_gemma"),
                    *("--credential-file", str(tmp_path / "credential"), "--sign"),
                    *("--data", str(tmp_path / "data.jsonl"), "--state", str(tmp_path / "state")),
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            pem = tmp_path / "state" / str(remote.id) / "signing-key.pem"
            while not (pem.exists() and list(api.clients.signing_keys(remote.id))):
                assert agent.poll() is None, (tmp_path / "agent.log").read_text()
                time.sleep(0.2)
            large = start(api, "large", many)
            small = start(api, "small", [few])
            signed = start(api, "signed", [remote.id, few], min_clients=1)
            for run in (large, small, signed):
                live = wait_for(
                    platform, tmp_path, api, run.id, lambda live: live.run.status.is_terminal
                )
                assert live.run.status is RunStatus.COMPLETED, live.run.error
        finally:
            agent.terminate()
            agent.wait(30)
        (proof,) = api.runs.signatures(signed.id)
        Ed25519PublicKey.from_public_bytes(base64.b64decode(proof.public_key)).verify(
            base64.b64decode(proof.signature), proof.signed_text.encode()
        )
        assert f"run {signed.id}" in proof.signed_text
        assert oct(pem.stat().st_mode)[-3:] == "600"
        ends = {run.id: api.runs.get(run.id).ended_at for run in (large, small)}
        assert str(ends[small.id]) < str(ends[large.id])  # not held up by the four
        refused = start(api, "refused", [remote.id, few], min_clients=1)
        told = subprocess.run(
            agent_command(
                *("refuse", "--api-url", platform.api_url, "--run", str(refused.id)),
                *("--credential-file", str(tmp_path / "credential"), "--reason", "Not agreed."),
            ),
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert f"does not take part in run {refused.id}: Not agreed." in told.stdout
        live = wait_for(
            platform, tmp_path, api, refused.id, lambda live: live.run.status.is_terminal
        )
        assert live.run.status is RunStatus.COMPLETED, live.run.error
        assert [one.client_id for one in live.refusals] == [remote.id]
        kinds = {event.kind for event in api.runs.events(refused.id)}
        assert EventKind.CLIENT_REFUSED in kinds
