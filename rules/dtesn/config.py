"""The settings of the bridge between learning rules and a live model."""

from dataclasses import dataclass

from weightledger.rules.ranges import check_ranges


@dataclass(frozen=True, slots=True)
class DTESNLearningConfig:
    """How activities become updates. The first eight fields and defaults are the specification's.

    Each is followed by the calls that it acts on: `update` stands for
    `enhanced_incremental_update`, `learn` also for the calls that learn by it (`learn_readout`,
    `close_stream`, `reward`).

    - `learning_rate` (update, learn): the rule's, applied once. Where none is given for a call, it
      is scaled by a learned factor m ← m + `adaptation_rate` (1 + f − m), which starts at 1 and
      moves with each feedback f in [−1, 1].
    - `adaptation_rate` (update, learn): how fast m moves with feedback, and how fast BCM's θ
      follows y². The `bcm` rule's θ follows at this rate or with the rule's own τ_θ, whichever is
      faster, since a slow θ makes it oscillate. It has no say in which rule is selected.
    - `max_iterations`, `convergence_threshold` (learn): the most passes over the activities of one
      call, and the ‖Δ‖/‖W‖ of a pass at which they end, for a readout's rule without memory (lms,
      nlms). Others take one pass: one with memory (rls, traces) would count each further pass as
      new samples, one without a target has no solution to come closer to, a gate may score a
      sample only before it is learnt from, and a change that was asked for is asked for once.
    - `enable_plasticity` (update, learn): False lets readouts learn (rules with a target) and
      refuses the rest.
    - `enable_homeostasis` (learn): synaptic scaling after each proposal of a rule that sees y and
      has no target; a readout is never scaled.
    - `batch_size` (learn): samples of a proposal; a call with more makes several, each on what
      those before it made, in one event.
    - `reservoir_size` (learn_readout): neurons of the reservoir that it draws.
    - `reservoir_seed` (learn_readout): what the reservoir is drawn from.
    - `keep_activities` (update, learn): store what a rule saw, so that its step can be computed
      again later; otherwise the event has digests only.
    - `ewc_lambda` (update, learn): λ of elastic weight consolidation, once a parameter was
      consolidated.
    - `fisher_decay` (update_fisher_information): γ of F ← γ F + F_new.
    - `stream_ttl_s`, `max_stream_samples` (open_stream): how long a stream may stay open, and how
      many samples it holds.
    - `reward_ttl_s`, `max_waiting_rewards` (remember): how long an action waits for its reward, and
      how many may wait.
    """

    learning_rate: float = 0.01
    adaptation_rate: float = 0.001
    max_iterations: int = 100
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
            counts=[
                *("max_iterations", "batch_size", "reservoir_size"),
                *("max_stream_samples", "max_waiting_rewards"),
            ],
        )
