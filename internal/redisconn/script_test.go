package redisconn

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

// TestOnAClusterWhoseAnswersGetLost: what must not run twice does not, alone and
// in a pipeline, and what may is answered all the same.
func TestOnAClusterWhoseAnswersGetLost(t *testing.T) {
	lost := &redistest.LostAnswers{Of: "{n}"}
	client := lost.Cluster(t, redistest.Cluster(t, 1))
	const key = "{n}"
	script := NewScript("return redis.call('INCRBY', KEYS[1], ARGV[1])")
	run := func() (int, error) { return script.Run(t.Context(), client, []string{key}, 1).Int() }
	// Until it is known there too, a server is brought it.
	if n, err := run(); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	for name, c := range map[string]struct {
		do    func() error
		twice bool
	}{
		"Run": {func() error { _, err := run(); return err }, false},
		"Once": {func() error {
			return Once(t.Context(), client, redis.NewIntCmd(t.Context(), "incr", key))
		}, false},
		"Once in a pipeline": {func() error {
			_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
				p.Get(t.Context(), key)
				return Once(t.Context(), p, redis.NewIntCmd(t.Context(), "incr", key))
			})
			return err
		}, false},
		"RunIdempotent": {func() error { return script.RunIdempotent(t.Context(), client, []string{key}, 1).Err() }, true},
		"RunAllIdempotent": {func() error {
			_, err := script.RunAllIdempotent(t.Context(), client, []Call{{[]string{key}, []any{1}}})
			return err
		}, true},
	} {
		before, err := client.Get(t.Context(), key).Int()
		if err != nil {
			t.Fatal(err)
		}
		lost.LoseNext()
		failed := c.do() != nil
		after, err := client.Get(t.Context(), key).Int()
		if err != nil {
			t.Fatal(err)
		}
		if ran := after - before; failed == c.twice || (ran == 2) != c.twice || ran == 0 {
			t.Errorf("%s: failed %t, and ran %d times", name, failed, ran)
		}
	}
}

// TestRunAllBringsTheScript to a server that does not know it, once.
func TestRunAllBringsTheScript(t *testing.T) {
	redistest.Each(t, func(t *testing.T, c *redis.Client) {
		script := NewScript("return {KEYS[1], ARGV[1]}")
		answers, err := script.RunAllIdempotent(t.Context(), c, []Call{{[]string{"a"}, []any{1}}, {[]string{"b"}, []any{2}}})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{"a 1", "b 2"} {
			if got, err := answers[i].StringSlice(); err != nil || strings.Join(got, " ") != want {
				t.Errorf("call %d: %q, %v", i, got, err)
			}
		}
		if got, err := script.Run(t.Context(), c, []string{"c"}, 3).StringSlice(); err != nil || strings.Join(got, " ") != "c 3" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// notTwice are methods of go-redis that run scripts or commands that do more, or
// answer otherwise, when they run twice, and that a client of a Cluster may run
// twice.
const notTwice = `Eval EvalSha EvalRO EvalShaRO FCall FCallRO FCallRo
Incr IncrBy IncrByFloat Decr DecrBy HIncrBy HIncrByFloat ZIncrBy
SetNX SetArgs HSetNX MSetNX RenameNX GetDel GetSet
LPush LPushX RPush RPushX LPop RPop LMove RPopLPush BLPop BRPop LInsert SPop SMove ZPopMin ZPopMax ZAddNX
XAdd XReadGroup XClaim XAutoClaim`

// TestNothingRunsTwiceByOversight: scripts, and commands that must not run twice,
// go through this package, where each call says whether it may be sent again.
func TestNothingRunsTwiceByOversight(t *testing.T) {
	seen := 0
	for _, root := range []string{"../../internal", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/redisconn/") {
				return err
			}
			seen++
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, found := range byOversight(file) {
				t.Errorf("%s: %s: use redisconn.NewScript, or redisconn.Once", fset.Position(found.Pos()), found.Sel.Name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 100 {
		t.Errorf("%d files were looked at", seen)
	}
	// The test itself can fail.
	file, err := parser.ParseFile(token.NewFileSet(), "x.go", `package x
func f() { redis.NewScript(source); redisconn.NewScript(source); c.XAdd(ctx, nil); c.HSet(ctx, "k") }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if found := byOversight(file); len(found) != 2 {
		t.Errorf("%d of 2 were found", len(found))
	}
}

func byOversight(file *ast.File) (found []*ast.SelectorExpr) {
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if method, ok := call.Fun.(*ast.SelectorExpr); ok {
			on, _ := method.X.(*ast.Ident)
			library := on != nil && on.Name == "redis" && method.Sel.Name == "NewScript"
			if library || slices.Contains(strings.Fields(notTwice), method.Sel.Name) {
				found = append(found, method)
			}
		}
		return true
	})
	return found
}
