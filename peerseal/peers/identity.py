"""A service's identity: its own keys, and what it signs with them."""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peerseal.errors import ConfigurationError, DocumentRefused, PeersealError, TrustUnavailable, UnsignableRequest
from peerseal.peers.context import Transaction, current_transaction
from peerseal.peers.enrol import TRY_AGAIN, PlatformToken, SignsRequests, refusal_behind
from peerseal.peers.environment import absent_join_token, check_parts, check_places, check_switches, options_in
from peerseal.peers.events import Event
from peerseal.peers.fetch import Fetcher, is_confidential
from peerseal.peers.follow import check_pin
from peerseal.peers.forks import BackgroundWork, in_each_child, notice_fork, warn_without_threads
from peerseal.peers.keeper import KeyKeeper
from peerseal.peers.keyfolder import HeldKey, KeyFolder
from peerseal.peers.limits import RotationSchedule, TrustLimits
from peerseal.peers.minting import Minter, whole_seconds
from peerseal.peers.replay import FileReplayGuard, MemoryReplayGuard, ReplayGuard
from peerseal.peers.replay_redis import RedisReplayGuard
from peerseal.peers.signing import TokenSigner
from peerseal.peers.target import check_external_prefix
from peerseal.peers.trust import TrustStore
from peerseal.peers.users import User
from peerseal.protocol.events import EVENT_LIFETIME, EVENT_LIFETIME_CAP
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import PublicCredentials
from peerseal.protocol.names import REGISTRY, check_service, service_id
from peerseal.protocol.plain import plain_text
from peerseal.protocol.transactions import TRANSACTION_LIFETIME
from peerseal.runtime.files import cache_folder
from peerseal.runtime.key_passphrase import KeyPassphrase

if TYPE_CHECKING:
    from peerseal.requests import PeerSession

log = logging.getLogger("peerseal.identity")

