ALTER TABLE metric_rollups ADD COLUMN replica TEXT
;
ALTER TABLE metric_rollups ADD COLUMN rollout BIGINT
;
CREATE INDEX metric_rollups_rollout ON metric_rollups (model_id, rollout, rollup_id) WHERE rollout IS NOT NULL
;
