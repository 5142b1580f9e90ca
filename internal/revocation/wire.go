package revocation

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// What is kept in Redis, all under one hash tag, since one script writes it:
//
//	meta     hash: seq (changes so far), link (a random name for the last one, or for the origin), until (the last expiry),
//	         marked (the last expiry of a mark)
//	entries  sorted set: member -> expiry in Unix seconds, of entries and marks alike
//	marks    hash: member -> notBefore:tie:expiry:version
//	feed     stream: id seq-0; fields prev and link, then members and their values
//
// A member is a letter, for entry or mark, and the 16 bytes of the fingerprint: no name and no token is ever stored.
const (
	keySpace   = "tollgate:revocation:{revocation}:"
	keyMeta    = keySpace + "meta"
	keyEntries = keySpace + "entries"
	keyMarks   = keySpace + "marks"
	keyFeed    = keySpace + "feed"
)

const (
	fieldSeq    = "seq"
	fieldLink   = "link"
	fieldUntil  = "until"
	fieldMarked = "marked"
	fieldPrev   = "prev"
)

//go:embed lua/write.lua
var writeSource string

//go:embed lua/open.lua
var openSource string

//go:embed lua/prune.lua
var pruneSource string

const (
	modeRevoke = "revoke"
	modeMerge  = "merge"

	// batchSize bounds the changes of one script and so how long Redis is held.
	batchSize = 256
	// feedLength bounds the feed, in batches. A replica that falls further behind loads a snapshot.
	feedLength = 4096
)

// A member is one of these letters and a fingerprint.
const (
	entryLetter  = 'e'
	markLetter   = 'm'
	memberLength = 17
)

// change is one entry or mark, as scripts and the feed carry it.
type change struct {
	print  fingerprint
	isMark bool
	entry  int64 // expiry of an entry, in Unix seconds
	mark   mark
}

func member(f fingerprint, isMark bool) string {
	b := make([]byte, 1, memberLength)
	b[0] = entryLetter
	if isMark {
		b[0] = markLetter
	}
	b = binary.BigEndian.AppendUint64(b, f.hi)
	return string(binary.BigEndian.AppendUint64(b, f.lo))
}

// expires is when the change may be forgotten, in Unix seconds.
func (c change) expires() int64 {
	if c.isMark {
		return c.mark.expires
	}
	return c.entry
}

func (c change) member() string { return member(c.print, c.isMark) }

func (c change) value() string {
	if c.isMark {
		return c.mark.String()
	}
	return strconv.FormatInt(c.entry, 10)
}

// String is the mark as Redis keeps it.
func (m mark) String() string {
	return fmt.Sprintf("%d:%d:%d:%d", m.notBefore, m.tie, m.expires, m.version)
}

// parseMember splits a member; ok is false for what this version does not know.
func parseMember(member string) (f fingerprint, isMark, ok bool) {
	if len(member) != memberLength || (member[0] != entryLetter && member[0] != markLetter) {
		return fingerprint{}, false, false
	}
	return fingerprintOf([]byte(member[1:])), member[0] == markLetter, true
}

func parseMark(value string) (mark, error) {
	parts := strings.Split(value, ":")
	if len(parts) != 4 {
		return mark{}, fmt.Errorf("mark %q: want four numbers", value)
	}
	limits := [4]int64{math.MaxUint32, tieNone, math.MaxUint32, maxVersion}
	var n [4]int64
	for i, part := range parts {
		v, err := strconv.ParseInt(part, 10, 64)
		if err != nil || v < 0 || v > limits[i] {
			return mark{}, fmt.Errorf("mark %q: %q is not a number from 0 to %d", value, part, limits[i])
		}
		n[i] = v
	}
	return mark{notBefore: n[0], tie: n[1], expires: n[2], version: n[3]}, nil
}

// parseChange reads a member and its value.
func parseChange(member, value string) (change, error) {
	print, isMark, ok := parseMember(member)
	if !ok {
		return change{}, fmt.Errorf("member %q: unknown letter or length", member)
	}
	c := change{print: print, isMark: isMark}
	var err error
	if isMark {
		c.mark, err = parseMark(value)
	} else {
		c.entry, err = parseExpiry(value)
	}
	return c, err
}

func parseExpiry(value string) (int64, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 || n > math.MaxUint32 {
		return 0, fmt.Errorf("expiry %q: not a time in Unix seconds", value)
	}
	return n, nil
}

// position is a place in the feed. Equal sequences with different links are different histories: Redis failed over to a
// server that had missed something, or lost its data, and has been written to since.
type position struct {
	seq  int64
	link string
}

// message is one batch of the feed.
type message struct {
	at      position
	prev    string
	changes []change
}

// parseMessage reads a feed message. What it cannot read is counted in bad and left out: a newer version's kinds must
// not stop an older replica from following the rest.
func parseMessage(m redis.XMessage) (msg message, bad int, err error) {
	seq, ok := strings.CutSuffix(m.ID, "-0")
	if !ok {
		return message{}, 0, fmt.Errorf("feed id %q: want seq-0", m.ID)
	}
	if msg.at.seq, err = strconv.ParseInt(seq, 10, 64); err != nil {
		return message{}, 0, fmt.Errorf("feed id %q: %w", m.ID, err)
	}
	msg.changes = make([]change, 0, len(m.Values))
	for member, value := range m.Values {
		text, _ := value.(string)
		switch member {
		case fieldPrev:
			msg.prev = text
		case fieldLink:
			msg.at.link = text
		default:
			c, err := parseChange(member, text)
			if err != nil {
				bad++
				continue
			}
			msg.changes = append(msg.changes, c)
		}
	}
	return msg, bad, nil
}

// feedID is the stream id at a position.
func (p position) feedID() string { return strconv.FormatInt(p.seq, 10) + "-0" }
