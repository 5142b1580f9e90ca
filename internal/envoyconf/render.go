package envoyconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Names in envoy/envoy.yaml that Render and its callers address.
const (
	ClusterAuthz     = "authz"
	ClusterRateLimit = "ratelimit"
	ClusterPyproxy   = "pyproxy"
	ClusterAccount   = "account"
	ClusterBackend   = "backend"
	ClusterCollector = "otel_collector"
)

// Endpoint is one replica of a cluster.
type Endpoint struct {
	// Address is host:port, or unix:///path for a Unix socket.
	Address string
	// HealthPort is asked by health checks instead of Address's port; 0 asks the port itself.
	HealthPort uint32
}

// Options says what Render changes. A zero field leaves what the file says.
type Options struct {
	// Listener is the host:port of the first listener.
	Listener string
	// Admin is the host:port of the admin server.
	Admin string
	// AdminPaths, when set, are the only exact paths that the admin server answers.
	AdminPaths []string
	// Clusters replaces all endpoints of the clusters named; a name that the file lacks is an error.
	Clusters map[string][]Endpoint
	// TraceCollector is the host:port of an OTLP gRPC receiver; TraceSampling the percentage, 0 to 100, that is
	// recorded and sent to it. With no collector nothing is recorded.
	TraceCollector string
	TraceSampling  float64
	// OneCall removes the ratelimit filter and its cluster: authz decides the limits too (limits.in_authz).
	OneCall bool
	// Quotas puts the rate_limit_quota filter in place of the ratelimit filter.
	Quotas bool
	// AccessLog is the path of the access log file, which Envoy creates.
	AccessLog string
	// DecisionTimeout, above 0, is how long Envoy waits for authz and for ratelimit: for a connection, for each try and
	// for the whole call. Tests that are not about it have time, however slow the machine.
	DecisionTimeout time.Duration
}

// Render returns a copy of b with the addresses of o. Everything else stays as the file has it.
func Render(b *bootstrapv3.Bootstrap, o Options) (*bootstrapv3.Bootstrap, error) {
	out := proto.CloneOf(b)
	if err := renderAdmin(out, o); err != nil {
		return nil, err
	}
	clusters := maps.Clone(o.Clusters)
	if o.TraceCollector != "" {
		if clusters == nil {
			clusters = make(map[string][]Endpoint, 1)
		}
		clusters[ClusterCollector] = []Endpoint{{Address: o.TraceCollector}}
	}
	if o.OneCall {
		delete(clusters, ClusterRateLimit)
		removeCluster(out, ClusterRateLimit)
	}
	for name, endpoints := range clusters {
		if err := renderCluster(out, name, endpoints); err != nil {
			return nil, err
		}
	}
	if err := renderListener(out, o); err != nil {
		return nil, err
	}
	if o.DecisionTimeout > 0 {
		useConnectTimeout(out, o.DecisionTimeout)
	}
	if err := validate(out); err != nil {
		return nil, err
	}
	return out, nil
}

// WriteFile writes b to path as YAML, readable by its owner alone.
func WriteFile(path string, b *bootstrapv3.Bootstrap) error {
	text, err := YAML(b)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// YAML returns b as YAML with sorted keys: the same configuration is the same text.
func YAML(b *bootstrapv3.Bootstrap) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode Envoy configuration: %w", err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("encode Envoy configuration: %w", err)
	}
	return yaml.Marshal(tree)
}

func renderAdmin(b *bootstrapv3.Bootstrap, o Options) error {
	if o.Admin == "" && o.AdminPaths == nil {
		return nil
	}
	if b.Admin == nil {
		b.Admin = new(bootstrapv3.Admin)
	}
	if o.Admin != "" {
		address, err := address(o.Admin)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		b.Admin.Address = address
	}
	if o.AdminPaths != nil {
		b.Admin.AllowPaths = nil
		for _, path := range o.AdminPaths {
			b.Admin.AllowPaths = append(b.Admin.AllowPaths, exact(path))
		}
	}
	return nil
}

func renderCluster(b *bootstrapv3.Bootstrap, name string, endpoints []Endpoint) error {
	all := b.GetStaticResources().GetClusters()
	at := slices.IndexFunc(all, func(c *clusterv3.Cluster) bool { return c.GetName() == name })
	if at < 0 {
		var known []string
		for _, c := range all {
			known = append(known, c.GetName())
		}
		return fmt.Errorf("cluster %q is not in the configuration; it has %s", name, strings.Join(known, ", "))
	}
	if len(endpoints) == 0 {
		return fmt.Errorf("cluster %q: no endpoint given", name)
	}
	local := new(endpointv3.LocalityLbEndpoints)
	for _, e := range endpoints {
		address, err := address(e.Address)
		if err != nil {
			return fmt.Errorf("cluster %q: %w", name, err)
		}
		endpoint := &endpointv3.Endpoint{Address: address}
		if e.HealthPort != 0 {
			endpoint.HealthCheckConfig = &endpointv3.Endpoint_HealthCheckConfig{PortValue: e.HealthPort}
		}
		if address.GetPipe() != nil { // only static clusters take a socket's path
			all[at].ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		}
		local.LbEndpoints = append(local.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: endpoint},
		})
	}
	all[at].LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{local},
	}
	return nil
}

