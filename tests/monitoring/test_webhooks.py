"""Webhooks: signed, sent again, and never in the way of a write."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from tests.monitoring.targets import SECRET, Target
from tests.waiting import until
from weightledger import Ledger, TorchEngine
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.monitoring.webhooks import MOST_WAITING, Webhooks, key_of, signature


@pytest.fixture
def target() -> Iterator[Target]:
    one = Target()
    yield one
    one.close()


@pytest.fixture
def hooks(target: Target) -> Iterator[Webhooks]:
    one = Webhooks(target.url, SECRET, pause=lambda tries: 0.0)
    yield one
    target.gate.set()
    one.close()


def written(hooks: Webhooks, folder: Path, updates: int = 1) -> None:
    """Updates of a real log, that the webhooks are told of."""
    with Ledger.open(f"sqlite:///{folder}/hooks.db") as ledger:
        module = torch.nn.Linear(2, 1)
        log = ledger.model("m", engine=TorchEngine(module))
        log.subscribe(hooks.after)
        for step in range(updates):
            log.record({"weight": torch.full((1, 2), float(step)), "bias": torch.zeros(1)})


def test_a_message_is_signed_as_the_standard_says(
    target: Target, hooks: Webhooks, tmp_path: Path
) -> None:
    written(hooks, tmp_path)
    until(lambda: target.got)
    headers, body = target.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(bytes(range(32)), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    told = json.loads(body)
    assert told["type"] == "weightledger.updated" and told["data"]["seq"] == 1
    assert told["data"]["kind"] == "updated" and told["data"]["alert"] is False


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    """https://github.com/standard-webhooks/standard-webhooks: the vector of its libraries."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    told = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert told == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_was_not_taken_is_sent_again_under_the_same_id(
    target: Target, hooks: Webhooks, tmp_path: Path
) -> None:
    target.answers = [500, 302, 404]
    written(hooks, tmp_path)
    until(lambda: len(target.got) == 4)
    assert len({headers["webhook-id"] for headers, _ in target.got}) == 1
    assert len({body for _, body in target.got}) == 1


def test_one_that_asks_to_stop_is_not_asked_again(
    target: Target, hooks: Webhooks, tmp_path: Path
) -> None:
    target.answers = [410]
    written(hooks, tmp_path, updates=2)
    until(lambda: len(target.got) == 2)
    assert len({headers["webhook-id"] for headers, _ in target.got}) == 2


def test_a_dead_target_delays_no_write(target: Target, hooks: Webhooks, tmp_path: Path) -> None:
    """It hangs, while everything that there is to write is written."""
    target.gate.clear()
    written(hooks, tmp_path, updates=20)
    assert not target.got
    target.gate.set()
    until(lambda: len(target.got) == 20)


def test_a_target_that_is_away_is_tried_so_often_and_then_let_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Webhooks("http://127.0.0.1:9/hook", SECRET, pause=lambda tries: 0.0)
    written(away, tmp_path)
    until(lambda: "was not taken in 9 tries and is dropped" in caplog.text)
    away.close()


def test_an_answer_without_end_holds_up_no_other_message(target: Target, hooks: Webhooks) -> None:
    """All that came after it waited, and it was kept in memory as far as it went."""
    target.endless.set()
    hooks.tell("weightledger.test", {}, datetime.now(UTC), "msg_1")
    until(lambda: len(target.got) == 1)
    target.endless.clear()
    hooks.tell("weightledger.test", {}, datetime.now(UTC), "msg_2")
    until(lambda: len(target.got) == 2)
    assert [headers["webhook-id"] for headers, _ in target.got] == ["msg_1", "msg_2"]


def test_what_waits_is_bounded(target: Target, hooks: Webhooks) -> None:
    target.gate.clear()
    for number in range(MOST_WAITING + 10):
        hooks.tell("weightledger.test", {}, datetime.now(UTC), f"msg_{number}")
    assert len(hooks._waiting) <= MOST_WAITING


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "whsec_not base64", "x" * 40])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(InvalidRequest, match="24 to 64 bytes") as refused:
        Webhooks("http://127.0.0.1:9/", secret)
    assert len(secret) < 7 or secret not in str(refused.value)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no server's URL"):
        Webhooks("ftp://x", SECRET)
