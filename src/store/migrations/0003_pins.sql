-- Versions that are never pruned.

CREATE TABLE pins (
    server TEXT NOT NULL,
    -- `my-coder-tuned-coder`
    model TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version >= 1),
    pinned_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (server, model, version)
) STRICT, WITHOUT ROWID;
