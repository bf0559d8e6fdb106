-- What was trained, what serves it, and every move of an alias.

CREATE TABLE adapters (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,
    -- sha256 over what the adapter is: its configuration and its numbers.
    digest TEXT NOT NULL,
    path TEXT NOT NULL,
    base_name TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    -- run.json of the training, whole; null for an adapter from elsewhere.
    run TEXT CHECK (json_valid(run)),
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (role, digest)
) STRICT;

-- A version that a server was seen to serve.
CREATE TABLE deployments (
    id INTEGER PRIMARY KEY,
    server TEXT NOT NULL,
    -- `my-coder-tuned-coder`; the version's whole name is model:vN.
    model TEXT NOT NULL,
    version INTEGER NOT NULL CHECK (version >= 1),
    -- Of the manifest, as the server lists it.
    digest TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('adapter', 'merged')),
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    -- What it takes to make it again.
    recipe TEXT NOT NULL CHECK (json_valid(recipe)),
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (server, model, version, digest)
) STRICT;
CREATE INDEX deployments_by_adapter ON deployments (adapter_id);

-- Every move of an alias, written before it is made; `alias_ends` has what became of it.
CREATE TABLE aliases (
    id INTEGER PRIMARY KEY,
    server TEXT NOT NULL,
    -- `my-coder-tuned-coder:latest`
    alias TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('first', 'promotion', 'rollback', 'outside')),
    -- What it named before; null: nothing.
    from_name TEXT,
    from_digest TEXT,
    to_name TEXT NOT NULL,
    to_digest TEXT NOT NULL,
    reason TEXT NOT NULL,
    begun_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CHECK ((from_name IS NULL) = (from_digest IS NULL))
) STRICT;
CREATE INDEX aliases_by_name ON aliases (server, alias);

CREATE TABLE alias_ends (
    move_id INTEGER PRIMARY KEY REFERENCES aliases (id),
    done INTEGER NOT NULL CHECK (done IN (0, 1)),
    message TEXT NOT NULL,
    ended_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

-- History is only ever added to.
CREATE TRIGGER aliases_stay BEFORE UPDATE ON aliases BEGIN SELECT RAISE(ABORT, 'aliases is append-only'); END;
CREATE TRIGGER aliases_are_kept BEFORE DELETE ON aliases BEGIN SELECT RAISE(ABORT, 'aliases is append-only'); END;
CREATE TRIGGER alias_ends_stay BEFORE UPDATE ON alias_ends BEGIN SELECT RAISE(ABORT, 'alias_ends is append-only'); END;
CREATE TRIGGER alias_ends_are_kept BEFORE DELETE ON alias_ends BEGIN SELECT RAISE(ABORT, 'alias_ends is append-only'); END;
