-- Data sets and training jobs. The samples are files; these rows say which.

CREATE TABLE datasets (
    name TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    created BIGINT NOT NULL,
    created_by TEXT NOT NULL
);

CREATE TABLE training_jobs (
    id TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    base TEXT NOT NULL,
    dataset TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    created BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    created_by TEXT NOT NULL
);
CREATE INDEX training_jobs_model ON training_jobs (model, created);
