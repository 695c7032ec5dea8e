"""Submissions to a witness that must not be cosigned, over HTTP."""

import select
import socket
import sqlite3
import struct
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerseal.audit import witness_server
from peerseal.audit.witness import MAX_SUBMISSION, SubmissionRefused, Witness
from peerseal.audit.witness_server import witnessing
from peerseal.errors import ConfigurationError
from peerseal.protocol.ledger.cosignature import Note, NoteKey, cosigned_at
from tests.support.foreign_log import ForeignLog
from tests.support.waiting import until

NOW = 1_800_000_000


class Served:
    """A witness of one log, over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.log = ForeignLog()
        self.now = float(NOW)
        self.witness = Witness(folder, "witness.example", [self.log.key], lambda: self.now)
        self.port = 0

    @property
    def key(self) -> NoteKey:
        return self.witness.key

    def post(self, body: bytes, path: str = "/add-checkpoint") -> tuple[int, str, str]:
        """The status, the media type and the body of the answer."""
        return self.ask("POST", path, body)

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def time_in(self, note: str, line: str) -> int | None:
        return cosigned_at(Note.parse(note + line), self.key)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "witness")
    with witnessing(found.witness, "127.0.0.1:0") as port:
        found.port = port
        yield found


class TestIsCosigned:
    def test_a_first_checkpoint_and_each_that_continues_it(self, served: Served) -> None:
        for old, new in ((0, 3), (3, 4), (4, 4), (4, 100)):
            status, kind, line = served.post(served.log.submission(old, new))
            assert (status, kind) == (200, "text/plain; charset=utf-8")
            assert served.time_in(served.log.note(new), line) == NOW

    def test_an_empty_log(self, served: Served) -> None:
        assert served.post(served.log.submission(0, 0))[0] == 200
        assert served.post(served.log.submission(0, 2))[0] == 200

    def test_one_with_signatures_of_strangers_and_the_same_one_twice(self, served: Served) -> None:
        note = served.log.note(3)
        more = note + "— stranger.example AAAAAAAA\n" + note.splitlines()[-1] + "\n"
        status, _, line = served.post(served.log.submission(0, 3, note=more))
        assert status == 200
        assert served.time_in(note, line) == NOW

    def test_never_with_an_earlier_time_than_the_one_before(self, served: Served) -> None:
        served.post(served.log.submission(0, 3))
        served.now -= 3600
        assert served.time_in(served.log.note(5), served.post(served.log.submission(3, 5))[2]) == NOW


class TestIsRefused:
    @pytest.fixture(autouse=True)
    def _cosigned(self, served: Served) -> Iterator[None]:
        """Five entries are cosigned before the attack, and the log goes on after it."""
        assert served.post(served.log.submission(0, 5))[0] == 200
        yield
        assert served.post(served.log.submission(5, 8))[0] == 200

    def test_the_checkpoint_of_an_unknown_log(self, served: Served) -> None:
        assert served.post(ForeignLog("other.example").submission(0, 3))[0] == 404

    def test_one_that_another_key_signed(self, served: Served) -> None:
        assert served.post(ForeignLog().submission(5, 8))[0] == 403

    def test_one_whose_text_was_altered(self, served: Served) -> None:
        note = served.log.note(8).replace("\n8\n", "\n9\n")
        assert served.post(served.log.submission(5, 8, note=note))[0] == 403

    def test_one_that_claims_an_older_past(self, served: Served) -> None:
        assert served.post(served.log.submission(3, 8)) == (409, "text/x.tlog.size", "5\n")
        assert served.post(served.log.submission(0, 3)) == (409, "text/x.tlog.size", "5\n")
        assert served.post(served.log.submission(6, 8)) == (409, "text/x.tlog.size", "5\n")

    def test_a_rollback_to_a_smaller_size(self, served: Served) -> None:
        body = served.log.submission(5, 8, note=served.log.note(3))
        assert served.post(body)[0] == 400

    def test_a_fork_of_the_same_size(self, served: Served) -> None:
        assert served.post(served.log.fork().submission(5, 5))[:2] == (409, "text/x.tlog.size")

    def test_a_fork_of_a_larger_size(self, served: Served) -> None:
        assert served.post(served.log.fork().submission(5, 8))[0] == 422

    def test_a_proof_that_is_short_long_or_altered(self, served: Served) -> None:
        proof = served.log.proof(5, 8)
        zero = b64encode(bytes(32)).decode()
        for bad in ([], proof[:-1], [*proof, zero], [zero, *proof[1:]], proof[::-1]):
            assert served.post(served.log.submission(5, 8, proof=bad))[0] == 422, bad

    def test_a_proof_for_the_same_size(self, served: Served) -> None:
        assert served.post(served.log.submission(5, 5, proof=[b64encode(bytes(32)).decode()]))[0] == 422

    def test_a_proof_of_more_than_63_hashes(self, served: Served) -> None:
        line = b64encode(bytes(32)).decode()
        assert served.post(served.log.submission(5, 8, proof=[line] * 64))[0] == 400
        assert served.post(served.log.submission(5, 8, proof=[line] * 63))[0] == 422

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"old 5",
            b"old 5\n\n",
            b"old 05\n\nx",
            b"old -1\n\nx",
            b"old 1e3\n\nx",
            b"old 5 \n\nx",
            b"OLD 5\n\nx",
            b"old 5\r\n\r\nx",
            b"old 5\nAAAA\n\nx",
            b"old 5\n\xff\n\nx",
            b"old " + b"9" * 5000 + b"\n\nx",
            b"\n" * 1000,
        ],
    )
    def test_what_is_no_submission(self, served: Served, body: bytes) -> None:
        assert served.post(body)[0] == 400

    def test_one_with_the_spelling_of_a_hash_changed(self, served: Served) -> None:
        proof = [served.log.proof(5, 8)[0][:-2] + "B=", *served.log.proof(5, 8)[1:]]
        assert served.post(served.log.submission(5, 8, proof=proof))[0] in (400, 422)

    def test_one_with_more_signature_lines_than_a_note_may_have(self, served: Served) -> None:
        note = served.log.note(8) + "— stranger.example AAAAAAAA\n" * 64
        assert served.post(served.log.submission(5, 8, note=note))[0] == 400

    @pytest.mark.parametrize("length", [str(MAX_SUBMISSION + 1), "9" * 9])
    def test_a_body_that_is_too_long_without_reading_it(self, served: Served, length: str) -> None:
        assert b" 413 " in raw(served, f"POST /add-checkpoint HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: x\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1\r\n" * 2,
        ],
    )
    def test_a_body_of_unknown_length(self, served: Served, header: str) -> None:
        assert b" 411 " in raw(served, f"POST /add-checkpoint HTTP/1.1\r\n{header}\r\n")

    def test_another_path_or_method(self, served: Served) -> None:
        assert served.post(served.log.submission(5, 8), "/add-checkpoint/")[0] == 404
        assert served.ask("GET", "/add-checkpoint")[0] == 404
        assert served.ask("PUT", "/add-checkpoint")[0] == 501

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_altered_submission(self, served: Served, data: st.DataObject) -> None:
        body = bytearray(served.log.submission(5, 8, note=served.log.note(8)))
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] ^= data.draw(st.integers(1, 255))
        assert served.post(bytes(body))[0] in (400, 403, 404, 409, 422)


def threads_of_requests() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def raw(served: Served, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(request.encode())
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(
    "begun", ["", "POST /add-", "POST /add-checkpoint HTTP/1.1\r\nContent-Length: 100\r\n\r\nold 0"]
)
def test_slow_submissions_are_cut_off_and_delay_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as slow:
        slow.sendall(begun.encode())
        assert served.post(served.log.submission(0, 5))[0] == 200
        monkeypatch.setattr(witness_server, "LONGEST_REQUEST", 0.0)
        assert slow.recv(100) == b""


def test_idle_connections_give_their_places_to_new_ones(served: Served) -> None:
    with ExitStack() as connections:
        idle = [
            connections.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
            for _ in range(210)
        ]
        assert served.post(served.log.submission(0, 5))[0] == 200
        closed = select.select(idle[:100], [], [], 60)[0]
        assert closed, "some of the oldest"
        assert closed[0].recv(1) == b""
        idle[-1].sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert b" 200 " in idle[-1].recv(100), "one of the newest"


def test_a_client_that_resets_its_connection_leaves_no_trace(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
        gone.sendall(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 100\r\n\r\nold 0")
    assert served.post(served.log.submission(0, 5))[0] == 200
    until(lambda: threads_of_requests() == 0, what="the end of the connection")
    assert capfd.readouterr() == ("", "")


def test_of_two_histories_at_once_one_is_cosigned(served: Served) -> None:
    fork = served.log.fork()
    bodies = [log.submission(0, size) for size in range(1, 9) for log in (served.log, fork)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda body: served.post(body)[0], bodies))
    assert sorted(statuses) == [200, *[409] * 15]


def test_of_two_processes_with_one_folder_one_cosigns(tmp_path: Path) -> None:
    log = ForeignLog()
    witnesses = [Witness(tmp_path, "witness.example", [log.key]) for _ in range(4)]
    assert len({str(witness.key) for witness in witnesses}) == 1
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(
                lambda one: _outcome(one[0], one[1].submission(0, 5)),
                zip(witnesses, (log, log.fork()) * 2, strict=True),
            )
        )
    assert sorted(results) == [200, 409, 409, 409]


def _outcome(witness: Witness, body: bytes) -> int:
    try:
        witness.cosign(body)
    except SubmissionRefused as error:
        return error.status
    return 200


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    log = ForeignLog()
    Witness(tmp_path, "witness.example", [log.key]).cosign(log.submission(0, 5))
    again = Witness(tmp_path, "witness.example", [log.key])
    assert again.sizes() == {"log.example": 5}
    assert _outcome(again, log.fork().submission(0, 5)) == 409


@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (Path.unlink, "is missing"),
        (lambda file: file.write_bytes(b""), r"is damaged [(]no such table: cosigned[)]"),
        (lambda file: file.write_bytes(b"?" * 5000), r"is damaged [(]file is not a database[)]"),
        (lambda file: file.write_bytes(file.read_bytes()[:5000]), "is damaged"),
    ],
)
def test_a_witness_that_lost_its_state_does_not_start(
    tmp_path: Path, lose: Callable[[Path], object], said: str
) -> None:
    log = ForeignLog()
    Witness(tmp_path, "witness.example", [log.key])
    lose(tmp_path / "witness.sqlite3")
    with pytest.raises(ConfigurationError, match=f"{said}.*would cosign a log that was rolled back") as caught:
        Witness(tmp_path, "witness.example", [log.key])
    assert "new folder" in str(caught.value)
    assert "estore" not in str(caught.value), "an older file is as bad as none"


def test_a_state_that_cannot_be_opened_is_not_called_lost(tmp_path: Path) -> None:
    log = ForeignLog()
    Witness(tmp_path, "witness.example", [log.key])
    state = tmp_path / "witness.sqlite3"
    state.unlink()
    state.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read now: unable to open") as caught:
        Witness(tmp_path, "witness.example", [log.key])
    assert "new folder" not in str(caught.value)


def test_nothing_is_cosigned_where_the_state_cannot_be_written(served: Served, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "witness" / "witness.sqlite3") as other:
        other.execute("DROP TABLE cosigned")
    assert served.post(served.log.submission(0, 5)) == (
        503,
        "text/plain; charset=utf-8",
        "the state cannot be written\n",
    )
    assert served.ask("GET", "/healthz")[0] == 503


def test_the_key_is_the_owners_alone(tmp_path: Path) -> None:
    Witness(tmp_path / "witness", "witness.example", [ForeignLog().key])
    assert (tmp_path / "witness" / "witness.key").stat().st_mode & 0o777 == 0o600


def test_metrics_tell_what_was_submitted(served: Served) -> None:
    served.post(served.log.submission(0, 5))
    served.post(b"")
    text = served.ask("GET", "/metrics")[2]
    assert 'peerseal_witness_submissions_total{status="200"} 1' in text
    assert 'peerseal_witness_submissions_total{status="400"} 1' in text
    assert 'peerseal_witness_entries{log="log.example"} 5' in text
    assert served.ask("GET", "/healthz")[::2] == (200, "ok\n")


def test_probes_may_ask_for_the_head_alone(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(b"HEAD /healthz HTTP/1.1\r\n\r\nHEAD /nothing HTTP/1.1\r\nConnection: close\r\n\r\n")
        answers = connection.makefile("rb").read()
    first, second, rest = answers.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 3" in first
    assert second.startswith(b"HTTP/1.1 404 ")
    assert rest == b""
