package anomaly

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Rules are a configuration, made ready to judge by. They do not change.
type Rules struct {
	config      Config
	weights     map[Code]int
	thresholds  []threshold // highest score first
	trusted     networks
	anonymisers networks
}

type threshold struct {
	score  int
	action Action
}

// Compile makes rules of a valid configuration.
func Compile(c Config) (*Rules, error) {
	r := &Rules{config: c, weights: map[Code]int{}}
	for _, w := range slices.Concat(defaultWeights, c.Weights) {
		r.weights[Code(w.Signal)] = w.Weight
	}
	for _, a := range c.Actions {
		t := threshold{score: a.Score}
		if err := t.action.UnmarshalText([]byte(a.Action)); err != nil {
			return nil, err
		}
		r.thresholds = append(r.thresholds, t)
	}
	slices.SortFunc(r.thresholds, func(a, b threshold) int { return cmp.Compare(b.score, a.score) })
	var err error
	if r.trusted, err = newNetworks(c.Trusted); err != nil {
		return nil, fmt.Errorf("trusted: %w", err)
	}
	if r.anonymisers, err = newNetworks(c.Anonymiser); err != nil {
		return nil, fmt.Errorf("anonymisers: %w", err)
	}
	return r, nil
}

// action is what a score leads to. A score that no threshold covers leads to nothing.
func (r *Rules) action(score int) Action {
	for _, t := range r.thresholds {
		if score >= t.score {
			return t.action
		}
	}
	return None
}

// does says whether any score leads to the action.
func (r *Rules) does(a Action) bool {
	return slices.ContainsFunc(r.thresholds, func(t threshold) bool { return t.action == a })
}

// networks is a set of address ranges and autonomous systems. Asking takes one look-up for each length of prefix in it.
type networks struct {
	prefixes map[netip.Prefix]bool
	lengths4 []int
	lengths6 []int
	asns     map[uint32]bool
}

func newNetworks(c NetworksConfig) (networks, error) {
	n := networks{prefixes: map[netip.Prefix]bool{}, asns: map[uint32]bool{}}
	for _, s := range c.Ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return networks{}, fmt.Errorf("range %q: %w", s, err)
		}
		lengths := &n.lengths6
		if p.Addr().Is4() {
			lengths = &n.lengths4
		}
		if !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
		n.prefixes[p.Masked()] = true
	}
	for _, asn := range c.ASNs {
		n.asns[asn] = true
	}
	return n, nil
}

// has says whether the set holds an address, or the autonomous system it belongs to.
func (n *networks) has(address netip.Addr, asn uint32) bool {
	if asn != 0 && n.asns[asn] {
		return true
	}
	if !address.IsValid() {
		return false
	}
	address = address.Unmap().WithZone("")
	lengths := n.lengths6
	if address.Is4() {
		lengths = n.lengths4
	}
	for _, bits := range lengths {
		if p, err := address.Prefix(bits); err == nil && n.prefixes[p] {
			return true
		}
	}
	return false
}
