"""Kinds of runs against real processes: image models, the probe gauge, and text encoders."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
import torch
from transformers import AutoModelForImageClassification

from backend.api_client import ApiClient, ApiError
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import RunStatus, TaskKind
from backend.contracts.federations import FederationCreate
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.probe_sets import PLAIN_TEXT, ProbeSource
from backend.contracts.runs import LiveRun, RunCreate
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from tests.documented import BY_EMBEDDINGS, documented_classify
from tests.running_platform import RunningPlatform, run_platform
from tests.worker.federated.tiny import make_model, make_tokenizer
from worker.builtin_models.build_images import draw
from worker.federated.adapters.merging import merge_adapter

RANK = 4
LABEL_WORDS = {"minus": "bad", "plus": "good"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    folders = str(tmp_path_factory.getbasetemp())
    with run_platform(tmp_path_factory.mktemp("home"), FEDBRAID_MODEL_FOLDERS=folders) as running:
        yield running


def register(
    api: ApiClient,
    name: str,
    model: str | Path,
    task: TaskKind,
    dataset: BuiltinDataset | None = None,
) -> Client:
    source = "folder" if isinstance(model, Path) else "builtin"
    key = api.enrolment_keys.create(EnrolmentKeyCreate(label=name))
    return api.clients.register(
        ClientRegister(
            enrolment_key=key.secret,
            name=name,
            base_model=BaseModelRef(source=source, id=str(model)),
            lora_rank=RANK,
            task=task,
            dataset=dataset,
        )
    ).client


def builtin_client(api: ApiClient, model: str, task: BuiltinTaskName) -> Client:
    dataset = BuiltinDataset(task=task, num_train=16, num_validation=8, num_test=16)
    return register(api, f"{model}-{task}", model, BUILTIN_TASK_KINDS[task], dataset)


def complete(
    platform: RunningPlatform,
    api: ApiClient,
    name: str,
    clients: list[Client],
    strategy: Params,
    num_rounds: int,
    probes: bytes | None = None,
    **training: object,
) -> LiveRun:
    federation = api.federations.create(
        FederationCreate(name=name, global_rank=RANK, client_ids=[c.id for c in clients])
    )
    if probes is not None:
        api.federations.upload_probe_set(federation.id, probes, PLAIN_TEXT)
    settings = TrainingConfig.model_validate(
        {"local_steps": 4, "max_eval_examples": 16, **training}
    )
    body = RunCreate(strategy=strategy, num_rounds=num_rounds, training=settings)
    run = api.federations.create_run(federation.id, body)
    api.runs.start(run.id)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        live = api.runs.live(run.id)
        if live.run.status is RunStatus.COMPLETED:
            return live
        assert not live.run.status.is_terminal, f"{live.run.error}\n{platform.log()}"
        time.sleep(0.3)
    raise AssertionError(f"not completed: {live.run}\n{platform.log()}")


def measured(live: LiveRun, name: MetricName) -> dict[tuple[UUID | None, int], float]:
    return {
        (point.client_id, point.round_number): point.value
        for point in live.metrics
        if point.name is name and point.scope == "round"
    }


def drawings() -> bytes:
    """An archive of two kinds of drawings, as a person would make it."""
    source, buffer = Random(0), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, count in (("train", 12), ("validation", 4), ("test", 8)):
            for label in ("ring", "cross"):
                for number in range(count):
                    picture = io.BytesIO()
                    draw(label, source).resize((32, 32)).save(picture, "PNG")
                    archive.writestr(f"{split}/{label}/{number}.png", picture.getvalue())
    return buffer.getvalue()


@pytest.mark.timeout(600)
def test_image_models_train_on_digits_and_on_uploaded_pictures(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    with platform.sign_in() as api:
        digits = builtin_client(api, "tiny_vit", BuiltinTaskName.HANDWRITTEN_DIGITS)
        uploaded = register(api, "drawings", "tiny_deit", TaskKind.IMAGE_CLASSIFICATION)
        uploaded = api.clients.upload_pictures(uploaded.id, drawings())
        live = complete(
            platform, api, "pictures", [digits, uploaded], H2TuneParams(), 1, local_steps=30
        )
        accuracy = measured(live, MetricName.ACCURACY_DELIVERED)
        assert set(accuracy) == {(digits.id, 2), (uploaded.id, 2)}
        assert accuracy[uploaded.id, 2] > 0.5, "two kinds that the model saw in pre-training"
        assert measured(live, MetricName.BYTES_UP)[digits.id, 1] > 0
        archive = api.runs.download_adapter(live.run.id, uploaded.id, tmp_path / "adapter.zip")
    merge_adapter(uploaded.base_model, archive, tmp_path / "merged")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "cross", 1: "ring"}
    with torch.no_grad():
        assert torch.isfinite(model(pixel_values=torch.zeros(1, 3, 16, 16)).logits).all()


@pytest.mark.timeout(600)
def test_the_probe_gauge_runs_on_two_families(platform: RunningPlatform) -> None:
    gauge = H2TuneParams(gauge="probe", joint_rounds=0, mask_warmup_rounds=0, train_alignment=False)
    with platform.sign_in() as api:
        task = BuiltinTaskName.STORY_CLASSIFICATION
        clients = [builtin_client(api, model, task) for model in ("tiny_llama", "tiny_gemma")]
        live = complete(platform, api, "probe", clients, gauge, 2, answer_loss="labels")
        changes = measured(live, MetricName.SHARED_CHANGE)
        received = measured(live, MetricName.BYTES_DOWN)
        for client in clients:
            assert changes[client.id, 1] > 0
            assert changes[client.id, 2] > 0
            # Codes go down once, with the first plan.
            assert received[client.id, 1] > received[client.id, 2] > 0
        waits = measured(live, MetricName.SECONDS_WAIT)
        gaps = measured(live, MetricName.AGGREGATION_GAP)
        assert len(waits) == 6
        assert {number for _, number in gaps} == {2, 3}
        assert all("seconds_aggregate" in r.report for r in live.rounds if r.round_number < 3)


@pytest.mark.timeout(600)
def test_models_agree_on_the_probe_texts_of_their_federation(platform: RunningPlatform) -> None:
    texts = [f"The {animal} slept for {hours} hours." for animal in ("cat", "dog", "hen", "pig")
             for hours in range(15)]  # fmt: skip
    params = H2TuneParams(gauge="probe", codes="exchange")
    with platform.sign_in() as api:
        task = BuiltinTaskName.ARITHMETIC_CHOICE
        clients = [builtin_client(api, model, task) for model in ("tiny_qwen2", "tiny_llama")]
        probes = "\n".join(texts).encode()
        live = complete(platform, api, "own probes", clients, params, 1, probes)
        found = api.federations.probe_set(live.run.federation_id)
        assert (found.source, found.num_texts) == (ProbeSource.UPLOADED, len(texts))
        assert live.run.probe_set_sha256 == found.sha256
        assert [entry.kind for entry in live.rounds] == ["gauge", "train", "deliver"]
        sent = measured(live, MetricName.BYTES_UP)
        triangle = 4 * len(texts) * (len(texts) + 1) // 2
        for client in clients:
            whole = sent[client.id, 0] / triangle
            assert 14 <= whole < 15, "7 roles with 2 sides each, and little around them"


def described(*labels: str) -> list[dict[str, str]]:
    """Thirty-six texts in two classes; the first row of each given class describes it."""
    words, rows = ("film", "story", "good", "bad", "happy", "sad"), []
    missing = {label: f"the film was {LABEL_WORDS[label]}" for label in labels}
    for number, (first, second) in enumerate(product(words, words)):
        row = {
            "question": f"the {first} was {second}",
            "answer": ("minus", "plus")[(number // 4 + len(second)) % 2],
            "split": ("train", "test", "train", "validation")[number % 4],
        }
        if row["answer"] in missing:
            row["label_text"] = missing.pop(row["answer"])
        rows.append(row)
    return rows


def as_lines(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@pytest.mark.timeout(600)
def test_text_encoders_start_from_described_labels_and_stock_libraries_use_them(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    clients, bases, rows = [], {}, described("minus", "plus")
    with platform.sign_in() as api:
        for family in ("bert", "distilbert"):
            base = tmp_path / family
            make_model(family).base_model.save_pretrained(base)
            make_tokenizer().save_pretrained(base)
            client = register(api, family, base, TaskKind.CLASSIFICATION)
            with pytest.raises(ApiError, match="no row describes the label 'plus'"):
                api.clients.upload_dataset(client.id, as_lines(described("minus")))
            clients.append(api.clients.upload_dataset(client.id, as_lines(rows)))
            bases[client.id] = base
        live = complete(platform, api, "encoders", clients, H2TuneParams(), 2, learning_rate=0.01)
        reported = measured(live, MetricName.ACCURACY_DELIVERED)
        for client in clients:
            archive = api.runs.download_adapter(
                live.run.id, client.id, tmp_path / f"{client.name}.zip"
            )
            with zipfile.ZipFile(archive) as content:
                content.extractall(tmp_path / "adapters" / client.name)
    test = [row for row in rows if row["split"] == "test"]
    for client in clients:
        folder = tmp_path / "adapters" / client.name
        found = documented_classify(BY_EMBEDDINGS, bases[client.id], folder, tmp_path)(
            [row["question"] for row in test]
        )
        right = sum(a == row["answer"] for a, row in zip(found, test, strict=True))
        assert right / len(test) == reported[client.id, 3]
