package pyproxy

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/config"
	"github.com/tollgate-proxy/tollgate/internal/httpcache"
)

// CacheConfig is the cache that routes share.
type CacheConfig struct {
	Memory       config.Bytes  `yaml:"memory" doc:"Memory for answers in this process; the least recently used go first."`
	MaxEntry     config.Bytes  `yaml:"max_entry" doc:"Largest answer that is kept."`
	MaxKeyBody   config.Bytes  `yaml:"max_key_body" doc:"Largest request body that answers are kept for."`
	Redis        bool          `yaml:"redis" doc:"Whether replicas share answers and purges through Redis."`
	RedisMemory  config.Bytes  `yaml:"redis_memory" doc:"Most bytes of answers that this replica has in Redis at once, roughly; further ones are kept in memory alone. One that is fetched anew counts again."`
	RedisTimeout time.Duration `yaml:"redis_timeout" doc:"Longest wait for one call of Redis; the service is asked instead."`
	RedisRest    time.Duration `yaml:"redis_rest" doc:"How long Redis is left alone after a call failed."`
	Poll         time.Duration `yaml:"poll_interval" doc:"How often purges of other replicas are looked for."`
}

// Validate checks the cache.
func (c CacheConfig) Validate(r *config.Report) {
	check(r, c.Memory >= 1<<20, "memory", c.Memory, "at least 1MiB")
	check(r, c.MaxEntry >= 1<<10 && c.MaxEntry <= c.Memory/16, "max_entry", c.MaxEntry, "1KiB to a sixteenth of cache.memory")
	check(r, c.MaxKeyBody >= 1<<10 && c.MaxKeyBody <= 16<<20, "max_key_body", c.MaxKeyBody, "1KiB to 16MiB")
	check(r, c.RedisMemory >= 1<<20, "redis_memory", c.RedisMemory, "at least 1MiB")
	positive(r, "redis_timeout", c.RedisTimeout)
	positive(r, "redis_rest", c.RedisRest)
	positive(r, "poll_interval", c.Poll)
}

// RouteCache is how the answers of one route are cached.
type RouteCache struct {
	TTL                  time.Duration `yaml:"ttl" doc:"How long a 200 that does not say so itself is fresh; needed for POST."`
	StaleIfError         time.Duration `yaml:"stale_if_error" doc:"How long beyond that it may stand in for a failing service."`
	StaleWhileRevalidate time.Duration `yaml:"stale_while_revalidate" doc:"How long beyond that it may be used while a fresh one is fetched."`
	Vary                 []string      `yaml:"vary" doc:"Request headers that the answer depends on, such as x-user-id; all others but Accept, Content-Type and Content-Encoding do not reach the service."`
	Flags                []string      `yaml:"flags" doc:"Feature flags that the answer depends on; all others do not reach the service."`
	Tags                 []string      `yaml:"tags" doc:"Names by which entries can be purged, besides the route's."`
}

// Validate checks the policy.
func (c RouteCache) Validate(r *config.Report) {
	check(r, c.TTL >= 0, "ttl", c.TTL, "0s or more")
	check(r, c.StaleIfError >= 0, "stale_if_error", c.StaleIfError, "0s or more")
	check(r, c.StaleWhileRevalidate >= 0, "stale_while_revalidate", c.StaleWhileRevalidate, "0s or more")
	for i, name := range c.Vary {
		check(r, name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == "", fmt.Sprintf("vary[%d]", i), name, "the name of a header")
	}
	for i, tag := range c.Tags {
		check(r, namePattern.MatchString(tag), fmt.Sprintf("tags[%d]", i), tag, nameAllowed)
	}
}

// Fallback is what a route answers while its service cannot.
type Fallback struct {
	Status      int    `yaml:"status" doc:"HTTP status, 200 to 599."`
	ContentType string `yaml:"content_type" doc:"Media type of the body."`
	Body        string `yaml:"body" doc:"The body."`
}

// Validate checks the fallback.
func (f Fallback) Validate(r *config.Report) {
	check(r, f.Status >= 200 && f.Status <= 599, "status", f.Status, "200 to 599")
	check(r, f.ContentType != "", "content_type", f.ContentType, "a media type, such as application/json")
}

func (rt Route) policy() httpcache.Policy {
	c := rt.Cache
	p := httpcache.Policy{
		Route: rt.Name, Body: rt.Method == http.MethodPost, TTL: c.TTL,
		StaleIfError: c.StaleIfError, StaleWhileRevalidate: c.StaleWhileRevalidate,
		Flags: c.Flags, Tags: c.Tags,
	}
	for _, name := range c.Vary {
		p.Vary = append(p.Vary, http.CanonicalHeaderKey(name))
	}
	return p
}
