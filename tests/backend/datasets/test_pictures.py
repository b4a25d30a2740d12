"""Pictures as a client's data set."""

from typing import Any

from sqlalchemy import Engine

from backend.storage import BlobStore
from tests.backend.contracts.test_image_archive import GOOD, packed
from tests.factories import ROWS, Caller, make_client, make_key, problem, registration, unchanged

ZIP = {"Content-Type": "application/zip"}
IMAGES: dict[str, Any] = {
    "base_model": {"source": "builtin", "id": "tiny_vit"},
    "task": "image_classification",
}


def test_an_archive_becomes_the_clients_data(operator: Caller, blob_store: BlobStore) -> None:
    client, as_client = make_client(operator, dataset=None, **IMAGES)
    content = packed(GOOD)
    path = f"/clients/{client['id']}/dataset"
    answer = as_client.put(path, content=content, headers=ZIP)
    assert answer.status_code == 200, answer.text
    dataset = answer.json()["dataset"]
    assert dataset["format"] == "image_archive"
    assert (dataset["num_train"], dataset["num_validation"], dataset["num_test"]) == (2, 1, 1)
    assert blob_store.read(dataset["sha256"]) == content


def test_a_bad_archive_changes_nothing(operator: Caller, engine: Engine) -> None:
    client, _ = make_client(operator, dataset=None, **IMAGES)
    path = f"/clients/{client['id']}/dataset"
    bad = packed(GOOD | {"train/cat/x.png": b"text"})
    with unchanged(engine):
        refused = problem(operator.put(path, content=bad, headers=ZIP), 422, "dataset_refused")
        assert refused["errors"][0]["field"] == "train/cat/x.png"
        problem(operator.put(path, content=ROWS, headers=ZIP), 422, "dataset_refused")


def test_model_and_task_must_fit(operator: Caller) -> None:
    secret = make_key(operator)["secret"]
    for changes in ({**IMAGES, "task": "fill_in"}, {"task": "image_classification"}):
        body = registration(secret, **{"dataset": None, **changes})
        refused = problem(operator.post("/clients/register", body), 422, "invalid")
        assert refused["errors"][0]["field"] == "base_model.id"
    digits = {"source": "builtin", "task": "handwritten_digits", "num_train": 5000}
    body = registration(secret, **IMAGES, dataset=digits)
    assert operator.post("/clients/register", body).status_code == 422
    digits["num_train"] = 40
    assert operator.post("/clients/register", body).status_code == 201
