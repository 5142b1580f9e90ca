package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redisconn"
	"github.com/tollgate-proxy/tollgate/internal/versioned"
)

// Errors of the catalog. What wraps none of them is Redis's answer.
var (
	// ErrNotFound: no such experiment.
	ErrNotFound = errors.New("experiment not found")
	// ErrConflict: the experiment is not at the revision that the change expected.
	ErrConflict = errors.New("experiment was changed meanwhile")
	// ErrInvalid: the definition, or the experiments together, would not be valid.
	ErrInvalid = errors.New("experiment is not valid")
)

const (
	// MaxHistory is how many changes of an experiment are kept.
	MaxHistory = versioned.MaxHistory
	// MaxExperiments bounds the stored experiments, MaxRunning those that are not
	// stopped: each costs a little on every request.
	MaxExperiments = 1000
	MaxRunning     = 64
	// AnyRevision as a Change's Expect changes whatever is there.
	AnyRevision int64 = -1

	changeAttempts = 32

	catalogRoot = redisconn.Prefix + "experiment:{experiments}:"
)

// Record is a stored experiment.
type Record struct {
	Definition Definition `json:"definition"`
	// Revision counts the experiment's changes from 1, deletions included.
	Revision int64 `json:"revision"`
	// Updated is when, and UpdatedBy by whom, the revision was written.
	Updated   time.Time `json:"updated"`
	UpdatedBy string    `json:"updated_by"`
	// State is where the experiment was in its life when the record was read; see
	// [Definition.StateAt].
	State State `json:"state,omitempty"`
}

// Change says who changes an experiment and why.
type Change struct {
	Actor  string
	Reason string
	// Expect is the revision that the experiment must be at: 0 for one that does
	// not exist, [AnyRevision] for any.
	Expect int64
}

