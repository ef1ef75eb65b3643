CREATE TABLE tree_nodes (
	model_id INTEGER NOT NULL, 
	level SMALLINT NOT NULL, 
	number BIGINT NOT NULL, 
	hash BLOB NOT NULL, 
	PRIMARY KEY (model_id, level, number), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
 WITHOUT ROWID


;
