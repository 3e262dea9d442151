-- Releases: rows are added and never changed.

CREATE TABLE releases (
    id TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    published BIGINT NOT NULL,
    published_by TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    lineage TEXT NOT NULL
);
CREATE INDEX releases_model ON releases (model, published);
