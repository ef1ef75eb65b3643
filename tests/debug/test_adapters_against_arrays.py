"""Random histories of adapters beside plain arrays: what is served, what states hold, and what the
history is asked is what PEFT and a program that has nothing but arrays come to."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from tests.debug.adapted import KINDS, Adapted, Family, weights
from tests.debug.arrays import (
    Truth,
    blamed,
    compared,
    left_out,
    rebuilt,
    searched,
    shown,
    states_and_names,
)
from tests.text_models import llama, tokenizer
from weightledger import Ledger, Log
from weightledger.ledger.audit.verify import verify
from weightledger.ledger.engines.transformers import TransformersEngine
from weightledger.ledger.errors import CannotDerive


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One intra-op thread, as bits are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gpt2() -> Any:
    """Conv1D and embeddings, and a head that is tied to one."""
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 512, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=384, bos_token_id=0, eos_token_id=1, **shape)
        return GPT2LMHeadModel(config).eval()


def opt() -> Any:
    """Linear layers and an embedding in half precision, each by itself."""
    shape = {"hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {"word_embed_proj_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": False}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return OPTForCausalLM(OPTConfig(vocab_size=384, **shape, **own)).bfloat16().eval()


def small_llama() -> Any:
    return llama(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).half()


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "gpt2": (
        gpt2,
        {
            "conv": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
            "square": {"target_modules": ["attn.c_proj"], "r": 2, "fan_in_fan_out": True},
            "tied": {"target_modules": ["wte", "wpe"]},
            "wpe": {"target_modules": ["wpe"], "dtype": torch.bfloat16},
        },
        (".wte.",),
    ),
    "opt": (
        opt,
        {
            "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
            "brings": {
                "target_modules": ["q_proj", "lm_head"],
                "use_rslora": True,
                "save_embedding_layers": True,
            },
            "half": {"target_modules": ["k_proj"], "dtype": torch.bfloat16, "r": 1},
        },
        (),
    ),
    "llama": (
        small_llama,
        {
            "plain": {},
            "all": {"target_modules": "all-linear", "dtype": torch.float16},
            "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        },
        (),
    ),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    made: dict[str, Family] = {}

    def family(name: str) -> Family:
        if name not in made:
            base, fields, tied = FAMILIES[name]
            made[name] = Family.of(tmp_path_factory.mktemp(name), base, fields, tied)
        return made[name]

    return family


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize(("name", "seed"), [("gpt2", 2), ("opt", 4)])
def test_histories_of_adapters_are_what_arrays_say(
    families: Callable[[str], Family], database_url: str, name: str, seed: int
) -> None:
    history(families(name), database_url, seed, steps=20)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("seed", range(100, 120))
def test_so_are_many_and_longer_ones(
    families: Callable[[str], Family], database_url: str, name: str, seed: int
) -> None:
    history(families(name), database_url, seed, steps=50)


def history(family: Family, url: str, seed: int, steps: int) -> None:
    """Two logs of one model write in turns, of which each finds out late what the other wrote."""
    random_ = random.Random(seed)
    kinds = KINDS if seed % 2 else tuple(kind for kind in KINDS if kind != "record")
    with Ledger.open(url) as ledger, Ledger.open(url) as beside:
        logs = [
            one.model("tiny", engine=TransformersEngine(family.base(), tokenizer()), alpha=0.5)
            for one in (ledger, beside)
        ]
        known = Adapted(family, Truth({0: shown(logs[0])}))
        for _ in range(steps):
            log = random_.choice(logs)
            known.step(log, random_, kinds)
            if random_.random() < 0.2:
                known.shows(log)
                log.snapshot()
        for log in logs:
            log.catch_up()
            known.shows(log)
        asked(logs[0], known, random_)
    with Ledger.open(url) as ledger:
        log = ledger.model("tiny", engine=TransformersEngine(family.base(), tokenizer()))
        assert shown(log) == known.state
        known.shows(log)


def asked(log: Log, known: Adapted, random_: random.Random) -> None:
    truth = known.truth
    states_and_names(log, truth)
    for _ in range(6):
        compared(log, truth, random_)
        left_out(log, truth, random_)
        worked_out_again(log, known, random_)
        searched(log, truth, random_)
    beside = {full for one in truth.states.values() for full in one if full.startswith("adapter/")}
    small = [one for one in weights(known.state) if len(known.state[one].bits) < 64]
    for full in random_.sample(sorted(beside), min(len(beside), 2)) + random_.sample(small, 1):
        blamed(log, truth, full)
    assert verify(log.history).problem is None


def worked_out_again(log: Log, known: Adapted, random_: random.Random) -> None:
    """A causal what-if is the history that never had some events."""
    at = random_.choice(known.truth.seqs)
    way = known.truth.way(at)[1:]
    if not way:
        return
    out = random_.sample(way, min(len(way), random_.randint(1, 2)))
    expected = known.derived(at, out)
    names = [f"seq:{seq}" for seq in out]
    if expected is None:
        with pytest.raises(CannotDerive):
            log.what_if(names, to=f"seq:{at}", mode="causal")
    else:
        found = log.what_if(names, to=f"seq:{at}", mode="causal")
        assert rebuilt(found.state.tensors) == expected
