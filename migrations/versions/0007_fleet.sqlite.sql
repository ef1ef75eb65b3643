CREATE TABLE replicas (
	model_id INTEGER NOT NULL, 
	replica TEXT NOT NULL, 
	incarnation BIGINT NOT NULL, 
	host TEXT NOT NULL, 
	url TEXT, 
	release TEXT NOT NULL, 
	started_at BIGINT NOT NULL, 
	seen_at BIGINT NOT NULL, 
	lease_until BIGINT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT, 
	position BIGINT, 
	seq BIGINT, 
	node BIGINT, 
	digest BLOB, 
	lag_events BIGINT, 
	lag_s DOUBLE, 
	PRIMARY KEY (model_id, replica), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
;
CREATE TABLE replica_states (
	model_id INTEGER NOT NULL, 
	replica TEXT NOT NULL, 
	incarnation BIGINT NOT NULL, 
	number BIGINT NOT NULL, 
	shown_at BIGINT NOT NULL, 
	position BIGINT, 
	seq BIGINT, 
	digest BLOB, 
	seen_until BIGINT, 
	PRIMARY KEY (model_id, replica, incarnation, number)
)
;
CREATE INDEX replica_states_time ON replica_states (model_id, replica, shown_at)
;
CREATE TRIGGER replica_states_no_update BEFORE UPDATE ON replica_states BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER replica_states_no_delete BEFORE DELETE ON replica_states BEGIN SELECT RAISE(ABORT, 'weightledger: append-only, rows are never changed or removed'); END
;
CREATE TRIGGER replica_states_no_replace BEFORE INSERT ON replica_states BEGIN SELECT RAISE(ABORT, 'weightledger: this row exists') WHERE EXISTS (SELECT 1 FROM replica_states WHERE model_id = NEW.model_id AND replica = NEW.replica AND incarnation = NEW.incarnation AND number = NEW.number); END
;
