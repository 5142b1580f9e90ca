package authn

import "strings"

// Scheme is how a token is presented.
type Scheme uint8

// The schemes of a Credential.
const (
	// Bearer is RFC 6750, and every token from a cookie or a header of its own.
	Bearer Scheme = iota
	// DPoP is RFC 9449: a token that needs a proof beside it.
	DPoP
)

// Credential is a token as it was presented, not verified.
type Credential struct {
	// Token aliases the header it was found in.
	Token  string
	Scheme Scheme
}

var (
	errMissing      = &Error{Code: CodeMissing, Public: "A token is required."}
	errTwoTokens    = &Error{Code: CodeMalformed, Public: "The request has more than one token."}
	errNoCredential = &Error{Code: CodeMalformed, Public: "The Authorization header is not a scheme and a token."}
)

// Extract finds the token in the values of the Authorization header, of the
// Cookie header and of the header named by c.Header; an absent header is "".
// The first source that has a token wins, in the order Authorization, header,
// cookie. The error is an *Error: CodeMissing where there is no token, and
// CodeMalformed where a source has several, since Envoy joins repeated headers
// with commas and a backend might read another one than we did.
//
// An Authorization header with a scheme other than Bearer and DPoP is somebody
// else's and counts as absent.
func (c SourcesConfig) Extract(authorization, cookie, header string) (Credential, error) {
	found, err := c.extract(authorization, cookie, header)
	if err != nil {
		return Credential{}, err
	}
	return found, nil
}

// extract is Extract, and names the scheme of a refused Authorization too.
func (c SourcesConfig) extract(authorization, cookie, header string) (Credential, *Error) {
	if c.Authorization && authorization != "" {
		cred, ok, err := parseAuthorization(authorization)
		if ok || err != nil {
			return cred, err
		}
	}
	if c.Header != "" && header != "" {
		if strings.IndexByte(header, ',') >= 0 {
			return Credential{}, errTwoTokens
		}
		return Credential{Token: strings.Trim(header, " \t")}, nil
	}
	if c.Cookie != "" && cookie != "" {
		token, err := findCookie(cookie, c.Cookie)
		if token != "" || err != nil {
			return Credential{Token: token}, err
		}
	}
	return Credential{}, errMissing
}

// parseAuthorization reports whether the token is one for us. Of a malformed one
// it tells the scheme.
func parseAuthorization(value string) (Credential, bool, *Error) {
	name, token, _ := strings.Cut(strings.Trim(value, " \t"), " ")
	var found Credential
	if strings.EqualFold(name, "dpop") {
		found.Scheme = DPoP
	}
	token = strings.TrimLeft(token, " ")
	switch {
	case strings.IndexByte(value, ',') >= 0:
		return found, false, errTwoTokens
	case found.Scheme != DPoP && !strings.EqualFold(name, "bearer"):
		return Credential{}, false, nil
	case token == "" || strings.IndexByte(token, ' ') >= 0 || strings.IndexByte(token, '\t') >= 0:
		return found, false, errNoCredential
	}
	found.Token = token
	return found, true, nil
}

// findCookie returns the value of the one cookie called name, "" where there is
// none.
func findCookie(header, name string) (string, *Error) {
	found := ""
	for header != "" {
		var pair string
		pair, header, _ = strings.Cut(header, ";")
		key, value, ok := strings.Cut(pair, "=")
		if !ok || strings.Trim(key, " \t") != name {
			continue
		}
		value = strings.Trim(value, " \t")
		if value == "" {
			continue
		}
		if found != "" || strings.IndexByte(value, ',') >= 0 {
			return "", errTwoTokens
		}
		found = value
	}
	return found, nil
}
