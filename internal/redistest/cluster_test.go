package redistest

import "testing"

// TestLostAnswers: a client of a Cluster sends again what got no answer, and the
// server has run both.
func TestLostAnswers(t *testing.T) {
	lost := &LostAnswers{Of: "incr"}
	c := lost.Cluster(t, Cluster(t, 2))
	for _, want := range []int64{1, 3} {
		if n, err := c.Incr(t.Context(), "n").Result(); n != want || err != nil {
			t.Errorf("%d, %v, want %d", n, err, want)
		}
		lost.LoseNext()
	}
	if n := lost.Sent(); n != 3 {
		t.Errorf("sent %d times", n)
	}
}
