package authn

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// MaxLifetimeLimit is the longest lifetime a token may be allowed: a
// revocation of a token whose expiry is unknown is kept as long.
const MaxLifetimeLimit = 24 * time.Hour

// Config says where tokens are found and whom to believe.
type Config struct {
	Sources        SourcesConfig       `yaml:"sources" doc:"Where in a request a token is looked for: the Authorization header first, then the named header, then the cookie."`
	Issuers        []IssuerConfig      `yaml:"issuers" doc:"Issuers whose tokens are accepted."`
	Leeway         time.Duration       `yaml:"leeway" doc:"How far an issuer's clock may be from ours when times in a token are checked; 0s to 5m."`
	MaxLifetime    time.Duration       `yaml:"max_lifetime" doc:"Longest time between a token's issue and its expiry; 1s to 24h, and as long as a revocation of a token with an unknown expiry is kept."`
	MaxTokenSize   config.Bytes        `yaml:"max_token_size" doc:"Longest token in bytes; a longer one is refused unread."`
	SignatureCache config.Bytes        `yaml:"signature_cache" doc:"Memory for verified signatures; 0 verifies every time."`
	JWKS           JWKSConfig          `yaml:"jwks" doc:"How key sets are fetched from the URLs of issuers."`
	Introspection  IntrospectionConfig `yaml:"introspection" doc:"A server that knows opaque tokens (RFC 7662)."`
	Proofs         ProofsConfig        `yaml:"proofs" doc:"Proofs of possession (DPoP, RFC 9449) beside tokens that are bound to a key."`
	Development    DevelopmentConfig   `yaml:"-"` // the process's own section; refused outside development mode
}

// SourcesConfig names the places of a request that may hold a token.
type SourcesConfig struct {
	Authorization bool   `yaml:"authorization" doc:"Take the token from Authorization: Bearer."`
	Header        string `yaml:"header" doc:"Take the token from this header, lower case, whose whole value it is; empty for none."`
	Cookie        string `yaml:"cookie" doc:"Take the token from this cookie; empty for none."`
}

// IssuerConfig is one issuer and what its tokens must be.
type IssuerConfig struct {
	Name        string        `yaml:"name" doc:"Short name of the issuer in metrics and logs; lower-case letters, digits and dashes."`
	Issuer      string        `yaml:"issuer" doc:"The iss claim, compared exactly."`
	Algorithms  []string      `yaml:"algorithms" doc:"Algorithms the issuer signs with: RS, PS or ES with 256, 384 or 512, EdDSA, or HS256, HS384, HS512 with a secret file."`
	Audiences   []string      `yaml:"audiences" doc:"Values of aud that mean us; a token must have one of them."`
	Types       []string      `yaml:"types" doc:"Accepted typ headers, and absent for a token without one; at+jwt, JWT and absent where empty. A token of type at+jwt must have all claims that RFC 9068 requires."`
	Keys        KeysConfig    `yaml:"keys" doc:"Where the issuer's keys are; exactly one source."`
	Leeway      time.Duration `yaml:"leeway" doc:"Leeway for this issuer; 0s takes the general one."`
	MaxLifetime time.Duration `yaml:"max_lifetime" doc:"Longest lifetime for this issuer; 0s takes the general one."`
	Require     []string      `yaml:"require" doc:"Claims that must be present beside sub and exp: iat, nbf, jti, sid, client_id, tier, ver, device_id."`
	Claims      ClaimsConfig  `yaml:"claims" doc:"Claims that hold what we read, where they differ from the usual ones: a member's name, or a JSON pointer such as /realm_access/roles."`
	Tiers       TiersConfig   `yaml:"tiers" doc:"How the tier claim becomes a tier."`
}

