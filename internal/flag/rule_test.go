package flag

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	oracle "golang.org/x/mod/semver"
	"pgregory.net/rapid"
)

// evalRule evaluates a JSONLogic rule over a subject and gives its JSON.
func evalRule(t testing.TB, text string, s *Subject) string {
	t.Helper()
	n, err := parseNode([]byte(`{"rule":` + text + `}`))
	if err != nil {
		t.Fatal(err)
	}
	c := &ruleCompiler{reader: &reader{file: "rule"}, def: &Definition{Key: "my-flag"}}
	r := c.rule(n.Content[1], "rule", place{})
	if err := c.err(); err != nil {
		t.Fatal(err)
	}
	e := env{subject: s, now: 1500}
	return show(r.eval(&e))
}

func show(v value) string {
	switch v.kind {
	case kindString:
		data, _ := json.Marshal(v.str)
		return string(data)
	case kindNull:
		return "null"
	case kindObject:
		return "object"
	case kindList:
		parts := make([]string, v.len())
		for i := range parts {
			parts[i] = show(v.at(i))
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	return string(v.appendText(nil))
}

func TestRules(t *testing.T) {
	s := &Subject{
		Key: "ann", Tier: "premium", Roles: []string{"dev", "ops"}, Anonymous: true,
		Claims: map[string]any{
			"email": "ann@faas.com", "age": 33.0, "n": json.Number("7"), "i": 5, "i64": int64(6), "bad": json.Number("x"), "odd": struct{}{},
			"zero": 0.0, "empty": "", "no": false, "null": nil, "version": "1.10.0", "targetingKey": "mallory",
			"user": map[string]any{"name": "Ann", "tags": []any{"a", "b", 3.0}}, "scores": []any{1.0, 2.0, 3.0}, "none": []any{},
			"a.b": "dotted",
		},
	}
	tests := [][2]string{
		// Data.
		{`{"var":"email"}`, `"ann@faas.com"`}, {`{"var":["email"]}`, `"ann@faas.com"`}, {`{"var":["nope","d"]}`, `"d"`}, {`{"var":["email","d"]}`, `"ann@faas.com"`},
		{`{"var":"user.name"}`, `"Ann"`}, {`{"var":"user.tags.2"}`, `3`}, {`{"var":"user.tags.9"}`, `null`}, {`{"var":"user.tags.x"}`, `null`},
		{`{"var":"email.x"}`, `null`}, {`{"var":"a.b"}`, `"dotted"`}, {`{"var":"user"}`, `object`}, {`{"var":"nope.x"}`, `null`},
		{`{"var":"targetingKey"}`, `"ann"`}, {`{"var":"tier"}`, `"premium"`}, {`{"var":"roles"}`, `["dev","ops"]`}, {`{"var":"roles.1"}`, `"ops"`}, {`{"var":"anonymous"}`, `true`},
		{`{"var":"$flagd.flagKey"}`, `"my-flag"`}, {`{"var":"$flagd.timestamp"}`, `1500`},
		{`{"var":"n"}`, `7`}, {`{"var":"i"}`, `5`}, {`{"var":"i64"}`, `6`}, {`{"var":"bad"}`, `null`}, {`{"var":"odd"}`, `null`},
		{`{"missing":["email","x","y"]}`, `["x","y"]`}, {`{"missing":"email"}`, `[]`},
		{`{"missing_some":[1,["email","x","y"]]}`, `[]`}, {`{"missing_some":[2,["email","x","y"]]}`, `["x","y"]`},
		// Logic.
		{`{"if":[true,1,2]}`, `1`}, {`{"if":[false,1,2]}`, `2`}, {`{"if":[false,1]}`, `null`}, {`{"if":[0,1,"",2,[],3,null,4,5]}`, `5`}, {`{"if":[7]}`, `7`}, {`{"?:":["0","yes","no"]}`, `"yes"`},
		{`{"and":[1,"a",3]}`, `3`}, {`{"and":[1,0,3]}`, `0`}, {`{"or":[0,"","x"]}`, `"x"`}, {`{"or":[0,""]}`, `""`},
		{`{"!":[0]}`, `true`}, {`{"!":{"var":"user"}}`, `false`}, {`{"!!":["0"]}`, `true`}, {`{"!!":[[]]}`, `false`},
		// Comparison.
		{`{"==":[1,"1"]}`, `true`}, {`{"==":[1,true]}`, `true`}, {`{"==":[null,0]}`, `false`}, {`{"==":[null,null]}`, `true`}, {`{"==":["a","A"]}`, `false`}, {`{"==":[0,""]}`, `true`}, {`{"==":[1,"0x1"]}`, `false`}, {`{"==":[1,"inf"]}`, `false`}, {`{"==":[[1],[1]]}`, `false`},
		{`{"!=":[1,"2"]}`, `true`}, {`{"===":[1,"1"]}`, `false`}, {`{"===":[{"var":"age"},33]}`, `true`}, {`{"!==":[1,"1"]}`, `true`},
		{`{"<":[1,2]}`, `true`}, {`{"<":[1,2,3]}`, `true`}, {`{"<":[1,3,2]}`, `false`}, {`{"<=":[1,1,1]}`, `true`}, {`{"<=":[2,1]}`, `false`}, {`{">":["b","a"]}`, `true`}, {`{">=":["b","b"]}`, `true`}, {`{">":["10",9]}`, `true`}, {`{"<":["x",1]}`, `false`}, {`{">=":["x",1]}`, `false`}, {`{"<=":["a","b"]}`, `true`},
		// Arithmetic.
		{`{"+":[1,"2",3.5]}`, `6.5`}, {`{"+":"4"}`, `4`}, {`{"-":[5,3]}`, `2`}, {`{"-":[5]}`, `-5`}, {`{"*":[2,3,4]}`, `24`}, {`{"/":[7,2]}`, `3.5`}, {`{"%":[7,3]}`, `1`}, {`{"min":[3,1,2]}`, `1`}, {`{"max":[3,1,2]}`, `3`}, {`{"+":["x",1]}`, `NaN`}, {`{"+":[true," "]}`, `1`}, {`{"*":[1e20,100]}`, `1e+22`},
		// Strings and lists.
		{`{"in":["@faas.com",{"var":"email"}]}`, `true`}, {`{"in":["dev",{"var":"roles"}]}`, `true`}, {`{"in":["x",["y","x"]]}`, `true`}, {`{"in":[1,"1"]}`, `false`}, {`{"in":["x",null]}`, `false`}, {`{"in":[3,{"var":"user.tags"}]}`, `true`}, {`{"in":[{"var":"tier"},["free",{"var":"tier"}]]}`, `true`},
		{`{"cat":["a",1,true,null,{"var":"roles"}]}`, `"a1truedev,ops"`},
		{`{"substr":["jsonlogic",4]}`, `"logic"`}, {`{"substr":["jsonlogic",-5]}`, `"logic"`}, {`{"substr":["jsonlogic",1,3]}`, `"son"`}, {`{"substr":["jsonlogic",4,-2]}`, `"log"`}, {`{"substr":["äöü",1,1]}`, `"ö"`}, {`{"substr":["ab",9]}`, `""`}, {`{"substr":["ab",-9,1]}`, `"a"`}, {`{"substr":["ab","x"]}`, `"ab"`},
		{`{"merge":[[1,2],3,[4]]}`, `[1,2,3,4]`},
		{`{"all":[{"var":"scores"},{">":[{"var":""},0]}]}`, `true`}, {`{"all":[{"var":"scores"},{">":[{"var":""},1]}]}`, `false`}, {`{"all":[[],true]}`, `false`}, {`{"some":[{"var":"scores"},{"==":[{"var":""},2]}]}`, `true`}, {`{"none":[{"var":"none"},true]}`, `true`}, {`{"some":[[{"var":"user"}],{"==":[{"var":"name"},"Ann"]}]}`, `true`}, {`{"some":[{"var":"user"},true]}`, `false`},
		{`{"map":[{"var":"scores"},{"*":[{"var":""},2]}]}`, `[2,4,6]`}, {`{"map":[{"var":"nope"},1]}`, `[]`}, {`{"map":[[{"var":"user"}],{"var":"name"}]}`, `["Ann"]`},
		{`{"filter":[{"var":"scores"},{">":[{"var":""},1]}]}`, `[2,3]`}, {`{"in":["ops",{"filter":[{"var":"roles"},{"!=":[{"var":""},"ops"]}]}]}`, `false`},
		{`{"reduce":[{"var":"scores"},{"+":[{"var":"current"},{"var":"accumulator"}]},10]}`, `16`}, {`{"reduce":[{"var":"scores"},{"max":[{"var":"current"},{"var":"accumulator"}]}]}`, `3`}, {`{"reduce":[[],1,{"var":"tier"}]}`, `"premium"`}, {`{"reduce":[[{"var":"user"}],{"var":"current.name"},""]}`, `"Ann"`},
		{`{"reduce":[{"map":[{"var":"scores"},[{"var":""}]]},{"merge":[{"var":"accumulator"},{"var":"current.0"}]},[]]}`, `[1,2,3]`}, {`{"some":[{"filter":[{"var":"scores"},true]},{"reduce":[[1],{"var":"current"},0]}]}`, `true`},
		{`{"starts_with":[{"var":"email"},"ann"]}`, `true`}, {`{"ends_with":[{"var":"email"},".com"]}`, `true`}, {`{"starts_with":[{"var":"age"},"3"]}`, `false`}, {`{"ends_with":["x",{"var":"nope"}]}`, `false`},
		// Versions.
		{`{"sem_ver":[{"var":"version"},">","1.9.9"]}`, `true`}, {`{"sem_ver":[{"var":"version"},"<","1.9.9"]}`, `false`}, {`{"sem_ver":[{"var":"version"},"~","1.10.7"]}`, `true`}, {`{"sem_ver":[{"var":"version"},"^","1.0.0"]}`, `true`}, {`{"sem_ver":[{"var":"version"},"=","v1.10.0+build"]}`, `true`}, {`{"sem_ver":[{"var":"version"},"!=","1.10.0-rc.1"]}`, `true`}, {`{"sem_ver":[{"var":"version"},">=","1.10.0"]}`, `true`}, {`{"sem_ver":[{"var":"version"},"<=","1"]}`, `false`}, {`{"sem_ver":[{"var":"nope"},"=","1.0.0"]}`, `false`}, {`{"sem_ver":[{"var":"email"},"!=","1.0.0"]}`, `false`},
		// Splits.
		{`{"fractional":[{"var":"age"},["a",1],["b",1]]}`, `null`}, {`{"fractional":[{"var":"email"},["a",{"var":"age"}],["b",{"var":"zero"}]]}`, `"a"`}, {`{"fractional":[["a",{"var":"zero"}]]}`, `null`}, {`{"fractional":[["a",{"var":"email"}]]}`, `null`}, {`{"fractional":[["a",{"-":[5]}],["b",1]]}`, `"b"`}, {`{"fractional":[["a",{"*":[1e6,1e6]}]]}`, `null`},
		{`{"rollout":[1000,1001,"b"]}`, `"b"`}, {`{"rollout":[1500,1600,"a","b"]}`, `"a"`}, {`{"rollout":[1600,1700,"b"]}`, `null`}, {`{"rollout":[{"var":"email"},1000,1501,"a","b"]}`, `"b"`}, {`{"rollout":[{"var":"age"},1000,2000,"a","b"]}`, `null`},
	}
	for _, tt := range tests {
		if got := evalRule(t, tt[0], s); got != tt[1] {
			t.Errorf("%s: got %s, want %s", tt[0], got, tt[1])
		}
	}
	if got := evalRule(t, `{"fractional":[["a",1]]}`, &Subject{}); got != "null" {
		t.Errorf("bucketed by nothing: %s", got)
	}
}

// The share that rollout has moved grows with time, and nobody goes back.
func TestRolloutOperatorIsMonotone(t *testing.T) {
	n, err := parseNode([]byte(`{"rollout":[1000,2000,"a","b"]}`))
	if err != nil {
		t.Fatal(err)
	}
	c := &ruleCompiler{reader: &reader{}, def: &Definition{Key: "f", Variants: map[string]any{"a": 1.0, "b": 2.0}}}
	r := c.rule(n, "", place{result: true})
	for i := range 300 {
		s, moved := &Subject{Key: fmt.Sprint(i)}, false
		for now := int64(900); now <= 2100; now += 25 {
			v := r.eval(&env{subject: s, now: now})
			if moved && v.str != "b" {
				t.Fatalf("%d went back at %d", i, now)
			}
			moved = v.str == "b"
		}
		if !moved {
			t.Fatalf("%d never moved", i)
		}
	}
}

// Versions order as golang.org/x/mod orders them.
func TestSemverAgainstOracle(t *testing.T) {
	part := rapid.StringMatching(`0|[1-9][0-9]{0,3}|[0-9a-zA-Z-]{1,4}`)
	version := rapid.Custom(func(t *rapid.T) string {
		v := rapid.StringMatching(`v?(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){0,3}`).Draw(t, "core")
		if rapid.Bool().Draw(t, "pre") {
			v += "-" + strings.Join(rapid.SliceOfN(part, 1, 3).Draw(t, "parts"), ".")
		}
		if rapid.Bool().Draw(t, "build") {
			v += "+" + part.Draw(t, "build part")
		}
		return v
	})
	canonical := func(s string) string { return "v" + strings.TrimPrefix(s, "v") }
	rapid.Check(t, func(t *rapid.T) {
		a, b := version.Draw(t, "a"), version.Draw(t, "b")
		v, ok := parseSemver(a)
		if want := oracle.IsValid(canonical(a)); ok != want {
			t.Fatalf("%s: valid %v, want %v", a, ok, want)
		}
		w, also := parseSemver(b)
		if ok && also && v.compare(&w) != oracle.Compare(canonical(a), canonical(b)) {
			t.Fatalf("%s and %s: got %d", a, b, v.compare(&w))
		}
	})
	version1, _ := parseSemver("1.0.0")
	if semverHolds(&version1, "?", &version1) {
		t.Error("an unknown operator holds")
	}
}

// What fractional buckets by is hashed in parts, the first of them at load;
// it is the hash of cat's text all the same.
func TestFractionalHashesWhatCatMakes(t *testing.T) {
	const buckets = MaxVariants
	split := ""
	for i := range buckets {
		split += fmt.Sprintf(`,["%d",1]`, i)
	}
	s := &Subject{Key: "ann", Claims: map[string]any{"email": "ann@example.com", "age": 41.5, "trial": true, "ids": []any{"x", 2.0}}}
	rapid.Check(t, func(rt *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{
			`{"var":"$flagd.flagKey"}`, `{"var":"targetingKey"}`, `{"var":"tier"}`, `{"var":"email"}`, `{"var":"age"}`, `{"var":"trial"}`,
			`{"var":"ids"}`, `"salt"`, `7`, `null`, `["p","q"]`, `{"cat":["a",{"var":"age"}]}`,
		}), 1, 6).Draw(rt, "parts")
		cat := `{"cat":[` + strings.Join(parts, ",") + `]}`
		var text string
		if err := json.Unmarshal([]byte(evalRule(t, cat, s)), &text); err != nil {
			rt.Fatal(err)
		}
		want := fmt.Sprintf("%q", strconv.Itoa(int(flagd2Place(murmur3Whole([]byte(text)), buckets))))
		if got := evalRule(t, `{"fractional":[`+cat+split+`]}`, s); got != want {
			rt.Fatalf("%s, of %q: got %s, want %s", cat, text, got, want)
		}
	})
}
