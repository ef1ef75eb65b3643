CREATE TABLE models (
	model_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	PRIMARY KEY (model_id), 
	CONSTRAINT models_name UNIQUE (name)
)
;
CREATE TABLE events (
	event_key INTEGER NOT NULL, 
	model_id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	recorded_at BIGINT NOT NULL, 
	node BIGINT NOT NULL, 
	parent BIGINT, 
	changes_state SMALLINT NOT NULL, 
	forward_only SMALLINT NOT NULL, 
	series TEXT, 
	number BIGINT, 
	idempotency_key TEXT, 
	state_after BLOB NOT NULL, 
	payload_size BIGINT NOT NULL, 
	header BLOB NOT NULL, 
	event_hash BLOB NOT NULL, 
	payload BLOB, 
	PRIMARY KEY (event_key), 
	CONSTRAINT events_key CHECK (event_key >> 40 = model_id)
)
;
CREATE TABLE annotations (
	event_key INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	actor TEXT, 
	reason TEXT, 
	metadata TEXT, 
	salt BLOB NOT NULL, 
	PRIMARY KEY (event_key)
)
;
CREATE TABLE parameters (
	parameter_id INTEGER NOT NULL, 
	model_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	PRIMARY KEY (parameter_id), 
	CONSTRAINT parameters_name UNIQUE (model_id, name), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
;
CREATE TABLE touches (
	parameter_id INTEGER NOT NULL, 
	event_key INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	actor TEXT, 
	PRIMARY KEY (parameter_id, event_key)
)
 WITHOUT ROWID


;
CREATE TABLE listed_versions (
	model_id INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	event_key INTEGER NOT NULL, 
	node BIGINT NOT NULL, 
	pinned SMALLINT NOT NULL, 
	PRIMARY KEY (model_id, number), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
 WITHOUT ROWID


;
CREATE TABLE snapshots (
	model_id INTEGER NOT NULL, 
	node BIGINT NOT NULL, 
	manifest BLOB NOT NULL, 
	size BIGINT NOT NULL, 
	PRIMARY KEY (model_id, node), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
;
CREATE TABLE blobs (
	digest BLOB NOT NULL, 
	size BIGINT NOT NULL, 
	touched_at BIGINT NOT NULL, 
	PRIMARY KEY (digest)
)
 WITHOUT ROWID


;
CREATE TABLE blob_parts (
	digest BLOB NOT NULL, 
	part INTEGER NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (digest, part)
)
;
CREATE TABLE blob_location (
	only_row INTEGER NOT NULL, 
	url TEXT, 
	PRIMARY KEY (only_row), 
	CONSTRAINT blob_location_only_row CHECK (only_row = 1)
)
;
CREATE UNIQUE INDEX events_idempotency ON events (model_id, idempotency_key) WHERE idempotency_key IS NOT NULL
;
CREATE UNIQUE INDEX events_number ON events (model_id, series, number) WHERE number IS NOT NULL
;
CREATE INDEX events_kind ON events (kind, event_key) WHERE kind <> 'updated'
;
CREATE INDEX events_state ON events (state_after, event_key) WHERE changes_state = 1
;
CREATE INDEX annotations_actor ON annotations (actor, kind, event_key)
;
CREATE INDEX touches_actor ON touches (parameter_id, actor, event_key) WHERE actor IS NOT NULL
;
CREATE INDEX listed_versions_node ON listed_versions (model_id, node, number)
;
CREATE TRIGGER models_no_update BEFORE UPDATE ON models BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER models_no_delete BEFORE DELETE ON models BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER models_no_replace BEFORE INSERT ON models BEGIN SELECT RAISE(ABORT, 'weightledger: this model is registered') WHERE EXISTS (SELECT 1 FROM models WHERE model_id = NEW.model_id OR name = NEW.name); END
;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER events_no_replace BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'weightledger: this seq does not follow the last event') WHERE (NEW.event_key & 1099511627775) <> 0 AND NOT EXISTS (SELECT 1 FROM events WHERE event_key = NEW.event_key - 1); SELECT RAISE(ABORT, 'weightledger: this seq is taken') WHERE EXISTS (SELECT 1 FROM events WHERE event_key = NEW.event_key); SELECT RAISE(ABORT, 'weightledger: this idempotency key is taken') WHERE EXISTS (SELECT 1 FROM events WHERE model_id = NEW.model_id AND idempotency_key = NEW.idempotency_key); SELECT RAISE(ABORT, 'weightledger: this number of the series is taken') WHERE EXISTS (SELECT 1 FROM events WHERE model_id = NEW.model_id AND series = NEW.series AND number = NEW.number); END
;
CREATE TRIGGER annotations_no_update BEFORE UPDATE ON annotations BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER annotations_no_delete BEFORE DELETE ON annotations BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER annotations_no_replace BEFORE INSERT ON annotations BEGIN SELECT RAISE(ABORT, 'weightledger: this row exists') WHERE EXISTS (SELECT 1 FROM annotations WHERE event_key = NEW.event_key); END
;
CREATE TRIGGER parameters_no_update BEFORE UPDATE ON parameters BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER parameters_no_delete BEFORE DELETE ON parameters BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER parameters_no_replace BEFORE INSERT ON parameters BEGIN SELECT RAISE(ABORT, 'weightledger: this row exists') WHERE EXISTS (SELECT 1 FROM parameters WHERE parameter_id = NEW.parameter_id); SELECT RAISE(ABORT, 'weightledger: this row exists') WHERE EXISTS (SELECT 1 FROM parameters WHERE model_id = NEW.model_id AND name = NEW.name); END
;
CREATE TRIGGER touches_no_update BEFORE UPDATE ON touches BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER touches_no_delete BEFORE DELETE ON touches BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER touches_no_replace BEFORE INSERT ON touches BEGIN SELECT RAISE(ABORT, 'weightledger: this row exists') WHERE EXISTS (SELECT 1 FROM touches WHERE parameter_id = NEW.parameter_id AND event_key = NEW.event_key); END
;
