package envoyconf

import (
	"strings"
	"testing"
)

// With one call nothing of the ratelimit filter is left, and everything else is.
func TestRenderOneCall(t *testing.T) {
	before, err := YAML(shipped(t))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Render(shipped(t), Options{OneCall: true, Clusters: map[string][]Endpoint{ClusterRateLimit: {{Address: "a:1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	after, err := YAML(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"filters.http.ratelimit", "cluster_name: ratelimit"} {
		if !strings.Contains(string(before), gone) || strings.Contains(string(after), gone) {
			t.Errorf("%s: %t before, %t after", gone, strings.Contains(string(before), gone), strings.Contains(string(after), gone))
		}
	}
	if got, want := len(b.GetStaticResources().GetClusters()), len(shipped(t).GetStaticResources().GetClusters())-1; got != want {
		t.Errorf("%d clusters, want %d", got, want)
	}
	if !strings.Contains(string(after), "filters.http.ext_authz") || !strings.Contains(string(after), "filters.http.router") {
		t.Error("another filter is gone too")
	}
}

// With quotas the filter stands where the ratelimit filter stood, behind authz.
func TestRenderQuotas(t *testing.T) {
	b, err := Render(shipped(t), Options{Quotas: true})
	if err != nil {
		t.Fatal(err)
	}
	text, err := YAML(b)
	if err != nil {
		t.Fatal(err)
	}
	authz, quotas := strings.Index(string(text), "filters.http.ext_authz\n"), strings.Index(string(text), "name: envoy.filters.http.rate_limit_quota")
	if authz < 0 || quotas < authz || strings.Contains(string(text), "name: envoy.filters.http.ratelimit") {
		t.Errorf("ext_authz at %d, rate_limit_quota at %d", authz, quotas)
	}
}
