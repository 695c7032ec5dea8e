"""Flask: every route closed to all but proven, allowed callers.

::

    auth = PeerAuth(app, identity, allow={"client-service": {"profiles:read"}})

    @app.get("/profiles/<id>")
    @auth.require(scope="profiles:read")
    def profile(id):
        return {"caller": current_peer.service}

One check runs before anything else of the request: before other ``before_request`` functions, before a body is parsed,
and before a 404, a 405 or a redirect to another spelling of the path. Only what is marked `PeerAuth.public` is open.
"""

import functools
import logging
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from inspect import iscoroutinefunction
from io import BufferedReader, BytesIO, RawIOBase
from typing import IO, Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from flask import Flask, Response, current_app, request
from flask.json import dumps
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.local import LocalProxy
from werkzeug.wsgi import get_input_stream

from peerseal.errors import (
    ConfigurationError,
    Forbidden,
    InsufficientScope,
    MalformedToken,
    MissingToken,
    PeersealError,
    TokenError,
    TrustUnavailable,
)
