package deploy

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestDockerfiles holds the images to pinned bases and an unprivileged user.
func TestDockerfiles(t *testing.T) {
	from := regexp.MustCompile(`(?m)^FROM (\S+)`)
	for _, name := range []string{"Dockerfile", "deploy/compose/python-services.Dockerfile"} {
		text := string(read(t, name))
		bases := from.FindAllStringSubmatch(text, -1)
		if len(bases) < 2 {
			t.Errorf("%s is not built in stages", name)
		}
		for _, base := range bases {
			if base[1] != "scratch" && !pinned.MatchString(base[1]) {
				t.Errorf("%s: base %q is not pinned to a version", name, base[1])
			}
		}
		last := text[strings.LastIndex(text, "\nFROM "):]
		if !regexp.MustCompile(`(?m)^USER [1-9][0-9]*:[1-9][0-9]*$`).MatchString(last) {
			t.Errorf("%s does not end as an unprivileged user", name)
		}
		if strings.Contains(text, "ADD ") {
			t.Errorf("%s uses ADD", name)
		}
	}
}

// metricName finds our metrics in a query.
var metricName = regexp.MustCompile(`\btollgate_[a-z0-9_]+`)

// TestQueriesNameMetricsThatExist looks for every metric of the dashboards and alerts in the sources.
func TestQueriesNameMetricsThatExist(t *testing.T) {
	known := metrics(t)
	for name, text := range queries(t) {
		for _, metric := range metricName.FindAllString(text, -1) {
			base := metric
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				base = strings.TrimSuffix(base, suffix)
			}
			if !known[metric] && !known[base] {
				t.Errorf("%s asks for %s, which no program has", name, metric)
			}
		}
	}
}

// metrics returns the string constants of the sources that name a metric.
func metrics(t *testing.T) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	literal := regexp.MustCompile(`"(tollgate_[a-z0-9_]+)"`)
	prefix := regexp.MustCompile(`"(tollgate_[a-z0-9_]+_)" ?\+`)
	bare := regexp.MustCompile(`"([a-z0-9_]+)"`)
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, match := range literal.FindAllSubmatch(text, -1) {
			found[string(match[1])] = true
		}
		// A file that joins a prefix and names.
		for _, p := range prefix.FindAllSubmatch(text, -1) {
			for _, b := range bare.FindAllSubmatch(text, -1) {
				found[string(p[1])+string(b[1])] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 20 {
		t.Fatalf("only %d metrics found in the sources", len(found))
	}
	return found
}

// queries returns every PromQL expression that the project ships, by where it stands.
func queries(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	var dashboard struct {
		Panels []struct {
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(read(t, "config/grafana/dashboards/tollgate.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q asks nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			all["panel "+panel.Title+": "+target.Expr] = target.Expr
		}
	}
	var rules struct {
		Groups []struct {
			Name  string `yaml:"name"`
			Rules []struct {
				Alert       string            `yaml:"alert"`
				Expr        string            `yaml:"expr"`
				For         string            `yaml:"for"`
				Labels      map[string]string `yaml:"labels"`
				Annotations map[string]string `yaml:"annotations"`
			} `yaml:"rules"`
		} `yaml:"groups"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(read(t, "config/prometheus/alerts.yml"))))
	decoder.KnownFields(true)
	if err := decoder.Decode(&rules); err != nil {
		t.Fatal(err)
	}
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			all["alert "+rule.Alert] = rule.Expr
			if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Errorf("alert %s does not say what it means and what to do", rule.Alert)
			}
			if !slices.Contains([]string{"page", "ticket"}, rule.Labels["severity"]) {
				t.Errorf("alert %s: severity %q", rule.Alert, rule.Labels["severity"])
			}
		}
	}
	if len(all) < 15 {
		t.Fatalf("only %d queries", len(all))
	}
	return all
}
