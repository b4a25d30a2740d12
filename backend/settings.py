"""The only reader of the environment. Every setting has a name, a unit and a safe default."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

from platformdirs import user_data_path
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.contracts.enums import Role


class Settings(BaseSettings):
    """Values from environment variables; those of services have their customary names.

    An empty service URL means: use the embedded service of `fedbraid up`.
    """

    model_config = SettingsConfigDict(
        env_prefix="FEDBRAID_", env_ignore_empty=True, extra="ignore", populate_by_name=True
    )

    home: Path = Field(
        default_factory=lambda: user_data_path("fedbraid"),
        description="state of the embedded services, blobs, generated secrets, logs",
    )
    database_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("DATABASE_URL", "FEDBRAID_DATABASE_URL")
    )
    redis_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("REDIS_URL", "FEDBRAID_REDIS_URL")
    )
    blob_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BLOB_URL", "FEDBRAID_BLOB_URL"),
        description="file:///folder or s3://bucket/prefix (credentials: the AWS_* variables)",
    )
    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=0, le=65535, description="0: any free port")
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = Field(8501, ge=0, le=65535, description="0: any free port")
    api_url: str | None = Field(None, description="where the dashboard finds the API")
    admin_password: SecretStr | None = Field(
        None, description="of the first administrator; generated when empty"
    )
    requests_per_minute: int = Field(1_200, ge=1, description="of one token")
    requests_per_minute_per_address: int = Field(6_000, ge=1)
    client_requests_per_hour: int = Field(
        36_000, ge=0, description="with the credential of one client; 0: any number"
    )
    client_bytes_per_day: int = Field(
        100 * 2**30, ge=0, description="sent and received by one client; 0: any number"
    )
    federation_requests_per_hour: int = Field(
        10_000_000, ge=0, description="about one federation, of users and clients; 0: any number"
    )
    federation_bytes_per_day: int = Field(
        2**40, ge=0, description="of these requests and their answers; 0: any number"
    )
    sign_ins_per_minute_per_address: int = Field(30, ge=1)
    session_hours: float = Field(12.0, gt=0)
    secret_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="seals what must be read again, such as second factors; the same for every API "
        "process; generated into `home` when empty",
    )
    oidc_issuer: str | None = Field(
        None, description="the sign-in service (OpenID Connect), exactly as it calls itself"
    )
    oidc_client_id: str | None = Field(None, description="this platform's name at that service")
    oidc_client_secret: SecretStr | None = None
    oidc_redirect_url: str | None = Field(
        None,
        pattern=r"^https?://.+/api/v1/oidc/callback$",
        description="`/api/v1/oidc/callback` of this API, as browsers reach it",
    )
    oidc_dashboard_url: str = Field(
        "http://127.0.0.1:8501/", description="where people go once they are signed in"
    )
    oidc_allowed_domains: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="of verified e-mail addresses, separated by ','; empty: any",
    )
    oidc_default_role: Role | None = Field(
        None,
        description="of people who sign in for the first time; empty: only those come in for whom "
        "an administrator made a user whose name is their verified address",
    )
    max_dataset_bytes: int = Field(64 * 2**20, gt=0)
    max_update_bytes: int = Field(
        256 * 2**20, gt=0, description="of the shared matrices that a remote client sends"
    )
    max_archive_bytes: int = Field(
        4 * 2**30,
        gt=0,
        description="of a federation that is imported over the API, where it waits in the folder "
        "for temporary files; `fedbraid import-federation` has no limit",
    )
    model_folders: Annotated[list[Path], NoDecode] = Field(
        default_factory=list,
        description="folders below which `folder` base models may lie, separated by ':'",
    )
    garbage_grace_hours: float = Field(
        24.0, gt=0, description="stored bytes that nothing refers to are kept for this long"
    )
    garbage_interval_hours: float = Field(
        1.0, gt=0, description="how often the sweep removes stored bytes that nothing needs"
    )
    retention_days: float | None = Field(
        None,
        ge=0,
        description="plans, updates and private factors of a run are kept for so long after its "
        "end; empty: forever; a federation may have its own",
    )
    retention_rounds: int = Field(
        0, ge=0, description="the last rounds of every ended run keep theirs for ever"
    )
    quota_bytes: int | None = Field(
        None,
        ge=0,
        description="stored bytes of one federation; empty: no limit; a federation may have its "
        "own",
    )
    presigned_urls: bool = Field(
        False,
        description="clients send long shared matrices to S3 and fetch blobs from it by "
        "themselves, with signed addresses; without effect where BLOB_URL is a folder",
    )
    presigned_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/]+/?$",
        description="of S3, as clients reach it; empty: AWS_ENDPOINT_URL, as this program does",
    )
    presigned_seconds: int = Field(
        900, ge=1, le=7 * 86_400, description="how long a signed address counts"
    )
    blob_patience_seconds: float = Field(
        120.0, ge=0, description="a job waits this long for a blob store that is away"
    )
    lease_seconds: float = Field(
        30.0, gt=0, description="an attempt without a heartbeat for this long is given up"
    )
    max_attempts: int = Field(3, ge=1, description="tries at one client update before it fails")
    comparison_runs_at_once: int = Field(
        2, ge=1, description="runs of one comparison that go on together; the others wait"
    )
    remote_wait_hours: float = Field(
        72.0, gt=0, description="a run fails when a remote client's agent asks for no work so long"
    )
    sweep_interval_seconds: float = Field(2.0, gt=0)
    torch_threads: int = Field(1, ge=1, description="per training worker")
    worker_folder: Path | None = Field(
        None,
        description="what a worker keeps for itself, such as how far its rounds are; empty: the "
        "folder `worker` in FEDBRAID_HOME",
    )
    checkpoint_interval_seconds: float = Field(
        60.0, ge=0, description="how often a worker saves how far a round is"
    )
    ready_file: Path | None = Field(
        None, description="exists while a worker with `--include worker.readiness` takes jobs"
    )
    log_level: str = "INFO"

    @field_validator("model_folders", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        return value.split(":") if isinstance(value, str) else value

    @field_validator("oidc_allowed_domains", mode="before")
    @classmethod
    def _split_domains(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip().lower() for part in value.split(",") if part.strip()]


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
