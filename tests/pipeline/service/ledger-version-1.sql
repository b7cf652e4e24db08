-- A ledger as version 1 left it: one slide complete, one waiting for another try, one event that nobody has got.
PRAGMA application_id = 1397967943;
PRAGMA user_version = 1;
CREATE TABLE contents (id INTEGER PRIMARY KEY AUTOINCREMENT, fingerprint TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL,
    files INTEGER NOT NULL, seen REAL NOT NULL) STRICT;
CREATE TABLE names (id INTEGER PRIMARY KEY AUTOINCREMENT, content INTEGER NOT NULL REFERENCES contents (id),
    path BLOB NOT NULL, folder TEXT NOT NULL, stamp TEXT NOT NULL, seen REAL NOT NULL, delivered REAL NOT NULL,
    gone REAL) STRICT;
CREATE UNIQUE INDEX names_there ON names (path) WHERE gone IS NULL;
CREATE INDEX names_of_content ON names (content);
CREATE TABLE slides (id INTEGER PRIMARY KEY AUTOINCREMENT, content INTEGER NOT NULL REFERENCES contents (id),
    route TEXT NOT NULL, name TEXT NOT NULL, name_key TEXT NOT NULL,
    urgency TEXT NOT NULL CHECK (urgency IN ('stat', 'routine')), deadline REAL,
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'running', 'retry_wait', 'complete', 'partial', 'quarantined', 'cancelled')),
    kind TEXT, reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0, waits INTEGER NOT NULL DEFAULT 0, due REAL, seen REAL NOT NULL,
    delivered REAL NOT NULL, started REAL, first_result REAL, finished REAL, alarmed REAL, result TEXT,
    UNIQUE (content, route), UNIQUE (route, name_key), CHECK ((state = 'retry_wait') = (due IS NOT NULL))) STRICT;
CREATE INDEX slides_by_state ON slides (state, urgency);
CREATE TABLE steps (id INTEGER PRIMARY KEY AUTOINCREMENT, slide INTEGER NOT NULL REFERENCES slides (id),
    time REAL NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL, kind TEXT, reason TEXT NOT NULL, by TEXT NOT NULL) STRICT;
CREATE INDEX steps_of_slide ON steps (slide);
CREATE TABLE arrivals (path BLOB PRIMARY KEY, folder TEXT NOT NULL,
    urgency TEXT NOT NULL CHECK (urgency IN ('stat', 'routine')), seen REAL NOT NULL, changed REAL NOT NULL,
    bytes INTEGER NOT NULL, reason TEXT NOT NULL, stuck INTEGER NOT NULL DEFAULT 0 CHECK (stuck IN (0, 1))
) STRICT, WITHOUT ROWID;
CREATE TABLE holds (key TEXT PRIMARY KEY, kind TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL, until REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, event TEXT NOT NULL,
    slide INTEGER REFERENCES slides (id), body TEXT NOT NULL) STRICT;
CREATE TABLE sinks (name TEXT PRIMARY KEY, sent INTEGER NOT NULL) STRICT, WITHOUT ROWID;

INSERT INTO contents VALUES (1, 'aa', 1000, 1, 5.0), (2, 'bb', 2000, 1, 6.0);
INSERT INTO names VALUES (1, 1, x'2f732f612e737673', '/s', '1', 5.0, 7.0, NULL),
    (2, 2, x'2f732f622e737673', '/s', '2', 6.0, 7.0, NULL);
INSERT INTO slides VALUES
    (1, 1, 'tumour', 'a', 'a', 'routine', NULL, 'complete', NULL, '', 1, 0, 0, NULL, 5.0, 7.0, 8.0, 8.5, 9.0, NULL,
     '{"planned": 10}'),
    (2, 2, 'tumour', 'b', 'b', 'stat', 67.0, 'retry_wait', 'read_error', 'Input/output error', 1, 1, 0, 15.0, 6.0, 7.0,
     8.0, NULL, NULL, NULL, NULL);
INSERT INTO steps VALUES (1, 1, 7.0, 'waiting', 'queued', NULL, '', 'service');
INSERT INTO events VALUES (1, 9.0, 'slide.complete', 1, '{"slide": 1}');
