package session

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ua-parser/uap-go/uaparser"
)

// Devices reads User-Agent headers. It is safe for concurrent use. Reading one takes about a millisecond the first time
// and is remembered, so it belongs on no request's way.
type Devices struct{ parser *uaparser.Parser }

// remembered is how many user agents a reader remembers.
const remembered = 4096

// NewDevices returns a reader. It compiles some thousand expressions, which takes a tenth of a second or two.
func NewDevices() (*Devices, error) {
	parser, err := uaparser.New(uaparser.WithCacheSize(remembered))
	if err != nil {
		return nil, fmt.Errorf("load user agent expressions: %w", err)
	}
	return &Devices{parser: parser}, nil
}

// unknown is what the library says where it does not know.
const unknown = "Other"

// Describe fills in what the device's UserAgent tells. What is set already is kept, but for a user agent that is cut to
// its bound and rid of control characters.
func (d *Devices) Describe(device Device) Device {
	device.UserAgent = clean(device.UserAgent)
	if device.UserAgent == "" {
		return device
	}
	client := d.parser.Parse(device.UserAgent)
	set := func(field *string, value string) {
		if *field == "" && value != unknown {
			*field = cut(value, maxName)
		}
	}
	set(&device.Browser, strings.TrimSpace(client.UserAgent.Family+" "+client.UserAgent.Major))
	set(&device.System, strings.TrimSpace(client.Os.Family+" "+client.Os.Major))
	set(&device.Model, client.Device.Family)
	where := device.System
	if device.Model != "" {
		where = device.Model
	}
	switch {
	case device.Browser == "":
		set(&device.Name, where)
	case where == "":
		set(&device.Name, device.Browser)
	default:
		set(&device.Name, device.Browser+" on "+where)
	}
	return device
}

func clean(agent string) string {
	agent = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, agent)
	return cut(strings.TrimSpace(agent), MaxUserAgent)
}

// cut shortens s to at most n bytes, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
