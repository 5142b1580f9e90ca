package anomaly

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// This file writes small MMDB files, by the specification of the format, version 2.0
// (https://maxmind.github.io/MaxMind-DB/). What tests look up is invented, but for where cities are.

// encodeMMDB writes a file with 24-bit records. A record is a map; see encodeValue.
func encodeMMDB(version int, built uint64, networks map[string]map[string]any) []byte {
	return encodeDescribed(version, built, map[string]any{"en": "for tests"}, networks)
}

func encodeDescribed(version int, built uint64, description map[string]any, networks map[string]map[string]any) []byte {
	type node [2]int // 0: nothing; above 0: a node; below 0: minus one, an index of records
	nodes := []node{{}}
	var data bytes.Buffer
	var offsets []int
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		prefix := netip.MustParsePrefix(name)
		bytes, bits := prefix.Addr().AsSlice(), prefix.Bits()
		if version == 6 && prefix.Addr().Is4() {
			bytes, bits = append(make([]byte, 12), bytes...), bits+96
		}
		offsets = append(offsets, data.Len())
		data.Write(encodeValue(networks[name]))
		at := 0
		for i := range bits {
			bit := bytes[i/8] >> (7 - i%8) & 1
			if i == bits-1 {
				nodes[at][bit] = -len(offsets)
				break
			}
			if nodes[at][bit] == 0 {
				nodes = append(nodes, node{})
				nodes[at][bit] = len(nodes) - 1
			}
			at = nodes[at][bit]
		}
	}
	var file bytes.Buffer
	for _, n := range nodes {
		for _, record := range n {
			value := len(nodes) // nothing
			switch {
			case record > 0:
				value = record
			case record < 0:
				value = len(nodes) + 16 + offsets[-record-1]
			}
			file.Write([]byte{byte(value >> 16), byte(value >> 8), byte(value)})
		}
	}
	file.Write(make([]byte, 16))
	file.Write(data.Bytes())
	file.WriteString("\xab\xcd\xefMaxMind.com")
	file.Write(encodeValue(map[string]any{
		"binary_format_major_version": uint16(2), "binary_format_minor_version": uint16(0),
		"build_epoch": built, "database_type": "Test", "description": description,
		"ip_version": uint16(version), "languages": []any{"en"},
		"node_count": uint32(len(nodes)), "record_size": uint16(24),
	}))
	return file.Bytes()
}

func encodeValue(v any) []byte {
	control := func(kind, size int) []byte {
		if size >= 29 {
			panic("larger than what this writer is for")
		}
		if kind <= 7 {
			return []byte{byte(kind<<5 | size)}
		}
		return []byte{byte(size), byte(kind - 7)}
	}
	number := func(kind int, n uint64) []byte {
		b := bytes.TrimLeft(binary.BigEndian.AppendUint64(nil, n), "\x00")
		return append(control(kind, len(b)), b...)
	}
	switch v := v.(type) {
	case string:
		return append(control(2, len(v)), v...)
	case float64:
		return binary.BigEndian.AppendUint64(control(3, 8), math.Float64bits(v))
	case float32:
		return binary.BigEndian.AppendUint32(control(15, 4), math.Float32bits(v))
	case uint16:
		return number(5, uint64(v))
	case uint32:
		return number(6, uint64(v))
	case uint64:
		return number(9, v)
	case []any:
		out := control(11, len(v))
		for _, e := range v {
			out = append(out, encodeValue(e)...)
		}
		return out
	case map[string]any:
		out := control(7, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(append(out, encodeValue(k)...), encodeValue(v[k])...)
		}
		return out
	}
	panic(fmt.Sprintf("no encoding for %T", v))
}

// nested is a record as MaxMind lays it out.
func nested(country string, latitude, longitude float64, radius uint16) map[string]any {
	return map[string]any{
		"country":  map[string]any{"iso_code": country},
		"location": map[string]any{"latitude": latitude, "longitude": longitude, "accuracy_radius": radius},
	}
}

// Addresses of the documentation ranges, and where the tests say they are.
const (
	berlin   = "192.0.2.1"
	berlin2  = "192.0.2.200"
	newYork  = "198.51.100.1"
	potsdam  = "203.0.113.1" // 27 km from Berlin
	sydney   = "2001:db8:1::1"
	nowhere  = "100.64.0.1"
	asBerlin = 64496
	asNY     = 64497
	asSydney = 64498
)

func cities() []byte {
	return encodeMMDB(6, 1_700_000_000, map[string]map[string]any{
		"192.0.2.0/24":    nested("DE", 52.52, 13.405, 20),
		"203.0.113.0/24":  nested("DE", 52.39, 13.065, 20),
		"198.51.100.0/24": nested("US", 40.7128, -74.006, 20),
		"2001:db8:1::/48": nested("AU", -33.8688, 151.2093, 20),
		"198.18.0.0/15":   {"country": map[string]any{"iso_code": "FR"}},
	})
}

func systems() []byte {
	return encodeMMDB(6, 1_700_000_000, map[string]map[string]any{
		"192.0.2.0/24":    {"autonomous_system_number": uint32(asBerlin)},
		"203.0.113.0/24":  {"autonomous_system_number": uint32(asBerlin + 10)},
		"198.51.100.0/24": {"autonomous_system_number": uint32(asNY)},
		"2001:db8:1::/48": {"autonomous_system_number": uint32(asSydney)},
	})
}

// countries is an excerpt of real data in the real layout, without a description; see testdata/README.md.
func countries() []byte {
	networks := map[string]map[string]any{}
	for prefix, code := range map[string]string{
		"193.0.0.0/20": "NL", "133.0.0.0/8": "JP", "200.160.0.0/15": "BR", "196.216.2.0/23": "ZA", "202.12.29.0/24": "AU",
		"199.43.0.0/24": "US", "130.83.0.0/16": "DE", "129.132.0.0/16": "CH", "131.111.0.0/16": "GB", "18.0.0.0/11": "US",
		"2001:67c:2e8::/48": "NL", "2001:dc0::/31": "AU", "2001:13c7:7002::/48": "UY", "2001:500:4::/48": "US",
	} {
		networks[prefix] = map[string]any{"country_code": code}
	}
	return encodeDescribed(6, 1_781_725_900, map[string]any{}, networks)
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// replace puts a file in another's place at once.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
