// Package envoyconf reads Envoy's configuration as Envoy itself would: strictly, into the generated types, with
// every extension resolved and validated. It also renders a file with other addresses, so that the demo, the tests
// and Compose run the configuration that users deploy rather than a copy that drifts from it.
//
// What it cannot know, for example whether a regular expression compiles in RE2 or an extension is built in, the
// real Envoy says: see Check.
package envoyconf
