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
	digest BYTEA, 
	lag_events BIGINT, 
	lag_s DOUBLE PRECISION, 
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
	digest BYTEA, 
	seen_until BIGINT, 
	PRIMARY KEY (model_id, replica, incarnation, number)
)
;
CREATE INDEX replica_states_time ON replica_states (model_id, replica, shown_at)
;
CREATE TRIGGER replica_states_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON replica_states FOR EACH STATEMENT EXECUTE FUNCTION weightledger_refuse()
;
ALTER TABLE replica_states ENABLE ALWAYS TRIGGER replica_states_append_only
;
