package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/apiclient"
	"github.com/tollgate-proxy/tollgate/internal/stack"
)

// Environment variables of the commands that call the API.
const (
	urlVariable   = "TOLLGATE_API_URL"
	tokenVariable = "TOLLGATE_API_TOKEN"
)

// demoWork is where the demo keeps what belongs to one run.
const demoWork = "var/demo"

const (
	defaultURL = "http://127.0.0.1:8101"
	apiDetails = "The API's address comes from -api, else " + urlVariable + ", the operator's secret from -token-file, else\n" +
		tokenVariable + ". With neither address nor secret given, those of a running demo are used\n" +
		"(" + demoWork + "/" + stack.OperatorFile + ")."
	apiTimeout = 10 * time.Second
)

// apiSettings say where the API is and who calls.
type apiSettings struct{ url, tokenFile *string }

func apiFlags(flags *flag.FlagSet) apiSettings {
	return apiSettings{
		url:       flags.String("api", "", "base `URL` of authz's API (default "+defaultURL+")"),
		tokenFile: tokenFileFlag(flags),
	}
}

func tokenFileFlag(flags *flag.FlagSet) *string {
	return flags.String("token-file", "", "`file` that holds the operator's secret")
}

// readToken reads the operator's secret from a file.
func readToken(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("the operator's secret: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("the operator's secret: %s is empty", file)
	}
	return token, nil
}

func errNoSecret() error {
	return fmt.Errorf("no operator's secret: set %s or -token-file, or start the demo", tokenVariable)
}

func (a apiSettings) client(p *process) (*apiclient.Client, error) {
	url, token := cmp.Or(*a.url, p.getenv(urlVariable)), p.getenv(tokenVariable)
	if *a.tokenFile != "" {
		var err error
		if token, err = readToken(*a.tokenFile); err != nil {
			return nil, err
		}
	}
	// The demo's secret goes to the demo and nowhere else.
	if url == "" && token == "" {
		operator, err := stack.LoadOperator(demoWork)
		if err == nil {
			url, token = operator.URL, operator.Token
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if token == "" {
		return nil, errNoSecret()
	}
	return apiclient.New(cmp.Or(url, defaultURL), token, apiTimeout)
}
