"""The settings of the bridge between learning rules and a live model."""

from dataclasses import dataclass

from weightledger.rules.errors import RuleError
from weightledger.rules.ranges import check_ranges


@dataclass(frozen=True, slots=True)
class DTESNLearningConfig:
    """How activities become updates. The first eight fields are the specification's.

    - `learning_rate`: the rule's, applied once. Where it is not given for a call, it is scaled by
      a learned factor m ← m + `adaptation_rate` (1 + f − m), which starts at 1 and moves with each
      feedback f in [−1, 1].
    - `adaptation_rate`: also how fast feedback is smoothed before a rule is selected, and how fast
      BCM's θ follows y². θ must be fast, so this is not a small number.
    - `max_iterations`, `convergence_threshold`: passes over the activities of one call, until a
      pass moves the weight by less than ‖Δ‖/‖W‖. One pass by default: a rule with memory, such as
      RLS, would count each further pass as new samples. A change that was asked for
      (`update_data`) is taken once, whatever these say.
    - `batch_size`: samples of a proposal; a call with more makes several, each on what those
      before it made, in one event.
    - `enable_plasticity`: False lets readouts learn (rules with a target) and refuses the rest.
    - `enable_homeostasis`: synaptic scaling after each proposal of a rule that sees y and has no
      target; a readout is never scaled.
    - `reservoir_size`: neurons of the reservoir that `learn_readout` draws, from `reservoir_seed`.
    - `keep_activities`: store what a rule saw, so that its step can be computed again later;
      otherwise the event has digests only.
    - `ewc_lambda`, `fisher_decay`: λ and γ of elastic weight consolidation.
    - `stream_ttl_s`, `max_stream_samples`: how long a stream may stay open, and what it holds.
    - `reward_ttl_s`, `max_waiting_rewards`: how long an action waits for its reward, and how many.
    """

    learning_rate: float = 0.01
    adaptation_rate: float = 0.1
    max_iterations: int = 1
    convergence_threshold: float = 1e-4
    enable_plasticity: bool = True
    enable_homeostasis: bool = True
    batch_size: int = 32
    reservoir_size: int = 1000

    reservoir_seed: int = 0
    keep_activities: bool = False
    ewc_lambda: float = 1000.0
    fisher_decay: float = 0.9
    stream_ttl_s: float = 300.0
    max_stream_samples: int = 4096
    reward_ttl_s: float = 3600.0
    max_waiting_rewards: int = 1024

    def __post_init__(self) -> None:
        check_ranges(
            self,
            not_negative=["learning_rate", "convergence_threshold", "ewc_lambda"],
            fraction=["adaptation_rate", "fisher_decay"],
            positive=["stream_ttl_s", "reward_ttl_s"],
        )
        for name in (
            "max_iterations",
            "batch_size",
            "reservoir_size",
            "max_stream_samples",
            "max_waiting_rewards",
        ):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RuleError(f"{name} is a whole number from 1, got {value!r}", param=name)
