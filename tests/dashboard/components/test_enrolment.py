import json
import shlex

from backend.contracts.clients import ClientRegister
from dashboard.components.enrolment import registration_call


def test_the_call_is_what_a_shell_and_the_contract_accept() -> None:
    words = shlex.split(
        registration_call("http://127.0.0.1:8000", "fbe_o'clock").replace("\\\n", "")
    )
    assert words[:2] == ["curl", "-sS"]
    assert "http://127.0.0.1:8000/api/v1/clients/register" in words
    body = ClientRegister.model_validate(json.loads(words[words.index("-d") + 1]))
    assert body.enrolment_key.get_secret_value() == "fbe_o'clock"
