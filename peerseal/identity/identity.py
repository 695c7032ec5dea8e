"""A service's identity: its keys, and what it signs with them.

Data flows in one direction::

    KeyFolder → SigningKeys ─┬→ TrustStore (signs its reads of restricted policies)
                             ├→ KeyRotation (changes the keys; calls the registry through Enrolment)
                             └→ request tokens, assertions, Minter, AccessTokens
"""

import atexit
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from peerseal.errors import TrustUnavailable, UnsignableRequest
from peerseal.identity.access_tokens import AccessToken, AccessTokens
from peerseal.identity.enrolment import PlatformToken, admission_token
from peerseal.identity.environment import (
    absent_join_token,
    announce,
    check_own_service,
    check_parts,
    check_places,
    check_switches,
    one_pin,
    options_in,
)
from peerseal.identity.key_folder import KeyFolder
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.identity.rotation import KeyRotation, RotationThread
from peerseal.identity.signing import (
    Minter,
    assertion,
    check_may_leave,
    request_token,
    response_token,
    scope_set,
    whole_seconds,
)
from peerseal.identity.signing_keys import SigningKeys
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair, PublicCredentials
from peerseal.protocol.names import REGISTRY, service_id
from peerseal.protocol.plain import kind_of
from peerseal.protocol.tokens.event import EVENT_LIFETIME
from peerseal.protocol.tokens.transaction import TRANSACTION_LIFETIME, TRANSACTION_LIFETIME_CAP
from peerseal.runtime.files import cache_folder
from peerseal.runtime.forks import in_each_child, notice_fork, warn_of_uwsgi_options
from peerseal.runtime.limits import RotationSchedule, TrustLimits
from peerseal.runtime.metrics import Metric, Source, metrics
from peerseal.runtime.process_metrics import process_metrics
from peerseal.runtime.tracing import Attributes, of_messages, traced
from peerseal.runtime.worker_counters import ServiceMetrics
from peerseal.session.circuit import Circuits, CircuitStatus
from peerseal.session.options import PeerSessionOptions
from peerseal.session.refused_answers import RefusedAnswers
from peerseal.transport.fetch import Fetcher
from peerseal.transport.webhook import Webhook
from peerseal.trust.peer_checkpoints import SplitView
from peerseal.trust.store import TrustStore
from peerseal.verify.audit_log import AuditLog
from peerseal.verify.context import Transaction, note_minted
from peerseal.verify.event import Event
from peerseal.verify.replay.file import FileReplayGuard
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from peerseal.verify.replay.redis import RedisReplayGuard
from peerseal.verify.target import check_external_prefix
from peerseal.verify.users import User

if TYPE_CHECKING:
    from peerseal.httpx import AsyncPeerSession, AsyncSessionOptions
    from peerseal.requests import PeerSession

log = logging.getLogger("peerseal.identity")


def _of_event(*_: object, topic: str, **__: object) -> Attributes:
    return of_messages("create", topic)


