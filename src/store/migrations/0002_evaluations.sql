-- Candidate against champion, and what each made of each item.

CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,
    base_name TEXT NOT NULL,
    base_digest TEXT NOT NULL,
    -- The adapter's folder, or `base`; its digest is that of `adapters`, or the base's.
    candidate TEXT NOT NULL,
    candidate_digest TEXT NOT NULL,
    champion TEXT NOT NULL,
    champion_digest TEXT NOT NULL,
    data TEXT NOT NULL,
    -- Over the items' own digests: equal ones were judged on the same work.
    items_digest TEXT NOT NULL,
    items INTEGER NOT NULL CHECK (items > 0),
    verdict TEXT NOT NULL CHECK (verdict IN ('promote', 'reject', 'inconclusive')),
    -- Estimates, guards, reasons, explanation.
    judgement TEXT NOT NULL CHECK (json_valid(judgement)),
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    seconds REAL NOT NULL CHECK (seconds >= 0),
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE INDEX evaluations_by_candidate ON evaluations (candidate_digest);

CREATE TABLE evaluation_items (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations (id),
    -- Empty for the work itself, else the name of a suite.
    suite TEXT NOT NULL,
    item TEXT NOT NULL,
    -- Items of one group are not independent.
    item_group TEXT NOT NULL,
    candidate TEXT NOT NULL CHECK (json_valid(candidate)),
    champion TEXT NOT NULL CHECK (json_valid(champion)),
    PRIMARY KEY (evaluation_id, suite, item)
) STRICT, WITHOUT ROWID;
