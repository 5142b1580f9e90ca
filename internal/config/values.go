package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strconv"
	"strings"
)

const redacted = "[redacted]"

// Secret is a configuration value that is never shown: it prints, logs and
// encodes as [redacted]. The zero value is the empty secret.
type Secret struct{ value string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the value. Its callers are what a reviewer looks for.
func (s Secret) Reveal() string { return s.value }

// IsZero says whether the secret is empty.
func (s Secret) IsZero() bool { return s.value == "" }

// String returns "[redacted]", or "" for the empty secret.
func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from showing the value.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// LogValue keeps slog from showing the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps encoders from showing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes any text.
func (s *Secret) UnmarshalText(text []byte) error {
	s.value = string(text)
	return nil
}

// Allowed describes what a Secret takes.
func (*Secret) Allowed() string { return "a text" }

// Path is the name of a file. In a configuration file a relative path is taken
// from the folder of that file, so that a process can be started from anywhere;
// in an environment variable it is taken from the working directory.
type Path string

// UnmarshalText takes the path as it is.
func (p *Path) UnmarshalText(text []byte) error {
	*p = Path(text)
	return nil
}

// Allowed describes what a Path takes.
func (*Path) Allowed() string { return "the path of a file" }

func (p *Path) resolve(dir, text string) {
	if text == "" || filepath.IsAbs(text) {
		*p = Path(text)
		return
	}
	*p = Path(filepath.Join(dir, text))
}

// Bytes is a size in bytes, written as a whole number or with a unit: 512B,
// 64KiB, 10MiB, 1GiB (powers of 1024).
type Bytes int64

var byteUnits = []struct {
	suffix string
	size   int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"B", 1}}

// UnmarshalText parses a size; it refuses negative and overflowing ones.
func (b *Bytes) UnmarshalText(text []byte) error {
	s, unit := strings.TrimSpace(string(text)), int64(1)
	for _, u := range byteUnits {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			s, unit = strings.TrimSpace(rest), u.size
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil:
		return errors.New("not a whole number with a known unit")
	case n < 0:
		return errors.New("negative")
	case n > math.MaxInt64/unit:
		return errors.New("too large")
	}
	*b = Bytes(n * unit)
	return nil
}

// Allowed describes what a Bytes takes.
func (*Bytes) Allowed() string { return "a size such as 512B, 64KiB, 10MiB or 1GiB" }

// String writes the size with the largest unit that leaves it whole.
func (b Bytes) String() string {
	for i := len(byteUnits) - 2; i >= 0; i-- {
		if u := byteUnits[i]; int64(b) >= u.size && int64(b)%u.size == 0 {
			return fmt.Sprintf("%d%s", int64(b)/u.size, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}