class Identity:
    """One service of a trust domain, in this process.

    =========================== ========================================================================================
    ``registry``                the registry's URL, or several: the primary first, then its mirrors
    ``join_token``              admits the first key; an operator issues it. Later keys need none.
    ``oidc_token``              replaces the join token: a token of the platform that runs this service, or a function
                                that returns the newest one. It is called at every enrolment. The token is sent to the
                                registry, so the registry must be reached over https or loopback.
    ``pin``                     thumbprint of the registry's root key, if the join token does not contain it
    ``key_dir``                 folder through which the workers of a host share one key. Without it, this process and
                                its forked children have a key of their own.
    ``key_passphrase``          encrypts the private keys in ``key_dir``
    ``cache_dir``               folder with the replay guard of the host and the newest checkpoint of the ledger;
                                ``key_dir`` by default
    ``external_prefix``         path that a proxy in front of this service removes
    ``replay_dir``              folder with the replay guard of the host; ``cache_dir`` by default. On a tmpfs, a claim
                                takes no turn of a thread in an asyncio program.
    ``replay_url``              Redis through which several hosts share one replay guard
    ``unsafe_replay_fallback``  while that Redis is down, each host uses its own guard. By default nothing is accepted.
    ``alg``                     algorithm of new keys
    ``witnesses`` ``quorum``    keys of witnesses of the ledger (``NAME+ID+KEY``), and how many of them must have
                                cosigned what is believed, besides those that the root names
    ``rotation`` ``limits``     see `RotationSchedule` and `TrustLimits`
    ``retire_at_exit``          whether the last process to end retires the keys, so that the next start needs a new
                                join token. Default: only without ``key_dir``.
    ``audit``                   whether accepted requests and minted transactions are audited (docs/how-to/audit.md); by
                                default as ``PEERSEAL_AUDIT`` says
    ``share_checkpoints``       whether requests and signed answers tell peers which checkpoint of the ledger this
                                service believes, once after each change. All callees must know the claim ``cp``
                                (docs/how-to/split-view.md).
    ``split_view_webhook``      URL that is told if a peer's checkpoint proves that the ledger has two histories
    ``clock``                   returns the seconds since the epoch
    ``fetcher``                 calls the registry; HTTP by default
    =========================== ========================================================================================

    Nothing is generated or fetched before `start`, which may be called before or after a fork, in any number of
    workers.
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
        replay_dir: str | os.PathLike[str] | None = None,
        replay_url: str | None = None,
        unsafe_replay_fallback: bool = False,
        alg: str = "RS256",
        rotation: RotationSchedule | None = None,
        limits: TrustLimits | None = None,
        retire_at_exit: bool | None = None,
        audit: bool | None = None,
        share_checkpoints: bool = False,
        split_view_webhook: str | None = None,
        clock: Callable[[], float] = time.time,
        fetcher: Fetcher | None = None,
        witnesses: Sequence[str] = (),
        quorum: int | None = None,
    ) -> None:
        check_switches(unsafe_replay_fallback=unsafe_replay_fallback, retire_at_exit=retire_at_exit)
        check_switches(share_checkpoints=share_checkpoints)
        check_places(registry, key_dir=key_dir, cache_dir=cache_dir, replay_dir=replay_dir, replay_url=replay_url)
        check_parts(alg, rotation, limits, clock, oidc_token)
        self.service, self.external_prefix = check_own_service(service), check_external_prefix(external_prefix)
        self.clock, self._registry = clock, registry
        self._replay_url, self._unsafe_replay_fallback = replay_url, unsafe_replay_fallback
        self.retire_at_exit = key_dir is None if retire_at_exit is None else retire_at_exit
        first = admission_token(join_token, oidc_token, registry, fetcher)
        self._open_folders(key_dir, key_passphrase, cache_dir)
        if replay_dir is None:
            self._replay_folder = self._cache_folder
        else:
            self._replay_folder = cache_folder(Path(replay_dir), "PEERSEAL_REPLAY_DIR")
        self._pin = one_pin(pin, first, self._keys.folder)
        trust = partial(TrustStore, limits=limits, fetcher=fetcher, witnesses=witnesses, quorum=quorum)
        webhook = None if split_view_webhook is None else Webhook(split_view_webhook)
        self._connect(first, alg, rotation or RotationSchedule(), trust, webhook)
        self._checkpoint_for = self.trust.checkpoint_for if share_checkpoints else None
        self._report(AuditLog(audit, clock=clock))

    def _open_folders(
        self,
        key_dir: str | os.PathLike[str] | None,
        key_passphrase: str | None,
        cache_dir: str | os.PathLike[str] | None,
    ) -> None:
        key_folder = None if key_dir is None else Path(key_dir) / self.service
        self._cache_dir = key_folder if cache_dir is None else Path(cache_dir)
        setting = "PEERSEAL_KEY_DIR" if cache_dir is None else "PEERSEAL_CACHE_DIR"
        self._cache_folder = None if self._cache_dir is None else cache_folder(self._cache_dir, setting)
        folder = KeyFolder(key_folder, KeyPassphrase("PEERSEAL_KEY_PASSPHRASE", key_passphrase))
        self._keys = SigningKeys(self.service, folder, self.clock)

    def _connect(
        self,
        first: JoinToken | PlatformToken | None,
        alg: str,
        schedule: RotationSchedule,
        trust_store: Callable[..., TrustStore],
        webhook: Webhook | None,
    ) -> None:
        """Make the parts that call the registry."""
        self.trust = trust_store(
            self._registry,
            pin=self._pin,
            clock=self.clock,
            cache_dir=self._cache_dir,
            sign_reading=partial(_sign_reading, self._keys),
            on_split_view=None if webhook is None else partial(_post_split_view, webhook, self.service),
        )
        self._rotation = KeyRotation(self._keys, self.trust, admission=first, alg=alg, schedule=schedule)
        self._minter = Minter(self.trust, self._keys)
        self._access_tokens = AccessTokens(self.trust, self._keys)
        self._circuits = Circuits()
        self.refused_answers = RefusedAnswers()
        self._started, self._pid = False, 0
        self._guards: list[FileReplayGuard | RedisReplayGuard] = []
        self._guard_in_memory: MemoryReplayGuard | None = None
        self._metrics = ServiceMetrics(self._cache_folder and self._cache_folder.inner(f"counts-{self.service}"))
        self._rotation_thread = RotationThread(self.service, self._rotation, schedule, self._metrics.publish)
        in_each_child(self._after_fork)

    def _report(self, audit: AuditLog) -> None:
        """Add the sources of metrics."""
        self._audit = audit
        self.add_metrics(lambda: self.trust.status(start=False).collect())
        self.add_metrics(self.trust.collect_checkpoints)
        self.add_metrics(self._keys.collect)
        self.add_metrics(self._circuits.collect)
        self.add_metrics(self.refused_answers.collect)
        self.add_metrics(audit.collect)
        self.add_metrics(lambda: process_metrics("peerseal"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The identity that the environment describes. An empty variable counts as not set.

        Required are ``PEERSEAL_SERVICE`` and ``PEERSEAL_REGISTRY_URL``. The others are ``PEERSEAL_`` and the name of
        the option: ``REGISTRY_PIN``, ``JOIN_TOKEN`` [``_FILE``], ``OIDC_TOKEN_FILE``, ``KEY_DIR``, ``KEY_PASSPHRASE``
        [``_FILE``], ``CACHE_DIR``, ``EXTERNAL_PREFIX``, ``REPLAY_DIR``, ``REPLAY_URL`` [``_FILE``],
        ``REPLAY_UNSAFE_FALLBACK``, ``RETIRE_AT_EXIT``, ``AUDIT``, ``SHARE_CHECKPOINTS``, ``SPLIT_VIEW_WEBHOOK``
        [``_FILE``], ``REFUSE_SPLIT_VIEW``; ``WITNESSES`` (keys, separated by commas) with ``WITNESS_QUORUM``, and
        ``WITNESS_DELAY`` in seconds or such as ``5m``; and ``ROTATE_EVERY``, ``ROTATE_LEAD``, ``ROTATE_OVERLAP`` in
        seconds or such as ``24h``. docs/reference/settings.md says what each means. Raises ConfigurationError, which
        names the variable.
        """
        env = os.environ if environ is None else environ
        identity = cls(**options_in(env))
        identity._rotation.missing = absent_join_token(env)
        return identity

    # ---- life

    def start(self, *, timeout: float = 60.0) -> Self:
        """Register a key if there is none, and start the thread that rotates it.

        If the registry does not answer, or an operator must approve the key, this tries again for ``timeout`` seconds
        with growing pauses. Then it raises EnrolmentPending, FetchError or TrustUnavailable; or DocumentRefused if the
        registry's documents were refused, for example because of a wrong clock. The next start continues with the same
        key if it is in ``key_dir``. An error that waiting does not mend, such as another root key than the pinned one,
        is raised at once: EnrolmentRefused, ConfigurationError or DocumentRefused.
        """
        notice_fork()
        if self._started:
            return self
        self._keys.folder.hold()
        try:
            self._rotation.register_within(timeout)
        except BaseException:
            self._rotation.leave(retire=False)
            raise
        self._started, self._pid = True, os.getpid()
        announce(self.credentials.key_id, self._rotation.admitted, self._registry, self._pin)
        warn_of_uwsgi_options()
        self._rotation_thread.start()
        if self._checkpoint_for is not None:
            self.trust.follow_ledger()
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """End the background work of this process and stop using the keys. The last process retires them if
        ``retire_at_exit`` says so."""
        if not self._started or self._pid != os.getpid():  # or a child that was forked without Python's hooks
            return
        self._started = False
        self._rotation_thread.stop()
        self.trust.stop()
        self._metrics.publish()
        for guard in self._guards:
            guard.close()
        self._rotation.leave(retire=self.retire_at_exit)
        atexit.unregister(self.stop)

    def rotate(self) -> PublicCredentials:
        """Register the next key now, and return its credentials. It signs after the lead of the schedule.

        Raises EnrolmentRefused, FetchError or TrustUnavailable.
        """
        return PublicCredentials.of(self.id, self._rotation.publish_next().pair.public)

    def look_after_keys(self) -> None:
        """Publish the next key and retire old keys now if that is due: for programs that end before the background
        thread does it. Raises EnrolmentRefused, FetchError or TrustUnavailable."""
        if self._rotation.is_due():
            self._rotation.work()

    def take_key(self, pair: KeyPair) -> None:
        """Make ``pair`` the first key of this host, which `start` registers: for a key that was made elsewhere.
        Rotation replaces it as any key. A host that has this key already keeps it. Raises ConfigurationError if the
        host has another key, and TrustUnavailable if the registry does not answer."""
        self._rotation.take(pair)

    def retire(self) -> tuple[str, ...]:
        """Retire the keys of this host now, delete their private halves, and return their kids. What they signed stays
        valid. The next `start` needs what admits a first key. Processes that use the keys can sign no longer. Raises
        FetchError if the registry does not answer, or refuses: the keys that are not retired stay."""
        return self._rotation.retire_all()

    # ---- who this is

    @property
    def domain(self) -> str:
        """The trust domain, from the key folder or from the registry. Raises TrustUnavailable if neither is known."""
        return self._keys.stored.domain or self.trust.domain

    @property
    def id(self) -> str:
        """The service id."""
        return service_id(self.domain, self.service)

    @property
    def credentials(self) -> PublicCredentials:
        """The public credentials of the key that signs now. Raises TrustUnavailable before `start`."""
        return PublicCredentials.of(self.id, self._keys.current().pair.public)

    @property
    def audit(self) -> bool:
        """Whether accepted requests and minted transactions are audited; an adapter may choose otherwise."""
        return self._audit.enabled

    # ---- readiness and metrics

    def is_ready(self) -> bool:
        """Whether this service has a registered key and knows the registry's keys. For readiness checks: makes no call
        itself, but lets the background thread fetch the registry's keys if they are not known yet."""
        try:
            self._keys.current()
        except TrustUnavailable:
            return False
        return self.trust.status().ready

    def metrics(self) -> str:
        """The metrics of the key, the trust store, the adapters, the consumers and all other sources, in Prometheus'
        text format (version 0.0.4). If the workers of a server share a cache or key folder, counters are those of all
        workers, at most ten seconds old; gauges are those of this process."""
        return metrics(self.collect)

    def collect(self) -> list[Metric]:
        """The same metrics as values."""
        return self._metrics.collect()

    def add_metrics(self, source: Source) -> None:
        """Report the metrics that the function ``source`` returns as well. Raises ConfigurationError."""
        self._metrics.add(source)

    # ---- what it signs

    @traced("peerseal.sign")
    def sign_request(
        self,
        audience: str,
        *,
        method: str,
        target: str,
        body: bytes = b"",
        content_digest: str | None = None,
        headers: Mapping[str, str] | None = None,
        ctx: Mapping[str, Any] | None = None,
    ) -> str:
        """A request token (compact JWS) for one attempt of one request to ``audience``, a service's name or id.

        ``target`` is the request-target in origin form, and ``body`` the bytes, both exactly as they are sent.
        ``content_digest`` replaces ``body`` where the bytes are not at hand: their SHA-256 as ``sha-256=:…:``, as RFC
        9530 writes it.
        ``headers`` are the headers to bind: ``content-type``, ``content-encoding`` and ``txn-token`` if the request has
        them, and any other. ``ctx`` is data of the application, at most 1 KiB of JSON. Raises UnsignableRequest, also
        for a transaction that may not cross to the domain of a foreign audience, or TrustUnavailable.
        """
        key, headers = self._keys.current(), {} if headers is None else headers
        token = request_token(
            key,
            audience,
            method=method,
            target=target,
            body=body,
            content_digest=content_digest,
            headers=headers,
            ctx=ctx,
            checkpoint_for=self._checkpoint_for,
            now=self.clock(),
        )
        if "/" in audience and headers:
            check_may_leave(self.trust, key.domain, audience, headers)
        return token

    def sign_response(
        self,
        request_token: str,
        *,
        caller: str,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """A response token (compact JWS): this service answers the request that carried ``request_token`` with exactly
        this status, body and headers. Call it only after a `Verifier` has accepted that request; ``caller`` is the
        verified `Peer.id`.

        ``body`` is what is sent, after content-coding, and empty for an answer to HEAD and for 204 and 304.
        ``headers`` are the headers to sign: ``content-type``, ``content-encoding``, ``content-range``, ``location``,
        ``etag`` and ``last-modified`` if the answer has them, and any other. The request token must bind the headers
        that chose the answer, such as ``Range`` (`peerseal.protocol.tokens.response.SELECTING`). Raises
        UnsignableRequest or TrustUnavailable.
        """
        return response_token(
            self._keys.current(),
            request_token,
            caller=caller,
            status=status,
            body=body,
            headers={} if headers is None else headers,
            checkpoint_for=self._checkpoint_for,
            now=self.clock(),
        )

    @traced("peerseal.publish", "producer", ask=_of_event)
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
        """The headers of a message with this ``payload`` on ``topic``: an event token, and the current request id.

        ``audience`` names the consumers (without a slash), ``scope`` the one purpose. The user, the transaction and the
        user's authentication are those of `current_transaction`. Without a current transaction, ``transaction_id`` is
        required, and ``subject`` names the user: this service itself by default. ``lifetime`` is at most 365 days.
        Raises UnsignableRequest, also for another user, transaction or scope than the current transaction has (the
        domain's settings may derive scopes), or TrustUnavailable.
        """
        return self._minter.event_headers(
            payload,
            topic=topic,
            audience=audience,
            scope=scope,
            event_id=event_id,
            transaction_id=transaction_id,
            subject=subject,
            lifetime=lifetime,
        )

    def sign_assertion(self, *, audience: str | None = None, client_id: str | None = None) -> str:
        """A client assertion (RFC 7523) for the registry's token endpoint, or for another issuer ``audience``, where
        this service is registered as ``client_id`` (its id by default). It is valid for one minute. Raises
        UnsignableRequest or TrustUnavailable."""
        return assertion(self._keys.current(), audience=audience, client_id=client_id, now=self.clock())

    def access_token(self, name: str) -> AccessToken:
        """An access token (RFC 9068) for the resource server ``name`` of the domain's settings; the registry issues it,
        and it is used for three quarters of its life. Raises AccessTokenRefused, TrustUnavailable, or
        ConfigurationError if the registry is not reached over https or loopback."""
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
        """A transaction for a user whose token this service has verified. `carrying` makes it the current one.

        ``scope`` is a part of the scope of the user's token, or InsufficientScope is raised. ``facts`` are signed with
        it, at most 1 KiB. ``workload`` is the service that asked for it, this one by default. ``lifetime`` is at most
        15 minutes. Raises Expired if the user's token has ended, CallerNotAllowed if the domain's settings do not list
        this service as a minter, UnsignableRequest or TrustUnavailable.
        """
        if not isinstance(user, User):
            raise UnsignableRequest(f"user is {kind_of(user)}; expected a peerseal.User, as UserVerifier returns it")
        seconds = whole_seconds(lifetime, TRANSACTION_LIFETIME_CAP)
        minted = self._minter.for_user(user, scope_set(scope), facts, transaction_id, workload, seconds)
        note_minted(minted)
        self._audit.minted(minted)
        return minted

    def transaction_for_event(self, event: Event) -> Transaction | None:
        """The transaction for the calls that handle a verified event: with the event's user, transaction id, scope and
        authentication. Its token is minted when a call needs it. None if this service is no minter. Raises
        TrustUnavailable."""
        return self._minter.for_event(event)

    def session(self, audience: str, base_url: str, **options: Unpack[PeerSessionOptions]) -> "PeerSession":
        """A `requests.Session` that signs every attempt of every request to ``base_url`` for ``audience``. See
        `peerseal.requests.PeerSession` for the options."""
        from peerseal.requests import PeerSession  # loaded on first use, as every adapter

        options.setdefault("circuits", self._circuits)
        return PeerSession(self, audience, base_url, **options)

    def async_session(
        self, audience: str, base_url: str, **options: Unpack["AsyncSessionOptions"]
    ) -> "AsyncPeerSession":
        """An `httpx.AsyncClient` that signs every attempt of every request to ``base_url`` for ``audience``. See
        `peerseal.httpx.AsyncPeerSession` for the options."""
        from peerseal.httpx import AsyncPeerSession  # loaded on first use, as every adapter

        options.setdefault("circuits", self._circuits)
        return AsyncPeerSession(self, audience, base_url, **options)

    def circuits(self) -> tuple[CircuitStatus, ...]:
        """The circuits of this process to other services, for all sessions of this identity."""
        return self._circuits.status()

    def replay_guard(self) -> ReplayGuard:
        """The replay guard for this service's verifier: in Redis with ``replay_url``, else in ``replay_dir``, the cache
        or the key folder, shared by the workers of this host. Without a folder it is in the memory of this process, and
        a warning is logged. Raises ConfigurationError for a wrong URL or a missing library."""
        if self._replay_url is None:
            return self._host_guard()
        fallback = self._host_guard() if self._unsafe_replay_fallback else None
        guard = RedisReplayGuard(self._replay_url, self.service, unsafe_fallback=fallback, clock=self.clock)
        self._guards.append(guard)
        return guard

    def _host_guard(self) -> ReplayGuard:
        if self._replay_folder is None:
            return self._guard_of_the_process()
        guard = FileReplayGuard(self._replay_folder.path / f"replay-{self.service}", clock=self.clock)
        if not any(isinstance(other, FileReplayGuard) for other in self._guards):  # all have the same logs
            self.add_metrics(guard.collect)
        self._guards.append(guard)
        return guard

    def _guard_of_the_process(self) -> ReplayGuard:
        """One for all verifiers: otherwise each of them would accept a token once."""
        if self._guard_in_memory is None:
            log.warning("no PEERSEAL_CACHE_DIR: every worker of %s accepts a token once", self.service)
            self._guard_in_memory = MemoryReplayGuard(clock=self.clock)
            self.add_metrics(self._guard_in_memory.collect)
        return self._guard_in_memory

    def _after_fork(self) -> None:
        """A forked child takes its own share of the key folder, and starts its own thread."""
        if self._started:
            self._pid = os.getpid()
            self._keys.folder.hold()
            self._rotation_thread.start()


def _sign_reading(keys: SigningKeys, target: str) -> str:
    """A request token for a GET of ``target`` at the registry."""
    return request_token(keys.current(), REGISTRY, method="GET", target=target, now=keys.clock())


def _post_split_view(webhook: Webhook, service: str, found: SplitView) -> None:
    """Tell the webhook: what is proven, and the evidence itself, which outlives this host there."""
    evidence = strict_json_object(found.evidence.encode())
    told = {"event": "split_view", "level": "alert", "service": service, "detail": found.verdict.detail}
    webhook.post({**told, "at": found.evidence.seen[0].at, "evidence": evidence})
