package pyproxy

import (
	"encoding/json"
	"net/http"

	"github.com/tollgate-proxy/tollgate/internal/problem"
)

// Management serves the live state and the switches of the upstreams:
//
//	GET  /v1/upstreams              every upstream
//	GET  /v1/upstreams/{name}       one
//	POST /v1/upstreams/{name}/trip  opens its circuits for the reset time
//	POST /v1/upstreams/{name}/reset closes them
//	POST /v1/cache/{name}/purge     voids a route's or tag's kept answers
//
// The state is of this process alone. It asks for no credential: the caller
// puts read and write behind what it requires for each.
func (p *Proxy) Management(read, write func(http.Handler) http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/upstreams", read(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, struct {
			Upstreams []UpstreamStatus `json:"upstreams"`
		}{p.Status()})
	})))
	mux.Handle("GET /v1/upstreams/{name}", read(http.HandlerFunc(p.showUpstream)))
	mux.Handle("POST /v1/upstreams/{name}/trip", write(p.switchUpstream(p.Trip)))
	mux.Handle("POST /v1/upstreams/{name}/reset", write(p.switchUpstream(p.Reset)))
	mux.Handle("POST /v1/cache/{name}/purge", write(http.HandlerFunc(p.purge)))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, r, http.StatusNotFound, "route_not_found", "the management API has no such path")
	})
	return mux
}

func (p *Proxy) purge(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !p.cache.Knows(name) {
		writeProblem(w, r, http.StatusNotFound, "cache_not_found", "no cached route or tag has this name")
		return
	}
	if err := p.cache.Purge(r.Context(), name); err != nil {
		writeProblem(w, r, http.StatusServiceUnavailable, "dependency_unavailable", "purged here, but the other replicas may not know; try again")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p *Proxy) showUpstream(w http.ResponseWriter, r *http.Request) {
	for _, s := range p.Status() {
		if s.Name == r.PathValue("name") {
			writeJSON(w, s)
			return
		}
	}
	noSuchUpstream(w, r)
}

func (p *Proxy) switchUpstream(do func(name string) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !do(r.PathValue("name")) {
			noSuchUpstream(w, r)
			return
		}
		p.showUpstream(w, r)
	})
}

func noSuchUpstream(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, r, http.StatusNotFound, "upstream_not_found", "no upstream has this name")
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil { // plain structs always encode
		problem.Write(w, problem.New(http.StatusInternalServerError, "internal", "the state could not be written"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(body, '\n'))
}
