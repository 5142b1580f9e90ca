package envoyconf

import (
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// useDecisionTimeout sets how long the filters of authz and ratelimit, where they are, wait for an answer.
func useDecisionTimeout(manager *hcmv3.HttpConnectionManager, d *durationpb.Duration) error {
	for _, f := range manager.GetHttpFilters() {
		authz, limits := new(extauthzv3.ExtAuthz), new(ratelimitv3.RateLimit)
		var changed proto.Message
		switch packed := f.GetTypedConfig(); {
		case packed.MessageIs(authz):
			if err := packed.UnmarshalTo(authz); err != nil {
				return err
			}
			waits(authz.GetGrpcService(), d)
			changed = authz
		case packed.MessageIs(limits):
			if err := packed.UnmarshalTo(limits); err != nil {
				return err
			}
			waits(limits.GetRateLimitService().GetGrpcService(), d)
			limits.Timeout = d
			changed = limits
		default:
			continue
		}
		if err := f.GetTypedConfig().MarshalFrom(changed); err != nil {
			return err
		}
	}
	return nil
}

// waits sets the deadline of a call, where it has one, and of each try.
func waits(service *corev3.GrpcService, d *durationpb.Duration) {
	if service.GetTimeout() != nil {
		service.Timeout = d
	}
	if wait := service.GetRetryPolicy().GetRetryBackOff(); wait != nil {
		wait.MaxInterval = d
	}
}

// useConnectTimeout sets how long a connection to authz or ratelimit may take.
func useConnectTimeout(b *bootstrapv3.Bootstrap, d time.Duration) {
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.GetName() == ClusterAuthz || c.GetName() == ClusterRateLimit {
			c.ConnectTimeout = durationpb.New(d)
		}
	}
}
