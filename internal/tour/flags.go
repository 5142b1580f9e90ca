package tour

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/flag"
)

// flagPause is between two looks at whether a change has arrived; it takes tens
// of milliseconds, a second at most.
const flagPause = 20 * time.Millisecond

const flagHeader = "X-Feature-Flags"

// banner is the tour's own flag, which nobody else uses.
func banner() flag.Definition {
	return flag.Definition{
		Key:            "tour-banner",
		State:          flag.Enabled,
		Variants:       map[string]any{"on": true, "off": false},
		DefaultVariant: "off",
		Extension:      flag.Extension{Description: "Made by the tour, and removed at its end"},
	}
}

const flagReason = "the tour shows a flag at run time"

func featureFlag(ctx context.Context, g *guide) (err error) {
	user, token, err := g.token("admin")
	if err != nil {
		return err
	}
	definition := banner()
	if err := g.target.API.PutFlag(ctx, definition, flagReason); err != nil {
		return fmt.Errorf("make a flag: %w", err)
	}
	defer func() {
		// Left as it was found, even when the visitor leaves early.
		if deleteErr := g.target.API.DeleteFlag(context.WithoutCancel(ctx), definition.Key, "the tour is over"); deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("remove the flag: %w", deleteErr))
		}
	}()
	g.paper.notef("PUT /v1/flags/%s: a flag that is off", definition.Key)
	request := call{method: http.MethodGet, path: backendPath, token: token, as: user}
	if err := g.seesFlag(ctx, request, definition.Key, false); err != nil {
		return err
	}
	if err := g.target.API.SetFlag(ctx, definition.Key, "on", flagReason); err != nil {
		return fmt.Errorf("turn the flag on: %w", err)
	}
	begin := time.Now()
	g.paper.notef("PATCH /v1/flags/%s: on for everyone", definition.Key)
	if err := g.seesFlag(ctx, request, definition.Key, true); err != nil {
		return err
	}
	g.paper.notef("live after %s", short(time.Since(begin)))
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