// Entry is one change in an experiment's history.
type Entry struct {
	Revision int64     `json:"revision"`
	At       time.Time `json:"at"`
	Actor    string    `json:"actor"`
	// Action is create, update, start, stop, revert, delete or restore.
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`
	// Definition is the experiment after the change; nil after a deletion.
	Definition *Definition `json:"definition"`
}

// Snapshot is everything the catalog holds at one moment.
type Snapshot struct {
	// Version counts the changes of all experiments; 0 before the first one.
	Version int64
	// Records are the experiments, sorted by key.
	Records []Record
	// Broken are stored experiments that this program cannot read.
	Broken map[string]error

	// partly are the broken ones, as far as they can be read.
	partly    map[string]Definition
	revisions map[string]int64
}

// Find gives an experiment's record, nil where there is none.
func (s *Snapshot) Find(key string) *Record { return find(s.Records, key) }

// find looks among records that are sorted by key.
func find(records []Record, key string) *Record {
	i, ok := slices.BinarySearchFunc(records, key, func(r Record, key string) int { return strings.Compare(r.Definition.Key, key) })
	if !ok {
		return nil
	}
	return &records[i]
}

// Catalog keeps definitions in Redis. It is safe for concurrent use, by several
// processes too: every change is one atomic script, against the version of the
// whole set that it was checked with.
type Catalog struct {
	rdb       redis.UniversalClient
	documents *versioned.Store
	now       func() time.Time
}

// NewCatalog makes a catalog on a client; now stamps changes.
func NewCatalog(rdb redis.UniversalClient, now func() time.Time) *Catalog {
	return &Catalog{rdb: rdb, documents: versioned.New(rdb, catalogRoot), now: now}
}

// List reads every experiment at one moment.
func (c *Catalog) List(ctx context.Context) (Snapshot, error) {
	set, err := c.documents.Read(ctx)
	if err != nil {
		return Snapshot{}, fmt.Errorf("read experiments: %w", err)
	}
	s := Snapshot{Version: set.Version, Broken: map[string]error{}, partly: map[string]Definition{}, revisions: set.Versions}
	now := c.now()
	for _, key := range slices.Sorted(maps.Keys(set.Documents)) {
		r, err := parseRecord(key, set.Documents[key])
		if err != nil {
			s.Broken[key] = fmt.Errorf("stored experiment %s: %w", key, err)
			s.partly[key] = r.Definition
			continue
		}
		r.State = r.Definition.StateAt(now)
		s.Records = append(s.Records, r)
	}
	return s, nil
}

// parseRecord refuses members that this program does not know: to measure
// without them would be to guess, and to write the rest back to lose them. The
// record holds what else could be read.
func parseRecord(key, document string) (r Record, err error) {
	err = parse(document, &r, key, &r.Definition)
	r.Definition.Key = key
	return r, err
}

// parse reads a document, of which d is part.
func parse(document string, into any, key string, d *Definition) error {
	decoder := json.NewDecoder(strings.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if d.Key != key {
		return fmt.Errorf("names itself %q", d.Key)
	}
	return d.Validate()
}

// Get reads one experiment, or ErrNotFound; ErrInvalid where it is broken.
func (c *Catalog) Get(ctx context.Context, key string) (Record, error) {
	s, err := c.List(ctx)
	if err != nil {
		return Record{}, err
	}
	if r := s.Find(key); r != nil {
		return *r, nil
	}
	return Record{}, s.missing(key)
}

// missing says why there is no record of an experiment.
func (s *Snapshot) missing(key string) error {
	if cause, broken := s.Broken[key]; broken {
		return fmt.Errorf("%w: %w", ErrInvalid, cause)
	}
	return fmt.Errorf("%w: %q", ErrNotFound, key)
}

// Version reads the set's version alone.
func (c *Catalog) Version(ctx context.Context) (int64, error) {
	version, err := c.documents.Version(ctx)
	if err != nil {
		return 0, fmt.Errorf("read version of experiments: %w", err)
	}
	return version, nil
}

// Put writes a whole definition. Its Version is the catalog's to give: a change
// after which users would see or be measured something else begins a new one, so
// that nothing is mixed. State, Start and Stop stay as they are, unless the
// experiment is new.
func (c *Catalog) Put(ctx context.Context, d Definition, by Change) (Record, error) {
	return c.change(ctx, d.Key, "update", by, func(current *Definition) (*Definition, error) {
		next := d
		switch {
		case current != nil:
			next.State, next.Start = current.State, current.Start
			if next.State == Stopped {
				next.Stop = current.Stop
			}
		case next.State == "":
			next.State = Draft
		}
		return &next, nil
	})
}

// Update changes an existing experiment by a function, which may be called more
// than once.
func (c *Catalog) Update(ctx context.Context, key string, by Change, edit func(*Definition) error) (Record, error) {
	return c.update(ctx, key, "update", by, edit)
}

// Start assigns users from now on, or from the definition's start if that is
// still to come. An experiment that was stopped goes on where it was.
func (c *Catalog) Start(ctx context.Context, key string, by Change) (Record, error) {
	return c.update(ctx, key, "start", by, func(d *Definition) error {
		now := c.now().UTC()
		state := d.StateAt(now)
		if state == Started || state == Scheduled {
			return fmt.Errorf("%w: it is %s already", ErrInvalid, state)
		}
		if state == Stopped || d.Start.IsZero() {
			d.Start = now
		}
		if !d.Stop.After(now) {
			d.Stop = time.Time{}
		}
		d.State = Started
		return nil
	})
}

// Stop assigns no users any more; what was measured stays.
func (c *Catalog) Stop(ctx context.Context, key string, by Change) (Record, error) {
	return c.update(ctx, key, "stop", by, func(d *Definition) error {
		now := c.now().UTC()
		if state := d.StateAt(now); state != Started && state != Scheduled {
			return fmt.Errorf("%w: it is not running", ErrInvalid)
		}
		d.State = Stopped
		if d.Stop = now; !d.Start.Before(d.Stop) { // it has not begun
			d.Start = time.Time{}
		}
		return nil
	})
}

// Delete removes an experiment and gives what it was; its history stays. What was
// measured is [Store.Delete]'s. Of a broken one it gives what can be read: Version
// is 0 where that cannot.
func (c *Catalog) Delete(ctx context.Context, key string, by Change) (Definition, error) {
	r, err := c.change(ctx, key, "delete", by, func(current *Definition) (*Definition, error) {
		if current != nil && current.Running(c.now()) {
			return nil, fmt.Errorf("%w: stop it before it is deleted", ErrInvalid)
		}
		return nil, nil //nolint:nilnil // No definition is what deletes.
	})
	return r.Definition, err
}

// History reads the changes of an experiment, the newest first, at most limit.
func (c *Catalog) History(ctx context.Context, key string, limit int) ([]Entry, error) {
	entries, err := versioned.History[Entry](ctx, c.documents, key, limit)
	if err != nil {
		return nil, fmt.Errorf("read history of experiment %q: %w", key, err)
	}
	return entries, nil
}

// At gives the definition that an experiment had at a revision of its history.
func (c *Catalog) At(ctx context.Context, key string, revision int64) (Definition, error) {
	type entry struct {
		Revision   int64           `json:"revision"`
		Definition json.RawMessage `json:"definition"`
	}
	var d Definition
	found, ok, err := versioned.Find(ctx, c.documents, key, func(e entry) bool { return e.Revision == revision })
	if err != nil {
		return d, fmt.Errorf("read history of experiment %q: %w", key, err)
	}
	if !ok || string(found.Definition) == "null" {
		return d, fmt.Errorf("%w: %q has no definition at revision %d", ErrNotFound, key, revision)
	}
	if err := parse(string(found.Definition), &d, key, &d); err != nil {
		return d, fmt.Errorf("%w: revision %d: %w", ErrInvalid, revision, err)
	}
	return d, nil
}

// Revert writes the definition that the experiment had at a revision of its
// history, as a new revision. State, Start and Stop stay as they are; an
// experiment that was deleted since comes back as a draft.
func (c *Catalog) Revert(ctx context.Context, key string, revision int64, by Change) (Record, error) {
	d, err := c.At(ctx, key, revision)
	if err != nil {
		return Record{}, err
	}
	return c.change(ctx, key, "revert", by, func(current *Definition) (*Definition, error) {
		next := d
		next.State, next.Start, next.Stop = Draft, time.Time{}, time.Time{}
		if current != nil {
			next.State, next.Start, next.Stop = current.State, current.Start, current.Stop
		}
		return &next, nil
	})
}

func (c *Catalog) update(ctx context.Context, key, action string, by Change, edit func(*Definition) error) (Record, error) {
	return c.change(ctx, key, action, by, func(current *Definition) (*Definition, error) {
		if current == nil {
			return nil, fmt.Errorf("%w: %q", ErrNotFound, key)
		}
		next := *current
		if err := edit(&next); err != nil {
			return nil, err
		}
		return &next, nil
	})
}

// change applies one change to a snapshot, checks that all experiments are still
// valid together, and writes if nothing was written meanwhile; otherwise it
// starts again. edit gets nil for an experiment that does not exist or is broken,
// and gives nil to delete; then the record's definition is the one that was.
func (c *Catalog) change(ctx context.Context, key, action string, by Change, edit func(*Definition) (*Definition, error)) (Record, error) {
	for range changeAttempts {
		s, err := c.List(ctx)
		if err != nil {
			return Record{}, err
		}
		was, broken := s.partly[key]
		var current *Definition
		at := int64(0)
		switch r := s.Find(key); {
		case r != nil:
			was, current, at = r.Definition, &r.Definition, r.Revision
		case broken:
			at = max(1, s.revisions[key]) // it exists, whatever the revision
		}
		if by.Expect >= 0 && at != by.Expect {
			return Record{}, fmt.Errorf("%w: %q is at revision %d, not %d", ErrConflict, key, at, by.Expect)
		}
		if action == "delete" && current == nil && !broken {
			return Record{}, s.missing(key)
		}
		next, err := edit(current)
		if errors.Is(err, ErrNotFound) {
			err = s.missing(key)
		}
		if err != nil {
			return Record{}, err
		}
		r := Record{Definition: was, Revision: s.revisions[key] + 1, Updated: c.now().UTC(), UpdatedBy: by.Actor}
		does := action
		if does == "update" && current == nil {
			does = "create"
		}
		if next != nil {
			next.Key = key
			// The revision names the version: it never comes again, not even for an
			// experiment that was deleted and made anew.
			if next.Version = int(r.Revision); current != nil && current.Comparable(next) {
				next.Version = current.Version
			}
			if err := s.admits(next, c.now()); err != nil {
				return Record{}, fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			r.Definition = *next
		}
		written, err := c.write(ctx, s.Version, does, by.Reason, map[string]writing{key: {r, next}})
		if err != nil || written {
			r.State = r.Definition.StateAt(r.Updated)
			return r, err
		}
	}
	return Record{}, fmt.Errorf("%w: others kept changing experiments while %q was written", ErrConflict, key)
}

// admits checks a definition by itself and beside the others.
func (s *Snapshot) admits(d *Definition, now time.Time) error {
	errs := []error{d.Validate()}
	live, stopped := 0, d.StateAt(now) == Stopped
	for i := range s.Records {
		o := &s.Records[i].Definition
		if o.Key == d.Key || o.StateAt(now) == Stopped {
			continue
		}
		live++
		if stopped {
			continue
		}
		if o.FlagKey() == d.FlagKey() {
			errs = append(errs, fmt.Errorf("flag %q is taken by experiment %q", d.FlagKey(), o.Key))
		}
		if d.Layer != nil && o.Layer != nil && d.Layer.Name == o.Layer.Name && d.Layer.From < o.Layer.Until && o.Layer.From < d.Layer.Until {
			errs = append(errs, fmt.Errorf("layer %q from %v until %v overlaps experiment %q's, %v until %v",
				d.Layer.Name, d.Layer.From, d.Layer.Until, o.Key, o.Layer.From, o.Layer.Until))
		}
	}
	if !stopped && live >= MaxRunning {
		errs = append(errs, fmt.Errorf("%d experiments are not stopped, and no more are allowed", live))
	}
	if s.Find(d.Key) == nil && len(s.Records) >= MaxExperiments {
		errs = append(errs, fmt.Errorf("there are %d experiments, and no more are allowed", len(s.Records)))
	}
	return errors.Join(errs...)
}

type writing struct {
	record Record
	next   *Definition // nil deletes
}

// write writes one or more experiments.
func (c *Catalog) write(ctx context.Context, expect int64, action, reason string, all map[string]writing) (bool, error) {
	writes := make(map[string]versioned.Write, len(all))
	for key, w := range all {
		write := versioned.Write{Version: w.record.Revision}
		var err error
		if w.next != nil {
			if write.Document, err = json.Marshal(w.record); err != nil {
				return false, fmt.Errorf("encode experiment %q: %w", key, err)
			}
		}
		write.Entry, err = json.Marshal(Entry{
			Revision: w.record.Revision, At: w.record.Updated, Actor: w.record.UpdatedBy, Action: action, Reason: reason, Definition: w.next,
		})
		if err != nil {
			return false, fmt.Errorf("encode history of experiment %q: %w", key, err)
		}
		writes[key] = write
	}
	written, err := c.documents.Write(ctx, expect, writes)
	if err != nil {
		return false, fmt.Errorf("write experiments: %w", err)
	}
	return written, nil
}

// restore writes back what a Redis that has forgotten everything held before.
func (c *Catalog) restore(ctx context.Context, records []Record) (bool, error) {
	all := make(map[string]writing, len(records))
	for i := range records {
		all[records[i].Definition.Key] = writing{records[i], &records[i].Definition}
	}
	return c.write(ctx, 0, "restore", "the store had lost its experiments", all)
}
