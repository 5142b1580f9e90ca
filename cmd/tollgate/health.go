package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

func healthCommand() command {
	return command{
		name:      "health",
		arguments: "URL",
		summary:   "ask a URL for health: exit code 0 where it answers 2xx in time",
		details:   "For containers without a shell, such as HEALTHCHECK CMD [\"tollgate\", \"health\", \"http://127.0.0.1:7101/readyz\"].",
		setup: func(flags *flag.FlagSet) runFunc {
			timeout := flags.Duration("timeout", 2*time.Second, "how long the answer may take")
			return func(ctx context.Context, p *process, arguments []string) error {
				if len(arguments) != 1 {
					return usagef("exactly one URL is needed")
				}
				if *timeout <= 0 {
					return usagef("-timeout %s: it is above 0s", *timeout)
				}
				ctx, cancel := context.WithTimeout(ctx, *timeout)
				defer cancel()
				return healthy(ctx, arguments[0])
			}
		},
	}
}

func healthy(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return usageError{err.Error()}
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s answered %s: %s", url, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
