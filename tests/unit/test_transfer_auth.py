"""The token's challenge, and the files that hold tokens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from steertag.transfer.auth import Challenge, make_token_file, read_token_file, same
from steertag.transfer.errors import ExitCode, TransferError

TOKEN = b"0123456789abcdef"
CHALLENGE = Challenge(b"c" * 32, b"s" * 32, b"i" * 16)


def test_only_the_same_token_and_challenge_give_the_same_proof() -> None:
    proof = CHALLENGE.client_proof(TOKEN)
    assert same(proof, CHALLENGE.client_proof(TOKEN))
    others = [
        CHALLENGE.client_proof(TOKEN + b"x"),
        CHALLENGE.server_proof(TOKEN),
        Challenge(b"d" * 32, b"s" * 32, b"i" * 16).client_proof(TOKEN),
        Challenge(b"c" * 32, b"t" * 32, b"i" * 16).client_proof(TOKEN),
        Challenge(b"c" * 32, b"s" * 32, b"j" * 16).client_proof(TOKEN),
    ]
    assert not any(same(proof, other) for other in others)


def test_an_rdma_binding_is_for_one_attempt_only() -> None:
    assert CHALLENGE.rdma_binding(TOKEN, 1) != CHALLENGE.rdma_binding(TOKEN, 2)
    assert CHALLENGE.rdma_binding(TOKEN, 1) != CHALLENGE.rdma_binding(b"", 1)


def test_a_made_token_is_for_its_owner_only_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / "token"
    token = make_token_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert make_token_file(path) == token == read_token_file(path)
    assert make_token_file(tmp_path / "other") != token


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(TOKEN)
    path.chmod(0o640)
    with pytest.raises(TransferError, match="chmod 600") as caught:
        read_token_file(path)
    assert caught.value.code is ExitCode.AUTHENTICATION


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"  hunter2\n")
    path.chmod(0o600)
    with pytest.raises(TransferError, match="16 octets or more, this 7"):
        read_token_file(path)


def test_a_token_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TransferError) as caught:
        read_token_file(tmp_path / "none")
    assert caught.value.code is ExitCode.NO_SUCH_FILE


def test_a_made_token_never_follows_a_link_to_somewhere_else(tmp_path: Path) -> None:
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransferError):
        make_token_file(tmp_path / "token")
    assert not (tmp_path / "elsewhere").exists()