// KeysConfig is the source of an issuer's keys; exactly one field is set.
type KeysConfig struct {
	PEMFile    config.Path `yaml:"pem_file" doc:"PEM file with public keys or certificates."`
	JWKSFile   config.Path `yaml:"jwks_file" doc:"JSON Web Key Set in a file."`
	JWKSURL    string      `yaml:"jwks_url" doc:"JSON Web Key Set at an https URL, or http on the loopback."`
	SecretFile config.Path `yaml:"secret_file" doc:"File with the shared secret of the HS algorithms, at least as long as the hash; one trailing line break is not part of it."`
	Envoy      bool        `yaml:"envoy" doc:"Trust Envoy's jwt_authn filter to have verified the issuer's tokens, and take what it says in the metadata of the check."`
	AllowHTTP  bool        `yaml:"allow_http" doc:"Accept a jwks_url with plain http on another host, where the network itself is trusted."`
}

// ClaimsConfig maps claims. An empty field means the usual claim.
type ClaimsConfig struct {
	Subject  string `yaml:"subject" doc:"User; sub where empty."`
	Session  string `yaml:"session" doc:"Session; sid where empty, and jti where the token has none."`
	TokenID  string `yaml:"token_id" doc:"Token id; jti where empty."`
	Tier     string `yaml:"tier" doc:"Tier; tier where empty."`
	Roles    string `yaml:"roles" doc:"Roles, a list or words in a string; roles where empty."`
	Scopes   string `yaml:"scopes" doc:"Scopes, a list or words in a string; scope where empty."`
	Consents string `yaml:"consents" doc:"Consented purposes, a list or words in a string; consents where empty."`
	Version  string `yaml:"version" doc:"Token version of the user, a whole number; ver where empty."`
	Device   string `yaml:"device" doc:"Device id; device_id where empty."`
	Client   string `yaml:"client" doc:"Client; client_id where empty, and azp where the token has none."`
}

// TiersConfig says what becomes of the tier claim.
type TiersConfig struct {
	Missing string       `yaml:"missing" doc:"Tier of a token without the claim; free where empty."`
	Unknown string       `yaml:"unknown" doc:"Tier of a token whose tier is none of ours; such a token is refused where empty."`
	Mapping []TierConfig `yaml:"mapping" doc:"Tiers of the issuer and what they are here."`
}

// TierConfig maps one value of the tier claim.
type TierConfig struct {
	Name string `yaml:"name" doc:"Value of the claim."`
	Tier string `yaml:"tier" doc:"Tier it means: free, premium, enterprise or admin."`
}

// JWKSConfig says how key sets are fetched.
type JWKSConfig struct {
	Refresh    time.Duration `yaml:"refresh" doc:"Time between two fetches of a key set; 10s to 24h."`
	Timeout    time.Duration `yaml:"timeout" doc:"Deadline of one fetch; 100ms to 1m."`
	UnknownKey time.Duration `yaml:"unknown_key" doc:"A token with an unknown key causes a fetch at most once in this time; 1s to 1h."`
}

// IntrospectionConfig is a server that knows opaque tokens. A token is opaque
// when it has not the three parts of a JSON Web Token.
type IntrospectionConfig struct {
	URL        string        `yaml:"url" doc:"Introspection endpoint, https or http on the loopback; empty refuses opaque tokens."`
	AllowHTTP  bool          `yaml:"allow_http" doc:"Accept a url with plain http on another host, where the network itself is trusted."`
	ClientID   string        `yaml:"client_id" doc:"Who asks, by HTTP basic authentication."`
	SecretFile config.Path   `yaml:"secret_file" doc:"File with the secret of client_id; one trailing line break is not part of it."`
	Issuer     string        `yaml:"issuer" doc:"Issuer of the tokens; an answer that names another is refused."`
	Audiences  []string      `yaml:"audiences" doc:"Values of aud that mean us; where empty an answer may have any or none."`
	Timeout    time.Duration `yaml:"timeout" doc:"Deadline of one question, which a request waits for; 10ms to 5s. Envoy's deadline for the whole check must be longer."`
	TTL        time.Duration `yaml:"ttl" doc:"How long an answer is believed, and so how long a token lives on that was revoked there; 1s to 10m."`
	Cache      config.Bytes  `yaml:"cache" doc:"Memory for answers, 64KiB to 1GiB."`
	Concurrent int           `yaml:"concurrent" doc:"Most questions at a time; a token beyond is answered with 503. 1 to 1000."`
	Claims     ClaimsConfig  `yaml:"claims" doc:"Members of the answer that hold what we read, where they differ from the usual claims."`
	Tiers      TiersConfig   `yaml:"tiers" doc:"How the tier becomes a tier."`
}

