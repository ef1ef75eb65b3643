"""Permanent names and numbers of the log: they are in stored headers, so none is ever renamed or
reused."""

FORMAT = 1

FIRST_SCHEMA = 1  # of a body, where its header names none

INLINE_BYTES = 256 * 1024
"""A payload up to this size, in one piece, is stored in the event's own row."""

LEAF_PREFIX = b"\x00"  # RFC 6962: keeps leaves and inner nodes of the hash tree apart

# Kinds of events.
REGISTERED = "registered"
UPDATED = "updated"
UPDATE_REJECTED = "update_rejected"
ROLLED_BACK = "rolled_back"
VERSION_CREATED = "version_created"
VERSION_RETIRED = "version_retired"
VERSION_PINNED = "version_pinned"
VERSION_UNPINNED = "version_unpinned"
ADAPTER_LOADED = "adapter_loaded"
ADAPTER_UNLOADED = "adapter_unloaded"
PRUNED = "pruned"
REPAIRED = "repaired"
OBSERVED = "observed"
POLICY_CHANGED = "policy_changed"
REDACTED = "redacted"
SIGNING_KEY_ROTATED = "signing_key_rotated"
APPROVAL_REQUESTED = "approval_requested"
APPROVAL_DECIDED = "approval_decided"
APPROVAL_LAPSED = "approval_lapsed"
HOLD_PLACED = "hold_placed"
HOLD_RELEASED = "hold_released"
ROLLOUT_CHANGED = "rollout_changed"

KINDS = (
    REGISTERED,
    UPDATED,
    UPDATE_REJECTED,
    ROLLED_BACK,
    VERSION_CREATED,
    VERSION_RETIRED,
    VERSION_PINNED,
    VERSION_UNPINNED,
    ADAPTER_LOADED,
    ADAPTER_UNLOADED,
    PRUNED,
    REPAIRED,
    OBSERVED,
    POLICY_CHANGED,
    REDACTED,
    SIGNING_KEY_ROTATED,
    APPROVAL_REQUESTED,
    APPROVAL_DECIDED,
    APPROVAL_LAPSED,
    HOLD_PLACED,
    HOLD_RELEASED,
    ROLLOUT_CHANGED,
)
STATE_CHANGING = frozenset({REGISTERED, UPDATED, ROLLED_BACK, ADAPTER_LOADED, ADAPTER_UNLOADED})

# Series that number events, each from the index (model, series, number) in the store.
UPDATES = "updates"  # updates tried, from 1: the n of update_{n}
VERSIONS = "versions"  # versions named, from 0: the n of v{n}
RETIRED = "retired"  # the n of the version that a version_retired event retires
PINS = "pins"  # versions pinned or unpinned, from 0
PRUNINGS = "prunings"  # runs of gc that dropped something, from 0
APPROVALS = "approvals"  # writes that wait for a second person, from 0
DECISIONS = "decisions"  # the n of the request that was approved or rejected
LAPSES = "lapses"  # the n of the request that could not be carried out
HOLDS = "holds"  # legal holds of versions, from 0
RELEASES = "releases"  # the n of the hold that was released
ROLLOUTS = "rollouts"  # what became of rollouts, from 0
REDACTIONS = "redactions"  # events that say which texts were taken away, from 0

# What a draft says of the active version.
KEEP_ACTIVE = -1
THIS_VERSION = -2

# Where an event's operands are.
IN_PAYLOAD = "payload"
IN_BLOBS = "blobs"
