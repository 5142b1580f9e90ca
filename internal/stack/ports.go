package stack

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/tollgate-proxy/tollgate/internal/supervisor"
)

// Endpoint names an address that some part of the stack listens on.
type Endpoint string

// The endpoints, one a listener.
const (
	EnvoyListener     Endpoint = "envoy"
	EnvoyAdmin        Endpoint = "envoy admin"
	AuthzGRPC         Endpoint = "authz grpc"
	AuthzHTTP         Endpoint = "authz api"
	AuthzOperations   Endpoint = "authz operations"
	RatelimitGRPC     Endpoint = "ratelimit grpc"
	RatelimitHTTP     Endpoint = "ratelimit api"
	RatelimitOps      Endpoint = "ratelimit operations"
	Pyproxy1HTTP      Endpoint = "pyproxy-1 http"
	Pyproxy1Ops       Endpoint = "pyproxy-1 operations"
	Pyproxy2HTTP      Endpoint = "pyproxy-2 http"
	Pyproxy2Ops       Endpoint = "pyproxy-2 operations"
	ServiceML         Endpoint = "ml"
	ServiceNLP        Endpoint = "nlp"
	ServiceFraud      Endpoint = "fraud"
	ServiceData       Endpoint = "data"
	ServiceBlockchain Endpoint = "blockchain"
	EchoBackend       Endpoint = "echo"
	RedisServer       Endpoint = "redis"
)

// Ports says which port of the loopback each endpoint uses.
type Ports map[Endpoint]int

// ContractPorts returns the ports that the contract, envoy/envoy.yaml and
// config/*.yaml name.
func ContractPorts() Ports {
	return Ports{
		EnvoyListener: 10000, EnvoyAdmin: 9901,
		AuthzGRPC: 9101, AuthzHTTP: 8101, AuthzOperations: 7101,
		RatelimitGRPC: 9102, RatelimitHTTP: 8102, RatelimitOps: 7102,
		Pyproxy1HTTP: 8103, Pyproxy1Ops: 7103,
		Pyproxy2HTTP: 8113, Pyproxy2Ops: 7113,
		ServiceML: 9201, ServiceNLP: 9202, ServiceFraud: 9203, ServiceData: 9204, ServiceBlockchain: 9205,
		EchoBackend: 8080,
		// Not 6379: a Redis of the machine may be there.
		RedisServer: 16379,
	}
}

// FreePorts returns ports that nothing listens on at the moment.
func FreePorts() (Ports, error) {
	contract := ContractPorts()
	free, err := supervisor.FreePorts(len(contract))
	if err != nil {
		return nil, err
	}
	ports := Ports{}
	for i, endpoint := range slices.Sorted(maps.Keys(contract)) {
		ports[endpoint] = free[i]
	}
	return ports, nil
}

// Address returns host:port of an endpoint.
func (p Ports) Address(e Endpoint) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p[e]))
}

// URL returns the base URL of an HTTP endpoint, without a slash at its end.
func (p Ports) URL(e Endpoint) string { return "http://" + p.Address(e) }

// complete fills in the contract's port for what p does not name, and refuses a
// port out of range or used twice.
func (p Ports) complete() (Ports, error) {
	full := ContractPorts()
	maps.Copy(full, p)
	users := map[int]Endpoint{}
	for _, e := range slices.Sorted(maps.Keys(full)) {
		port := full[e]
		if port < 1 || port > 65535 {
			return nil, fmt.Errorf("port %d of %s is not within 1 to 65535", port, e)
		}
		if other, taken := users[port]; taken {
			return nil, fmt.Errorf("port %d is given to both %s and %s", port, other, e)
		}
		users[port] = e
	}
	return full, nil
}
