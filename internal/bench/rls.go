package main

import (
	"fmt"
	"os"
	"path/filepath"

	rlcommon "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
)

// path is a way in which ratelimit comes to its decisions, and rules that lead it
// there: the shape of the shipped ones, a tier's two windows and the system-wide
// limit, with room for what one core decides.
type path struct {
	name         string
	minute, hour int
	rule         string // what rule files call path
	refusals     bool
}

func paths() []path {
	return []path{
		{"exact", 5000, 100_000, "exact", false},
		{"deny cache", 1, 1, "exact", true},
		{"leased", 5000, 100_000, "leased", false},
	}
}

const pathRules = `domain: tollgate
tiers:
  entry: tier
  subjects: [user, remote_address]
  default: premium
  table:
  - name: premium
    limits:
    - {unit: minute, requests_per_unit: %[1]d, path: %[3]s}
    - {unit: hour, requests_per_unit: %[2]d, path: %[3]s}
costs: {entry: endpoint, default: 1, table: [{value: ml, cost: 5}]}
system: [{unit: second, requests_per_unit: 1000000, path: %[3]s}]
`

// rls returns a contest for each path.
func (s *settings) rls() ([]*contest, error) {
	var messages [][]byte
	for i := range s.users {
		e := func(k, v string) *rlcommon.RateLimitDescriptor_Entry {
			return &rlcommon.RateLimitDescriptor_Entry{Key: k, Value: v}
		}
		m, err := proto.Marshal(&rlsv3.RateLimitRequest{Domain: "tollgate", Descriptors: []*rlcommon.RateLimitDescriptor{{
			Entries: []*rlcommon.RateLimitDescriptor_Entry{e("tier", "premium"), e("user", fmt.Sprintf("user-%06d", i)), e("endpoint", "default")},
		}}})
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	var contests []*contest
	for _, p := range paths() {
		rules := filepath.Join(s.work, p.name+".yaml")
		if err := os.WriteFile(rules, fmt.Appendf(nil, pathRules, p.minute, p.hour, p.rule), 0o600); err != nil {
			return nil, err
		}
		contests = append(contests, &contest{
			name: "ratelimit, " + p.name, binary: "ratelimit", listen: "TOLLGATE_GRPC_LISTEN", others: []string{"TOLLGATE_OPERATIONS_LISTEN"},
			env: []string{"TOLLGATE_LIMITS_FILES=" + rules}, method: rlsv3.RateLimitService_ShouldRateLimit_FullMethodName,
			messages: messages, refusals: p.refusals,
			classify: func(m []byte) kind {
				var a rlsv3.RateLimitResponse
				if proto.Unmarshal(m, &a) == nil && a.GetOverallCode() == rlsv3.RateLimitResponse_OK {
					return passed
				}
				return refused
			},
		})
	}
	return contests, nil
}
