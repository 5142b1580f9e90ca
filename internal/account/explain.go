package account

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
)

// Explainer decides a request and says how; *gate.Gate is one.
type Explainer interface {
	Explain(ctx context.Context, r *gate.Request) gate.Explanation
}

// Explain is the part of the API that says what would become of a request.
type Explain struct {
	Explainer Explainer
	Reader    RequestReader
}

// RequestReader makes of a request what a check would; *extauthz.Server is one.
// Names of headers are lower case.
type RequestReader interface {
	Request(method, host, path string, headers map[string]string) gate.Request
}

// maxExplainBody bounds a request to explain, in bytes.
const maxExplainBody = 64 << 10

// Register implements Part.
func (x *Explain) Register(mux Routes, auth *credential.Authenticator) {
	mux.Handle("POST /v1/explain", auth.Require(credential.Operator, http.HandlerFunc(x.explain)))
}

// explainRequest describes a request as Envoy would see it.
type explainRequest struct {
	Method string `json:"method"`
	Host   string `json:"host"`
	Path   string `json:"path"`
	// Token is presented as a Bearer token; Headers may hold authorization,
	// cookie and dpop instead, and every other header that is looked at.
	Token   string            `json:"token"`
	Headers map[string]string `json:"headers"`
	// Address is the client's.
	Address string `json:"address"`
	// Certificate is the client's, in PEM, as Envoy would have checked it.
	Certificate string `json:"certificate"`
	// Claims are those of a token that Envoy's jwt_authn filter would have
	// verified.
	Claims map[string]any `json:"claims"`
}

type explainAnswer struct {
	Allowed  bool                   `json:"allowed"`
	Status   int                    `json:"status"`
	Code     string                 `json:"code,omitempty"`
	Detail   string                 `json:"detail,omitempty"`
	Route    string                 `json:"route,omitempty"`
	Endpoint string                 `json:"endpoint,omitempty"`
	Cost     uint32                 `json:"cost,omitempty"`
	User     string                 `json:"user,omitempty"`
	Tier     string                 `json:"tier"`
	Steps    []gate.Step            `json:"steps"`
	Flags    map[string]explainFlag `json:"flags,omitempty"`
}

type explainFlag struct {
	Variant string      `json:"variant,omitempty"`
	Reason  flag.Reason `json:"reason"`
}

func (x *Explain) explain(w http.ResponseWriter, r *http.Request) {
	var q explainRequest
	if err := decodeJSON(w, r, maxExplainBody, &q); err != nil {
		writeError(w, r, err)
		return
	}
	request, err := q.request(x.Reader)
	if err != nil {
		writeError(w, r, err)
		return
	}
	e := x.Explainer.Explain(r.Context(), &request)
	o := &e.Outcome
	a := explainAnswer{
		Allowed: o.Allowed, Status: o.Status, Code: o.Code, Detail: o.Detail, Tier: o.Tier, Steps: e.Steps,
	}
	if o.Allowed {
		a.Status = http.StatusOK
	}
	if o.Route != nil {
		a.Route, a.Endpoint, a.Cost = o.Route.Name, o.Route.Endpoint, o.Route.Cost
	}
	if o.Principal != nil {
		a.User = o.Principal.Subject
	}
	if o.FlagSet != nil {
		a.Flags = map[string]explainFlag{}
		keys := o.Route.Flags // what the backend is told, no more
		if o.Route.AllFlags {
			keys = o.FlagSet.Keys()
		}
		for _, key := range keys {
			f := o.FlagSet.Evaluate(key, &o.Subject, o.Now)
			a.Flags[key] = explainFlag{f.Variant, f.Reason}
		}
	}
	writeJSON(w, http.StatusOK, a)
}

func (q *explainRequest) request(reader RequestReader) (gate.Request, error) {
	if q.Method == "" || !strings.HasPrefix(q.Path, "/") {
		return gate.Request{}, badRequest("method, and a path that begins with /, are wanted.")
	}
	headers := make(map[string]string, len(q.Headers)+1)
	for name, value := range q.Headers {
		name = strings.ToLower(name)
		if _, twice := headers[name]; twice {
			return gate.Request{}, badRequest("The header " + name + " is there twice; join the values with commas, as Envoy does.")
		}
		headers[name] = value
	}
	if q.Token != "" {
		headers["authorization"] = "Bearer " + q.Token
	}
	r := reader.Request(strings.ToUpper(q.Method), q.Host, q.Path, headers)
	r.Certificate, r.Payload = q.Certificate, q.Claims
	if q.Address != "" {
		a, err := netip.ParseAddr(q.Address)
		if err != nil {
			return gate.Request{}, badRequest("address is no IP address.")
		}
		r.Address = a.Unmap().WithZone("")
	}
	return r, nil
}
