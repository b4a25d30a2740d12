"""One table a file. Importing this package registers all of them."""

from backend.db.models.attempt import Attempt
from backend.db.models.audit_entry import AuditEntry
from backend.db.models.blob import Blob
from backend.db.models.client import Client
from backend.db.models.client_update import ClientUpdate
from backend.db.models.comparison import Comparison
from backend.db.models.enrolment_key import EnrolmentKey
from backend.db.models.event import Event
from backend.db.models.federation import Federation
from backend.db.models.federation_member import FederationMember
from backend.db.models.membership import Membership
from backend.db.models.metric import Metric
from backend.db.models.refusal import Refusal
from backend.db.models.round import Round
from backend.db.models.run import Run
from backend.db.models.secure_session import SecureParty, SecureSession
from backend.db.models.sign_in_failure import SignInFailure
from backend.db.models.sign_in_ticket import SignInTicket
from backend.db.models.signing_key import SigningKey
from backend.db.models.token import Token
from backend.db.models.upload import Upload, UploadPiece
from backend.db.models.user import User

__all__ = [
    "Attempt",
    "AuditEntry",
    "Blob",
    "Client",
    "ClientUpdate",
    "Comparison",
    "EnrolmentKey",
    "Event",
    "Federation",
    "FederationMember",
    "Membership",
    "Metric",
    "Refusal",
    "Round",
    "Run",
    "SecureParty",
    "SecureSession",
    "SignInFailure",
    "SignInTicket",
    "SigningKey",
    "Token",
    "Upload",
    "UploadPiece",
    "User",
]
