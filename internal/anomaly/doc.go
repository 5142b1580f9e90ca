// Package anomaly notices requests that do not look like the user: from a place
// the user cannot have reached, from a new device, country or network, from many
// addresses at once, at an hour that is not the user's.
//
// Each [Signal] has a code, a weight and evidence; the sum of the weights, at most
// 100, is the score; thresholds turn the score into an [Action]. [Rules.Judge] is
// that decision, a pure function of what is known of the user ([History]), what was
// seen ([Observation]) and the configuration.
//
// [Watch] is what a request meets. It remembers the assessment of each token with
// its address, agent and device, so that a request like the one before costs one
// look-up; only what changed, or was not looked at for a while, is judged, behind
// the request or within a bounded wait.
//
// [Redis] and [Memory] keep what is known; both pass one suite. [Places] says where
// an address is, from MMDB files that may be replaced at any time. Where a part
// cannot answer there is no signal: suspicion alone never makes the gateway
// unavailable.
package anomaly
