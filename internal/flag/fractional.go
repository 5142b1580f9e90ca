package flag

import "math"

// hash hashes what the split buckets by: the bucketing expression where it is
// a string, else flagd's key followed by the targeting key. Without any there
// is nothing to decide by.
func (s *split) hash(e *env) (uint32, bool) {
	var t text
	if s.bucketBy != nil {
		if s.bucketBy.op == opCat {
			s.bucketBy.cat(&t, e)
			return murmur3(t.bytes()), true
		}
		switch v := s.bucketBy.eval(e); v.kind {
		case kindString:
			t.add(v.str)
			return murmur3(t.bytes()), true
		case kindNull:
		default:
			return 0, false
		}
	}
	if e.subject.Key == "" {
		return 0, false
	}
	t.add(s.flagdKey)
	t.add(e.subject.Key)
	return murmur3(t.bytes()), true
}

// fractional picks a variant by weight; null where there is nothing to bucket
// by or no weight at all.
func (s *split) fractional(e *env) value {
	hash, ok := s.hash(e)
	if !ok {
		return value{}
	}
	if s.total > 0 {
		return s.pick(hash, s.ends, s.total, e)
	}
	return s.weighted(hash, e)
}

// weighted is fractional with weights that are computed.
func (s *split) weighted(hash uint32, e *env) value {
	var ends [MaxVariants]uint32
	total := uint64(0)
	for i := range s.weights {
		f := s.weights[i].eval(e).number()
		if math.IsNaN(f) || f != math.Trunc(f) || f > math.MaxInt32 {
			return value{}
		}
		if total += uint64(math.Max(0, f)); total > math.MaxInt32 {
			return value{}
		}
		ends[i] = uint32(total)
	}
	if total == 0 {
		return value{}
	}
	return s.pick(hash, ends[:len(s.weights)], uint32(total), e)
}

// pick evaluates the variant in whose part of the total the hash falls.
func (s *split) pick(hash uint32, ends []uint32, total uint32, e *env) value {
	if s.legacy {
		place, end, before := flagd1Place(hash), 0.0, uint32(0)
		for i := range ends {
			end += 100 * float64(ends[i]-before) / float64(total)
			if place < end {
				return s.variants[i].eval(e)
			}
			before = ends[i]
		}
		return value{}
	}
	place := flagd2Place(hash, total)
	for i := range ends {
		if place < ends[i] {
			return s.variants[i].eval(e)
		}
	}
	return value{}
}

// rollout moves subjects from args[0] to args[1] in the order of their hashes
// between two times.
func (r *rule) rollout(e *env) value {
	s := r.split
	hash, ok := s.hash(e)
	if !ok {
		return value{}
	}
	moved := e.now >= s.until
	if !moved && e.now > s.from {
		moved = uint64(hash)*uint64(s.until-s.from)>>32 < uint64(e.now-s.from)
	}
	if moved {
		return r.args[1].eval(e)
	}
	return r.args[0].eval(e)
}
