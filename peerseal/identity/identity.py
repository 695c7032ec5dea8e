"""A service's identity: its own keys, and what it signs with them."""

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peerseal.errors import TrustUnavailable, UnsignableRequest
from peerseal.identity.access_tokens import AccessToken, AccessTokens
from peerseal.identity.enrolment import SignsRequests, platform_token
from peerseal.identity.environment import (
    absent_join_token,
    announce,
    check_parts,
    check_places,
    check_switches,
    one_pin,
    options_in,
)
from peerseal.identity.key_folder import HeldKey, KeyFolder
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.identity.minting import Minter
from peerseal.identity.rotation import KeyKeeper
from peerseal.identity.rotation_thread import KeyRotation
from peerseal.identity.service_metrics import ServiceMetrics, identity_metrics
from peerseal.identity.signing import TokenSigner, scope_set, whole_seconds
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import PublicCredentials
from peerseal.protocol.names import REGISTRY, check_service, service_id
from peerseal.protocol.tokens.event import EVENT_LIFETIME, EVENT_LIFETIME_CAP
from peerseal.protocol.tokens.transaction import TRANSACTION_LIFETIME, TRANSACTION_LIFETIME_CAP
from peerseal.runtime.files import cache_folder
from peerseal.runtime.forks import in_each_child, notice_fork, warn_without_threads
from peerseal.runtime.limits import RotationSchedule, TrustLimits
from peerseal.runtime.metrics import Metric, Source, metrics
from peerseal.session.circuit import Circuits, CircuitStatus
from peerseal.transport.fetch import Fetcher
from peerseal.trust.store import TrustStore
from peerseal.verify.audit_log import AuditLog
from peerseal.verify.context import REQUEST_ID, Transaction, current_request_id, current_transaction, note_minted
from peerseal.verify.event import Event
from peerseal.verify.replay.guards import FileReplayGuard, MemoryReplayGuard, ReplayGuard
from peerseal.verify.replay.redis import RedisReplayGuard
from peerseal.verify.target import check_external_prefix
from peerseal.verify.users.verifier import User

if TYPE_CHECKING:
    from peerseal.requests import PeerSession

log = logging.getLogger("peerseal.identity")


