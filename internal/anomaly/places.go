package anomaly

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tollgate-proxy/tollgate/internal/config"
)

// PlacesConfig is the section "anomaly.places".
type PlacesConfig struct {
	Databases []config.Path `yaml:"databases" doc:"MMDB files that say where addresses are, such as one of cities and one of autonomous systems; the first that knows a part decides it. Without one, and without headers, signals about places are silent."`
	Poll      time.Duration `yaml:"poll" doc:"How often the files are looked at; one that was replaced is read afresh; 100ms to 24h."`
	MaxSize   config.Bytes  `yaml:"max_size" doc:"Largest file, which is held in memory; at least 1KiB."`
}

// Validate checks the section.
func (c PlacesConfig) Validate(r *config.Report) {
	for i, path := range c.Databases {
		if info, err := os.Stat(string(path)); err != nil || !info.Mode().IsRegular() {
			r.Fault(fmt.Sprintf("databases[%d]", i), string(path), "the path of an MMDB file that is there")
		}
	}
	if c.Poll < 100*time.Millisecond || c.Poll > 24*time.Hour {
		r.Fault("poll", c.Poll, "100ms to 24h")
	}
	if c.MaxSize < 1<<10 {
		r.Fault("max_size", c.MaxSize, "at least 1KiB")
	}
}

// Places says where addresses are. Its files may be replaced while it is in use. Safe for concurrent use.
type Places struct {
	log     *slog.Logger
	inUse   atomic.Pointer[databases]
	loads   *prometheus.CounterVec
	built   *prometheus.GaugeVec
	lookups [3]prometheus.Counter
}

// databases are files in the order in which they are asked.
type databases struct {
	config PlacesConfig
	files  []*database
}

// What came of a look-up.
const (
	lookupFound = iota
	lookupUnknown
	lookupFailed
)

// database is one file. A file is read into memory rather than mapped: whoever truncates a mapped file kills the
// process, and a map that is replaced must not be unmapped under a look-up.
type database struct {
	path   string
	reader atomic.Pointer[maxminddb.Reader]
	tried  os.FileInfo // the file as it was when it was last read; used by one goroutine
	failed bool
}

// OpenPlaces reads the files; each must be there and whole. log and metrics may be nil.
func OpenPlaces(c PlacesConfig, log *slog.Logger, metrics prometheus.Registerer) (*Places, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p := &Places{
		log: log,
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tollgate_anomaly_database_loads_total",
			Help: "Times that a replaced MMDB file was read, by outcome.",
		}, []string{"outcome"}),
		built: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "tollgate_anomaly_database_built_timestamp_seconds",
			Help: "When the MMDB file in use was built.",
		}, []string{"database"}),
	}
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tollgate_anomaly_lookups_total",
		Help: "Addresses looked up in the MMDB files, by outcome.",
	}, []string{"outcome"})
	for i, outcome := range []string{"found", "unknown", "failed"} {
		p.lookups[i] = lookups.WithLabelValues(outcome)
	}
	use, err := p.Prepare(c)
	if err != nil {
		return nil, err
	}
	use()
	return p, register(metrics, p.loads, p.built, lookups)
}

// Prepare reads the files of another configuration; use puts them in the place of those in use. Where the configuration
// is the same nothing is read: Run sees to files that were replaced.
func (p *Places) Prepare(c PlacesConfig) (use func(), err error) {
	if now := p.inUse.Load(); now != nil && reflect.DeepEqual(now.config, c) {
		return func() {}, nil
	}
	next := &databases{config: c}
	for _, path := range c.Databases {
		d := &database{path: string(path)}
		if err := d.load(int64(c.MaxSize)); err != nil {
			return nil, err
		}
		next.files = append(next.files, d)
	}
	return func() {
		p.inUse.Store(next)
		p.built.Reset()
		for _, d := range next.files {
			p.tellBuilt(d)
		}
	}, nil
}

func (p *Places) tellBuilt(d *database) {
	p.built.WithLabelValues(filepath.Base(d.path)).Set(float64(d.reader.Load().Metadata.BuildEpoch))
}

func register(r prometheus.Registerer, collectors ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// load reads a file and puts it to use, or changes nothing.
func (d *database) load(maxSize int64) error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("open database of places: %w", err)
	}
	defer f.Close()
	if d.tried, err = f.Stat(); err != nil {
		return fmt.Errorf("open database of places: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return fmt.Errorf("read database of places: %w", err)
	}
	if int64(len(data)) > maxSize {
		return fmt.Errorf("database of places %s is larger than %s", d.path, config.Bytes(maxSize))
	}
	reader, err := maxminddb.OpenBytes(data)
	if err == nil {
		err = walk(reader)
	}
	if err != nil {
		return fmt.Errorf("database of places %s: %w", d.path, err)
	}
	d.reader.Store(reader)
	return nil
}

