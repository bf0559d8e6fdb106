-- What happened, how well it went, what people said, and what of it was learnt from.

CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    -- The client's own, or one that was made for it.
    uid TEXT NOT NULL UNIQUE,
    -- Milliseconds since 1970.
    at_ms INTEGER NOT NULL,
    role TEXT NOT NULL,
    task TEXT,
    -- Digest of the task, or of what was asked; null: neither is known.
    task_group TEXT,
    model TEXT,
    prompt_variant TEXT,
    difficulty TEXT CHECK (difficulty IN ('easy', 'medium', 'hard')),
    action_type TEXT,
    session TEXT,
    user TEXT,
    choice_id TEXT,
    evidence TEXT NOT NULL CHECK (evidence IN ('executed', 'judge', 'self_reported')),
    -- Which model or person wrote the output, under which terms.
    -- An older sqlite3 finds no JSON in null (json_valid was 0 there until 3.42).
    source TEXT CHECK (source IS NULL OR json_valid(source)),
    may_train INTEGER NOT NULL CHECK (may_train IN (0, 1)),
    -- Good without a reward: from a named source, or edited by a person.
    demonstration INTEGER NOT NULL CHECK (demonstration IN (0, 1)),
    -- The run whose answer a person made better.
    edit_of INTEGER REFERENCES runs (id),
    cost_tokens INTEGER CHECK (cost_tokens >= 0),
    duration_ms INTEGER CHECK (duration_ms >= 0),
    reward REAL CHECK (reward BETWEEN 0 AND 1),
    observed_weight REAL NOT NULL CHECK (observed_weight BETWEEN 0 AND 1),
    -- The formula and its weights.
    reward_version TEXT NOT NULL,
    -- Mean of the users' last votes.
    vote REAL CHECK (vote BETWEEN 0 AND 1),
    -- Who looked at the pair took it (1) or refused it (0).
    review INTEGER CHECK (review IN (0, 1)),
    -- Its texts are in `pairs`.
    has_texts INTEGER NOT NULL CHECK (has_texts IN (0, 1)),
    -- Why they are not, though there were some.
    withheld TEXT,
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE INDEX runs_by_role ON runs (role, id);
CREATE INDEX runs_with_texts ON runs (role, id) WHERE has_texts = 1;
CREATE INDEX runs_by_reward_version ON runs (reward_version, id);
CREATE INDEX runs_by_edit ON runs (edit_of) WHERE edit_of IS NOT NULL;

-- One row a metric, by the names of a run's result.
CREATE TABLE signals (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    metric TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (run_id, metric)
) STRICT, WITHOUT ROWID;

-- One redacted conversation a run, its last turn the answer.
CREATE TABLE pairs (
    run_id INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    messages TEXT NOT NULL CHECK (json_valid(messages)),
    tools TEXT CHECK (tools IS NULL OR json_valid(tools))
) STRICT;

CREATE TABLE feedback (
    id INTEGER PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    user TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    thumb INTEGER CHECK (thumb IN (0, 1)),
    score REAL CHECK (score BETWEEN 0 AND 1),
    comment TEXT,
    -- The run that holds the answer as the user made it.
    edit_run INTEGER REFERENCES runs (id) ON DELETE SET NULL
) STRICT;
CREATE INDEX feedback_by_run ON feedback (run_id, user, id);

-- On which side of the held-out line a group of tasks is: decided once.
CREATE TABLE task_parts (
    role TEXT NOT NULL,
    task_group TEXT NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('train', 'held_out')),
    decided_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (role, task_group)
) STRICT, WITHOUT ROWID;

-- A training set as it was, with the runs that it is made of.
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,
    digest TEXT NOT NULL,
    train INTEGER NOT NULL,
    held_out INTEGER NOT NULL,
    -- The newest run that was looked at.
    newest_run INTEGER NOT NULL,
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    taken_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE INDEX snapshots_by_role ON snapshots (role, id);

CREATE TABLE snapshot_items (
    snapshot_id INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    part TEXT NOT NULL CHECK (part IN ('train', 'held_out')),
    position INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    PRIMARY KEY (snapshot_id, part, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_items_by_run ON snapshot_items (run_id);

-- One way from runs to a new version, or to the reason why there is none.
CREATE TABLE cycles (
    id INTEGER PRIMARY KEY,
    role TEXT NOT NULL,
    -- Everything that decides what it makes.
    plan TEXT NOT NULL CHECK (json_valid(plan)),
    begun_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    ended_at TEXT,
    -- promoted, kept, rejected, inconclusive, failed, given up
    outcome TEXT,
    message TEXT,
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT;
CREATE INDEX cycles_by_role ON cycles (role, id);

CREATE TABLE cycle_stages (
    cycle_id INTEGER NOT NULL REFERENCES cycles (id) ON DELETE CASCADE,
    stage TEXT NOT NULL CHECK (stage IN ('export', 'train', 'register', 'evaluate', 'promote')),
    -- Of what it made.
    digest TEXT NOT NULL,
    detail TEXT NOT NULL CHECK (json_valid(detail)),
    seconds REAL NOT NULL CHECK (seconds >= 0),
    ended_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (cycle_id, stage)
) STRICT, WITHOUT ROWID;
