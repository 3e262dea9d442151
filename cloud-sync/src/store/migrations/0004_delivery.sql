-- What devices say beyond an update's steps, and how they are asked to take a release.
ALTER TABLE running ADD COLUMN digest TEXT NOT NULL DEFAULT '';
ALTER TABLE updates ADD COLUMN done BIGINT NOT NULL DEFAULT 0;
ALTER TABLE updates ADD COLUMN total BIGINT NOT NULL DEFAULT 0;
ALTER TABLE desired ADD COLUMN shadow TEXT NOT NULL DEFAULT '';
ALTER TABLE desired ADD COLUMN retry_failed BIGINT NOT NULL DEFAULT 0;
