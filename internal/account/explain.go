package account

import (
	"context"
	"net/http"
	"net/netip"
	"strings"

	"github.com/tollgate-proxy/tollgate/internal/authn"
	"github.com/tollgate-proxy/tollgate/internal/credential"
	"github.com/tollgate-proxy/tollgate/internal/flag"
	"github.com/tollgate-proxy/tollgate/internal/gate"
	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// Explainer decides a request and says how; *gate.Gate is one.
type Explainer interface {
	Explain(ctx context.Context, r *gate.Request) gate.Explanation
}

// Explain is the part of the API that says what would become of a request.
type Explain struct {
	Explainer Explainer
	// TokenHeader is the header, lower case, that may hold a token; "" for none.
	TokenHeader string
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
	// cookie and dpop instead, and the header that the configuration names.
	Token   string            `json:"token"`
	Headers map[string]string `json:"headers"`
	// Address is the client's.
	Address string `json:"address"`
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
	request, err := q.request(x.TokenHeader)
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
		for _, key := range o.FlagSet.Keys() {
			f := o.FlagSet.Evaluate(key, &o.Subject, o.Now)
			a.Flags[key] = explainFlag{f.Variant, f.Reason}
		}
	}
	writeJSON(w, http.StatusOK, a)
}

func (q *explainRequest) request(tokenHeader string) (gate.Request, error) {
	r := gate.Request{Request: authn.Request{Method: strings.ToUpper(q.Method), Host: q.Host, Path: q.Path}}
	if q.Method == "" || !strings.HasPrefix(q.Path, "/") {
		return r, problem.New(http.StatusBadRequest, "request_invalid", "method, and a path that begins with /, are wanted.")
	}
	if q.Address != "" {
		a, err := netip.ParseAddr(q.Address)
		if err != nil {
			return r, problem.New(http.StatusBadRequest, "request_invalid", "address is no IP address.")
		}
		r.Address = a.Unmap()
	}
	for name, value := range q.Headers {
		switch strings.ToLower(name) {
		case "authorization":
			r.Authorization = value
		case "cookie":
			r.Cookie = value
		case "dpop":
			r.Proof = value
		case tokenHeader:
			r.Header = value
		}
	}
	if q.Token != "" {
		r.Authorization = "Bearer " + q.Token
	}
	return r, nil
}
