"""The tables, as SQLAlchemy Core: what a database has once every migration has run.

Migrations are SQL of their own, frozen; a test compares the two. An event's primary key is
`(model_id << 40) | seq`: inserting it is the compare-and-set that orders a model's log, and a range
of seqs is a range of keys. Every further index costs append throughput; each one below names the
query that needs it. Foreign keys guard the tables that are written once per model; on the hot
tables the predecessor trigger does that work.
"""

import sqlalchemy as sa
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text

from weightledger.ledger.sql.layout import SEQ_BITS

# Only a column declared INTEGER is the rowid itself on SQLite.
Key = BigInteger().with_variant(Integer(), "sqlite")
Bytes = sa.LargeBinary

metadata = sa.MetaData()

models = Table(
    "models",
    metadata,
    Column("model_id", Integer, sa.Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    sa.UniqueConstraint("name", name="models_name"),
)

# `payload` comes last: on SQLite a column behind a large one is read through all of its pages.
events = Table(
    "events",
    metadata,
    Column("event_key", Key, primary_key=True, autoincrement=False),
    Column("model_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("node", BigInteger, nullable=False),
    Column("parent", BigInteger),
    Column("changes_state", sa.SmallInteger, nullable=False),
    Column("forward_only", sa.SmallInteger, nullable=False),
    Column("series", Text),
    Column("number", BigInteger),
    Column("idempotency_key", Text),
    Column("state_after", Bytes, nullable=False),
    Column("payload_size", BigInteger, nullable=False),
    Column("header", Bytes, nullable=False),
    Column("event_hash", Bytes, nullable=False),
    Column("payload", Bytes),
    CheckConstraint(f"event_key >> {SEQ_BITS} = model_id", name="events_key"),
)

Index(  # by_key, and keys are unique
    "events_idempotency",
    events.c.model_id,
    events.c.idempotency_key,
    unique=True,
    sqlite_where=events.c.idempotency_key.is_not(None),
    postgresql_where=events.c.idempotency_key.is_not(None),
)
# by_key again: the two have to agree, so that damage to one of them is noticed before a request
# that was answered is carried out once more. On PostgreSQL an expression, or the planner might ask
# the first one twice.
Index(
    "events_idempotency_again",
    events.c.idempotency_key,
    events.c.model_id,
    sqlite_where=events.c.idempotency_key.is_not(None),
).ddl_if(dialect="sqlite")
Index(
    "events_idempotency_again",
    sa.func.md5(events.c.idempotency_key),
    events.c.model_id,
    postgresql_where=events.c.idempotency_key.is_not(None),
).ddl_if(dialect="postgresql")
Index(  # by_number
    "events_number",
    events.c.model_id,
    events.c.series,
    events.c.number,
    unique=True,
    sqlite_where=events.c.number.is_not(None),
    postgresql_where=events.c.number.is_not(None),
)
Index(  # select by kind; updates, nearly all events, are not in it
    "events_kind",
    events.c.kind,
    events.c.event_key,
    sqlite_where=sa.text("kind <> 'updated'"),
    postgresql_where=sa.text("kind <> 'updated'"),
)

Index(  # by_state; a model that starts with weights of its own looks itself up
    "events_state",
    events.c.state_after,
    events.c.event_key,
    sqlite_where=events.c.changes_state == 1,
    postgresql_where=events.c.changes_state == 1,
)

annotations = Table(
    "annotations",
    metadata,
    Column("event_key", Key, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),  # the event's, for the index
    Column("actor", Text),
    Column("reason", Text),
    Column("metadata", Text),
    Column("salt", Bytes, nullable=False),
)
Index(  # select by actor, also together with kinds
    "annotations_actor", annotations.c.actor, annotations.c.kind, annotations.c.event_key
)

parameters = Table(
    "parameters",
    metadata,
    Column("parameter_id", Key, sa.Identity(), primary_key=True),
    Column("model_id", Integer, ForeignKey("models.model_id"), nullable=False),
    Column("name", Text, nullable=False),
    sa.UniqueConstraint("model_id", "name", name="parameters_name"),
)

# `number` counts a parameter's updates, so that the last row says how many there are.
touches = Table(
    "touches",
    metadata,
    Column("parameter_id", Key, primary_key=True, autoincrement=False),
    Column("event_key", Key, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("actor", Text),  # the annotation's, for the index
    sqlite_with_rowid=False,
)
Index(  # select by parameter and actor
    "touches_actor",
    touches.c.parameter_id,
    touches.c.actor,
    touches.c.event_key,
    sqlite_where=touches.c.actor.is_not(None),
    postgresql_where=touches.c.actor.is_not(None),
)

# The versions that are not retired: what `verify` finds by reading the whole log. The only rows
# beside blobs that are ever changed or deleted, in the transaction of the event that pins, unpins
# or retires the version. `node` is the state it names.
listed_versions = Table(
    "listed_versions",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("event_key", Key, nullable=False),
    Column("node", BigInteger, nullable=False),
    Column("pinned", sa.SmallInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index(  # listed_before
    "listed_versions_node",
    listed_versions.c.model_id,
    listed_versions.c.node,
    listed_versions.c.number,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("node", BigInteger, primary_key=True, autoincrement=False),
    Column("manifest", Bytes, nullable=False),
    Column("size", BigInteger, nullable=False),
)

# Apart from its parts, because touching a row on SQLite writes all of it again.
blobs = Table(
    "blobs",
    metadata,
    Column("digest", Bytes, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("touched_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

blob_parts = Table(
    "blob_parts",
    metadata,
    Column("digest", Bytes, primary_key=True),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("data", Bytes, nullable=False),
)

# One row, or none before the first use; `url` is null when blobs are in the tables above.
blob_location = Table(
    "blob_location",
    metadata,
    Column("only_row", Integer, primary_key=True, autoincrement=False),
    Column("url", Text),
    CheckConstraint("only_row = 1", name="blob_location_only_row"),
)

# The hash tree over a model's events: the roots of perfect subtrees of 256, 65,536 … events, as the
# last event of each is appended. What lies below is computed from `events.event_hash`.
tree_nodes = Table(
    "tree_nodes",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", Bytes, nullable=False),
    sqlite_with_rowid=False,
)

# What was done to API keys, each row for ever: `digest` is the SHA-256 of the secret that it gave
# the key. `number` counts a key's changes, so that two at once cannot both be the next one.
api_key_changes = Table(
    "api_key_changes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("action", Text, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("actor", Text),
    Column("digest", Bytes),
    Column("scope", Text),
    Column("expires_at", BigInteger),
    Column("requests_per_minute", BigInteger),
    Column("old_until", BigInteger),
)

# When a key was last used, to the minute: the one thing about keys that is written over.
api_key_uses = Table(
    "api_key_uses",
    metadata,
    Column("name", Text, primary_key=True),
    Column("used_at", BigInteger, nullable=False),
)

# What was measured, beside the log and no part of it: rows are added, merged into fewer as they get
# older, and dropped. `first_seq` to `last_seq` are the states that a row's values were observed at,
# `replica` who served them where a replica did, `rollout` the seq that began the rollout which it
# knew to run meanwhile.
metric_rollups = Table(
    "metric_rollups",
    metadata,
    Column("rollup_id", Key, sa.Identity(), primary_key=True),
    Column("model_id", Integer, ForeignKey("models.model_id"), nullable=False),
    Column("metric", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("total", sa.Double, nullable=False),
    Column("squares", sa.Double, nullable=False),
    Column("least", sa.Double, nullable=False),
    Column("most", sa.Double, nullable=False),
    Column("sketch", Bytes, nullable=False),
    Column("replica", Text),
    Column("rollout", BigInteger),
)
Index("metric_rollups_time", metric_rollups.c.model_id, metric_rollups.c.start_us)
Index(  # select by seq: the few rows behind the last seq are not there yet
    "metric_rollups_seq", metric_rollups.c.model_id, metric_rollups.c.last_seq
)
Index(  # of_rollout
    "metric_rollups_rollout",
    metric_rollups.c.model_id,
    metric_rollups.c.rollout,
    metric_rollups.c.rollup_id,
    sqlite_where=metric_rollups.c.rollout.is_not(None),
    postgresql_where=metric_rollups.c.rollout.is_not(None),
)

# Which samples were pushed, by their digests, so that one that is sent again counts once; kept for
# as long as a sample of that time would be taken.
metric_pushes = Table(
    "metric_pushes",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("digest", Bytes, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("metric_pushes_time", metric_pushes.c.model_id, metric_pushes.c.at_us)

# What events are found by, in blocks of 1,024 of them: see `ledger.store.blocks`.
search_blocks = Table(
    "search_blocks",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("term", BigInteger, primary_key=True, autoincrement=False),
    Column("block", BigInteger, primary_key=True, autoincrement=False),
    Column("bits", Bytes, nullable=False),
    sqlite_with_rowid=False,
)

# Who follows a log, one row a replica, kept up to date by the replica itself: its lease, by the
# database's clock, and what it said last. `incarnation` counts its starts: what an earlier one says
# is refused. `position` is the last event shown, `seq` the state's, as replies name it.
replicas = Table(
    "replicas",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("replica", Text, primary_key=True),
    Column("incarnation", BigInteger, nullable=False),
    Column("host", Text, nullable=False),
    Column("url", Text),
    Column("release", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("position", BigInteger),
    Column("seq", BigInteger),
    Column("node", BigInteger),
    Column("digest", Bytes),
    Column("lag_events", BigInteger),
    Column("lag_s", sa.Double),
)

# What each replica showed, and since when by the database's clock; a seq that is null is nothing.
# The first row of an incarnation says until when the one before it was heard of.
replica_states = Table(
    "replica_states",
    metadata,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("replica", Text, primary_key=True),
    Column("incarnation", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("shown_at", BigInteger, nullable=False),
    Column("position", BigInteger),
    Column("seq", BigInteger),
    Column("digest", Bytes),
    Column("seen_until", BigInteger),
)
Index(  # who served what at a time
    "replica_states_time",
    replica_states.c.model_id,
    replica_states.c.replica,
    replica_states.c.shown_at,
)

# What a writer is about to append and first has replicas build (`ledger.writing.preparing`): beside
# the log, since what is withdrawn was never in it. Whoever asks drops those whose deadline, by the
# database's clock, has passed. `asked` is the replicas, each with its incarnation, as JSON.
proposals = Table(
    "proposals",
    metadata,
    Column("model_id", Integer, ForeignKey("models.model_id"), primary_key=True),
    Column("proposal", Text, primary_key=True),
    Column("proposed_at", BigInteger, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("asked", Text, nullable=False),
    Column("header", Bytes, nullable=False),
    Column("payload", Bytes),
)

# What replicas say of a proposal: the digest of the state that they have built, or the problem.
attestations = Table(
    "attestations",
    metadata,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("proposal", Text, primary_key=True),
    Column("replica", Text, primary_key=True),
    Column("incarnation", BigInteger, primary_key=True, autoincrement=False),
    Column("attested_at", BigInteger, nullable=False),
    Column("digest", Bytes),
    Column("problem", Text),
    sa.ForeignKeyConstraint(
        ["model_id", "proposal"],
        ["proposals.model_id", "proposals.proposal"],
        ondelete="CASCADE",
    ),
)
