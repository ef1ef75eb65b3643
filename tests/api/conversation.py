"""Random requests to a server, each with what an independent program makes of it: events, states as
plain arrays, what retries and conditions are answered."""

import fnmatch
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import torch
from safetensors.numpy import save

from tests.debug.arrays import Bits, State, Truth, element

WORDS = ("night", "run", "Größe", "ops-17", "canary", "Ärger", "über")
ACTORS = ("ana", "bo b", "Łukasz")
_LARGEST = float(np.finfo(np.float32).max)
NAMES = ("w", "short", "one", "deep.v")


class Served(torch.nn.Module):
    """Parameters of several dtypes and shapes, and some that no update may add to."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
        self.short = torch.nn.Parameter(torch.linspace(-1, 1, 5).to(torch.bfloat16))
        self.one = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.deep = torch.nn.ParameterDict({"v": torch.nn.Parameter(torch.zeros(4))})
        self.register_buffer("count", torch.tensor([1, -2, 1 << 60]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w.sum()


@dataclass
class Said:
    """One event, as it has to be told."""

    seq: int
    kind: str
    name: str
    actor: str | None = None
    reason: str | None = None
    metadata: dict[str, Any] | None = None
    key: str | None = None
    parameters: tuple[str, ...] = ()
    norm: float | None = None


@dataclass
class Conversation:
    """What was asked of a server, and what has to be there because of it."""

    truth: Truth
    said: list[Said]
    counts: dict[str, int] = field(default_factory=lambda: {"update": 0, "v": 0})
    listed: dict[int, str] = field(default_factory=dict)
    named_at: dict[int, int] = field(default_factory=lambda: {0: 0})
    active: int | None = 0
    pinned: set[int] = field(default_factory=set)
    kept: list[tuple[str, dict[str, Any], dict[str, str], Any, str]] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)

    @classmethod
    def begun(cls, state: State, first: list[dict[str, Any]]) -> "Conversation":
        """With a server that has just registered its model and named that v0."""
        said = [Said(one["seq"], one["kind"], one["id"]) for one in first]
        talk = cls(Truth({0: state}), said)
        talk.counts["v"], talk.truth.versions = 1, {0: 0}
        talk.listed = {0: said[1].name}
        return talk

    @property
    def state(self) -> State:
        return self.truth.states[self.truth.head]

    @property
    def tag(self) -> int:
        """The last state change."""
        return self.truth.seqs[-1]

    def step(self, http: httpx2.Client, random_: random.Random, kinds: tuple[str, ...]) -> None:
        what = random_.choice(kinds)
        self.asked[what] = self.asked.get(what, 0) + 1
        getattr(self, f"_{what}")(http, random_)

    def _headers(self, random_: random.Random) -> dict[str, str]:
        headers = {}
        if random_.random() < 0.5:
            headers["X-Actor"] = random_.choice(ACTORS).encode().decode("latin-1")
        if random_.random() < 0.4:
            reason = " ".join(random_.sample(WORDS, 2))
            headers["X-Reason"] = reason.encode().decode("latin-1")
        if random_.random() < 0.4:
            headers["Idempotency-Key"] = f"k{len(self.said)}-{random_.randrange(10**6)}"
        if random_.random() < 0.2:
            headers["If-Match"] = random_.choice(['"{}"', 'W/"{}"', '"0", "{}"', "*"]).format(
                self.tag
            )
        return headers

    def _post(
        self, http: httpx2.Client, path: str, sent: dict[str, Any], headers: dict[str, str]
    ) -> httpx2.Response:
        if "If-Match" in headers and headers["If-Match"] != "*":
            stale = {**headers, "If-Match": '"99999"'}
            reply = _sent(http, path, sent, stale)
            assert (reply.status_code, reply.headers["etag"]) == (412, f'"{self.tag}"')
        reply = _sent(http, path, sent, headers)
        if reply.status_code == 200 and "Idempotency-Key" in headers:
            self.kept.append((path, sent, headers, reply.json(), reply.headers["etag"]))
        return reply

    def _note(self, reply: httpx2.Response, said: Said, headers: dict[str, str]) -> None:
        assert reply.status_code == 200, reply.text
        said.actor = _text(headers.get("X-Actor"))
        said.reason = _text(headers.get("X-Reason"))
        said.key = headers.get("Idempotency-Key")
        self.said.append(said)
        assert reply.headers["etag"] == f'"{self.tag}"', (reply.json(), said)

    def _update(self, http: httpx2.Client, random_: random.Random) -> None:
        name = random_.choice(NAMES)
        kind = random_.choice(["additive", "multiplicative", "replace"])
        bits = self.state[name]
        count = int(np.prod(bits.shape))
        rate = random_.choice([1.0, 0.5, 0.25, 0.0])
        indices = None
        if bits.shape and random_.random() < 0.4:
            indices = random_.sample(range(count), random_.randint(1, count))
        values = [
            random_.choice([0.0, 0.5, -2.0, 1.0]) for _ in range(len(indices or range(count)))
        ]
        data: Any = values
        if random_.random() < 0.3:
            values = [values[0]] * len(values)
            data = values[0]
        elif indices is None and len(bits.shape) == 2 and random_.random() < 0.5:
            data = np.array(values).reshape(bits.shape).tolist()
        elif not bits.shape:
            data = values[0]
        if random_.random() < 0.1 and kind != "replace" and rate and bits.dtype == "torch.float32":
            values = [3e38] * len(values)
            data, rate, kind = 3e38, 1.0, "additive"
        metadata = random_.choice([None, {"ticket": "OPS-17", "n": random_.randrange(3)}])
        sent: dict[str, Any] = {
            "parameter_name": name,
            "update_data": data,
            "learning_rate": rate,
            "update_type": kind,
        }
        sent |= {} if indices is None else {"indices": indices}
        sent |= {} if metadata is None else {"metadata": metadata}
        headers = self._headers(random_)
        reply = self._post(http, "/v1/models/incremental_update", sent, headers)
        after = _updated(bits, kind, rate, values, indices)
        self._changed(reply, headers, {name: after}, (name,), metadata)

    def _changed(
        self,
        reply: httpx2.Response,
        headers: dict[str, str],
        after: Mapping[str, torch.Tensor],
        names: tuple[str, ...],
        metadata: dict[str, Any] | None,
    ) -> None:
        """An update's event: applied, or refused where it would overflow."""
        seq = len(self.said)
        self.counts["update"] += 1
        fits = all(bool(torch.isfinite(one).all()) for one in after.values())
        body = reply.json()
        assert body["success"] == fits, body
        said = Said(seq, "updated" if fits else "update_rejected", body["data"]["update_id"])
        assert said.name.startswith(f"update_{self.counts['update']}_")
        said.metadata, said.parameters = metadata, names
        if fits:
            state = self.state | {name: Bits.of(one) for name, one in after.items()}
            squares = [_square(self.state[name], state[name]) for name in after]
            # A difference is rounded to single precision, in which the largest have no norm.
            said.norm = float(np.sqrt(sum(squares))) if np.isfinite(sum(squares)) else None
            self.truth.parents[seq], self.truth.states[seq] = self.truth.head, state
            self.truth.head = seq
        self._note(reply, said, headers)

    def _batch(self, http: httpx2.Client, random_: random.Random) -> None:
        names = random_.sample(("w", "deep.v"), random_.randint(1, 2))
        arrays, after = {}, {}
        for name in names:
            count = int(np.prod(self.state[name].shape))
            values = [random_.choice([0.0, 0.5, -2.0]) for _ in range(count)]
            arrays[name] = np.array(values, "f4")
            after[name] = _updated(self.state[name], "additive", 0.5, values, None)
        headers = self._headers(random_)
        sent = {"bytes": save(arrays), "metadata": {"run": 7}}
        reply = self._post(http, "/v1/models/batch_update", sent, headers)
        self._changed(reply, headers, after, tuple(names), {"run": 7})

    def _wrong(self, http: httpx2.Client, random_: random.Random) -> None:
        """What changes nothing and leaves no event."""
        path, sent, status = random_.choice(
            [
                ("incremental_update", {"parameter_name": "no", "update_data": 1}, 404),
                ("incremental_update", {"parameter_name": "w", "update_data": [1, 2]}, 400),
                ("incremental_update", {"parameter_name": "count", "update_data": 1}, 400),
                ("incremental_update", {"parameter_name": "w", "update_data": "x"}, 400),
                ("rollback", {"version_id": "v999"}, 404),
                ("create_version", {"description": ""}, 400),
            ]
        )
        headers = self._headers(random_)
        reply = _sent(http, f"/v1/models/{path}", sent, headers)
        assert reply.status_code == status, reply.text

    def _again(self, http: httpx2.Client, random_: random.Random) -> None:
        """A request that was answered is answered the same; another one by its key is refused."""
        if not self.kept:
            return
        path, sent, headers, told, tag = random_.choice(self.kept)
        reply = _sent(http, path, sent, headers)
        assert (reply.status_code, reply.json(), reply.headers["etag"]) == (200, told, tag)
        other = {"description": "something else"}
        reply = _sent(http, "/v1/models/create_version", other, headers)
        assert reply.status_code == 422, reply.text

    def _name(self, http: httpx2.Client, random_: random.Random) -> None:
        headers = self._headers(random_)
        sent = {"description": random_.choice(["one", "zwölf Größen", "x" * 500])}
        reply = self._post(http, "/v1/models/create_version", sent, headers)
        number = self.counts["v"]
        self.counts["v"] += 1
        said = Said(len(self.said), "version_created", reply.json()["data"]["version_id"])
        assert said.name.startswith(f"v{number}_")
        self.truth.versions[number] = self.truth.head
        self.listed[number], self.named_at[number] = said.name, self.tag
        self.active = number
        self._note(reply, said, headers)

    def _back(self, http: httpx2.Client, random_: random.Random) -> None:
        to = random_.choice(self.truth.seqs)
        text, number = f"seq:{to}", None
        if self.listed and random_.random() < 0.3:
            number = random_.choice(list(self.listed))
            to = self.truth.versions[number]
            text = random_.choice([self.listed[number], f"v{number}"])
        headers = self._headers(random_)
        reply = self._post(http, "/v1/models/rollback", {"version_id": text}, headers)
        assert reply.json()["success"], reply.text
        seq, truth = len(self.said), self.truth
        truth.led_to[seq], truth.left[seq] = truth.node(to), truth.head
        truth.head, truth.states[seq] = truth.node(to), truth.states[to]
        self.active = self._nearest() if number is None else number
        self._note(reply, Said(seq, "rolled_back", f"event_{seq}"), headers)

    def _pin(self, http: httpx2.Client, random_: random.Random) -> None:
        if not self.listed:
            return
        number = random_.choice(list(self.listed))
        pins = number not in self.pinned
        headers = self._headers(random_)
        path = f"/v1/models/versions/v{number}/{'pin' if pins else 'unpin'}"
        reply = self._post(http, path, {}, headers)
        (self.pinned.add if pins else self.pinned.discard)(number)
        kind = "version_pinned" if pins else "version_unpinned"
        self._note(reply, Said(len(self.said), kind, f"event_{len(self.said)}"), headers)

    def _retire(self, http: httpx2.Client, random_: random.Random) -> None:
        if not self.listed:
            return
        number = random_.choice(list(self.listed))
        headers = self._headers(random_)
        path = f"/v1/models/versions/v{number}/retire"
        if number in self.pinned or number == self.active:
            assert _sent(http, path, {}, headers).status_code == 400
            return
        reply = self._post(http, path, {}, headers)
        del self.listed[number]
        said = Said(len(self.said), "version_retired", f"event_{len(self.said)}")
        self._note(reply, said, headers)

    def _nearest(self) -> int | None:
        """The newest name of the nearest named ancestor of the head."""
        for node in reversed(self.truth.way(self.truth.head)):
            named = [n for n in self.listed if self.truth.versions[n] == node]
            if named:
                return max(named)
        return None

    # What it is asked

    def heard(self, http: httpx2.Client, random_: random.Random) -> None:
        """Everything once."""
        self._status(http)
        self._versions(http)
        self._log(http, random_)
        self._parameters(http)
        self._activity(http)

    def _status(self, http: httpx2.Client) -> None:
        reply = http.get("/v1/models/status")
        assert reply.headers["etag"] == f'"{self.tag}"'
        told = reply.json()
        active = self.active
        assert told["current_version"] == (None if active is None else self.listed[active])
        assert told["total_versions"] == len(self.listed)
        assert told["total_updates"] == len([one for one in self.said if one.kind == "updated"])
        assert http.get("/readyz").json()["seq"] == self.tag

    def _versions(self, http: httpx2.Client) -> None:
        told = http.get("/v1/models/versions").json()
        assert told["total_count"] == len(self.listed)
        names = [self.listed[number] for number in sorted(self.listed, reverse=True)]
        assert [one["version_id"] for one in told["versions"]] == names
        for number, one in zip(sorted(self.listed, reverse=True), told["versions"], strict=True):
            assert one["is_active"] == (number == self.active)
            more = http.get(f"/v1/models/versions/v{number}").json()
            event = http.get(f"/v1/models/updates/v{number}").json()
            assert more["recorded_at"] == event["recorded_at"]
            named = self.named_at[number], number in self.pinned
            assert (more["seq"], more["pinned"]) == named, (more, named)
            assert {key: more[key] for key in one} == one

    def _log(self, http: httpx2.Client, random_: random.Random) -> None:
        whole = list(pages(http, {}, 100))
        assert [one["seq"] for one in whole] == list(range(len(self.said)))[::-1]
        for one, said in zip(whole[::-1], self.said, strict=True):
            assert (one["id"], one["kind"]) == (said.name, said.kind)
            if said.seq > 1:
                assert (one["actor"], one["reason"], one["metadata"], one["idempotency_key"]) == (
                    said.actor,
                    said.reason,
                    said.metadata,
                    said.key,
                )
        times = {one["seq"]: one["recorded_at"] for one in whole}
        for _ in range(25):
            query, passes = self._filter(random_, times)
            expected = [said.name for said in self.said[::-1] if passes(said)]
            limit = random_.choice([1, 3, 20, 100])
            if len(expected) // limit > 40:
                limit = 100
            backwards = random_.random() < 0.4
            found = [one["id"] for one in pages(http, query, limit, backwards=backwards)]
            odd = sorted(set(found) ^ set(expected))
            assert found == expected, (query, limit, backwards, odd[:5])

    def _filter(
        self, random_: random.Random, times: dict[int, str]
    ) -> tuple[dict[str, Any], Callable[[Said], bool]]:
        query: dict[str, Any] = {}
        tests: list[Callable[[Said], bool]] = []
        for what in random_.sample(
            ["kind", "actor", "outcome", "text", "norm", "meta", "seqs", "times", "parameter"],
            random_.randint(1, 3),
        ):
            if what == "kind":
                kinds = random_.sample(sorted({one.kind for one in self.said}), 2)
                query["kind"] = kinds
                tests.append(lambda one, kinds=kinds: one.kind in kinds)
            elif what == "actor":
                actors = random_.sample(ACTORS, random_.randint(1, 2))
                query["actor"] = actors
                tests.append(lambda one, actors=actors: one.actor in actors)
            elif what == "outcome":
                outcome = random_.choice(["applied", "rejected"])
                query["outcome"] = outcome
                kind = {"applied": "updated", "rejected": "update_rejected"}[outcome]
                tests.append(lambda one, kind=kind: one.kind == kind)
            elif what == "text":
                words = random_.sample(WORDS, random_.randint(1, 2))
                query["text"] = " ".join(random_.choice([w, w.upper(), w.lower()]) for w in words)
                tests.append(lambda one, words=words: _has(one, words))
            elif what == "norm":
                norms = [one.norm for one in self.said if one.norm]
                least = random_.choice(norms or [1.0]) * random_.choice([1 - 1e-6, 1 + 1e-6])
                query["min_norm"] = least
                tests.append(lambda one, least=least: one.norm is not None and one.norm >= least)
            elif what == "meta":
                key, value = random_.choice([("ticket", "OPS-17"), ("n", 1), ("run", 7)])
                query[f"metadata.{key}"] = str(value)
                tests.append(
                    lambda one, key=key, value=value: (one.metadata or {}).get(key) == value
                )
            elif what == "seqs":
                low = random_.randrange(len(self.said))
                high = random_.randrange(low, len(self.said))
                query |= {"min_seq": low, "max_seq": high}
                tests.append(lambda one, low=low, high=high: low <= one.seq <= high)
            elif what == "times":
                low, high = sorted(random_.choice(list(times.values())) for _ in range(2))
                query |= {"since": low, "until": high}
                tests.append(lambda one, low=low, high=high: low <= times[one.seq] <= high)
            elif what == "parameter":
                glob = random_.choice(["w", "*", "deep.*", "?", "sh[ok]rt", "nothing"])
                query["parameter"] = glob
                tests.append(
                    lambda one, glob=glob: (
                        one.kind == "updated"
                        and any(fnmatch.fnmatchcase(name, glob) for name in one.parameters)
                    )
                )
        return query, lambda one: all(test(one) for test in tests)

    def _parameters(self, http: httpx2.Client) -> None:
        told = http.get("/v1/models/parameters", params={"limit": 100}).json()["data"]
        assert {one["name"] for one in told} == set(self.state)
        for one in told:
            touched = [
                said
                for said in self.said
                if said.kind == "updated" and one["name"] in said.parameters
            ]
            assert one["update_count"] == len(touched), one

    def _activity(self, http: httpx2.Client) -> None:
        told = http.get("/v1/models/activity").json()
        assert told["total_events"] == len(self.said)
        counted: dict[tuple[str, str | None], int] = {}
        for said in self.said[2:]:
            counted[said.kind, said.actor] = counted.get((said.kind, said.actor), 0) + 1
        found: dict[tuple[str, str | None], int] = {}
        for one in told["data"]:
            key = one["kind"], one["actor"]
            found[key] = found.get(key, 0) + one["events"]
        for key, number in counted.items():
            assert found[key] - number in (0, 1), (key, found, counted)

    def compared(self, told: dict[str, Any], one: int, other: int) -> None:
        """A diff's JSON against two states."""
        old, new = self.truth.states[one], self.truth.states[other]
        names = {name for name in old if old[name] != new[name]}
        by_name = {tensor["name"]: tensor for tensor in told["by_tensor"]}
        assert by_name.keys() == names
        assert told["changed"] == sum(int(old[n].differing(new[n]).sum()) for n in names)
        assert told["tensors_unchanged"] == len(old) - len(names)
        for name in names:
            tensor = by_name[name]
            changed = old[name].differing(new[name])
            before, after = _wide(old[name]), _wide(new[name])
            step = np.abs(after - before)
            assert tensor["changed"] == int(changed.sum())
            assert tensor["share"] == tensor["changed"] / changed.size
            assert _near(tensor["largest_change"], step.max())
            assert _near(tensor["mean_change"], step.sum() / changed.sum())
            assert _near(tensor["change_norm"], np.linalg.norm(step))
            assert _near(tensor["norm_before"], np.linalg.norm(before))
            assert _near(tensor["norm_after"], np.linalg.norm(after))
            at = np.unravel_index(int(changed.argmax()), old[name].shape) if old[name].shape else ()
            assert tensor["first_index"] == [int(part) for part in at]

    def questions(self, http: httpx2.Client, random_: random.Random, times: int) -> None:
        """Diffs, weights, replays, blames at random."""
        for _ in range(times):
            one, other = random_.choice(self.truth.seqs), random_.choice(self.truth.seqs)
            asked = {"from": f"seq:{one}", "to": f"seq:{other}"}
            self.compared(http.get("/v1/models/diff", params=asked).json(), one, other)
            self._weights(http, random_.choice(self.truth.seqs))
            self._blame(http, random_)

    def _weights(self, http: httpx2.Client, seq: int) -> None:
        reply = http.get(f"/v1/models/versions/seq:{seq}/weights")
        assert reply.headers["x-weights-seq"] == str(self.truth.node(seq))
        self.same_weights(reply.content, seq)
        asked = {"to": f"seq:{seq}", "format": "safetensors"}
        reply = http.post("/v1/models/replay", json=asked)
        self.same_weights(reply.content, seq)
        told = http.post("/v1/models/replay", json={"to": f"seq:{seq}"}).json()
        assert told["digest"] == reply.headers["x-weights-digest"]
        node = self.truth.node(seq)
        named = [n for n in self.listed if self.truth.versions[n] == node]
        assert told["version"] == (self.listed[max(named)] if named else ""), (told, named)

    def same_weights(self, data: bytes, seq: int) -> None:
        state = self.truth.states[seq]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        for name, bits in state.items():
            start, end = header[name]["data_offsets"]
            assert data[8 + length + start : 8 + length + end] == bits.bits, (seq, name)
        assert {name for name in header if name != "__metadata__"} == set(state)

    def touches(self, name: str) -> list[int]:
        """The events that changed a parameter, newest first."""
        states, parents = self.truth.states, self.truth.parents
        return sorted(
            (
                seq
                for seq, parent in parents.items()
                if parent is not None and states[parent][name] != states[seq][name]
            ),
            reverse=True,
        )

    def _blame(self, http: httpx2.Client, random_: random.Random) -> None:
        name = random_.choice(NAMES)
        states, parents = self.truth.states, self.truth.parents
        touched = self.touches(name)
        index: tuple[int, ...] | None = None
        asked: dict[str, Any] = {"parameter": name, "limit": random_.choice([1, 4, 100])}
        if len(touched) // asked["limit"] > 20:
            asked["limit"] = 100
        shape = states[0][name].shape
        if shape and random_.random() < 0.6:
            index = tuple(random_.randrange(size) for size in shape)
            flat = str(int(np.ravel_multi_index(index, shape)))
            asked["index"] = random_.choice([",".join(map(str, index)), flat])
        found, rest = [], dict(asked)
        while True:
            told = http.get("/v1/models/blame", params=rest).json()
            found += told["touches"]
            if told["next_seq"] is None:
                break
            rest["max_seq"] = told["next_seq"]
        assert told["index"] == (None if index is None else list(index))
        expected = [
            seq
            for seq in touched
            if index is None
            or element(states[parents[seq] or 0][name], index) != element(states[seq][name], index)
        ]
        told_of = [one for one in found if one["seq"] in set(expected)]
        assert [one["seq"] for one in told_of] == expected, (asked, found)
        assert all(one["changed"] == 0 for one in found if one["seq"] not in set(expected))
        for one in told_of:
            said = self.said[one["seq"]]
            was, now = (
                _wide(states[parents[one["seq"]] or 0][name]),
                _wide(states[one["seq"]][name]),
            )
            if index is None:
                assert _near(one["norm_before"], np.linalg.norm(was))
                assert _near(one["norm_after"], np.linalg.norm(now))
            else:
                assert (one["before"], one["after"]) == (float(was[index]), float(now[index]))
            assert (one["id"], one["actor"], one["reason"]) == (said.name, said.actor, said.reason)
            assert one["live"] == (one["seq"] in self.truth.way(self.truth.head))
            undone = self.truth.undone_by(one["seq"])
            assert one["undone_by"] == (None if undone is None else f"event_{undone}")


