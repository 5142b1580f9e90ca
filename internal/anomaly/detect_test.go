package anomaly

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tollgate-proxy/tollgate/internal/redistest"
)

func TestDetect(t *testing.T) {
	w := newWatch(t, NewMemory(), nil)
	w.expect("home", sighting(-3*day, berlin), "", None)
	w.expect("home", sighting(-2*day, berlin), "", None)
	w.idle()
	before := mustHistory(t, w.store.Store, "ada")
	for range 30 {
		w.Failed(netip.MustParseAddr(newYork), start)
	}
	for what, c := range map[string]struct {
		s    *Sighting
		want string
	}{
		"now":               {sighting(0, newYork), "new_country,new_network,failed_verifications"},
		"then":              {sighting(-2*day+time.Hour, newYork), "impossible_travel,new_country,new_network"},
		"before it all":     {sighting(-4*day, newYork), ""},
		"at home":           {sighting(-2*day+time.Hour, berlin), ""},
		"without a session": {sighting(0, berlin, phone, func(s *Sighting) { s.Token, s.Session = [32]byte{}, "" }), "new_device"},
		"without anything":  {&Sighting{User: "ada", At: start}, ""},
	} {
		v, err := w.Detect(t.Context(), c.s)
		if err != nil || v.Reasons != c.want {
			t.Errorf("%s: %+v, %v", what, v, err)
		}
	}
	if diff := cmp.Diff(before, mustHistory(t, w.store.Store, "ada")); diff != "" {
		t.Errorf("detecting taught something:\n%s", diff)
	}
	away, err := NewWatch(DefaultConfig(), Options{Store: NewRedis(redistest.Client(t, redistest.FreeAddr(t)))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := away.Detect(t.Context(), sighting(0, berlin)); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}
