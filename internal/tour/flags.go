package tour

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// flagPause is between two looks at whether a change has arrived; it takes tens
// of milliseconds, a second at most.
const flagPause = 20 * time.Millisecond

const flagHeader = "X-Feature-Flags"

func featureFlag(ctx context.Context, g *guide) (err error) {
	user, token, err := g.token("admin")
	if err != nil {
		return err
	}
	key := g.target.Flag
	set := func(value string) error {
		if err := g.target.API.SetFlag(ctx, key, value, "the tour shows a flag at run time"); err != nil {
			return fmt.Errorf("turn the flag %s %s: %w", key, value, err)
		}
		return nil
	}
	request := call{method: http.MethodGet, path: backendPath, token: token, as: user}
	if err := set("off"); err != nil { // an interrupted tour may have left it on
		return err
	}
	if err := g.seesFlag(ctx, request, key, false); err != nil {
		return err
	}
	if err := set("on"); err != nil {
		return err
	}
	defer func() {
		// Left as it was found, even when the visitor leaves early.
		ctx = context.WithoutCancel(ctx)
		err = errors.Join(err, set("off"))
	}()
	begin := time.Now()
	g.paper.note("PATCH /v1/flags/%s: on for everyone", key)
	if err := g.seesFlag(ctx, request, key, true); err != nil {
		return err
	}
	g.paper.note("live after %s", short(time.Since(begin)))
	return nil
}

// seesFlag waits until the backend sees the flag on, or not, and shows it.
func (g *guide) seesFlag(ctx context.Context, request call, key string, on bool) error {
	var a answer
	var header http.Header
	err := await(ctx, fmt.Sprintf("the flag %s to be seen as on=%t", key, on), flagPause, func() (bool, error) {
		var err error
		if a, err = g.ask(ctx, request); err != nil {
			return false, err
		}
		if err := a.expect(http.StatusOK); err != nil {
			return false, err
		}
		seen, err := a.seen()
		if err != nil {
			return false, err
		}
		header = seen.Headers
		return isOn(header.Get(flagHeader), key) == on, nil
	})
	if err != nil {
		return err
	}
	g.paper.exchange(a)
	g.paper.backend(header, "x-feature-flags")
	return nil
}

// isOn reads the packed header ("a=on,b=blue").
func isOn(packed, key string) bool {
	for entry := range strings.SplitSeq(packed, ",") {
		if entry == key+"=on" {
			return true
		}
	}
	return false
}
