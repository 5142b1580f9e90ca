package revocation

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Store writes revocations to Redis, and answers from Redis for those who want no replica in between. It is safe for
// concurrent use.
type Store struct {
	backend backend
	local   *Replica
	options Options
	written [len(kindNames)]prometheus.Counter
}

// NewStore returns a store on rdb. Where local is not nil, a write has reached that replica when Revoke returns; other
// replicas hear of it through the feed.
func NewStore(rdb redis.UniversalClient, local *Replica, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Store{backend: newBackend(rdb), local: local, options: o}
	counters := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_revocation_written_total",
		Help: "Revocations put in force by this process, by kind.",
	}, []string{"kind"})
	for kind := KindToken; kind <= KindEverything; kind++ {
		s.written[kind] = counters.WithLabelValues(kind.String())
	}
	if err := register(o.Metrics, counters); err != nil {
		return nil, err
	}
	return s, nil
}

// Revoke puts all of rs in force, in batches of one atomic script each. It is idempotent: on an error, which wraps
// ErrInvalid (nothing was done) or ErrUnavailable (some may be in force), the caller may repeat it.
func (s *Store) Revoke(ctx context.Context, rs ...Revocation) (Receipt, error) {
	now := s.options.Now()
	changes := make([]change, len(rs))
	for i := range rs {
		c, err := s.options.plan(&rs[i], now)
		if err != nil {
			return Receipt{}, err
		}
		changes[i] = c
	}
	var receipt Receipt
	for done := 0; done < len(changes); done += batchSize {
		batch := changes[done:min(done+batchSize, len(changes))]
		w, err := s.backend.put(ctx, modeRevoke, batch, now)
		if err != nil {
			return receipt, err
		}
		receipt.add(w, rs[done:])
		if s.local != nil {
			s.local.learn(w.final)
		}
	}
	for i := range rs {
		s.written[rs[i].Kind].Inc()
	}
	return receipt, nil
}

// add adds what was written of the first of rs.
func (r *Receipt) add(w written, rs []Revocation) {
	r.Sequence = w.seq
	r.Changed += w.changed
	for i, c := range w.final {
		if c.isMark {
			r.NotBefore = time.Unix(c.mark.notBefore, 0)
		}
		if rs[i].Kind == KindUser {
			r.Version = c.mark.admits()
		}
	}
}

// Check asks Redis about the token, in one round trip. The error wraps ErrUnavailable where Redis does not answer; the
// token must then not be taken for good.
func (s *Store) Check(ctx context.Context, t *Token) (Verdict, error) {
	p := t.prepared
	if p == nil {
		p = new(prints)
		t.fillEntries(p)
		t.fillMarks(p)
	}
	var members [2][]string
	var at [2][]int
	for place, f := range p {
		if f.zero() {
			continue
		}
		side := 0
		if place >= firstMark {
			side = 1
		}
		members[side] = append(members[side], member(f, place >= firstMark))
		at[side] = append(at[side], place)
	}
	found, marks, err := s.backend.look(ctx, members[0], members[1])
	if err != nil {
		return Verdict{}, err
	}
	for i, yes := range found {
		if yes {
			return Verdict{Fresh: true}.at(at[0][i]), nil
		}
	}
	iat := t.IssuedAt.Unix()
	for i, m := range marks {
		if m != (mark{}) && m.covers(iat, t.Version) {
			return Verdict{Fresh: true}.at(at[1][i]), nil
		}
	}
	return Verdict{Fresh: true}, nil
}

// at is the verdict, with the token covered at a place.
func (v Verdict) at(place int) Verdict {
	v.Revoked, v.Why, v.Code = true, placeKind[place], CodeTokenRevoked
	if v.Why == KindSession {
		v.Code = CodeSessionEnded
	}
	return v
}

// register registers on r, unless that is nil.
func register(r prometheus.Registerer, cs ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range cs {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
