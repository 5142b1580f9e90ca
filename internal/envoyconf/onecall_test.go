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
