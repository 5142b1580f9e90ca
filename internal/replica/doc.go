// Package replica is what the replicas of pyproxy share through Redis: kept
// answers and their purges, and hints of opened circuits.
//
// It is the adapter between Redis and packages httpcache and pyproxy, which
// decide and know no store. Nothing depends on Redis being there.
package replica
