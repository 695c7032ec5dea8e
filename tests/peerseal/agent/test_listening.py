"""Where the agent listens: the socket's folder, mode and lock, loopback addresses, users and secrets."""

import os
import socket
import stat
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.agent.listening import loopback_socket, secret_in, unix_socket, user_id, users_of
from peerseal.errors import ConfigurationError

ME = frozenset((os.geteuid(),))
OTHER = os.geteuid() + 1


@pytest.mark.parametrize(("users", "mode"), [(ME, 0o600), (ME | {OTHER}, 0o660)])
def test_only_the_allowed_users_reach_the_socket(tmp_path: Path, users: frozenset[int], mode: int) -> None:
    before = os.umask(0)
    try:
        with unix_socket(tmp_path / "new" / "a.sock", users):
            assert stat.S_IMODE((tmp_path / "new" / "a.sock").stat().st_mode) == mode
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not (tmp_path / "new" / "a.sock").exists()


def test_the_kernel_tells_which_user_connects(tmp_path: Path) -> None:
    with unix_socket(tmp_path / "a.sock", ME) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "a.sock"))
        connection, _ = listener.accept()
        with connection:
            assert user_id(connection) == os.geteuid()


def test_a_socket_in_use_is_refused(tmp_path: Path) -> None:
    with unix_socket(tmp_path / "a.sock", ME):
        with (
            pytest.raises(ConfigurationError, match="another agent listens there"),
            unix_socket(tmp_path / "a.sock", ME),
        ):
            pass
        assert (tmp_path / "a.sock").exists()


def test_a_socket_that_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "a.sock"))
    with unix_socket(tmp_path / "a.sock", ME), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "a.sock"))


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_else_at_its_place_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.sock"
    {"file": path.touch, "folder": path.mkdir, "link": lambda: path.symlink_to(tmp_path)}[kind]()
    with pytest.raises(ConfigurationError, match="no socket: name another path"), unix_socket(path, ME):
        pass
    assert path.exists()


def test_a_folder_that_every_user_may_change_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigurationError, match="name a folder inside it"), unix_socket(tmp_path / "a.sock", ME):
        pass


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--socket=.*too long"), unix_socket(tmp_path / ("a" * 108), ME):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "::1:0", "127.9.9.9:0"])
def test_it_listens_on_loopback(address: str) -> None:
    with loopback_socket(address) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize(
    "address",
    ["", "7070", "0.0.0.0:7070", "[::]:7070", "localhost:7070", "10.0.0.1:1", "127.0.0.1:", "127.0.0.1:65536"],
)
def test_it_listens_on_no_other_address(address: str) -> None:
    with pytest.raises(ConfigurationError, match="expected a loopback address"), loopback_socket(address):
        pass


def test_a_port_in_use_is_named() -> None:
    with loopback_socket("127.0.0.1:0") as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"--listen={address}: "), loopback_socket(address):
            pass


@pytest.mark.parametrize("content", ["", "short", "é" * 40])
def test_a_weak_secret_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_text(content)
    with pytest.raises(ConfigurationError) as refused:
        secret_in(tmp_path / "secret")
    assert "32 ASCII characters or more" in str(refused.value)
    assert not content or content not in str(refused.value)


def test_users_are_named_or_numbered() -> None:
    assert users_of(["root", "65534"]) == ME | {0, 65534}
    with pytest.raises(ConfigurationError, match="--allow-user='no such user'"):
        users_of(["no such user"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "127.0.0.1:0"], "--listen needs --secret-file"),
        (["--listen", "127.0.0.1:0", "--secret-file", "/nowhere/secret"], "cannot be read"),
        (["--socket", "a.sock", "--secret-file", "secret"], "--secret-file is for --listen"),
    ],
)
def test_arguments_that_contradict_each_other_are_wrong_usage(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_help_shows_two_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["agent", "--help"])
    assert capsys.readouterr().out.count("  peerseal agent --") == 2