class Identity:
    """One service of a trust domain, in this process.

    ``registry`` is the registry's URL (or several, the primary first), ``join_token`` the text that an operator gave
    out (needed for the first key only), ``pin`` the root key's thumbprint where the join token does not carry it. In
    the place of a join token ``oidc_token`` may be a token of the platform that this service runs on, or better what
    gives the newest one: it is asked at every join, so that a host whose keys all ended while it slept gets in again.
    Unlike a join token it crosses the wire, so the registry must be reached over https or loopback.
    ``key_dir`` is the folder through which the workers of a host share one key, its private half encrypted under
    ``key_passphrase`` if that is given; without a folder this process and its forked children have their own.
    ``cache_dir`` is where they share their replay guard and remember the newest checkpoint of the ledger; without it
    that is the key folder. ``external_prefix`` is the path that a proxy in front of this service strips. ``replay_url``
    is the Redis through which several hosts share one replay guard; while it is down nothing is accepted, or with
    ``unsafe_replay_fallback`` each host goes by its own. With ``retire_at_exit`` the last process to end retires the
    keys, and the next start needs a new join token. None: so without a key folder, whose keys would be lost, and not
    with one, where a restart or a recycled worker goes on with the keys. ``audit`` turns the audit of what this service
    accepts and mints on or off; None leaves it to ``PEERSEAL_AUDIT`` (docs/how-to/audit.md).
    ``fetcher`` calls the registry in the place of HTTP.

    Nothing is generated or fetched before `start`, which may be called before or after a fork, in any number of
    workers. ``clock`` gives seconds since the epoch, here and in what is made for this service.
    """

    def __init__(
        self,
        service: str,
        *,
        registry: str | Sequence[str],
        join_token: str | None = None,
        oidc_token: str | Callable[[], str] | None = None,
        pin: str | None = None,
        key_dir: str | os.PathLike[str] | None = None,
        key_passphrase: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        external_prefix: str = "",
        replay_url: str | None = None,
        unsafe_replay_fallback: bool = False,
        alg: str = "RS256",
        rotation: RotationSchedule | None = None,
        limits: TrustLimits | None = None,
        retire_at_exit: bool | None = None,
        audit: bool | None = None,
        clock: Callable[[], float] = time.time,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.service = check_service(service)
        self.external_prefix = check_external_prefix(external_prefix)
        check_switches(unsafe_replay_fallback=unsafe_replay_fallback, retire_at_exit=retire_at_exit)
        check_places(registry, key_dir=key_dir, cache_dir=cache_dir, replay_url=replay_url)
        check_parts(alg, rotation, limits, clock, oidc_token)
        self.clock = clock
        key_folder = Path(key_dir) / service if key_dir is not None else None
        self._shared_dir = key_folder if cache_dir is None else Path(cache_dir)
        setting = "PEERSEAL_KEY_DIR" if cache_dir is None else "PEERSEAL_CACHE_DIR"
        self._host_folder = None if self._shared_dir is None else cache_folder(self._shared_dir, setting)
        self._retire_at_exit = key_dir is None if retire_at_exit is None else retire_at_exit
        self._schedule = rotation or RotationSchedule()
        joining = JoinToken.parse(join_token) if join_token not in (None, "") else None
        platform = platform_token(oidc_token, joining, registry, fetcher)
        folder = KeyFolder(key_folder, KeyPassphrase("PEERSEAL_KEY_PASSPHRASE", key_passphrase))
        pin = one_pin(pin, joining, folder)
        self.trust = TrustStore(
            registry, pin=pin, limits=limits, clock=clock, fetcher=fetcher, cache_dir=self._shared_dir
        )
        self._keeper = KeyKeeper(
            service,
            folder,
            self.trust,
            newcomer=joining or platform,
            alg=alg,
            schedule=self._schedule,
            vouch=self._voucher,
            clock=clock,
        )
        self.trust.sign_with(self._sign_reading)
        self._folder = folder
        self._signer = TokenSigner(service, lambda: self.domain, clock)
        self._minter = Minter(service, self.trust, self._keeper.signing_key, self._signer, clock)
        self._access_tokens = AccessTokens(self.trust, self.sign_assertion, clock)
        self._circuits = Circuits()
        self._audit = AuditLog(audit, clock=clock)
        self._metrics = ServiceMetrics(self._host_folder and self._host_folder.inner(f"counts-{service}"))
        self.add_metrics(lambda: identity_metrics(self, self._keeper))
        self.add_metrics(self._audit.collect)
        self._registry, self._pin = registry, pin
        self._started, self._pid = False, 0
        self._replay_url = replay_url
        self._unsafe_replay_fallback = unsafe_replay_fallback
        self._guards: list[FileReplayGuard | RedisReplayGuard] = []
        self._rotation = KeyRotation(service, self._keeper, self._schedule, self._metrics.publish)
        in_each_child(self._after_fork)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """From ``PEERSEAL_SERVICE``, ``PEERSEAL_REGISTRY_URL``, ``PEERSEAL_REGISTRY_PIN``, ``PEERSEAL_JOIN_TOKEN`` or
        ``…_FILE``, ``PEERSEAL_OIDC_TOKEN_FILE`` (read at every join), ``PEERSEAL_KEY_DIR``,
        ``PEERSEAL_KEY_PASSPHRASE`` or ``…_FILE``, ``PEERSEAL_CACHE_DIR``, ``PEERSEAL_EXTERNAL_PREFIX``,
        ``PEERSEAL_REPLAY_URL`` or ``…_FILE``, ``PEERSEAL_REPLAY_UNSAFE_FALLBACK``, ``PEERSEAL_RETIRE_AT_EXIT`` and
        ``PEERSEAL_AUDIT`` (on or off); and, as seconds or such as ``24h``, ``PEERSEAL_ROTATE_EVERY``, ``…_LEAD``,
        ``…_OVERLAP``. An empty variable is one that is not set.

        Raises ConfigurationError for what is missing or cannot be read; it names the variable.
        """
        env = os.environ if environ is None else environ
        identity = cls(**options_in(env))
        identity._keeper.absent = absent_join_token(env)
        return identity

    # ---- life

    def start(self, *, timeout: float = 60.0) -> Self:
        """Have a registered key, and keep it in good order from now on in the background.

        While the registry is not up yet, or the key waits for an operator to approve it, it is tried again, with
        growing pauses, for ``timeout`` seconds; the next start goes on with the same key where it lies in a named
        folder. Raises EnrolmentRefused, ConfigurationError or DocumentRefused at once for what no waiting mends, such
        as a registry that is not the pinned one; once the time is over EnrolmentPending, FetchError, TrustUnavailable,
        or DocumentRefused where the registry's answers were refused, as with a clock that is wrong.
        """
        notice_fork()
        if self._started:
            return self
        self._folder.hold()
        try:
            self._keeper.register_within(timeout)
        except BaseException:
            self._keeper.leave(retire=False)
            raise
        self._started, self._pid = True, os.getpid()
        announce(self.credentials.key_id, self._keeper.admitted, self._registry, self._pin)
        warn_without_threads()
        self._rotation.start()
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """End the background work of this process and give the keys up; the last process retires them, unless they lie
        in a named folder.

        A child that was forked without Python's hooks, and did nothing since, has nothing of its own to end.
        """
        if not self._started or self._pid != os.getpid():
            return
        self._started = False
        self._rotation.stop()
        self.trust.stop()
        self._metrics.publish()
        for guard in self._guards:
            guard.close()
        self._keeper.leave(retire=self._retire_at_exit)
        atexit.unregister(self.stop)

    def rotate(self) -> PublicCredentials:
        """Publish the next key now, and give its credentials. It signs after the lead time of the schedule.

        Raises EnrolmentRefused, FetchError or TrustUnavailable.
        """
        return PublicCredentials.of(self.id, self._keeper.publish_next().pair.public)

    def look_after_keys(self) -> None:
        """Do now what is due: publish the next key, retire those past. For programs that end before the background
        gets to it. Raises EnrolmentRefused, FetchError or TrustUnavailable."""
        if self._keeper.is_due():
            self._keeper.work()

    # ---- who this is

    @property
    def domain(self) -> str:
        """The trust domain. Raises TrustUnavailable while it is not known."""
        return self._keeper.domain

    @property
    def id(self) -> str:
        """The service id."""
        return service_id(self.domain, self.service)

    @property
    def credentials(self) -> PublicCredentials:
        """The public credentials of the key that signs now. Raises TrustUnavailable before `start`."""
        return PublicCredentials.of(self.id, self._keeper.signing_key().pair.public)

    @property
    def audit(self) -> bool:
        """Whether what is accepted and minted is audited, where an adapter does not say otherwise."""
        return self._audit.enabled

    # ---- how it does

    def is_ready(self) -> bool:
        """Whether this service can do its part now: it has a registered key, and the registry's keys are known. For
        readiness checks; makes no call itself, and fetches the registry's keys in the background where they are not
        known yet."""
        try:
            self._keeper.signing_key()
        except TrustUnavailable:
            return False
        return self.trust.status().ready

    def metrics(self) -> str:
        """How this service does, in Prometheus' text format (version 0.0.4): its key, its trust store, and what the
        adapters, consumers and other sources tell. Where the workers of a server share a folder (the cache folder, or
        else the key folder), counters are those of all of them, as of ten seconds ago at most; gauges are of the one
        that is asked."""
        return metrics(self.collect)

    def collect(self) -> list[Metric]:
        """The same as values."""
        return self._metrics.collect()

    def add_metrics(self, source: Source) -> None:
        """Tell what ``source`` gives as well, such as the depth of an outbox. Raises ConfigurationError for what is no
        function."""
        self._metrics.add(source)

    # ---- what it signs

    def sign_request(
        self,
        audience: str,
        *,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ctx: Mapping[str, Any] | None = None,
    ) -> str:
        """A request token (compact JWS) for one attempt of one request to ``audience``, a service's name or id.

        ``target`` is the origin-form request-target exactly as it will be sent, ``body`` the bytes as they will be,
        ``headers`` those to bind: always ``content-type`` and ``content-encoding`` where the request has them, and
        ``txn-token`` where a transaction token goes along. ``ctx`` is the application's own, 1 KiB at most. Raises
        UnsignableRequest or TrustUnavailable.
        """
        return self._signer.request(
            self._keeper.signing_key(),
            audience,
            method=method,
            target=target,
            body=body,
            headers={} if headers is None else headers,
            ctx=ctx,
        )

    def sign_event(
        self,
        payload: bytes,
        *,
        topic: str,
        audience: str,
        scope: str,
        event_id: str,
        transaction_id: str | None = None,
        subject: str | None = None,
        lifetime: timedelta = timedelta(seconds=EVENT_LIFETIME),
    ) -> dict[str, str]:
        """The headers of a message that carries ``payload``, these very bytes, on ``topic``: the token, and unsigned
        the current request's id, if there is one.

        ``audience`` names the consumers (no slash in it), ``scope`` the one purpose. User, transaction and how the user
        was authenticated are those of `current_transaction`, where there is one; ``subject`` and ``transaction_id``
        stand in where there is none, and the service itself for a user that nobody names. ``lifetime`` is 365 days at
        most. Raises UnsignableRequest, also for a user or transaction that is not the current one, or a scope that the
        current one does not have and the domain's settings do not derive for this service, or TrustUnavailable.
        """
        current = current_transaction()
        if current and (subject not in (None, current.user) or transaction_id not in (None, current.id)):
            raise UnsignableRequest("an event of another user or transaction than the current one")
        if transaction_id is None:
            if current is None:
                raise UnsignableRequest("an event of no transaction")
            transaction_id = current.id
        token = self._signer.event(
            self._keeper.signing_key(),
            payload,
            user=current.user if subject is None and current else subject,
            audience=audience,
            scope=scope,
            event_id=event_id,
            transaction_id=transaction_id,
            topic=topic,
            lifetime=whole_seconds(lifetime, EVENT_LIFETIME_CAP),
            authentication=self._minter.event_context(current, scope) if current else {},
        )
        request_id = current_request_id()
        return {"authorization": f"Bearer {token}"} | ({REQUEST_ID: request_id} if request_id else {})

    def sign_assertion(self, *, audience: str | None = None, client_id: str | None = None) -> str:
        """A client assertion (RFC 7523) for the registry's token endpoint, or for another issuer ``audience``, which
        knows this service as ``client_id`` (by default its id). Good for a minute. Raises UnsignableRequest or
        TrustUnavailable."""
        return self._signer.assertion(self._keeper.signing_key(), audience, client_id)

    def access_token(self, name: str) -> AccessToken:
        """An access token (RFC 9068) of the registry for this service, for the resource server that the domain's
        settings call ``name``; the same one for three quarters of its life. Raises AccessTokenRefused,
        TrustUnavailable, or ConfigurationError where the registry's answer could be read on the way."""
        return self._access_tokens.get(name)

    def mint_transaction(
        self,
        user: User,
        *,
        scope: Iterable[str],
        facts: Mapping[str, Any] | None = None,
        transaction_id: str | None = None,
        workload: str | None = None,
        lifetime: timedelta = timedelta(seconds=TRANSACTION_LIFETIME),
    ) -> Transaction:
        """A transaction for a user whose token was verified here, at the edge; to be set by `carrying`.

        ``scope`` is what may be done in it: no more than the user's token allows, else InsufficientScope. ``facts``
        must not change on the way, 1 KiB at most. ``workload`` is the service that asked for it, this one by default.
        ``lifetime`` is 15 minutes at most. Raises Expired once the user's token has ended, CallerNotAllowed where the
        domain's settings do not list this service as a minter, UnsignableRequest or TrustUnavailable.
        """
        if not isinstance(user, User):
            raise UnsignableRequest("a transaction is for a peerseal.User, as UserVerifier gives it")
        seconds = whole_seconds(lifetime, TRANSACTION_LIFETIME_CAP)
        minted = self._minter.for_user(user, scope_set(scope), facts, transaction_id, workload, seconds)
        note_minted(minted)
        self._audit.minted(minted)
        return minted

    def transaction_for_event(self, event: Event) -> Transaction | None:
        """What outgoing calls carry while a verified event is handled: its user, its transaction, its one scope, and
        how the user was authenticated. The token is minted when a call needs it. None where this service may not mint.
        Raises TrustUnavailable."""
        return self._minter.for_event(event)

    def session(self, audience: str, base_url: str, **options: Any) -> "PeerSession":
        """A `requests.Session` that signs every attempt of every request to ``base_url`` for ``audience``. See
        `peerseal.requests.PeerSession` for the options."""
        from peerseal.requests import PeerSession  # the adapter is loaded where it is used, and not before

        return PeerSession(self, audience, base_url, **{"circuits": self._circuits, **options})

    def circuits(self) -> tuple[CircuitStatus, ...]:
        """How this process's calls to each origin go, over all sessions of this identity."""
        return self._circuits.status()

    def replay_guard(self) -> ReplayGuard:
        """The guard for this service's verifier: where there is a ``replay_url``, shared through it by all hosts; else
        by the workers of this host where they share a folder (the cache folder, or else the key folder); and otherwise,
        with a warning, this process's memory. Raises ConfigurationError where the URL or its library is not good."""
        if self._replay_url is None:
            return self._host_guard()
        fallback = self._host_guard() if self._unsafe_replay_fallback else None
        guard = RedisReplayGuard(self._replay_url, self.service, unsafe_fallback=fallback, clock=self.clock)
        self._guards.append(guard)
        return guard

    def _host_guard(self) -> ReplayGuard:
        if self._host_folder is None:
            log.warning("no PEERSEAL_CACHE_DIR: every worker of %s accepts a token once", self.service)
            return MemoryReplayGuard(clock=self.clock)
        guard = FileReplayGuard(self._host_folder.path / f"replay-{self.service}", clock=self.clock)
        self._guards.append(guard)
        return guard

    def _voucher(self, held: HeldKey) -> SignsRequests:
        def sign(*, method: str, target: str, body: bytes, headers: dict[str, str]) -> str:
            return self._signer.request(held, REGISTRY, method=method, target=target, body=body, headers=headers)

        return sign

    def _sign_reading(self, target: str) -> str:
        """A request token for what the registry tells only to some."""
        held = self._keeper.signing_key()
        return self._signer.request(held, REGISTRY, method="GET", target=target, body=b"", headers={})

    def _after_fork(self) -> None:
        """A child is a holder of its own, and needs its own thread."""
        if self._started:
            self._pid = os.getpid()
            self._folder.hold()
            self._rotation.start()