def pages(
    http: httpx2.Client, query: Mapping[str, Any], limit: int, *, backwards: bool = False
) -> Iterator[dict[str, Any]]:
    """All events that pass, newest first, page by page; `backwards` from the last page up."""
    asked = {**query, "limit": limit}
    gathered: list[list[dict[str, Any]]] = []
    if backwards:  # nothing is before the first event, which is asked for by itself
        if not query.get("min_seq"):
            only = {**query, "max_seq": 0}
            gathered = [http.get("/v1/models/updates", params=only).json()["data"]]
        asked["before"] = "event_0"
    while True:
        reply = http.get("/v1/models/updates", params=asked)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        data = told["data"]
        gathered.append(data)
        ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        assert (told["first_id"], told["last_id"]) == ends
        if not told["has_more"]:
            break
        assert len(data) == limit
        asked["before" if backwards else "after"] = ends[0] if backwards else ends[1]
    for page in gathered[::-1] if backwards else gathered:
        yield from page


def _sent(
    http: httpx2.Client, path: str, sent: dict[str, Any], headers: dict[str, str]
) -> httpx2.Response:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    if "bytes" in sent:
        query = {"learning_rate": 0.5, "metadata": json.dumps(sent["metadata"])}
        octets = {**raw, "Content-Type": b"application/octet-stream"}
        return http.post(path, params=query, content=sent["bytes"], headers=octets)
    if path.rsplit("/", 1)[1] in ("pin", "unpin", "retire"):
        return http.post(path, headers=raw)
    return http.post(path, json=sent, headers=raw)


