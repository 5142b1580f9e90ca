// Package deploy holds the tests of what the project ships for running it: the Compose file, the image's Dockerfiles,
// the Kubernetes manifests, the scrape configuration, alerts and dashboards. It has no code of its own.
package deploy