// ProofsConfig is how DPoP proofs are judged.
type ProofsConfig struct {
	Algorithms []string      `yaml:"algorithms" doc:"Algorithms of proofs, none of them HS; ES256 and EdDSA by default."`
	MaxAge     time.Duration `yaml:"max_age" doc:"How old a proof may be; 1s to 10m. A proof is remembered that long, and refused a second time by the same process, or with shared by any."`
	Remember   int           `yaml:"remember" doc:"Most proofs remembered; beyond it the oldest are forgotten early. 1000 to 10000000."`
	Shared     bool          `yaml:"shared" doc:"Remember proofs in Redis too, so that each is good once for all processes: a round trip for every request with a proof, and 503 where Redis does not answer."`
	Nonce      NonceConfig   `yaml:"nonce" doc:"Nonces that proofs must have (RFC 9449, section 9)."`
}

// NonceConfig is how nonces of proofs are made.
type NonceConfig struct {
	SecretFile config.Path   `yaml:"secret_file" doc:"File with secrets of 32 bytes or more, one a line: the first makes nonces, all of them are taken. The same for all processes. Empty asks for no nonces."`
	MaxAge     time.Duration `yaml:"max_age" doc:"How old a nonce may be; 10s to 1h. A client is handed a fresh one at half of it."`
}

// Validate reports what is wrong with the section.
func (c NonceConfig) Validate(r *config.Report) {
	between(r, "max_age", c.MaxAge, 10*time.Second, time.Hour)
}

// DevelopmentConfig is the issuer for development.
type DevelopmentConfig struct {
	KeyFile config.Path `yaml:"key_file" doc:"PEM file of the private key, made where it is missing; only in development mode."`
}

// Default returns the configuration without an issuer.
func Default() Config {
	return Config{
		Sources:        SourcesConfig{Authorization: true},
		Leeway:         30 * time.Second,
		MaxLifetime:    MaxLifetimeLimit,
		MaxTokenSize:   8 << 10,
		SignatureCache: 64 << 20,
		JWKS:           JWKSConfig{Refresh: 10 * time.Minute, Timeout: 5 * time.Second, UnknownKey: 10 * time.Second},
		Introspection:  IntrospectionConfig{Timeout: 100 * time.Millisecond, TTL: 30 * time.Second, Cache: 8 << 20, Concurrent: 32},
		Proofs:         ProofsConfig{Algorithms: []string{"ES256", "EdDSA"}, MaxAge: time.Minute, Remember: 100_000, Nonce: NonceConfig{MaxAge: 5 * time.Minute}},
	}
}

var tiers = []string{"free", "premium", "enterprise", "admin"}

const tiersAllowed = "free, premium, enterprise or admin"

// Validate reports what is wrong with the whole.
func (c Config) Validate(r *config.Report) {
	between(r, "leeway", c.Leeway, 0, 5*time.Minute)
	between(r, "max_lifetime", c.MaxLifetime, time.Second, MaxLifetimeLimit)
	if c.MaxTokenSize < 256 || c.MaxTokenSize > 64<<10 {
		r.Fault("max_token_size", c.MaxTokenSize, "256 to 64KiB")
	}
	if c.SignatureCache < 0 || c.SignatureCache > 8<<30 {
		r.Fault("signature_cache", c.SignatureCache, "0 to 8GiB")
	}
	names, issuers := map[string]bool{}, map[string]bool{}
	for i, ic := range c.Issuers {
		if names[ic.Name] {
			r.Fault(fmt.Sprintf("issuers[%d].name", i), ic.Name, "a name that no other issuer has")
		}
		if issuers[ic.Issuer] {
			r.Fault(fmt.Sprintf("issuers[%d].issuer", i), ic.Issuer, "an issuer that no other entry has")
		}
		if ic.Issuer == DevelopmentIssuerURL {
			r.Fault(fmt.Sprintf("issuers[%d].issuer", i), ic.Issuer, "an issuer of your own; the one for development is development.key_file")
		}
		names[ic.Name], issuers[ic.Issuer] = true, true
	}
}

