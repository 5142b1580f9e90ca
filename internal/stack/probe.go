package stack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// httpProbe is ready when url answers as accept says.
func httpProbe(client *http.Client, url string, accept func(status int) bool) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(r)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		if err := errors.Join(err, response.Body.Close()); err != nil {
			return err
		}
		if !accept(response.StatusCode) {
			return fmt.Errorf("%s answered %s: %s", url, response.Status, strings.TrimSpace(string(body)))
		}
		return nil
	}
}

func success(status int) bool { return status/100 == 2 }

// answered accepts what Envoy says once authz can be asked: an answer that is not
// Envoy's "no healthy upstream" or "authorisation unavailable".
func answered(status int) bool { return status < 500 }

// redisProbe is ready when the server at address answers PING.
func redisProbe(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }() // the answer is all that matters
		if err := conn.SetDeadline(time.Now().Add(probeTimeout)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "*1\r\n$4\r\nPING\r\n"); err != nil {
			return err
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, "+PONG") {
			return fmt.Errorf("redis at %s answered PING with %q", address, strings.TrimSpace(line))
		}
		return nil
	}
}

// allProbes is ready when every probe is.
func allProbes(probes ...func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, probe := range probes {
			if err := probe(ctx); err != nil {
				return err
			}
		}
		return nil
	}
}
