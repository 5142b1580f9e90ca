package authn

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
)

// compact is a JWS in compact form, decoded and not verified.
type compact struct {
	header  map[string]any
	payload map[string]any
	// input is header.payload as sent, which the signature is over.
	input     string
	signature []byte
}

// parseCompact decodes a token that has one spelling only: three parts of
// canonical base64url without padding, the first two JSON objects in UTF-8
// without a member that appears twice.
func parseCompact(token string) (compact, error) {
	first := strings.IndexByte(token, '.')
	last := strings.LastIndexByte(token, '.')
	if first < 0 || strings.Count(token, ".") != 2 {
		return compact{}, errors.New("not three parts")
	}
	header, err := decodeObject(token[:first])
	if err != nil {
		return compact{}, fmt.Errorf("header: %w", err)
	}
	payload, err := decodeObject(token[first+1 : last])
	if err != nil {
		return compact{}, fmt.Errorf("payload: %w", err)
	}
	signature, err := decodeSegment(token[last+1:])
	if err != nil {
		return compact{}, fmt.Errorf("signature: %w", err)
	}
	return compact{header: header, payload: payload, input: token[:last], signature: signature}, nil
}

// decodeSegment decodes canonical base64url. The decoder of the standard
// library skips line breaks, and without Strict the bits beyond the last byte:
// both would give one token many spellings.
func decodeSegment(s string) ([]byte, error) {
	if s == "" {
		return nil, errors.New("is empty")
	}
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("has a line break")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("is not canonical base64url: %w", err)
	}
	return b, nil
}

func decodeObject(s string) (map[string]any, error) {
	b, err := decodeSegment(s)
	if err != nil {
		return nil, err
	}
	return parseObject(b)
}

// parseObject decodes one JSON object; numbers stay json.Number. The decoder is
// go-jose's copy of encoding/json, which refuses duplicate members at any depth.
func parseObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("is not UTF-8")
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.SetNumberType(json.UnmarshalJSONNumber)
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("is not a JSON object: %w", err)
	}
	if m == nil {
		return nil, errors.New("is not a JSON object")
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("has something behind the JSON object")
	}
	return m, nil
}