// Validate reports what is wrong with the places.
func (c SourcesConfig) Validate(r *config.Report) {
	if !c.Authorization && c.Header == "" && c.Cookie == "" {
		r.Fault("", nil, "at least one place: authorization, header or cookie")
	}
	if c.Header != "" && (!isToken(c.Header) || c.Header != strings.ToLower(c.Header) || slices.Contains([]string{"authorization", "cookie", "host"}, c.Header)) {
		r.Fault("header", c.Header, "a lower-case header name other than authorization, cookie and host")
	}
	if c.Cookie != "" && !isToken(c.Cookie) {
		r.Fault("cookie", c.Cookie, "a cookie name of letters, digits and !#$%&'*+-.^_`|~")
	}
}

// Validate reports what is wrong with the issuer's entry. Whether its files
// can be read is found by New.
func (c IssuerConfig) Validate(r *config.Report) {
	if !isName(c.Name) {
		r.Fault("name", c.Name, "1 to 64 lower-case letters, digits and dashes")
	}
	if c.Issuer == "" || len(c.Issuer) > maxValue || !headerSafe(c.Issuer) {
		r.Fault("issuer", c.Issuer, "the iss claim, 1 to 256 printable ASCII characters")
	}
	if len(c.Algorithms) == 0 {
		r.Fault("algorithms", nil, "at least one algorithm: "+algorithmsAllowed)
	}
	for i, name := range c.Algorithms {
		a, ok := algorithms[name]
		key := fmt.Sprintf("algorithms[%d]", i)
		switch {
		case !ok:
			r.Fault(key, name, algorithmsAllowed)
		case a.family == familyHMAC && c.Keys.SecretFile == "" && c.Keys.JWKSFile == "":
			r.Fault(key, name, "an algorithm with public keys; the HS algorithms need keys.secret_file")
		case a.family != familyHMAC && c.Keys.SecretFile != "":
			r.Fault(key, name, "HS256, HS384 or HS512, as keys.secret_file is set")
		case (a.family == familyHMAC) != (algorithms[c.Algorithms[0]].family == familyHMAC):
			r.Fault(key, name, "either HS algorithms or others, never both: a public key would be taken for a secret")
		}
	}
	if len(c.Audiences) == 0 {
		r.Fault("audiences", nil, "at least one audience that means us")
	}
	for i, a := range c.Audiences {
		if a == "" {
			r.Fault(fmt.Sprintf("audiences[%d]", i), a, "a value of the aud claim")
		}
	}
	if c.Leeway != 0 {
		between(r, "leeway", c.Leeway, 0, 5*time.Minute)
	}
	if c.MaxLifetime != 0 {
		between(r, "max_lifetime", c.MaxLifetime, time.Second, MaxLifetimeLimit)
	}
	for i, name := range c.Require {
		if !slices.Contains(requirable, name) {
			r.Fault(fmt.Sprintf("require[%d]", i), name, "one of "+strings.Join(requirable, ", "))
		}
	}
}

// Validate reports what is wrong with the source of the keys.
func (c KeysConfig) Validate(r *config.Report) {
	n := 0
	for _, s := range []string{string(c.PEMFile), string(c.JWKSFile), c.JWKSURL, string(c.SecretFile)} {
		if s != "" {
			n++
		}
	}
	if c.Envoy {
		n++
	}
	if n != 1 {
		r.Fault("", nil, "exactly one of pem_file, jwks_file, jwks_url, secret_file and envoy")
	}
	if c.JWKSURL != "" {
		checkURL(r, "jwks_url", c.JWKSURL, c.AllowHTTP)
	}
}

