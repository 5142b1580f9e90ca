package flag

import (
	"cmp"
	"strings"
)

// semver is a parsed version. Like flagd it accepts a leading v and leaves out
// of minor and patch, and ignores build metadata.
type semver struct {
	major, minor, patch uint64
	pre                 string
}

func parseSemver(text string) (semver, bool) {
	var v semver
	if v.plain(text) {
		return v, true
	}
	v = semver{}
	text = strings.TrimPrefix(text, "v")
	text, build, hasBuild := strings.Cut(text, "+")
	core, pre, hasPre := strings.Cut(text, "-")
	if hasBuild && !validIdentifiers(build, false) || hasPre && !validIdentifiers(pre, true) {
		return v, false
	}
	v.pre = pre
	parts := 0
	for rest, more := core, true; more; parts++ {
		var part string
		part, rest, more = strings.Cut(rest, ".")
		n, ok := semverNumber(part)
		if !ok {
			return v, false
		}
		switch parts {
		case 0:
			v.major = n
		case 1:
			v.minor = n
		case 2:
			v.patch = n
		default:
			return v, false
		}
	}
	// A shortened version has neither pre-release nor build metadata.
	return v, parts == 3 || !hasPre && !hasBuild
}

// plain reads the usual form, three numbers of a few digits, in one pass.
func (v *semver) plain(text string) bool {
	n, digits, part := uint64(0), 0, &v.major
	for i := range len(text) {
		c := text[i]
		switch {
		case c >= '0' && c <= '9' && digits < 9 && (digits == 0 || n > 0):
			n = n*10 + uint64(c-'0')
			digits++
			continue
		case c != '.' || digits == 0 || part == &v.patch:
			return false
		}
		*part = n
		if part == &v.major {
			part = &v.minor
		} else {
			part = &v.patch
		}
		n, digits = 0, 0
	}
	v.patch = n
	return part == &v.patch && digits > 0
}

// semverNumber reads a decimal without leading zeros.
func semverNumber(s string) (uint64, bool) {
	if s == "" || len(s) > 18 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	n := uint64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + uint64(s[i]-'0')
	}
	return n, true
}

func validIdentifiers(s string, pre bool) bool {
	for rest, more := s, true; more; {
		var id string
		id, rest, more = strings.Cut(rest, ".")
		if id == "" {
			return false
		}
		numeric := true
		for i := range len(id) {
			c := id[i]
			digit := c >= '0' && c <= '9'
			if letter := c|0x20 >= 'a' && c|0x20 <= 'z'; !letter && !digit && c != '-' {
				return false
			}
			numeric = numeric && digit
		}
		if pre && numeric && len(id) > 1 && id[0] == '0' {
			return false
		}
	}
	return true
}

func (v *semver) compare(w *semver) int {
	switch {
	case v.major != w.major:
		return cmp.Compare(v.major, w.major)
	case v.minor != w.minor:
		return cmp.Compare(v.minor, w.minor)
	case v.patch != w.patch:
		return cmp.Compare(v.patch, w.patch)
	case v.pre == w.pre:
		return 0
	case v.pre == "":
		return 1
	case w.pre == "":
		return -1
	}
	return comparePre(v.pre, w.pre)
}

// comparePre compares pre-releases: identifier by identifier, numbers below
// words, the shorter list below the longer.
func comparePre(a, b string) int {
	for {
		x, restA, moreA := strings.Cut(a, ".")
		y, restB, moreB := strings.Cut(b, ".")
		if x != y {
			return compareIdentifier(x, y)
		}
		if !moreA || !moreB {
			return cmp.Compare(boolInt(moreA), boolInt(moreB))
		}
		a, b = restA, restB
	}
}

func compareIdentifier(x, y string) int {
	nx, ny := isDigits(x), isDigits(y)
	switch {
	case nx && ny: // no leading zeros, so longer is larger
		return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
	case nx:
		return -1
	case ny:
		return 1
	}
	return cmp.Compare(x, y)
}

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// semverHolds applies one of sem_ver's operators.
func semverHolds(v *semver, operator string, w *semver) bool {
	switch operator {
	case "=":
		return v.compare(w) == 0
	case "!=":
		return v.compare(w) != 0
	case "<":
		return v.compare(w) < 0
	case "<=":
		return v.compare(w) <= 0
	case ">":
		return v.compare(w) > 0
	case ">=":
		return v.compare(w) >= 0
	case "~":
		return v.major == w.major && v.minor == w.minor
	case "^":
		return v.major == w.major
	}
	return false
}

// versions is sem_ver's operator and those of its versions that are constant.
type versions struct {
	operator string
	constant [2]*semver
}

func (v *versions) holds(r *rule, e *env) bool {
	var room [2]semver
	var both [2]*semver
	for i := range both {
		if both[i] = v.constant[i]; both[i] != nil {
			continue
		}
		text, _ := r.args[i].str(e)
		both[i] = &room[i]
		if room[i].plain(text) {
			continue
		}
		var ok bool
		if room[i], ok = parseSemver(text); !ok {
			return false
		}
	}
	return semverHolds(both[0], v.operator, both[1])
}
