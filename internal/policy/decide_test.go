package policy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestDecide(t *testing.T) {
	addr := netip.MustParseAddr
	user := Subject{Authenticated: true, Tier: "free", Roles: []string{"user", "editor"}, Scopes: []string{"read", "write"}, Consents: []string{"ads"}, Address: addr("10.1.2.3")}
	for _, c := range []struct {
		name        string
		access      string
		need        RequireConfig
		who         Subject
		status      int
		code        string
		requirement string
	}{
		{name: "token", who: user},
		{name: "no token", who: Subject{}, status: 401, code: CodeTokenMissing, requirement: "authentication"},
		{name: "public", access: "public", who: Subject{}},
		{name: "optional", access: "optional", who: Subject{}},
		{name: "denied", access: "denied", who: user, status: 403, code: CodeRouteDenied, requirement: "access"},
		{name: "role any", need: RequireConfig{RolesAny: []string{"admin", "editor"}}, who: user},
		{name: "role any missing", need: RequireConfig{RolesAny: []string{"admin", "owner"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "roles_any"},
		{name: "role all", need: RequireConfig{RolesAll: []string{"user", "editor"}}, who: user},
		{name: "role all missing", need: RequireConfig{RolesAll: []string{"user", "admin"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "roles_all"},
		{name: "role is not a prefix", need: RequireConfig{RolesAny: []string{"use"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "roles_any"},
		{name: "scope any", need: RequireConfig{ScopesAny: []string{"admin", "read"}}, who: user},
		{name: "scope any missing", need: RequireConfig{ScopesAny: []string{"admin"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "scopes_any"},
		{name: "scope all missing", need: RequireConfig{ScopesAll: []string{"read", "admin"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "scopes_all"},
		{name: "tier", need: RequireConfig{Tiers: []string{"premium", "free"}}, who: user},
		{name: "tier missing", need: RequireConfig{Tiers: []string{"premium"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "tiers"},
		{name: "consent", need: RequireConfig{Consents: []string{"ads"}}, who: user},
		{name: "consent missing", need: RequireConfig{Consents: []string{"ads", "analytics"}}, who: user, status: 403, code: CodeConsentRequired, requirement: "consents"},
		{name: "address", need: RequireConfig{Addresses: []string{"192.0.2.1", "10.0.0.0/8"}}, who: user},
		{name: "address elsewhere", need: RequireConfig{Addresses: []string{"192.0.2.1"}}, who: user, status: 403, code: CodeAddressDenied, requirement: "addresses"},
		{name: "mapped address", access: "public", need: RequireConfig{Addresses: []string{"10.0.0.0/8"}}, who: Subject{Address: addr("::ffff:10.0.0.1")}},
		{name: "zoned address", access: "public", need: RequireConfig{Addresses: []string{"fe80::/10"}}, who: Subject{Address: addr("fe80::1%eth0")}},
		{name: "no address", access: "public", need: RequireConfig{Addresses: []string{"0.0.0.0/0", "::/0"}}, who: Subject{}, status: 403, code: CodeAddressDenied, requirement: "addresses"},
		{name: "address before token", need: RequireConfig{Addresses: []string{"192.0.2.1"}}, who: Subject{}, status: 403, code: CodeAddressDenied, requirement: "addresses"},
		{name: "role before consent", need: RequireConfig{RolesAny: []string{"admin"}, Consents: []string{"no"}}, who: user, status: 403, code: CodeRoleRequired, requirement: "roles_any"},
		{name: "roles without a token", need: RequireConfig{RolesAny: []string{"user"}}, who: Subject{Roles: []string{"user"}}, status: 401, code: CodeTokenMissing, requirement: "authentication"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rc := prefix("r", "/")
			rc.Access, rc.Require = c.access, c.need
			r := compile(t, routes(rc)).Match("", "GET", "/").Route
			d := Decide(r, &c.who)
			if d.Allowed != (c.code == "") || d.Status != c.status || d.Code != c.code || d.Requirement != c.requirement || d.Allowed != (d.Detail == "") {
				t.Errorf("decision %+v, want %d %s for %s", d, c.status, c.code, c.requirement)
			}
			steps, explained := Explain(r, &c.who)
			if explained != d {
				t.Errorf("explained as %+v, decided as %+v", explained, d)
			}
			first := ""
			for _, s := range steps {
				if !s.Met {
					first = s.Requirement
					break
				}
			}
			if first != c.requirement {
				t.Errorf("first step not met is %q, want %q", first, c.requirement)
			}
			if early := DecideAddress(r, c.who.Address); !early.Allowed && early != d {
				t.Errorf("by address alone %+v, in full %+v", early, d)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	rc := prefix("r", "/")
	rc.Require = RequireConfig{RolesAny: []string{"admin", "owner"}, Tiers: []string{"premium"}, Consents: []string{"ads"}, Addresses: []string{"10.0.0.0/8"}}
	r := compile(t, routes(rc)).Match("", "GET", "/").Route
	steps, d := Explain(r, &Subject{Authenticated: true, Tier: "premium", Roles: []string{"editor", "user"}, Address: netip.MustParseAddr("10.1.1.1")})
	want := []Step{
		{Requirement: "addresses", Wanted: "10.0.0.0/8", Got: "10.1.1.1", Met: true},
		{Requirement: "authentication", Met: true},
		{Requirement: "tiers", Wanted: "premium", Got: "premium", Met: true},
		{Requirement: "roles_any", Wanted: "admin,owner", Got: "editor,user"},
		{Requirement: "consents", Wanted: "ads"},
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Error(diff)
	}
	if d.Requirement != "roles_any" {
		t.Errorf("decision %+v", d)
	}
}

// A caller with more never gets less, and explaining never decides otherwise.
func TestDecideProperties(t *testing.T) {
	names := rapid.SampledFrom([]string{"a", "b", "c"})
	list := rapid.SliceOfN(names, 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		rc := prefix("r", "/")
		rc.Require = RequireConfig{
			RolesAny: list.Draw(t, "roles any"), RolesAll: list.Draw(t, "roles all"), ScopesAny: list.Draw(t, "scopes any"),
			ScopesAll: list.Draw(t, "scopes all"), Consents: list.Draw(t, "consents"),
		}
		s, err := Compile(routes(rc))
		if err != nil {
			t.Fatal(err)
		}
		r := s.Match("", "GET", "/").Route
		who := Subject{Authenticated: rapid.Bool().Draw(t, "authenticated"), Roles: list.Draw(t, "roles"), Scopes: list.Draw(t, "scopes"), Consents: list.Draw(t, "consented")}
		d := Decide(r, &who)
		if _, e := Explain(r, &who); e != d {
			t.Fatalf("explained %+v, decided %+v", e, d)
		}
		if !d.Allowed && d.Code == "" || d.Allowed && d.Code != "" {
			t.Fatalf("decision %+v", d)
		}
		more := who
		more.Authenticated = true
		more.Roles = append([]string{names.Draw(t, "more")}, who.Roles...)
		if d.Allowed && !Decide(r, &more).Allowed {
			t.Fatalf("%+v is allowed, %+v is not", who, more)
		}
	})
}
