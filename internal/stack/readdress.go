package stack

import (
	"regexp"
	"strconv"
)

var loopbackAddress = regexp.MustCompile(`\b(127\.0\.0\.1|localhost):([0-9]{1,5})\b`)

// readdress replaces the ports of loopback addresses in a configuration file;
// every other byte, comments too, stays as it is.
func readdress(file []byte, ports map[int]int) []byte {
	return loopbackAddress.ReplaceAllFunc(file, func(address []byte) []byte {
		parts := loopbackAddress.FindSubmatch(address)
		old, err := strconv.Atoi(string(parts[2]))
		if err != nil { // the expression admits digits only
			return address
		}
		port, ok := ports[old]
		if !ok {
			return address
		}
		return strconv.AppendInt(append(parts[1][:len(parts[1]):len(parts[1])], ':'), int64(port), 10)
	})
}

// moved returns, for each contract port, the port that stands in for it.
func moved(ports Ports) map[int]int {
	changes := map[int]int{}
	for endpoint, port := range ContractPorts() {
		if ports[endpoint] != port {
			changes[port] = ports[endpoint]
		}
	}
	return changes
}
