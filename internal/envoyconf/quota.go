package envoyconf

import (
	"errors"
	"fmt"
	"slices"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// quotaManager is a connection manager with nothing but the filter of quotas: one bucket for each user, and one for
// each address without a user, by the headers that authz sets and that no client can send.
const quotaManager = `
static_resources:
  listeners:
  - name: quotas
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: quotas
          route_config: {name: none}
          http_filters:
          - name: envoy.filters.http.rate_limit_quota
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig
              domain: tollgate
              rlqs_server: {envoy_grpc: {cluster_name: ratelimit}}
              filter_enabled: {default_value: {numerator: 100}}
              filter_enforced: {default_value: {numerator: 100}}
              bucket_matchers:
                matcher_list:
                  matchers:
                  - predicate:
                      single_predicate:
                        input: {name: user, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-user-id}}
                        value_match: {safe_regex: {google_re2: {}, regex: ".+"}}
                    on_match:
                      action:
                        name: user
                        typed_config:
                          "@type": type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings
                          bucket_id_builder:
                            bucket_id_builder:
                              tier: {custom_value: {name: tier, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-user-tier}}}
                              user: {custom_value: {name: user, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-user-id}}}
                          reporting_interval: 5s
                          no_assignment_behavior: {fallback_rate_limit: {blanket_rule: ALLOW_ALL}}
                          expired_assignment_behavior: {expired_assignment_behavior_timeout: 60s, reuse_last_assignment: {}}
                          deny_response_settings: {http_status: {code: TooManyRequests}, response_headers_to_add: [{header: {key: retry-after, value: "5"}}]}
                on_no_match:
                  action:
                    name: address
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings
                      bucket_id_builder:
                        bucket_id_builder:
                          tier: {string_value: anonymous}
                          remote_address: {custom_value: {name: address, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput, header_name: x-envoy-external-address}}}
                      reporting_interval: 5s
                      no_assignment_behavior: {fallback_rate_limit: {blanket_rule: ALLOW_ALL}}
                      expired_assignment_behavior: {expired_assignment_behavior_timeout: 60s, reuse_last_assignment: {}}
                      deny_response_settings: {http_status: {code: TooManyRequests}, response_headers_to_add: [{header: {key: retry-after, value: "5"}}]}
`

// useQuotas puts the filter of quotas in place of the ratelimit filter.
func useQuotas(manager *hcmv3.HttpConnectionManager) error {
	b, err := Parse([]byte(quotaManager))
	if err != nil {
		return fmt.Errorf("the filter of quotas: %w", err)
	}
	quotas := new(hcmv3.HttpConnectionManager)
	if err := b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(quotas); err != nil {
		return err
	}
	at := slices.IndexFunc(manager.GetHttpFilters(), isRateLimit)
	if at < 0 {
		return errors.New("the configuration has no ratelimit filter to replace")
	}
	manager.HttpFilters[at] = quotas.GetHttpFilters()[0]
	return nil
}