func checkURL(r *config.Report, key, text string, allowHTTP bool) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http"):
		r.Fault(key, text, "an https URL without user and password")
	case u.Scheme == "http" && !allowHTTP && !isLoopback(u.Hostname()):
		r.Fault(key, text, "an https URL, or allow_http where the network itself is trusted")
	}
}

// Validate reports what is wrong with the section, where it is in use.
func (c IntrospectionConfig) Validate(r *config.Report) {
	if c.URL == "" {
		return
	}
	checkURL(r, "url", c.URL, c.AllowHTTP)
	if c.ClientID == "" {
		r.Fault("client_id", c.ClientID, "the id that the server knows us by")
	}
	if c.SecretFile == "" {
		r.Fault("secret_file", c.SecretFile, "a file with the secret")
	}
	if c.Issuer == "" || len(c.Issuer) > maxValue || !headerSafe(c.Issuer) || c.Issuer == DevelopmentIssuerURL {
		r.Fault("issuer", c.Issuer, "the issuer of the tokens, 1 to 256 printable ASCII characters")
	}
	between(r, "timeout", c.Timeout, 10*time.Millisecond, 5*time.Second)
	between(r, "ttl", c.TTL, time.Second, 10*time.Minute)
	if c.Cache < 64<<10 || c.Cache > 1<<30 {
		r.Fault("cache", c.Cache, "64KiB to 1GiB")
	}
	if c.Concurrent < 1 || c.Concurrent > 1000 {
		r.Fault("concurrent", c.Concurrent, "1 to 1000")
	}
}

// Validate reports what is wrong with the section.
func (c ProofsConfig) Validate(r *config.Report) {
	for i, name := range c.Algorithms {
		if a := algorithms[name]; a == nil || a.family == familyHMAC {
			r.Fault(fmt.Sprintf("algorithms[%d]", i), name, algorithmsAllowed+", but none of HS")
		}
	}
	between(r, "max_age", c.MaxAge, time.Second, 10*time.Minute)
	if c.Remember < 1000 || c.Remember > 10_000_000 {
		r.Fault("remember", c.Remember, "1000 to 10000000")
	}
}

// Validate reports pointers that are none.
func (c ClaimsConfig) Validate(r *config.Report) {
	for _, f := range c.fields() {
		if _, err := parsePointer(f.value); err != nil {
			r.Fault(f.key, f.value, "a claim's name, or a JSON pointer to one")
		}
	}
}

type claimField struct{ key, value string }

func (c ClaimsConfig) fields() []claimField {
	return []claimField{
		{"subject", c.Subject}, {"session", c.Session}, {"token_id", c.TokenID}, {"tier", c.Tier}, {"roles", c.Roles},
		{"scopes", c.Scopes}, {"consents", c.Consents}, {"version", c.Version}, {"device", c.Device}, {"client", c.Client},
	}
}

// Validate reports tiers that are none.
func (c TiersConfig) Validate(r *config.Report) {
	if c.Missing != "" && !slices.Contains(tiers, c.Missing) {
		r.Fault("missing", c.Missing, tiersAllowed)
	}
	if c.Unknown != "" && !slices.Contains(tiers, c.Unknown) {
		r.Fault("unknown", c.Unknown, tiersAllowed)
	}
}

// Validate reports a tier that is none.
func (c TierConfig) Validate(r *config.Report) {
	if c.Name == "" {
		r.Fault("name", c.Name, "a value of the tier claim")
	}
	if !slices.Contains(tiers, c.Tier) {
		r.Fault("tier", c.Tier, tiersAllowed)
	}
}

// Validate reports times that are out of range.
func (c JWKSConfig) Validate(r *config.Report) {
	between(r, "refresh", c.Refresh, 10*time.Second, 24*time.Hour)
	between(r, "timeout", c.Timeout, 100*time.Millisecond, time.Minute)
	between(r, "unknown_key", c.UnknownKey, time.Second, time.Hour)
}

func between(r *config.Report, key string, v, lo, hi time.Duration) {
	if v < lo || v > hi {
		r.Fault(key, v, lo.String()+" to "+hi.String())
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func isName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// isToken reports whether s is a token of RFC 9110.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
