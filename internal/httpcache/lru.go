package httpcache

import (
	"container/list"
	"sync"
	"time"
)

// lru keeps entries up to a number of bytes, in shards, the least recently used
// of a shard going first.
type lru struct {
	shards [16]shard
}

type shard struct {
	mu    sync.Mutex
	most  int64
	bytes int64
	byKey map[key]*list.Element
	order *list.List // of *item, newest first
	gone  uint64     // evicted for want of room
}

type item struct {
	k    key
	e    *entry
	size int64
}

func newLRU(most int64) *lru {
	l := &lru{}
	for i := range l.shards {
		l.shards[i] = shard{most: most / int64(len(l.shards)), byKey: map[key]*list.Element{}, order: list.New()}
	}
	return l
}

func (l *lru) shard(k key) *shard { return &l.shards[k[0]%byte(len(l.shards))] }

func (l *lru) get(k key, now time.Time) *entry {
	s := l.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	el, ok := s.byKey[k]
	if !ok {
		return nil
	}
	it := el.Value.(*item) //nolint:forcetypeassert // the list holds nothing else
	if now.After(it.e.last()) {
		s.remove(el)
		return nil
	}
	s.order.MoveToFront(el)
	return it.e
}

func (l *lru) put(k key, e *entry) {
	s := l.shard(k)
	size := e.size()
	s.mu.Lock()
	defer s.mu.Unlock()
	if el, ok := s.byKey[k]; ok {
		s.remove(el)
	}
	if size > s.most {
		return
	}
	for s.bytes+size > s.most {
		s.remove(s.order.Back())
		s.gone++
	}
	s.byKey[k] = s.order.PushFront(&item{k, e, size})
	s.bytes += size
}

func (s *shard) remove(el *list.Element) {
	it := s.order.Remove(el).(*item) //nolint:forcetypeassert // the list holds nothing else
	delete(s.byKey, it.k)
	s.bytes -= it.size
}

// usage is the bytes and entries held, and the entries evicted for want of room.
func (l *lru) usage() (bytes int64, entries int, evicted uint64) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		bytes += s.bytes
		entries += len(s.byKey)
		evicted += s.gone
		s.mu.Unlock()
	}
	return bytes, entries, evicted
}
