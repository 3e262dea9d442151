-- What applications found out about answers, by request; the newest counts.
CREATE TABLE feedback (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    request_id TEXT NOT NULL,
    verdict TEXT NOT NULL,
    label TEXT NOT NULL,
    at BIGINT NOT NULL,
    received BIGINT NOT NULL,
    PRIMARY KEY (device, model, request_id)
);
CREATE INDEX feedback_received ON feedback (received);
