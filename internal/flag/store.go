package flag

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

// Errors of the store. What wraps none of them is Redis's answer, or
// config.Faults where the flags would not compile after the change.
var (
	// ErrNotFound: no such flag, or no such version in its history.
	ErrNotFound = errors.New("flag not found")
	// ErrConflict: the flag is not at the version that the change expected.
	ErrConflict = errors.New("flag was changed meanwhile")
)

const (
	// MaxHistory is how many changes of a flag are kept.
	MaxHistory = versioned.MaxHistory
	// attempts at writing while others write other flags.
	attempts = 32
	// AnyVersion as a Change's Expect changes whatever is there.
	AnyVersion int64 = -1
)

// keyRoot begins the store's keys.
const keyRoot = redisconn.Prefix + "flag:{flags}:"

// Record is a stored definition.
type Record struct {
	Definition Definition
	// Version counts the flag's changes from 1, deletions included.
	Version int64
	// Updated is when, and UpdatedBy by whom, the version was written.
	Updated   time.Time
	UpdatedBy string
}

// Change says who changes a flag and why.
type Change struct {
	Actor  string
	Reason string
	// Expect is the version that the flag must be at: 0 for a flag that does
	// not exist, [AnyVersion] for any.
	Expect int64
}

// Entry is one change in a flag's history.
type Entry struct {
	Version int64     `json:"version"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	// Action is create, update, delete, revert or seed.
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`
	// Definition is the flag after the change; null after a deletion.
	Definition json.RawMessage `json:"definition"`
}

// Snapshot is everything the store holds at one moment.
type Snapshot struct {
	// Version counts the changes of all flags; 0 before the first one.
	Version int64
	// Records are the flags, sorted by key.
	Records []Record
	// Broken are stored flags that this program cannot read.
	Broken map[string]error

	versions map[string]int64 // of flags that are gone, too
}

// Definitions are the snapshot's flags.
func (s *Snapshot) Definitions() *Definitions {
	defs := &Definitions{Flags: make(map[string]Definition, len(s.Records))}
	for _, r := range s.Records {
		defs.Flags[r.Definition.Key] = r.Definition
	}
	return defs
}

// with are the snapshot's flags with a new definition of one, nil for none, to
// check it among them. Of prerequisites that are broken nothing can be said: they
// hinder no change, but for one that brings them in.
func (s *Snapshot) with(key string, def *Definition) *Definitions {
	all := s.Definitions()
	if delete(all.Flags, key); def != nil {
		all.Flags[key] = *def
	}
	if len(s.Broken) == 0 {
		return all
	}
	var before []Prerequisite
	if r := s.find(key); r != nil {
		before = r.Definition.Extension.Prerequisites
	}
	for name, d := range all.Flags {
		d.Extension.Prerequisites = slices.DeleteFunc(slices.Clone(d.Extension.Prerequisites), func(q Prerequisite) bool {
			if _, broken := s.Broken[q.Flag]; !broken || q.Flag == key {
				return false
			}
			return name != key || slices.ContainsFunc(before, func(b Prerequisite) bool { return b.Flag == q.Flag && slices.Equal(b.Variants, q.Variants) })
		})
		all.Flags[name] = d
	}
	return all
}

