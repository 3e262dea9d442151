-- Base tables. Types: BIGINT, TEXT, DOUBLE PRECISION, BYTEA (written BLOB for SQLite). Stamps are Unix
-- milliseconds. An epoch is a random u64 kept as its bit pattern in a BIGINT.

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE operators (
    name TEXT NOT NULL PRIMARY KEY,
    token_sha256 TEXT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE enrolment_tokens (
    token_sha256 TEXT NOT NULL PRIMARY KEY,
    device TEXT NOT NULL,
    fleet TEXT NOT NULL,
    labels TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    used BIGINT,
    key_sha256 TEXT
);
CREATE INDEX enrolment_tokens_device ON enrolment_tokens (device);

CREATE TABLE devices (
    id TEXT NOT NULL PRIMARY KEY,
    fleet TEXT NOT NULL,
    labels TEXT NOT NULL,
    enrolled BIGINT NOT NULL,
    key_sha256 TEXT NOT NULL,
    revoked BIGINT NOT NULL DEFAULT 0,
    online BIGINT NOT NULL DEFAULT 0,
    seen BIGINT NOT NULL DEFAULT 0,
    assignment BIGINT NOT NULL DEFAULT 0,
    inventory TEXT NOT NULL DEFAULT ''
);
CREATE INDEX devices_fleet ON devices (fleet, id);

-- What each device said runs there.
CREATE TABLE running (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    confirmed BIGINT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (device, model)
);
CREATE INDEX running_model ON running (model, release);

-- The last step of the last update of each model on each device.
CREATE TABLE updates (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    rollout TEXT NOT NULL,
    assignment BIGINT NOT NULL,
    state TEXT NOT NULL,
    error_code TEXT NOT NULL,
    error_message TEXT NOT NULL,
    at BIGINT NOT NULL,
    received BIGINT NOT NULL,
    elapsed BIGINT NOT NULL,
    PRIMARY KEY (device, model)
);

-- Never lost, never doubled: what of each stream is committed.
CREATE TABLE watermarks (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    upto BIGINT NOT NULL,
    updated BIGINT NOT NULL,
    PRIMARY KEY (device, stream, epoch)
);

CREATE TABLE stream_stats (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    stored BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    gaps BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (device, stream)
);

CREATE TABLE windows (
    device TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    start BIGINT NOT NULL,
    length BIGINT NOT NULL,
    received BIGINT NOT NULL,
    vitals TEXT NOT NULL,
    PRIMARY KEY (device, epoch, seq)
);
CREATE INDEX windows_received ON windows (received);

CREATE TABLE model_windows (
    device TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    start BIGINT NOT NULL,
    length BIGINT NOT NULL,
    received BIGINT NOT NULL,
    ok BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    rejected BIGINT NOT NULL,
    contract_violations BIGINT NOT NULL,
    non_finite BIGINT NOT NULL,
    abstained BIGINT NOT NULL,
    p50_us BIGINT NOT NULL,
    p95_us BIGINT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (device, epoch, seq, release)
);
CREATE INDEX model_windows_recent ON model_windows (release, device, received);
CREATE INDEX model_windows_received ON model_windows (received);

CREATE TABLE cases (
    id TEXT NOT NULL PRIMARY KEY,
    device TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    at BIGINT NOT NULL,
    received BIGINT NOT NULL,
    request_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    kept_permille BIGINT NOT NULL,
    hardness_permille BIGINT NOT NULL,
    class BIGINT NOT NULL,
    score_permille BIGINT NOT NULL,
    shape TEXT NOT NULL,
    encoding TEXT NOT NULL,
    tensor BYTEA NOT NULL,
    label TEXT,
    label_index BIGINT,
    labelled BIGINT,
    labelled_by TEXT
);
CREATE UNIQUE INDEX cases_number ON cases (device, epoch, seq);
CREATE INDEX cases_model ON cases (model, received);
CREATE INDEX cases_request ON cases (request_id);

CREATE TABLE reports (
    device TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    received BIGINT NOT NULL,
    kind TEXT NOT NULL,
    rollout TEXT NOT NULL,
    code TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (device, epoch, seq)
);
CREATE INDEX reports_received ON reports (received);
CREATE INDEX reports_kind ON reports (kind, received);

-- What each device should run, and the signed document that says so.
CREATE TABLE desired (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    rollout TEXT NOT NULL,
    probation_ms BIGINT NOT NULL,
    min_requests BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    PRIMARY KEY (device, model)
);

CREATE TABLE assignments (
    device TEXT NOT NULL PRIMARY KEY,
    sequence BIGINT NOT NULL,
    issued BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    document BYTEA NOT NULL
);

CREATE TABLE rollouts (
    id TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    release TEXT NOT NULL,
    fleet TEXT NOT NULL,
    spec TEXT NOT NULL,
    progress TEXT NOT NULL,
    active BIGINT NOT NULL,
    reason TEXT NOT NULL,
    gate TEXT NOT NULL,
    created BIGINT NOT NULL,
    updated BIGINT NOT NULL
);
CREATE INDEX rollouts_active ON rollouts (active, fleet, model);

CREATE TABLE rollout_devices (
    rollout TEXT NOT NULL,
    device TEXT NOT NULL,
    standing TEXT NOT NULL,
    previous TEXT NOT NULL,
    assigned BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    heard BIGINT NOT NULL,
    ended BIGINT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (rollout, device)
);
CREATE INDEX rollout_devices_device ON rollout_devices (device);

CREATE TABLE drift_verdicts (
    release TEXT NOT NULL,
    fleet TEXT NOT NULL,
    at BIGINT NOT NULL,
    verdict TEXT NOT NULL,
    windows BIGINT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (release, fleet, at)
);

-- Each change with who made it; each row's hash covers the one before.
CREATE TABLE audit (
    number BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL
);
