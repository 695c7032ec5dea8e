"""Routes, templates and SQL statements that are compiled once in a process, however many applications have them.

Nearly every test makes a registry with some fifty routes. Compiling them takes as long as all else that its start does,
and the console's templates take twice as long again. Its statements take a sixth of the start.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import sqlalchemy
from flask import Flask
from jinja2.bccache import Bucket, BytecodeCache
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.util import LRUCache
from werkzeug.routing import Rule

_STATEMENTS: Final = 5_000
"""Statements that are kept, at most."""
_COMPILED: Final = dict[tuple[object, ...], dict[str, Any]]()


class CompiledOnce(Rule):
    """A rule that takes what an equal one of another application has compiled."""

    def compile(self) -> None:
        """See Rule."""
        converters = self.map.converters.items()
        given = (self.rule, self.host, self.subdomain, self.merge_slashes, str(self.defaults), frozenset(converters))
        if given not in _COMPILED:
            before = {name: id(value) for name, value in vars(self).items()}
            self.arguments = set(self.arguments)
            super().compile()
            _COMPILED[given] = {name: value for name, value in vars(self).items() if before.get(name) != id(value)}
        vars(self).update(_COMPILED[given])


class TemplatesInMemory(BytecodeCache):
    """Compiled templates, by name and source."""

    def __init__(self) -> None:
        self._compiled = dict[tuple[str, str], bytes]()

    def load_bytecode(self, bucket: Bucket) -> None:
        """See BytecodeCache."""
        if (compiled := self._compiled.get((bucket.key, bucket.checksum))) is not None:
            bucket.bytecode_from_string(compiled)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """See BytecodeCache."""
        self._compiled[bucket.key, bucket.checksum] = bucket.bytecode_to_string()


def engines_with(statements: LRUCache[Any, Any]) -> Callable[..., sqlalchemy.Engine]:
    """SQLAlchemy's ``create_engine``, whose engines share these compiled statements."""
    create_engine = sqlalchemy.create_engine

    def create(*arguments: Any, **options: Any) -> sqlalchemy.Engine:
        engine = create_engine(*arguments, **options)
        engine.update_execution_options(compiled_cache=statements)
        return engine

    return create


@contextmanager
def sharing_what_is_compiled() -> Iterator[None]:
    """All applications that are made within share what they compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flask, "url_rule_class", CompiledOnce)
        patch.setattr(Flask, "jinja_options", {**Flask.jinja_options, "bytecode_cache": TemplatesInMemory()})
        patch.setattr(sqlalchemy, "create_engine", engines_with(LRUCache(_STATEMENTS)))
        for dialect in (SQLiteDialect_pysqlite, PGDialect_psycopg):  # a compiled statement is known by its dialect
            patch.setattr(dialect, "__eq__", lambda one, other: type(one) is type(other))
            patch.setattr(dialect, "__hash__", lambda one: hash(type(one)))
        yield
