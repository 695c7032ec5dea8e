"""Why a call failed, in words: what urllib3 raises, and what a person can look for."""

import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from peerseal.transport.timed_connection import WrongAddress

CA_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""The variables from which `requests` takes the file or folder of authorities; the first one that is set counts."""


def unusable_authorities(environ: Mapping[str, str], variables: Sequence[str] = CA_VARIABLES) -> str | None:
    """Which variable names authorities that cannot be read, and why; None where all is well. The first of these
    ``variables`` that is set counts."""
    name = next((name for name in variables if environ.get(name)), None)
    if name is None:
        return None
    path = environ[name]
    try:
        os.stat(path)
        if os.path.isfile(path):
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return f"{name}={path}: holds no certificate: expected PEM"
    except OSError as error:
        return f"{name}={path}: {(error.strerror or str(error)).lower()}"
    return None


def failure_in_words(error: Exception) -> str:
    """The name of the error's class, and the reason where it is known. It quotes nothing of an answer."""
    if isinstance(error, WrongAddress):
        return error.why
    reason = _reason(error)
    return type(error).__name__ if reason is None else f"{type(error).__name__}, {reason}"


def _reason(error: Exception) -> str | None:
    match error:
        case ProxyError():
            inner = _reason(error.original_error) or type(error.original_error).__name__
            return f"the HTTP proxy does not connect ({inner}): see HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        case NameResolutionError():
            return "the host's name is not known"
        case NewConnectionError():
            return next((one.strerror.lower() for one in _causes(error) if one.strerror), None)
        case ConnectTimeoutError():
            return "no connection in time"
        case ReadTimeoutError() | TimeoutError():
            return "no answer in time"
        case SSLError():
            return _tls_reason(error)
    # `requests` raises a plain OSError for authorities that are not there
    return unusable_authorities(os.environ) if type(error) is OSError else None


def _tls_reason(error: SSLError) -> str:
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"the certificate is refused: {one.verify_message}"
    if wrong := unusable_authorities(os.environ):
        return wrong
    return "TLS failed; does the server speak https at this port?"


def _causes(error: BaseException) -> Iterator[OSError]:
    """The operating system's errors that led to the error, also those that urllib3 wraps as an argument."""
    one: object = error
    while isinstance(one, BaseException):
        if isinstance(one, OSError):
            yield one
        wrapped = next((part for part in one.args if isinstance(part, BaseException)), None)
        one = wrapped or one.__cause__ or one.__context__
