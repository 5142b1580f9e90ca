package flag

import "math"

// setBucketBy sets what to bucket by. What cat begins with, whoever the subject,
// is hashed here.
func (s *split) setBucketBy(r rule) {
	for r.op == opCat && len(r.args) > 0 && (r.args[0].op == opConst || r.args[0].op == opFlagKey) {
		s.prefix.add(string(r.args[0].constant.appendText(nil)))
		r.args = r.args[1:]
	}
	s.bucketBy = &r
}

// hash hashes what the split buckets by: the bucketing expression where it is
// a string, else flagd's key followed by the targeting key. Without any there
// is nothing to decide by.
func (s *split) hash(e *env) (uint32, bool) {
	if s.bucketBy != nil {
		m := s.prefix
		if s.bucketBy.op == opCat {
			s.bucketBy.hashCat(&m, e)
			return m.sum(), true
		}
		if text, ok := s.bucketBy.str(e); ok {
			m.add(text)
			return m.sum(), true
		}
		if s.bucketBy.eval(e).kind != kindNull {
			return 0, false
		}
	}
	if e.subject.Key == "" {
		return 0, false
	}
	m := s.flagdKey
	m.add(e.subject.Key)
	return m.sum(), true
}

// hashCat hashes what the operator cat makes, without making it.
func (r *rule) hashCat(m *murmur3, e *env) {
	for i := range r.args {
		if text, ok := r.args[i].str(e); ok {
			m.add(text)
			continue
		}
		var buf [64]byte
		m.add(string(r.args[i].eval(e).appendText(buf[:0])))
	}
}

// fractional picks a variant by weight; none where there is nothing to bucket
// by or no weight at all.
func (s *split) fractional(e *env) *rule {
	hash, ok := s.hash(e)
	if !ok {
		return nil
	}
	if s.total > 0 {
		return s.pick(hash, s.ends, s.total)
	}
	return s.weighted(hash, e)
}

// weighted is fractional with weights that are computed.
func (s *split) weighted(hash uint32, e *env) *rule {
	var ends [MaxVariants]uint32
	total := uint64(0)
	for i := range s.weights {
		f := s.weights[i].eval(e).number()
		if math.IsNaN(f) || f != math.Trunc(f) || f > math.MaxInt32 {
			return nil
		}
		if total += uint64(math.Max(0, f)); total > math.MaxInt32 {
			return nil
		}
		ends[i] = uint32(total)
	}
	if total == 0 {
		return nil
	}
	return s.pick(hash, ends[:len(s.weights)], uint32(total))
}

// pick picks the variant in whose part of the total the hash falls.
func (s *split) pick(hash uint32, ends []uint32, total uint32) *rule {
	if s.legacy {
		place, end, before := flagd1Place(hash), 0.0, uint32(0)
		for i := range ends {
			end += 100 * float64(ends[i]-before) / float64(total)
			if place < end {
				return &s.variants[i]
			}
			before = ends[i]
		}
		return nil
	}
	place := flagd2Place(hash, total)
	for i := range ends {
		if place < ends[i] {
			return &s.variants[i]
		}
	}
	return nil
}

// rollout moves subjects from args[0] to args[1] in the order of their hashes
// between two times.
func (r *rule) rollout(e *env) *rule {
	s := r.split
	hash, ok := s.hash(e)
	if !ok {
		return nil
	}
	moved := e.now >= s.until
	if !moved && e.now > s.from {
		moved = uint64(hash)*uint64(s.until-s.from)>>32 < uint64(e.now-s.from)
	}
	if moved {
		return &r.args[1]
	}
	return &r.args[0]
}
