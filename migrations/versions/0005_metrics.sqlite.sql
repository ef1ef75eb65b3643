CREATE TABLE metric_rollups (
	rollup_id INTEGER NOT NULL, 
	model_id INTEGER NOT NULL, 
	metric TEXT NOT NULL, 
	source TEXT NOT NULL, 
	first_seq BIGINT NOT NULL, 
	last_seq BIGINT NOT NULL, 
	start_us BIGINT NOT NULL, 
	end_us BIGINT NOT NULL, 
	samples BIGINT NOT NULL, 
	total DOUBLE NOT NULL, 
	squares DOUBLE NOT NULL, 
	least DOUBLE NOT NULL, 
	most DOUBLE NOT NULL, 
	sketch BLOB NOT NULL, 
	PRIMARY KEY (rollup_id), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)


;
CREATE INDEX metric_rollups_seq ON metric_rollups (model_id, last_seq)
;
CREATE INDEX metric_rollups_time ON metric_rollups (model_id, start_us)
;
CREATE TABLE metric_pushes (
	model_id INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	at_us BIGINT NOT NULL, 
	PRIMARY KEY (model_id, digest), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
 WITHOUT ROWID


;
CREATE INDEX metric_pushes_time ON metric_pushes (model_id, at_us)
;