// find returns the flag's record, nil if there is none.
func (s *Snapshot) find(key string) *Record {
	i, ok := slices.BinarySearchFunc(s.Records, key, func(r Record, key string) int {
		switch {
		case r.Definition.Key < key:
			return -1
		case r.Definition.Key > key:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &s.Records[i]
}

// stored is a record's JSON.
type stored struct {
	Version    int64           `json:"version"`
	Updated    time.Time       `json:"updated"`
	UpdatedBy  string          `json:"updated_by"`
	Definition json.RawMessage `json:"definition"`
}

// Store keeps definitions in Redis. It is safe for concurrent use, by several
// processes too: every change is one atomic script, against the version of the
// whole set that it was checked with.
type Store struct {
	documents *versioned.Store
	now       func() time.Time
}

// NewStore makes a store on a client; now stamps changes.
func NewStore(rdb redis.UniversalClient, now func() time.Time) *Store {
	return &Store{documents: versioned.New(rdb, keyRoot), now: now}
}

// List reads every flag at one moment.
func (s *Store) List(ctx context.Context) (Snapshot, error) {
	set, err := s.documents.Read(ctx)
	if err != nil {
		return Snapshot{}, fmt.Errorf("read flags: %w", err)
	}
	snapshot := Snapshot{Version: set.Version, Broken: map[string]error{}, versions: set.Versions}
	for _, key := range slices.Sorted(maps.Keys(set.Documents)) {
		r, err := parseRecord(key, set.Documents[key])
		if err != nil {
			snapshot.Broken[key] = err
			continue
		}
		snapshot.Records = append(snapshot.Records, r)
	}
	return snapshot, nil
}

// Version reads the set's version alone.
func (s *Store) Version(ctx context.Context) (int64, error) {
	version, err := s.documents.Version(ctx)
	if err != nil {
		return 0, fmt.Errorf("read version of flags: %w", err)
	}
	return version, nil
}

func parseRecord(key, document string) (Record, error) {
	var raw stored
	if err := json.Unmarshal([]byte(document), &raw); err != nil {
		return Record{}, config.Faults{{File: "stored flag", Key: key, Allowed: "a JSON document: " + err.Error()}}
	}
	def, err := ParseFlag("stored flag "+key, key, raw.Definition)
	if err != nil {
		return Record{}, err
	}
	return Record{Definition: def, Version: raw.Version, Updated: raw.Updated, UpdatedBy: raw.UpdatedBy}, nil
}

// Get reads one flag, or ErrNotFound.
func (s *Store) Get(ctx context.Context, key string) (Record, error) {
	document, err := s.documents.Get(ctx, key)
	switch {
	case err != nil:
		return Record{}, fmt.Errorf("read flag %q: %w", key, err)
	case document == "":
		return Record{}, fmt.Errorf("%w: %q", ErrNotFound, key)
	}
	return parseRecord(key, document)
}

// Put writes a whole definition, which must come from [ParseFlag] or [Parse].
func (s *Store) Put(ctx context.Context, def Definition, c Change) (Record, error) {
	return s.change(ctx, def.Key, "update", c, func(*Record) (*Definition, error) { return &def, nil })
}

// Update changes an existing definition by a function, which may be called
// more than once. The changed definition is checked like a new one.
func (s *Store) Update(ctx context.Context, key string, c Change, edit func(*Definition) error) (Record, error) {
	return s.change(ctx, key, "update", c, func(current *Record) (*Definition, error) {
		if current == nil {
			return nil, fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		def := current.Definition
		if err := edit(&def); err != nil {
			return nil, err
		}
		data, err := json.Marshal(def)
		if err != nil {
			return nil, fmt.Errorf("encode flag %q: %w", key, err)
		}
		def, err = ParseFlag("changed flag", key, data)
		return &def, err
	})
}

// Delete removes a flag; its history stays.
func (s *Store) Delete(ctx context.Context, key string, c Change) error {
	_, err := s.change(ctx, key, "delete", c, func(*Record) (*Definition, error) { return nil, nil })
	return err
}

// History reads the changes of a flag, the newest first, at most limit.
func (s *Store) History(ctx context.Context, key string, limit int) ([]Entry, error) {
	entries, err := versioned.History[Entry](ctx, s.documents, key, limit)
	if err != nil {
		return nil, fmt.Errorf("read history of flag %q: %w", key, err)
	}
	return entries, nil
}

// Revert writes the definition that the flag had at a version of its history,
// as a new version; a flag deleted since comes back.
func (s *Store) Revert(ctx context.Context, key string, version int64, c Change) (Record, error) {
	entry, ok, err := versioned.Find(ctx, s.documents, key, func(e Entry) bool { return e.Version == version })
	if err != nil {
		return Record{}, fmt.Errorf("read history of flag %q: %w", key, err)
	}
	if !ok || string(entry.Definition) == "null" {
		return Record{}, fmt.Errorf("%w: %q has no definition at version %d", ErrNotFound, key, version)
	}
	def, err := ParseFlag(fmt.Sprintf("version %d of the flag", version), key, entry.Definition)
	if err != nil {
		return Record{}, err
	}
	return s.change(ctx, key, "revert", c, func(*Record) (*Definition, error) { return &def, nil })
}

// change applies one change to a snapshot, checks that all flags still compile
// together, and writes if nothing was written meanwhile; otherwise it starts
// again. edit gets nil for a flag that does not exist and gives nil to delete.
func (s *Store) change(ctx context.Context, key, action string, c Change, edit func(*Record) (*Definition, error)) (Record, error) {
	for range attempts {
		snapshot, err := s.List(ctx)
		if err != nil {
			return Record{}, err
		}
		current := snapshot.find(key)
		cause, broken := snapshot.Broken[key]
		at := int64(0)
		switch {
		case current != nil:
			at = current.Version
		case broken:
			at = max(1, snapshot.versions[key]) // it exists, whatever the version
		}
		if c.Expect >= 0 && at != c.Expect {
			return Record{}, fmt.Errorf("%w: %q is at version %d, not %d", ErrConflict, key, at, c.Expect)
		}
		if action == "delete" && current == nil && !broken {
			return Record{}, fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		def, err := edit(current)
		if broken && errors.Is(err, ErrNotFound) {
			err = cause // it is there, and to edit it would lose what is not understood
		}
		if err != nil {
			return Record{}, err
		}
		if _, err := Compile(snapshot.with(key, def)); err != nil {
			return Record{}, err
		}
		does := action
		if does == "update" && current == nil {
			does = "create"
		}
		r := Record{Version: snapshot.versions[key] + 1, Updated: s.now().UTC(), UpdatedBy: c.Actor}
		write, err := r.write(key, does, def, c)
		if err != nil {
			return Record{}, err
		}
		switch written, err := s.documents.Write(ctx, snapshot.Version, map[string]versioned.Write{key: write}); {
		case err != nil:
			return Record{}, fmt.Errorf("write flag %q: %w", key, err)
		case written:
			return r, nil
		}
	}
	return Record{}, fmt.Errorf("%w: others kept changing flags while %q was written", ErrConflict, key)
}

// write encodes the record with a definition; nil deletes.
func (r *Record) write(key, action string, def *Definition, c Change) (versioned.Write, error) {
	w := versioned.Write{Version: r.Version}
	entry := Entry{Version: r.Version, At: r.Updated, Actor: c.Actor, Action: action, Reason: c.Reason, Definition: json.RawMessage("null")}
	var err error
	if def != nil {
		r.Definition = *def
		if entry.Definition, err = json.Marshal(def); err != nil {
			return w, fmt.Errorf("encode flag %q: %w", key, err)
		}
		if n := len(entry.Definition); n > MaxFlagBytes {
			return w, config.Faults{{File: "flag", Key: key, Value: strconv.Itoa(n), Allowed: fmt.Sprintf("at most %d bytes", MaxFlagBytes)}}
		}
		if w.Document, err = json.Marshal(stored{Version: r.Version, Updated: r.Updated, UpdatedBy: r.UpdatedBy, Definition: entry.Definition}); err != nil {
			return w, fmt.Errorf("encode flag %q: %w", key, err)
		}
	}
	if w.Entry, err = json.Marshal(entry); err != nil {
		return w, fmt.Errorf("encode history of flag %q: %w", key, err)
	}
	return w, nil
}

// Seed writes those definitions whose keys Redis has never seen, deleted flags
// included, and says how many. lowest gives versions below which a flag must
// not start; it may be nil.
func (s *Store) Seed(ctx context.Context, defs *Definitions, lowest map[string]int64, c Change) (int, error) {
	for range attempts {
		set, err := s.documents.Read(ctx)
		if err != nil {
			return 0, fmt.Errorf("read flags: %w", err)
		}
		writes := map[string]versioned.Write{}
		for key, def := range defs.Flags {
			if set.Versions[key] > 0 {
				continue
			}
			r := Record{Version: max(1, lowest[key]), Updated: s.now().UTC(), UpdatedBy: c.Actor}
			if writes[key], err = r.write(key, "seed", &def, c); err != nil {
				return 0, err
			}
		}
		if len(writes) == 0 {
			return 0, nil
		}
		switch written, err := s.documents.Write(ctx, set.Version, writes); {
		case err != nil:
			return 0, fmt.Errorf("write flags: %w", err)
		case written:
			return len(writes), nil
		}
	}
	return 0, fmt.Errorf("%w: others kept changing flags while some were written", ErrConflict)
}