// walk follows the whole tree, so that a damaged file is refused rather than found out by a look-up. The library's own
// verification also refuses files that merely lack a description, as some publishers' do.
func walk(reader *maxminddb.Reader) error {
	for result := range reader.Networks() {
		if err := result.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Run reads replaced files until ctx ends, and returns nil.
func (p *Places) Run(ctx context.Context) error {
	for {
		timer := time.NewTimer(p.inUse.Load().config.Poll)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
			now := p.inUse.Load()
			for _, d := range now.files {
				p.refresh(d, int64(now.config.MaxSize))
			}
		}
	}
}

// refresh reads a file that is another than before. One that cannot be read leaves the last good one in use.
func (p *Places) refresh(d *database, maxSize int64) {
	now, err := os.Stat(d.path)
	if err == nil && os.SameFile(now, d.tried) && now.Size() == d.tried.Size() && now.ModTime().Equal(d.tried.ModTime()) {
		return
	}
	if err == nil {
		err = d.load(maxSize)
	}
	if err == nil {
		p.tellBuilt(d)
		p.loads.WithLabelValues("loaded").Inc()
		p.log.Info("database of places replaced", "database", d.path, "built", d.reader.Load().Metadata.BuildTime().UTC())
		d.failed = false
		return
	}
	if !d.failed || !errors.Is(err, os.ErrNotExist) { // a file that stays away is told of once
		p.loads.WithLabelValues("failed").Inc()
		p.log.Error("database of places cannot be read; the last one stays in use", "database", d.path, "error", err)
	}
	d.failed = true
}

// Place looks an address up. Time and memory are bounded by the format: one step for each bit of the address, and the
// fields read by name.
func (p *Places) Place(address netip.Addr) Place {
	var place Place
	files := p.inUse.Load().files
	if !address.IsValid() || len(files) == 0 {
		return place
	}
	address = address.Unmap().WithZone("")
	failed := false
	for _, d := range files {
		result := d.reader.Load().Lookup(address)
		switch {
		case result.Err() != nil:
			failed = failed || !isFamilyMismatch(d.reader.Load(), address)
		case result.Found():
			read(result, &place)
		}
	}
	switch {
	case place.Known():
		p.lookups[lookupFound].Inc()
	case failed:
		p.lookups[lookupFailed].Inc()
	default:
		p.lookups[lookupUnknown].Inc()
	}
	return place
}

// isFamilyMismatch: a database of IPv4 alone knows no IPv6 address, which is no failure.
func isFamilyMismatch(r *maxminddb.Reader, address netip.Addr) bool {
	return r.Metadata.IPVersion == 4 && address.Is6()
}

// read fills in what is not known yet. It knows the layout of MaxMind's files, nested, and that of others, flat; a
// field of another type is as good as none.
func read(result maxminddb.Result, place *Place) {
	text := func(path ...any) (s string) {
		if result.DecodePath(&s, path...) != nil {
			return ""
		}
		return s
	}
	number := func(path ...any) (f float64, ok bool) {
		var n *float64
		if result.DecodePath(&n, path...) != nil || n == nil {
			return 0, false
		}
		return *n, true
	}
	if place.Country == "" {
		place.Country = country(text("country", "iso_code"))
	}
	if place.Country == "" {
		place.Country = country(text("country_code"))
	}
	if place.Country == "" {
		place.Country = country(text("country"))
	}
	if place.Network == 0 {
		var n uint32
		if result.DecodePath(&n, "autonomous_system_number") == nil {
			place.Network = n
		}
	}
	if place.Network == 0 {
		place.Network = PlaceText{Network: text("asn")}.Parse().Network
	}
	if place.Located {
		return
	}
	latitude, ok1 := number("location", "latitude")
	longitude, ok2 := number("location", "longitude")
	if !ok1 || !ok2 {
		latitude, ok1 = number("latitude")
		longitude, ok2 = number("longitude")
	}
	if ok1 && ok2 {
		radius := float64(defaultRadius)
		var km uint16
		if result.DecodePath(&km, "location", "accuracy_radius") == nil && km > 0 {
			radius = float64(km)
		}
		place.locate(latitude, longitude, radius)
	}
}