_LONGEST_PAUSE = 10.0
_LONGEST_WORK = 15.0
"""Seconds for which `Identity.stop` waits for work on the keys that is under way: one call to the registry, at most."""


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
    with one, where a restart or a recycled worker goes on with the keys.
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
        self._shared_setting = "PEERSEAL_KEY_DIR" if cache_dir is None else "PEERSEAL_CACHE_DIR"
        self._retire_at_exit = key_dir is None if retire_at_exit is None else retire_at_exit
        self._schedule = rotation or RotationSchedule()
        joining = JoinToken.parse(join_token) if plain_text(join_token) != "" and join_token is not None else None
        platform = _platform_token(oidc_token, joining, registry, fetcher)
        folder = KeyFolder(key_folder, KeyPassphrase("PEERSEAL_KEY_PASSPHRASE", key_passphrase))
        pin = _one_pin(pin, joining, folder)
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
        self._started, self._pid = False, 0
        self._working = BackgroundWork()
        self._replay_url = replay_url
        self._unsafe_replay_fallback = unsafe_replay_fallback
        self._guards: list[FileReplayGuard | RedisReplayGuard] = []
        self._rotator: threading.Thread | None = None
        self._stopping = threading.Event()
        in_each_child(self._after_fork)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """From ``PEERSEAL_SERVICE``, ``PEERSEAL_REGISTRY_URL``, ``PEERSEAL_REGISTRY_PIN``, ``PEERSEAL_JOIN_TOKEN`` or
        ``…_FILE``, ``PEERSEAL_OIDC_TOKEN_FILE`` (read at every join), ``PEERSEAL_KEY_DIR``,
        ``PEERSEAL_KEY_PASSPHRASE`` or ``…_FILE``, ``PEERSEAL_CACHE_DIR``, ``PEERSEAL_EXTERNAL_PREFIX``,
        ``PEERSEAL_REPLAY_URL`` or ``…_FILE``, ``PEERSEAL_REPLAY_UNSAFE_FALLBACK`` and ``PEERSEAL_RETIRE_AT_EXIT``
        (on or off); and, as seconds or such as ``24h``, ``PEERSEAL_ROTATE_EVERY``, ``…_LEAD``, ``…_OVERLAP``. An empty
        variable is one that is not set.

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
            self._register(timeout)
        except BaseException:
            self._keeper.leave(retire=False)
            raise
        self._started, self._pid = True, os.getpid()
        warn_without_threads()
        self._start_rotator()
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
        self._stopping.set()
        if self._rotator is not None:
            self._rotator.join(_LONGEST_WORK)  # else it could look for keys that are gone
        self.trust.stop()
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
        """The headers of a message that carries ``payload``, these very bytes, on ``topic``.

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
        seconds = whole_seconds(lifetime)
        if not 0 < seconds <= EVENT_LIFETIME_CAP:
            raise UnsignableRequest(f"an event token lives {EVENT_LIFETIME_CAP} s at most")
        token = self._signer.event(
            self._keeper.signing_key(),
            payload,
            user=current.user if current and subject is None else subject,
            audience=audience,
            scope=scope,
            event_id=event_id,
            transaction_id=transaction_id,
            topic=topic,
            lifetime=seconds,
            authentication=self._minter.event_context(current, scope) if current else {},
        )
        return {"authorization": f"Bearer {token}"}

    def sign_assertion(self, *, audience: str | None = None, client_id: str | None = None) -> str:
        """A client assertion (RFC 7523) for the registry's token endpoint, or for another issuer ``audience``, which
        knows this service as ``client_id`` (by default its id). Good for a minute. Raises UnsignableRequest or
        TrustUnavailable."""
        return self._signer.assertion(self._keeper.signing_key(), audience, client_id)

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
        return self._minter.for_user(user, scope, facts, transaction_id, workload, lifetime)

    def transaction_for_event(self, event: Event) -> Transaction | None:
        """What outgoing calls carry while a verified event is handled: its user, its transaction, its one scope, and
        how the user was authenticated. The token is minted when a call needs it. None where this service may not mint.
        Raises TrustUnavailable."""
        return self._minter.for_event(event)

    def session(self, audience: str, base_url: str, **options: Any) -> "PeerSession":
        """A `requests.Session` that signs every attempt of every request to ``base_url`` for ``audience``. See
        `peerseal.requests.PeerSession` for the options."""
        from peerseal.requests import PeerSession  # the adapter is loaded where it is used, and not before

        return PeerSession(self, audience, base_url, **options)

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
        if self._shared_dir is None:
            log.warning("no PEERSEAL_CACHE_DIR: every worker of %s accepts a token once", self.service)
            return MemoryReplayGuard(clock=self.clock)
        folder = cache_folder(self._shared_dir, self._shared_setting).path
        guard = FileReplayGuard(folder / f"replay-{self.service}.sqlite3", clock=self.clock)
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

    # ---- the background

    def _register(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        refusal: DocumentRefused | None = None
        for pause in _pauses():
            try:
                return self._keeper.ensure_registered()
            except TRY_AGAIN as error:
                refusal = refusal_behind(error) or (refusal if isinstance(error, TrustUnavailable) else None)
                over = time.monotonic() + pause > deadline
                if refusal is not None and (over or refusal.of_another_registry):
                    raise refusal from error
                if over:
                    raise
                log.warning("no registered key yet; trying again in %.1f s: %s", pause, error)
                time.sleep(pause)
        raise AssertionError("unreachable: the pauses never end")

    def _start_rotator(self) -> None:
        self._stopping = threading.Event()
        self._rotator = threading.Thread(target=self._run, name="peerseal-rotate", daemon=True)
        self._rotator.start()

    def _run(self) -> None:
        stopping, pauses = self._stopping, _pauses()
        tick = min(max(self._schedule.every / 20, 0.1), 10.0, max(self._schedule.lead / 2, 0.1))
        pause = tick
        while not stopping.wait(pause):
            pause = tick
            try:
                with self._working:
                    if self._keeper.is_due():
                        self._keeper.work()
                pauses = _pauses()
            except PeersealError as error:
                pause = max(tick, next(pauses))
                log.warning("keys of %s could not be looked after: %s", self.service, error)
            except Exception:  # the thread must not die of a surprise: keys would run out a week later
                pause = _LONGEST_PAUSE
                log.exception("keys of %s could not be looked after", self.service)

    def _after_fork(self) -> None:
        """A child is a holder of its own, and needs its own thread."""
        if self._started:
            self._pid = os.getpid()
            self._folder.hold()
            self._start_rotator()


def _pauses() -> Iterator[float]:
    """Seconds between attempts: doubling from a fifth, to ten at most, for ever."""
    pause = 0.2
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE)


def _one_pin(pin: str | None, joining: JoinToken | None, folder: KeyFolder) -> str | None:
    """The pin from wherever it is known; two that differ are a mistake."""
    if pin is not None:
        check_pin(pin)
    pins = {known for known in (pin, joining.pin if joining else None) if known is not None}
    if len(pins) > 1:
        raise ConfigurationError("the join token is for a registry with another root key than the pinned one")
    return pins.pop() if pins else folder.pin()


def _platform_token(
    source: str | Callable[[], str] | None,
    joining: JoinToken | None,
    registry: str | Sequence[str],
    fetcher: Fetcher | None,
) -> PlatformToken | None:
    """What a newcomer shows in the place of a join token; a stranger who read it off the wire could show it too."""
    if source is None:
        return None
    if joining is not None:
        raise ConfigurationError("a join token and a platform's token: which one counts?")
    urls = registry.split(",") if isinstance(registry, str) else [*registry, ""]  # none at all is no URL either
    confidential = is_confidential(urls[0].strip()) if fetcher is None else getattr(fetcher, "confidential", True)
    if not confidential:
        raise ConfigurationError("a platform's token is sent over https or loopback only")
    return PlatformToken.of(source)
