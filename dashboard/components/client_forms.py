"""Forms about clients: a built-in one to try things out, and data for any."""

from collections.abc import Mapping, Sequence

import streamlit as st
from pydantic import SecretStr, ValidationError

from backend.api_client.client import ApiClient
from backend.api_client.errors import ApiError, UnauthenticatedError
from backend.contracts.base_models import BaseModelInfo, Reads
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskInfo
from backend.contracts.enums import Execution, TaskKind
from dashboard.components.formatting import escape
from dashboard.components.labels import dataset_text, split_text

DONE = "client_forms.done"
_ROWS = (
    "One JSON object a line, with `question`, `answer` and `split` (`train`, `validation` or "
    "`test`); `options` for multiple choice."
)
_LABEL_TEXT = (
    "Text encoders start from what the labels say. For labels that say little, add `label_text`, a "
    "sentence such as `This movie is wonderful.`, to one row of each label."
)
_ROWS_EXAMPLE = (
    '{"question": "What is 2 + 3?", "answer": "5", "split": "train"}\n'
    '{"question": "What is 4 + 4?", "answer": "8", "split": "test"}'
)
_PICTURES = (
    "A zip of PNG and JPEG files: `<label>/<file>`, which is split 80/10/10, or "
    "`train/<label>/<file>`, `validation/<label>/<file>` and `test/<label>/<file>`."
)


def add_builtin_client(api: ApiClient) -> None:
    """A form that registers a client with a built-in model and built-in data."""
    st.markdown(
        "A built-in client has a tiny pre-trained model and generated data, and trains on the "
        "platform: enough to see a whole federation at work on a laptop."
    )
    models = api.catalogue.base_models()
    tasks = api.catalogue.builtin_tasks()
    if not models or not tasks:
        st.warning("This platform ships no built-in models or tasks.")
        return
    # Outside of the form: which tasks there are to choose from depends on the model.
    model = st.selectbox("Base model", models, format_func=_model_label)
    tasks = [info for info in tasks if _reads(info) == model.reads]
    with st.form("builtin", border=True):
        left, right = st.columns([4, 1])
        name = left.text_input("Name", placeholder="north-clinic", max_chars=100)
        rank = right.number_input("LoRA rank", 1, 4096, 8)
        left, middle, right = st.columns([2, 2, 1])
        task = left.selectbox(
            "Task", tasks, format_func=lambda info: info.name.value.replace("_", " ")
        )
        with middle:
            train, test = st.columns(2)
        num_train = train.number_input("Training rows", 1, 10_000, 64)
        num_test = test.number_input("Test rows", 1, 10_000, 128)
        seed = right.number_input("Data seed", 0, 2**31 - 1, 0, help="Other seed, other rows")
        sent = st.form_submit_button("Add client", type="primary", icon=":material/add:")
    if sent:
        _register(
            api,
            name,
            model,
            rank,
            task,
            {"task": task.name, "seed": seed, "num_train": num_train, "num_test": num_test},
        )
    done = st.session_state.pop(DONE, None)
    if done:
        st.success(escape(done), icon=":material/check:")


def upload_dataset(api: ApiClient, clients: Sequence[Client]) -> None:
    """Replace a client's rows by a file of JSON lines, or its pictures by a zip."""
    managed = [client for client in clients if client.execution is Execution.MANAGED]
    if not managed:
        st.caption("Register a client first; then its data can be uploaded here.")
        return
    st.markdown("For clients that train on the platform.")
    client = st.selectbox(
        "Client", managed, format_func=lambda item: item.name, key="upload.client"
    )
    has_pictures = client.task is TaskKind.IMAGE_CLASSIFICATION
    if has_pictures:
        st.markdown(_PICTURES)
    else:
        st.markdown(_ROWS)
        st.code(_ROWS_EXAMPLE, language="json")
        if client.task is TaskKind.CLASSIFICATION:
            st.caption(_LABEL_TEXT)
    st.caption(
        escape(f"Now: {dataset_text(client.dataset)}; rows: {split_text(client.dataset)}")
        + " (training / validation / test)"
    )
    file = (
        st.file_uploader("Pictures (zip)", type=["zip"], key="upload.pictures")
        if has_pictures
        else st.file_uploader("JSON lines", type=["jsonl", "ndjson"], key="upload.file")
    )
    if st.button("Upload", type="primary", disabled=file is None) and file is not None:
        try:
            send = api.clients.upload_pictures if has_pictures else api.clients.upload_dataset
            with st.spinner("Uploading and checking all of it"):
                changed = send(client.id, file)
        except UnauthenticatedError:
            raise
        except ApiError as error:
            st.error(escape(str(error)), icon=":material/error:")
        else:
            st.success(
                escape(f"{changed.name} has new data: {split_text(changed.dataset)} rows."),
                icon=":material/check:",
            )


def _register(
    api: ApiClient,
    name: str,
    model: BaseModelInfo,
    rank: int,
    task: BuiltinTaskInfo,
    dataset: Mapping[str, object],
) -> None:
    """Register with a key made for this one client."""
    if not name.strip():
        st.error("Give the client a name.")
        return
    try:
        rows = BuiltinDataset.model_validate(dataset)
        key = api.enrolment_keys.create(
            EnrolmentKeyCreate(label=f"built-in: {name.strip()}"[:100], expires_in_hours=1)
        )
        made = api.clients.register(
            ClientRegister(
                enrolment_key=SecretStr(key.secret),
                name=name,
                base_model=model.ref,
                lora_rank=rank,
                task=task.kind,
                dataset=rows,
            )
        )
    except ValidationError as error:
        st.error(escape(str(error.errors(include_url=False)[0]["msg"])))
    except UnauthenticatedError:
        raise
    except ApiError as error:
        st.error(escape(str(error)), icon=":material/error:")
    else:
        st.session_state[DONE] = f"{made.client.name} is ready to join a federation."
        st.rerun()


def _reads(task: BuiltinTaskInfo) -> Reads:
    return "image" if task.kind is TaskKind.IMAGE_CLASSIFICATION else "text"


def _model_label(info: BaseModelInfo) -> str:
    shape = info.architecture
    return f"{info.ref.id} ({shape.num_layers} layers × {shape.hidden_size})"
