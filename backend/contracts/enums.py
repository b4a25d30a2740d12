"""The closed vocabularies that every program, table and URL shares."""

from enum import StrEnum


class Role(StrEnum):
    """What a signed-in user may do."""

    ADMINISTRATOR = "administrator"
    OPERATOR = "operator"
    VIEWER = "viewer"


class Execution(StrEnum):
    """Where a client's training happens."""

    MANAGED = "managed"  # a worker of the platform trains for the client
    REMOTE = "remote"  # the client's own agent trains on its premises


class TaskKind(StrEnum):
    """What a client's model learns to do; decides prompt, answer format and scorer."""

    FILL_IN = "fill_in"  # generate a number
    CHOICE = "choice"  # pick one letter among the options
    PROGRAM = "program"  # write a small arithmetic program, scored by its value
    CLASSIFICATION = "classification"  # pick one label word
    IMAGE_CLASSIFICATION = "image_classification"  # pick one label for a picture


class RunStatus(StrEnum):
    """Life of a run; `backend.lifecycle` holds the allowed changes."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"  # begins nothing new until a person resumes it
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True when nothing will change any more by itself; a failed run may be resumed."""
        return self in {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}


class RoundKind(StrEnum):
    """What clients do in a round."""

    GAUGE = "gauge"  # before round 1: read public probe texts, send what the model makes of them
    TRAIN = "train"  # load the shared state, train, send shared matrices
    DELIVER = "deliver"  # load the final shared state, evaluate, export the adapter


class RoundStatus(StrEnum):
    """Life of a round."""

    OPEN = "open"  # clients are at work
    AGGREGATING = "aggregating"
    CLOSED = "closed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class SecureStep(StrEnum):
    """What clients of a round with secure aggregation are doing; in this order."""

    KEYS = "keys"  # each announces fresh public keys
    SHARES = "shares"  # each sends the others shares of its secrets, encrypted
    INPUTS = "inputs"  # each trains and sends its masked update
    UNMASKING = "unmasking"  # those whose update came tell the shares that open the sum


class UpdateStatus(StrEnum):
    """Life of one client's part of a round."""

    PENDING = "pending"
    TRAINING = "training"
    ACCEPTED = "accepted"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DROPPED = "dropped"  # its round closed without it
    REFUSED = "refused"  # it came, but could not be aggregated
    DECLINED = "declined"  # its client does not take part in the run


class AttemptOutcome(StrEnum):
    """How one attempt at a client update ended (null while it goes on)."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    EXPIRED = "expired"  # its lease ran out: the worker is gone or stuck
    RELEASED = "released"  # its worker was told to stop and gave it back
    CANCELLED = "cancelled"


class EventKind(StrEnum):
    """Typed events shown on the run page, oldest first."""

    RUN_CREATED = "run_created"
    RUN_QUEUED = "run_queued"
    RUN_ADMITTED = "run_admitted"  # its turn in its comparison has come
    RUN_STARTED = "run_started"
    RUN_PAUSED = "run_paused"
    RUN_RESUMED = "run_resumed"
    RUN_STOPPED_EARLY = "run_stopped_early"  # it has learned enough; the delivery follows
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    ROUND_OPENED = "round_opened"
    ROUND_AGGREGATED = "round_aggregated"
    ATTEMPT_STARTED = "attempt_started"
    ATTEMPT_EXPIRED = "attempt_expired"
    ATTEMPT_FAILED = "attempt_failed"
    DEADLINE_PASSED = "deadline_passed"  # of a round
    CLIENT_REFUSED = "client_refused"  # it does not take part in the run
    REFUSAL_WITHDRAWN = "refusal_withdrawn"
    CLIENT_LEFT_OUT = "client_left_out"  # the round goes on without it
    UPDATE_ACCEPTED = "update_accepted"
    UPDATE_REFUSED = "update_refused"
    UPDATE_LATE = "update_late"  # it came after its round had closed
    SECURE_STEP = "secure_step"  # the clients of a secure round go on to the next exchange
    ADAPTER_READY = "adapter_ready"


class StrategyName(StrEnum):
    """One snake_case name per strategy everywhere: file, database, URL, test id."""

    LOCAL_ONLY = "local_only"
    H2TUNE = "h2tune"
    FEDIT = "fedit"
    FFA_LORA = "ffa_lora"
    FEDSA_LORA = "fedsa_lora"
    FEDEX_LORA = "fedex_lora"
    FLORA = "flora"
    FED_PLORA = "fed_plora"
    HETLORA = "hetlora"
    FLEXLORA = "flexlora"
    FLORIST = "florist"
    HETEROTUNE = "heterotune"
    COLORA = "colora"
