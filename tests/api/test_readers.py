"""Readers over HTTP while updates stream: each reply is the model at the seq its header names."""

import json
import threading

import torch

from tests.serving import serving
from weightledger import Ledger
from weightledger.api.server.digits import digits_module

READERS = 8
UPDATES = 60


def test_every_reply_is_the_model_at_the_seq_in_its_header(tmp_path) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(4, 64)
    body = json.dumps({"inputs": inputs.tolist()}).encode()
    replies: set[tuple[int, str, str]] = set()
    failures: list[BaseException] = []
    done = threading.Event()
    with serving(tmp_path / "data") as server:

        def read() -> None:
            try:
                with server.client(**{"content-type": "application/json"}) as http:
                    while not done.is_set():
                        reply = http.post("/invocations", content=body)
                        assert reply.status_code == 200
                        seq = int(reply.headers["x-weights-seq"])
                        replies.add((seq, reply.headers["x-weights-digest"], reply.text))
            except BaseException as error:
                failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        with server.client() as http:
            for n in range(UPDATES):
                name = ["0.weight", "0.bias", "2.weight", "2.bias"][n % 4]
                shape = dict(digits_module().state_dict())[name].shape
                sent = {"parameter_name": name, "update_data": torch.randn(shape).tolist()}
                done_one = http.post("/v1/models/incremental_update", json=sent)
                assert done_one.status_code == 200
                if n % 10 == 9:
                    back = http.post("/v1/models/rollback", json={"version_id": "head~3"})
                    assert back.status_code == 200
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert len({seq for seq, _, _ in replies}) > 10
    fresh = digits_module().eval()
    with Ledger.open(f"sqlite:///{tmp_path}/data/ledger.db", upgrade=False) as ledger:
        history = ledger.history("digits")
        for seq, digest, text in sorted(replies):
            assert history.require(seq).state_after.hex() == digest
            fresh.load_state_dict(history.state(f"seq:{seq}"))
            with torch.inference_mode():
                assert json.loads(text)["predictions"] == fresh(inputs).tolist()
