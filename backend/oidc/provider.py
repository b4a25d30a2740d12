"""What is asked of the sign-in service: where it is, a token for a code, and who that is about."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from pydantic import BaseModel, ValidationError

from backend.errors import PlatformError, UnauthenticatedError

TIMEOUT_SECONDS = 10.0
LEEWAY_SECONDS = 60  # clocks differ
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]  # never a secret that both sides share


class SignInServiceError(PlatformError):
    """The sign-in service is away, or answers what it must not."""

    status = 502
    code = "sign_in_service_failed"


class Endpoints(BaseModel):
    """The part of the service's description that is used."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class Keys(BaseModel):
    """With which the service signs; RFC 7517."""

    keys: list[dict[str, Any]]


class Claims(BaseModel):
    """Who signed in, as the service says; only a verified address counts."""

    sub: str
    email: str | None = None
    email_verified: bool = False


@dataclass(frozen=True)
class Provider:
    """The configured sign-in service.

    Its description and keys are read at each sign-in, so a change of keys needs no restart.
    """

    issuer: str
    client_id: str
    client_secret: str
    redirect_url: str

    def endpoints(self) -> Endpoints:
        """Where the service is.

        Raises:
            SignInServiceError: it does not answer, or describes another one.
        """
        document = self._json("GET", f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        try:
            found = Endpoints.model_validate(document)
        except ValidationError as error:
            raise SignInServiceError(
                f"The sign-in service {self.issuer} does not describe itself as OpenID Connect "
                "asks. Check FEDBRAID_OIDC_ISSUER."
            ) from error
        if found.issuer != self.issuer:
            raise SignInServiceError(
                f"The sign-in service calls itself {found.issuer!r}, not {self.issuer!r}. Set "
                "FEDBRAID_OIDC_ISSUER to exactly that."
            )
        return found

    def authorization_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where the browser goes to sign in; carries the hash of the PKCE verifier only."""
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_url,
            "scope": "openid email",
            "state": state,
            "nonce": nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        where = self.endpoints().authorization_endpoint
        return f"{where}{'&' if '?' in where else '?'}{urlencode(query)}"

    def identify(self, code: str, verifier: str, nonce: str) -> Claims:
        """Who signed in.

        Raises:
            UnauthenticatedError: the code or the ID token does not count.
            SignInServiceError: the service does not answer.
        """
        endpoints = self.endpoints()
        answer = self._json(
            "POST",
            endpoints.token_endpoint,
            data={
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": self.redirect_url,
                "code_verifier": verifier,
            },
        )
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise _refused("it gave no ID token")
        return self._claims(token, endpoints, nonce)

    def _claims(self, token: str, endpoints: Endpoints, nonce: str) -> Claims:
        answer = self._json("GET", endpoints.jwks_uri)
        registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": self.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            key_set = KeySet.import_key_set({"keys": Keys.model_validate(answer).keys})
            decoded = jwt.decode(token, key_set, algorithms=ALGORITHMS)
            registry.validate(decoded.claims)
            audience = decoded.claims["aud"]
            if isinstance(audience, list) and len(audience) > 1:
                raise _refused("its ID token is for several programs")
            return Claims.model_validate(decoded.claims)
        except (JoseError, ValidationError, ValueError, KeyError, TypeError) as error:
            raise _refused(f"its ID token does not count ({type(error).__name__})") from error

    def _json(self, method: str, url: str, data: dict[str, str] | None = None) -> dict[str, object]:
        """What the service answers; redirects are not followed."""
        auth = httpx.BasicAuth(self.client_id, self.client_secret) if data is not None else None
        try:
            with httpx.Client(timeout=TIMEOUT_SECONDS) as http:
                response = http.request(method, url, data=data, auth=auth)
        except httpx.HTTPError as error:
            raise SignInServiceError(
                f"The sign-in service {self.issuer} does not answer. Try again later."
            ) from error
        if data is not None and response.status_code in {400, 401}:
            raise _refused("it does not know the code, or not this platform")
        try:
            answer = response.raise_for_status().json()
        except (httpx.HTTPStatusError, ValueError) as error:
            raise SignInServiceError(
                f"The sign-in service {self.issuer} answered {response.status_code} in a way "
                "that is not understood. Try again later."
            ) from error
        if not isinstance(answer, dict):
            raise SignInServiceError(f"The sign-in service {self.issuer} answered no object.")
        return answer


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"The sign-in service did not confirm who you are: {why}. Sign in again.",
        code="sign_in_not_confirmed",
    )