func removeCluster(b *bootstrapv3.Bootstrap, name string) {
	b.StaticResources.Clusters = slices.DeleteFunc(b.GetStaticResources().GetClusters(), func(c *clusterv3.Cluster) bool { return c.GetName() == name })
}

func renderListener(b *bootstrapv3.Bootstrap, o Options) error {
	if o.TraceCollector == "" && o.TraceSampling != 0 {
		return fmt.Errorf("trace sampling %v without a collector", o.TraceSampling)
	}
	listeners := b.GetStaticResources().GetListeners()
	if len(listeners) == 0 {
		return errors.New("the configuration has no listener")
	}
	if o.Listener != "" {
		address, err := address(o.Listener)
		if err != nil {
			return fmt.Errorf("listener: %w", err)
		}
		listeners[0].Address = address
	}
	if o.AccessLog == "" && o.TraceCollector == "" && !o.OneCall && !o.Quotas && o.DecisionTimeout <= 0 {
		return nil
	}
	changed := 0
	for _, chain := range listeners[0].GetFilterChains() {
		for _, filter := range chain.GetFilters() {
			if !filter.GetTypedConfig().MessageIs((*hcmv3.HttpConnectionManager)(nil)) {
				continue
			}
			changed++
			if err := renderManager(filter, o); err != nil {
				return err
			}
		}
	}
	if changed == 0 {
		return errors.New("the first listener has no HTTP connection manager")
	}
	return nil
}

// renderManager unpacks an HTTP connection manager, changes it and packs it again.
func renderManager(filter *listenerv3.Filter, o Options) error {
	manager := new(hcmv3.HttpConnectionManager)
	if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
		return err
	}
	if o.TraceCollector != "" {
		if manager.GetTracing() == nil {
			return errors.New("the configuration has no tracing section to send to a collector")
		}
		if !(o.TraceSampling >= 0 && o.TraceSampling <= 100) || math.IsNaN(o.TraceSampling) {
			return fmt.Errorf("trace sampling %v is not a percentage from 0 to 100", o.TraceSampling)
		}
		manager.Tracing.RandomSampling = &typev3.Percent{Value: o.TraceSampling}
	}
	if o.Quotas {
		if err := useQuotas(manager); err != nil {
			return err
		}
	}
	if o.OneCall {
		filters := len(manager.GetHttpFilters())
		manager.HttpFilters = slices.DeleteFunc(manager.GetHttpFilters(), isRateLimit)
		if len(manager.GetHttpFilters()) == filters {
			return errors.New("the configuration has no ratelimit filter to remove")
		}
	}
	if o.DecisionTimeout > 0 {
		if err := useDecisionTimeout(manager, durationpb.New(o.DecisionTimeout)); err != nil {
			return err
		}
	}
	if o.AccessLog != "" {
		found := false
		for _, entry := range manager.GetAccessLog() {
			file := new(filev3.FileAccessLog)
			if !entry.GetTypedConfig().MessageIs(file) {
				continue
			}
			if err := entry.GetTypedConfig().UnmarshalTo(file); err != nil {
				return err
			}
			file.Path, found = o.AccessLog, true
			packed, err := anypb.New(file)
			if err != nil {
				return err
			}
			entry.GetTypedConfig().Value = packed.GetValue()
		}
		if !found {
			return errors.New("the configuration has no file access log to move")
		}
	}
	packed, err := anypb.New(manager)
	if err != nil {
		return err
	}
	filter.GetTypedConfig().Value = packed.GetValue()
	return nil
}

func isRateLimit(f *hcmv3.HttpFilter) bool {
	return f.GetTypedConfig().MessageIs((*ratelimitv3.RateLimit)(nil))
}

// address parses host:port or unix:///path.
func address(text string) (*corev3.Address, error) {
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("address %q: a Unix socket is unix:///path", text)
		}
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return nil, fmt.Errorf("address %q is neither host:port nor unix:///path", text)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" {
		return nil, fmt.Errorf("address %q needs a host and a port from 0 to 65535", text)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(number)},
	}}}, nil
}
