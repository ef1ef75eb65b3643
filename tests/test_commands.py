"""Commands: the same data from every face, one handler each, and digests that never change."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planned import Planned
from weightledger import Caller, IncrementalUpdateRequest, Ledger, Log, OperationDisabled, Plan
from weightledger.ledger.errors import IdempotencyMismatch, InvalidRequest
from weightledger.ledger.events.bodies import Observed
from weightledger.ledger.tensors.spec import TensorSpec
from weightledger.ledger.writing import (
    approval_commands,
    commands,
    handlers,
    rollout_commands,
    update_commands,
)
from weightledger.ledger.writing.approval_commands import CarryOut, Decide, Lapse, RequestApproval
from weightledger.ledger.writing.commands import (
    ChangePolicy,
    CreateInitialVersion,
    CreateVersion,
    LoadAdapter,
    MergeAdapter,
    Observe,
    Pin,
    PlaceHold,
    Record,
    Redact,
    Release,
    Retire,
    RollBack,
    UnloadAdapter,
)
from weightledger.ledger.writing.policy import Policy
from weightledger.ledger.writing.rollout_commands import AdvanceRollout, EndRollout, StartRollout
from weightledger.ledger.writing.update_commands import ApplyUpdates, batch_command, update_command

SPECS = {
    "w": TensorSpec("w", "float32", (2, 3)),
    "i": TensorSpec("i", "int64", (2,)),
    "h": TensorSpec("h", "bfloat16", (4,)),
}
AROUND_ANOTHER = {RequestApproval, CarryOut}
KINDS = [
    kind
    for module in (commands, update_commands, rollout_commands, approval_commands)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
]


def request(name: str, data: object = None, rate: float = 0.01, **fields: object):
    return IncrementalUpdateRequest(name, data, rate, **fields)


def update(*args: object, **fields: object) -> ApplyUpdates:
    return update_command(request(*args, **fields), SPECS, {})


FACTORS = {"a": [[1.0], [2.0]], "b": [[0.1, 0.2, 0.3]]}
ANYONE = Caller()
KEYED = Caller(idempotency_key="k")

# Stored headers hold these, and a retry is compared with them: the bytes are for ever.
FROZEN = {
    "list": (
        update("w", [1, 2, 3, 4, 5, 6], 0.5),
        "23494f7eda197bd39c50d25463284768ab564f9c76e4ce0776449dfda902e5da",
    ),
    "number": (
        update("w", 2, 0.25, update_type="multiplicative"),
        "94a89beeed6e49bad59b49da7c336f04ef1db50bc779923eafd0527c59509996",
    ),
    "sparse": (
        update("w", [1.5, 2.5], 0.5, indices=[4, 1], metadata={"loss": 0.25, "n": "ä"}),
        "796d36ecaa0917e0415ecda19d2d2743d721eaff84dfcf7621e7daa25b37b61e",
    ),
    "factors": (
        update("w", rate=0.5, factors=FACTORS),
        "c287e5497169afafccd4ee257c6c080c28ff06b51d395a91cb0b53d0777259aa",
    ),
    "integers": (
        update("i", [7, 8], update_type="replace"),
        "5001c5b89e7c1b9c6c88281ef844723ddce7b99353c7cc9ef895d382f2378905",
    ),
    "tensor": (
        update("h", torch.arange(4, dtype=torch.float32), 0.125),
        "38af4dfdb4407e491b741c0d7f744af42b1e7805d455c7ada8e62159e82f5b16",
    ),
    "batch": (
        batch_command(
            [request("w", 1.0, 0.5), request("i", [1, 2], update_type="replace")],
            SPECS,
            {},
            metadata={"b": 1},
        ),
        "ba6b0909b4dee95d0b7f891f6b0bd1b0db7b2c8a9e14352229dc5e48e76894c8",
    ),
    "record": (
        Record(
            {
                "w": torch.ones(2, 3),
                "i": torch.ones(2, dtype=torch.int64),
                "h": torch.ones(4, dtype=torch.bfloat16),
            },
            KEYED,
            '{"c":2}',
        ),
        "f4bcf9f2b390c8f6a023adfbdc8100ed726e3ae1a79660594efb36142688e6fb",
    ),
    "version": (
        CreateVersion("named"),
        "ec9a12416430c1eabe48de13972dc97bae7f7b3e6a9de13d6799b7bc939ea4f4",
    ),
    "initial": (
        CreateInitialVersion("first"),
        "a10a064bc8d807958b7a570ee7b72ddcf6a1ae9005ebf3106d32e900699ef28d",
    ),
    "rollback": (
        RollBack("seq:1"),
        "595cba88beb2f08170abe81f9eea6449cbe3f10618a2df7f6ad76d658c5ac1a2",
    ),
    "pin": (
        Pin("v0_1"),
        "4be0445a83492e4f2541e83e4c7565caa63845fc88a425298410d118f9da8bf3",
    ),
    "unpin": (
        Pin("v0_1", pinned=False),
        "254ce02008bc7bcdbffc9f46a0f1b107c708ffbb370fa20b0a26303532e2108b",
    ),
    "retire": (
        Retire("v0_1"),
        "f67d010717bcd087a391cea9fe43f709d1ef98a166a360ced547475bd1cd45b8",
    ),
    "hold": (
        PlaceHold("v0_1", KEYED),
        "323cedf1a034a014ce772bbff1db371e5244c7f8741f6d4daa63eefd8c68880b",
    ),
    "release": (
        Release("hold_0", KEYED),
        "7ae6ca15a6153150fb5229a1b018dc223fa4fd0d198826a384fe033fa69cc101",
    ),
    "redact": (
        Redact((3, 4), ("actor",)),
        "a81ee7ac7896aae3824e96603d3ee585a5a99fce188afa7554b7d740782ec297",
    ),
    "load": (
        LoadAdapter("a", "/x", inplace=True),
        "266b2483fcb5a76d473d6565d118fd0157b8340348c28407acaa8310b4020c13",
    ),
    "unload": (
        UnloadAdapter("a"),
        "a9a5fef514bfc7c6de079238acacb3e633bad4782cce3a6315825f75677b27ec",
    ),
    "merge": (
        MergeAdapter("a", unload=False),
        "e1fd353644a0afe7c93341157c5f0aee3886f0b10eae7f904e60329ad51fc3c0",
    ),
    "observe": (  # not of the evidence, which is another each time
        Observe(Observed(7, "promoted", "safe", "why", {"n": 1})),
        "f4867f4a0d95982b6aa61e45e7e37c6fed729954db10f7d8eaa9d8908ea8d538",
    ),
    "decide": (
        Decide("approval_1", approved=True),
        "f52222d11acaff572c5847df36e633c53658648c06af7a8e1d4dc1580034f5cc",
    ),
    "start": (
        StartRollout("v1", 10),
        "24bf097c8f328cda6a768f72f51e6dd600b1cb7dd0b1ae6a3b0a29211f90542d",
    ),
    "advance": (
        AdvanceRollout(50, "rollout_1"),
        "ffb122a082aa434597876bfa6700df4da6444489f16f1e14874bfca4106109a0",
    ),
    "end": (
        EndRollout("finished", "rollout_1"),
        "950096f2c1f41b8dc084180e87dbfef5aec2bc1f5d21c070613539ca651d5654",
    ),
    "policy": (
        ChangePolicy("safe", {"alpha": 0.01}),
        "70def95679229e09917284fe0bf38bad8c42282f38bc31c9d8dcadfed6adbe00",
    ),
}


@pytest.fixture
def log(tmp_path: Path):
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger.model("m", base={"w": torch.zeros(2, 3)})


@pytest.mark.parametrize(("command", "digest"), FROZEN.values(), ids=FROZEN)
def test_the_digest_of_a_request_never_changes(command: commands.Command, digest: str) -> None:
    assert command.digest is not None and command.digest.hex() == digest


def test_every_command_has_a_frozen_digest_or_is_never_retried() -> None:
    frozen = {type(command) for command, _ in FROZEN.values()}
    assert frozen | {Lapse, *AROUND_ANOTHER} == set(KINDS)
    assert Lapse("approval_1", "gone").digest is None
    inner = CreateVersion("named")
    assert RequestApproval(inner).digest == inner.digest
    assert CarryOut(inner).digest is None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_command_is_frozen_data_with_a_caller_and_one_handler(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert {"caller", "metadata", "digest"} <= set(dir(kind))
    if kind is CarryOut:
        return  # the writer hands its command to that one's handler
    with pytest.raises(ValueError, match="has a handler already"):
        handlers.add_command(kind, lambda command, staged: Plan({}))


def test_a_layer_above_adds_its_own_command(log: Log) -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Zero:
        """Sets every weight to zero."""

        caller: Caller = ANYONE
        metadata: str | None = None
        digest: bytes | None = None

    with pytest.raises(TypeError, match="Zero is no command"):
        log.execute(Zero())
    facts = {"operation": "zero"}
    handlers.add_command(Zero, lambda command, staged: Plan(facts), switch="incremental learning")
    assert log.execute(Zero(Caller("me"))).body["operation"] == "zero"
    assert log.events(actors=["me"])[0].seq == 1


def test_a_command_can_be_carried_out_again_on_another_log(tmp_path: Path) -> None:
    """It holds what was asked, and nothing of the model it was first meant for."""
    command = update_command(request("w", 1.0, 0.5), {"w": SPECS["w"]}, {})
    for start in (0.0, 8.0):
        with Ledger.open(f"sqlite:///{tmp_path}/{start}.db") as ledger:
            log = ledger.model("m", base={"w": torch.full((2, 3), start)})
            log.execute(command)
            assert torch.equal(log.state()["w"], torch.full((2, 3), start + 0.5))


def test_commands_of_several_kinds_wait_in_one_queue(log: Log) -> None:
    queued = [
        update_command(request("w", 1.0, 1.0), log.specs, {}),
        update_command(request("w", 2.0, 1.0), log.specs, {}),
        CreateVersion("three"),
        update_command(request("w", 4.0, 1.0), log.specs, {}),
        RollBack("seq:2"),
    ]
    jobs = [log.submit(command) for command in queued]
    log.drain()
    kinds = [job.result().kind for job in jobs]
    assert kinds == ["updated", "updated", "version_created", "updated", "rolled_back"]
    assert torch.equal(log.state()["w"], torch.full((2, 3), 3.0))
    assert [version.description for version in log.versions()] == ["three", "Initial version"]
    assert log.verify().problem is None


def test_a_version_and_the_first_one_before_it_are_one_transaction(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.apply(request("w", 1.0))
    sizes = []
    append = type(log.history.store).append

    def counted(store, *items) -> None:
        sizes.append(len(items))
        append(store, *items)

    monkeypatch.setattr(type(log.history.store), "append", counted)
    keyed = Caller(actor="me", reason="because", idempotency_key="once")
    named = log.create_version("mine", caller=keyed)
    assert sizes == [2]
    assert log.create_version("mine", caller=keyed) == named
    with pytest.raises(IdempotencyMismatch):
        log.create_version("other", caller=keyed)
    first = log.events(kinds=["version_created"])[-1]
    assert (first.idempotency_key, first.actor_digest, first.number) == (None, None, 0)


def test_an_error_half_way_through_a_command_leaves_nothing_staged(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.apply(request("w", 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(type(log.history.ways), "restorable", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log.create_version("mine")
    assert log.history.head().seq == log.live.head.seq == 1
    assert log.create_version("mine").number == 1


def test_what_is_switched_off_is_refused_from_every_face(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        base = {"w": torch.zeros(2, 3)}
        log = ledger.model("m", base=base, policy=Policy(updates=False))
        with pytest.raises(OperationDisabled, match="incremental learning is switched off"):
            log.apply(request("w", 1.0))
        with pytest.raises(OperationDisabled):
            log.record({"w": torch.ones(2, 3)})
        with pytest.raises(OperationDisabled):
            log.execute(Planned(lambda staged: Plan({})))
        log.create_version("allowed")
        log = ledger.model("m", base=base, policy=Policy(versions=False))
        for refused in (CreateVersion("x"), CreateInitialVersion(), RollBack("seq:0"), Pin("v0")):
            with pytest.raises(OperationDisabled, match="versioning is switched off"):
                log.execute(refused)
        assert log.apply(request("w", 1.0)).kind == "updated"


def test_a_batch_of_nothing_or_of_too_much_is_no_command() -> None:
    for count in (0, update_commands.MAX_BATCH + 1):
        with pytest.raises(InvalidRequest, match="a batch has 1 to 4096 updates"):
            batch_command([request("w", 1.0)] * count, SPECS, {})


@pytest.mark.parametrize("name", ["actor", "reason", "request_id", "idempotency_key"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800", 5])
def test_a_callers_texts_are_what_both_databases_keep(name: str, text: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Caller(**{name: text})
    assert refused.value.param == name


def test_an_event_says_in_a_few_words_what_it_is(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        log = ledger.model("m", base={"w": torch.zeros(1)})
        named = log.create_version("first")
        assert repr(named) == f"<Event 1 version_created {named.name} of m>"
