"""Workers of one host: real processes that verify as one service, share a cache folder, and do what they are told.

Each reads one JSON line a question and writes one a reply. A forked one goes on with a trust store that the test has
made, started or not; a spawned one is a program of its own: ``python -m tests.support.workers URL PIN FOLDER LIMITS``.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from demo.processes import ROOT
from peerseal import TrustLimits, TrustStore
from peerseal.errors import PeersealError

WAIT = 30.0
"""Seconds for a reply: a worker that says nothing for so long hangs."""


class Worker:
    """One process, as the test sees it. As a context manager it is killed at the end."""

    def __init__(self, pid: int, questions: IO[bytes], replies: IO[bytes]) -> None:
        self.pid = pid
        self._questions = questions
        self._replies = replies
        self.alive = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @classmethod
    def forked(cls, trust: TrustStore) -> Self:
        """A forked child that goes on with ``trust``. It ends without any clean-up."""
        questions, replies = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _serve(trust, os.fdopen(questions[0], "rb"), os.fdopen(replies[1], "wb"))
            finally:
                os._exit(0)
        os.close(questions[0])
        os.close(replies[1])
        return cls(pid, os.fdopen(questions[1], "wb"), os.fdopen(replies[0], "rb"))

    @classmethod
    def spawned(cls, url: str, pin: str, folder: Path, limits: TrustLimits) -> Self:
        """A process of its own with a trust store of its own."""
        command = [sys.executable, "-m", __name__, url, pin, str(folder), json.dumps(asdict(limits))]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        worker = cls(process.pid, process.stdin, process.stdout)
        process.returncode = 0  # `kill` is who waits for it
        return worker

    def ask(self, question: str, *arguments: Any) -> Any:
        """The reply to a question. See `_Answers`."""
        self.tell(question, *arguments)
        return self.reply()

    def tell(self, question: str, *arguments: Any) -> None:
        """Put a question, so that others can be asked meanwhile."""
        self._questions.write(json.dumps([question, *arguments]).encode() + b"\n")
        self._questions.flush()

    def reply(self) -> Any:
        """The reply to what was told."""
        ready = select.poll()  # `select.select` takes no descriptor beyond 1023
        ready.register(self._replies, select.POLLIN)
        assert ready.poll(WAIT * 1000), f"worker {self.pid} says nothing"
        line = self._replies.readline()
        assert line, f"worker {self.pid} has ended"
        return json.loads(line)

    def stop(self) -> None:
        """Hold it, as a debugger or a frozen container does: it keeps its locks and does nothing. Returns once it is
        held, which takes a while on a busy machine."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def go_on(self) -> None:
        """After `stop`."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``, and the end awaited."""
        if self.alive:
            self.alive = False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._questions.close()
            self._replies.close()


def all_say(workers: Sequence[Worker], question: str, *arguments: Any) -> list[Any]:
    """What all of them reply to one question, put to them at once."""
    for worker in workers:
        worker.tell(question, *arguments)
    return [worker.reply() for worker in workers]


class _Answers:
    """What a worker can be asked."""

    def __init__(self, trust: TrustStore) -> None:
        self._trust = trust

    def key(self, kid: str) -> str:
        """Whether the key is good: ``good``, or the code of the refusal."""
        return self._code(lambda: self._trust.key(kid))

    def policy(self, service_id: str) -> str:
        """Whether the policy can be had."""
        return self._code(lambda: self._trust.policy(service_id))

    def leads(self) -> bool:
        """Whether it asks the registry for the whole host."""
        return self._trust.status().leads

    def fetches(self) -> dict[str, int]:
        """What it has asked of the registry."""
        return dict(self._trust.status().fetches)

    @staticmethod
    def _code(ask: Callable[[], object]) -> str:
        try:
            ask()
        except PeersealError as error:
            return error.code
        return "good"


def _serve(trust: TrustStore, questions: IO[bytes], replies: IO[bytes]) -> None:
    answers = _Answers(trust)
    for line in questions:
        question, *arguments = json.loads(line)
        replies.write(json.dumps(getattr(answers, question)(*arguments)).encode() + b"\n")
        replies.flush()


def _main(url: str, pin: str, folder: str, limits: str) -> None:
    trust = TrustStore(url, pin=pin, cache_dir=folder, limits=TrustLimits(**json.loads(limits)))
    with suppress(KeyboardInterrupt):
        _serve(trust, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
