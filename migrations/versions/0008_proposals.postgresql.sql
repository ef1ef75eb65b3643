CREATE TABLE proposals (
	model_id INTEGER NOT NULL, 
	proposal TEXT NOT NULL, 
	proposed_at BIGINT NOT NULL, 
	deadline BIGINT NOT NULL, 
	asked TEXT NOT NULL, 
	header BYTEA NOT NULL, 
	payload BYTEA, 
	PRIMARY KEY (model_id, proposal), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
;
CREATE TABLE attestations (
	model_id INTEGER NOT NULL, 
	proposal TEXT NOT NULL, 
	replica TEXT NOT NULL, 
	incarnation BIGINT NOT NULL, 
	attested_at BIGINT NOT NULL, 
	digest BYTEA, 
	problem TEXT, 
	PRIMARY KEY (model_id, proposal, replica, incarnation), 
	FOREIGN KEY(model_id, proposal) REFERENCES proposals (model_id, proposal) ON DELETE CASCADE
)
;
