CREATE TABLE search_blocks (
	model_id INTEGER NOT NULL, 
	term BIGINT NOT NULL, 
	block BIGINT NOT NULL, 
	bits BYTEA NOT NULL, 
	PRIMARY KEY (model_id, term, block), 
	FOREIGN KEY(model_id) REFERENCES models (model_id)
)
;