def _text(header: str | None) -> str | None:
    return None if header is None else header.encode("latin-1").decode()


def _has(said: Said, words: list[str]) -> bool:
    text = f"{said.reason or ''} {said.actor or ''}".lower().replace("-", " ").split()
    return all(part in text for word in words for part in word.lower().split("-"))


def _wide(bits: Bits) -> Any:
    dtype = getattr(torch, bits.dtype.removeprefix("torch."))
    tensor = torch.frombuffer(bytearray(bits.bits), dtype=dtype).reshape(bits.shape)
    return tensor.double().numpy()


def _square(before: Bits, after: Bits) -> float:
    step = _wide(after) - _wide(before)
    return float((step * step).sum()) if np.abs(step).max() <= _LARGEST else np.inf


def _updated(
    bits: Bits, kind: str, rate: float, values: list[float], indices: list[int] | None
) -> torch.Tensor:
    """The arithmetic as it is written down: single precision for halves, each step rounded."""
    dtype = getattr(torch, bits.dtype.removeprefix("torch."))
    tensor = torch.frombuffer(bytearray(bits.bits), dtype=dtype).reshape(bits.shape).clone()
    wide = np.float64 if dtype == torch.float64 else np.float32
    was = tensor.reshape(-1).to(torch.float64 if wide is np.float64 else torch.float32).numpy()
    at = np.array(indices if indices is not None else range(was.size))
    u, old = np.array(values, wide), was[at]
    with np.errstate(over="ignore"):
        if kind == "replace":
            new = u
        elif rate == 0:
            new = old
        elif kind == "additive":
            new = old + u * wide(rate)
        else:
            new = old * (u * wide(rate) + wide(1))
    result = was.copy()
    result[at] = new
    return torch.from_numpy(result).to(dtype).reshape(bits.shape)


def _near(told: float | None, true: Any) -> bool:
    if told is None:
        return not np.isfinite(true)
    return bool(np.isclose(told, true, rtol=1e-12, atol=0))
