"""Agents that sign: the key stays here, and the platform takes nothing else any more."""

import base64
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from backend.api_client import ApiError
from backend.contracts.signatures import SigningKeyPut, rotation_text
from backend.signatures import service
from tests.worker.agent.in_process import Site
from tests.worker.agent.test_agent import (
    data_file,
    do_next,
    make_agent,
    premises,
    refused_events,
    site,
)
from worker.agent.errors import AgentError
from worker.agent.keys import registered_signer
from worker.agent.premises import Premises
from worker.agent.signing import Signer

__all__ = ["data_file", "premises", "site"]  # fixtures


def test_what_an_agent_signs_is_verified_with_its_public_key_alone(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    path = agent.store.signing_key
    signer = registered_signer(site.api, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert registered_signer(site.api, path).fingerprint == signer.fingerprint  # kept
    run_id = site.start_run()
    do_next(site, replace(agent, signer=signer))
    with site.platform.session_factory() as session:
        (proof,) = service.signed_updates(session, run_id)
    text = (
        f"fedbraid update v1\nrun {run_id}\nclient {site.client_id}\nround 1\nattempt 1\n"
        f"sha256 {proof.sha256}"
    )
    Ed25519PublicKey.from_public_bytes(base64.b64decode(signer.public_key)).verify(
        base64.b64decode(proof.signature), text.encode()
    )


def test_an_agent_that_lost_its_key_is_told_and_its_update_is_not_used(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    registered_signer(site.api, agent.store.signing_key)
    run_id = site.start_run()
    do_next(site, agent)
    assert [event.data["code"] for event in refused_events(site)] == ["signature_missing"]
    assert "The update is not signed, and it has to be" in str(site.run(run_id).error)
    agent.store.signing_key.unlink()
    with pytest.raises(ApiError, match="must be signed by it: use"):
        registered_signer(site.api, agent.store.signing_key)


def test_a_key_is_rotated_by_the_one_before(site: Site, tmp_path: Path) -> None:
    first, second = registered_signer(site.api, tmp_path / "a"), Signer.fresh()
    text = rotation_text(site.client_id, second.fingerprint)
    put = SigningKeyPut(public_key=second.public_key, signature=first.sign(text))
    assert site.api.clients.put_signing_key(put).fingerprint == second.fingerprint
    keys = list(site.api.clients.signing_keys(site.client_id))
    assert [key.retired_at is None for key in keys] == [True, False]


def test_a_file_with_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("no key")
    with pytest.raises(AgentError, match=r"key\.pem holds no private key"):
        Signer.load(path)
