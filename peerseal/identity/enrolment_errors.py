"""Errors for a key that the registry refuses. Each has the registry's code, the request id in the registry's log, the
offset of the clocks, and the likely causes with the variable to set."""

from collections.abc import Mapping
from typing import Any, Final

from peerseal.errors import EnrolmentRefused, FetchError, MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.session.problem import MAX_PROBLEM
from peerseal.transport.clocks import clock_offset, difference_in_words
from peerseal.transport.fetch import Answer
from peerseal.verify.context import REQUEST_ID, valid_request_id

_SHARE: Final = "set PEERSEAL_KEY_DIR, in which workers and restarts share one key"
_TOKEN: Final = "`peerseal-registry join-token create {service}` makes another"
_EMPTY: Final = "give {service} an empty PEERSEAL_KEY_DIR and a new join token"

_CAUSES: Final[Mapping[str, tuple[str, ...]]] = {
    "join_refused": (
        f"another worker, the reloader's second process or an earlier start used the join token up: {_SHARE}",
        f"the join token has ended or was withdrawn: {_TOKEN}",
        "it is for another service: compare PEERSEAL_SERVICE={service} with `peerseal-registry join-token list`",
        "PEERSEAL_JOIN_TOKEN holds a damaged token: copy it again",
    ),
    "missing_token": (
        "there is no join token: set PEERSEAL_JOIN_TOKEN; `peerseal-registry join-token create {service}`",
    ),
    "expired": ("this host's clock is slow, or the call was held up: synchronise both clocks (NTP)",),
    "not_yet_valid": ("this host's clock is fast: synchronise both clocks (NTP)",),
    "key_revoked": (f"an operator revoked the key in PEERSEAL_KEY_DIR: {_EMPTY}",),
    "key_retired": (f"the key in PEERSEAL_KEY_DIR has ended: {_EMPTY}",),
    "key_of_another_service": (
        "PEERSEAL_KEY_DIR holds a key of another service: give each service a folder of its own",
    ),
    "too_many_keys": (
        "{service} has as many keys as it may have: end those that are not in use, and set PEERSEAL_KEY_DIR",
        "the part of its key set to which this key belongs is full: another key may have room",
    ),
    "invalid_name": ("PEERSEAL_SERVICE={service} is no name of a service",),
}
"""The likely causes of each code, the likeliest first, each with what to do."""
ANOTHER_KEY_HELPS: Final = frozenset(
    {
        # the registry knows the key, and it never becomes a key of this service again
        "key_of_another_service",
        "key_retired",
        "key_revoked",
        # the part of the key set to which it belongs may be full
        "too_many_keys",
        # the numbers of this key are weak or damaged
        "key_even_modulus",
        "key_off_curve",
        "key_small_factor",
        "key_close_primes",
        "key_roca",
        "key_shared_prime",
        "key_sparse_primes",
        "key_backdoored",
    }
)
"""Codes that refuse one key, where the registry may admit another one. All other codes refuse the service, its token or
its voucher, or the form that all keys of this program have: `key_malformed`, `key_type_unsupported` and such."""
_ELSEWHERE: Final = "docs/reference/errors.md has the causes of this code"
_CLOCKS: Final = ("expired", "not_yet_valid")
_MAX_DETAIL: Final = 200


def enrolment_refused(answer: Answer, service: str, now: float) -> EnrolmentRefused:
    """The error for an answer other than success; ``now`` is this host's time."""
    problem = _problem_of(answer)
    code, detail = _text(problem, "code") or "refused", _text(problem, "detail")
    offset = clock_offset(answer, now)
    said = f"{_answered(answer)}{f': {detail[:_MAX_DETAIL]}' if detail else ''}"
    clocks = difference_in_words(offset)
    likely = None if clocks and code in _CLOCKS else _likely(code, service)
    parts = "; ".join(filter(None, (said, clocks, likely)))
    return EnrolmentRefused(code, parts, request_id=_request_id(answer), clock_offset=offset)


def no_answer(answer: Answer) -> FetchError:
    """The error for an answer that says nothing about the key, such as 503."""
    return FetchError(_answered(answer), answer.status)


def code_of(answer: Answer) -> str:
    """The code in a problem document (RFC 9457); ``refused`` in any other answer."""
    return _text(_problem_of(answer), "code") or "refused"


def _answered(answer: Answer) -> str:
    request_id = _request_id(answer)
    return f"the registry answered {answer.status}{f', request {request_id}' if request_id else ''}"


def _likely(code: str, service: str) -> str:
    """The causes in order, numbered where there are several."""
    causes = [cause.format(service=service) for cause in _CAUSES.get(code, (_ELSEWHERE,))]
    if len(causes) == 1:
        return causes[0]
    return "likely causes: " + ", ".join(f"({number}) {cause}" for number, cause in enumerate(causes, 1))


def _request_id(answer: Answer) -> str | None:
    return valid_request_id(answer.headers.get(REQUEST_ID))


def _problem_of(answer: Answer) -> Mapping[str, Any]:
    try:
        return strict_json_object(answer.body) if len(answer.body) <= MAX_PROBLEM else {}
    except MalformedToken:
        return {}


def _text(problem: Mapping[str, Any], name: str) -> str | None:
    value = problem.get(name)
    return value if isinstance(value, str) else None
