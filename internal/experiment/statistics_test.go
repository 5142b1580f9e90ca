package experiment

import (
	"math"
	"math/rand/v2"
	"testing"
)

// R's t.test on its data set "sleep" (Student 1908).
func TestWelchPublished(t *testing.T) {
	control := momentsOf(0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
	treatment := momentsOf(1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
	c := Welch(control, treatment, 0.05)
	if !near(c.P, 0.0793941401873583, 1e-9) || !near(c.Difference, 1.58, 1e-9) ||
		!near(c.Low, -0.20548323071171137, 1e-8) || !near(c.High, 3.3654832307117104, 1e-8) {
		t.Errorf("got %+v", c)
	}
}

func TestComparisonsOfTooLittle(t *testing.T) {
	for name, compare := range map[string]func(a, b Moments) Comparison{
		"Welch":      func(a, b Moments) Comparison { return Welch(a, b, 0.05) },
		"sequential": func(a, b Moments) Comparison { return Sequential(a, b, 100, 0.05) },
	} {
		if c := compare(momentsOf(1), momentsOf(1, 2)); c.P != 1 || !math.IsInf(c.Low, -1) || !math.IsInf(c.High, 1) {
			t.Errorf("%s of one value: %+v", name, c)
		}
		if c := compare(momentsOf(1, 1), momentsOf(1, 1)); c.P != 1 || c.Low != 0 || c.High != 0 {
			t.Errorf("%s of equal constants: %+v", name, c)
		}
	}
	if c := Welch(momentsOf(1, 1), momentsOf(2, 2), 0.05); c.P != 0 || c.Low != 1 {
		t.Errorf("Welch of different constants: %+v", c)
	}
	if c := Sequential(momentsOf(1, 1), momentsOf(2, 2), 100, 0.05); c.P < 0.5 || c.Low > 0 {
		t.Errorf("sequential of two users each: %+v", c)
	}
}

// Published sample ratios: Mendel's peas (1866), and an experiment of Bing with
// 821,588 and 815,482 users (Kohavi, Tang and Xu, Trustworthy Online Controlled
// Experiments, chapter 21: p = 1.8e-6).
func TestSampleRatioPublished(t *testing.T) {
	if p := SampleRatio([]int64{315, 108, 101, 32}, []uint32{9, 3, 3, 1}); !near(p, 0.925425895103616, 1e-9) {
		t.Errorf("Mendel: p = %v", p)
	}
	bing := []int64{821588, 815482}
	if p := SampleRatio(bing, []uint32{1, 1}); math.Abs(p-1.8217928726191858e-06) > 1e-12 {
		t.Errorf("Bing: p = %v", p)
	}
	if p := SampleRatioSequential(bing, []uint32{1, 1}); p > 0.001 {
		t.Errorf("Bing, sequential: p = %v", p)
	}
	if p := SampleRatioSequential([]int64{315, 108, 101, 32}, []uint32{9, 3, 3, 1}); p < 0.5 {
		t.Errorf("Mendel, sequential: p = %v", p)
	}
	if SampleRatio([]int64{0, 0}, []uint32{1, 1}) != 1 || SampleRatioSequential([]int64{0, 0}, []uint32{1, 1}) != 1 {
		t.Error("nobody is out of ratio")
	}
}

// R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
func TestHolmPublished(t *testing.T) {
	p := []float64{0.01, 0.04, 0.03, 0.005}
	for name, tt := range map[string]struct{ got, want []float64 }{
		"four":         {Holm(p), []float64{0.03, 0.06, 0.06, 0.02}},
		"up to 1":      {Holm([]float64{0.9, 0.8}), []float64{1, 1}},
		"equal values": {Holm([]float64{0.2, 0.2}), []float64{0.4, 0.4}},
		"none":         {Holm(nil), nil},
	} {
		if len(tt.got) != len(tt.want) {
			t.Fatalf("%s: got %v", name, tt.got)
		}
		for i := range tt.want {
			if !near(tt.got[i], tt.want[i], 1e-12) {
				t.Errorf("%s: got %v, want %v", name, tt.got, tt.want)
			}
		}
	}
}

// Newcombe 1998, table II, contrast (a): 56/70 and 48/80.
func TestRatesPublished(t *testing.T) {
	low, high := RateDifference(48, 80, 56, 70, 0.05)
	if math.Abs(low-0.0524) > 5e-5 || math.Abs(high-0.3339) > 5e-5 {
		t.Errorf("got %.4f to %.4f", low, high)
	}
	if low, high := RateDifference(0, 0, 1, 1, 0.05); low != -1 || high != 1 {
		t.Errorf("got %v to %v", low, high)
	}
	// R: prop.test(c(48, 56), c(80, 70), correct = FALSE), X-squared = 7.0234.
	if p := RateTest(48, 80, 56, 70); math.Abs(p-0.008045) > 5e-7 {
		t.Errorf("p = %v", p)
	}
	for _, p := range []float64{RateTest(0, 9, 0, 1), RateTest(9, 9, 1, 1), RateTest(0, 0, 0, 0)} {
		if p != 1 {
			t.Errorf("p = %v where nothing differs", p)
		}
	}
	// Newcombe 1998 (one proportion), 81/263: 0.2553 to 0.3662.
	if low, high := Wilson(81, 263, 0.05); math.Abs(low-0.2553) > 5e-5 || math.Abs(high-0.3662) > 5e-5 {
		t.Errorf("got %.4f to %.4f", low, high)
	}
	if low, high := Wilson(0, 0, 0.05); low != 0 || high != 1 {
		t.Errorf("got %v to %v", low, high)
	}
}

// latency is a skewed value, as latencies are.
func latency(r *rand.Rand) float64 { return math.Exp(0.5 * r.NormFloat64()) }

// grown adds users to a control and a treatment, the control times as many, and
// shows both whenever the treatment has grown by a step.
func grown(users, step, times int, control, treatment func() float64, look func(size int, c, t Moments)) (c, t Moments) {
	for i := 1; i <= users; i++ {
		for range times {
			c.Add(control())
		}
		t.Add(treatment())
		if i%step == 0 {
			look(i, c, t)
		}
	}
	return c, t
}

// A/A tests: between equal groups, Welch's test at the planned end is wrong at
// the stated rate; the sequential test is wrong less often although it is read
// after every 50 users; Welch's test read that way is not.
func TestFalseAlarmRates(t *testing.T) {
	const runs, users, step, least, alpha = 600, 1500, 50, 100, 0.05
	r := rand.New(rand.NewPCG(3, 4))
	draw := func() float64 { return latency(r) }
	planned, peeked, sequential := 0.0, 0.0, 0.0
	for range runs {
		welchAlarm, sequentialAlarm := false, false
		a, b := grown(users, step, 1, draw, draw, func(size int, a, b Moments) {
			if size >= least {
				welchAlarm = welchAlarm || Welch(a, b, alpha).P < alpha
				sequentialAlarm = sequentialAlarm || Sequential(a, b, users, alpha).P < alpha
			}
		})
		planned += one(Welch(a, b, alpha).P < alpha)
		peeked += one(welchAlarm)
		sequential += one(sequentialAlarm)
	}
	if got := planned / runs; got < 0.025 || got > 0.08 {
		t.Errorf("planned Welch test: false alarms at %v", got)
	}
	if got := sequential / runs; got > 0.05 {
		t.Errorf("sequential test: false alarms at %v", got)
	}
	if got := peeked / runs; got < 0.15 {
		t.Errorf("peeking at Welch's test: false alarms at %v only; the simulation is broken", got)
	}
}

// A/A tests with a small group beside a large one, of what is rare and of what
// is skewed: read after every 10 users of the small group, the sequential test
// is wrong at its stated rate at most, and so is Pearson's once, at the end.
func TestFalseAlarmRatesOfUnequalSplits(t *testing.T) {
	const runs, users, step, least, alpha = 300, 1000, 10, 100, 0.05
	errorsOf := func(rate float64) func(r *rand.Rand) float64 {
		return func(r *rand.Rand) float64 { return one(r.Float64() < rate) }
	}
	for _, tt := range []struct {
		name  string
		times int // users of the large group for each of the small one
		rate  bool
		draw  func(r *rand.Rand) float64
	}{
		{"errors of 1 %", 9, true, errorsOf(0.01)},
		{"errors of 1 ‰", 30, true, errorsOf(0.001)},
		{"half", 9, true, errorsOf(0.5)},
		{"skewed", 9, false, func(r *rand.Rand) float64 { return math.Exp(2 * r.NormFloat64()) }},
	} {
		r := rand.New(rand.NewPCG(31, 41))
		draw := func() float64 { return tt.draw(r) }
		sequential, planned := 0.0, 0.0
		for range runs {
			alarm := false
			large, small := grown(users, step, tt.times, draw, draw, func(size int, large, small Moments) {
				alarm = alarm || size >= least && Sequential(large, small, 2*least, alpha).P < alpha
			})
			sequential += one(alarm)
			planned += one(tt.rate && RateTest(hits(large), large.N, hits(small), small.N) < alpha)
		}
		if got := sequential / runs; got > alpha {
			t.Errorf("%s: false alarms at %v", tt.name, got)
		}
		if got := planned / runs; got > 0.085 {
			t.Errorf("%s: planned false alarms at %v", tt.name, got)
		}
	}
}

// A/A tests of users who come back: each visit changes the user's value, and no
// user is added. Read after every round of visits, the sequential test is wrong
// at its stated rate at most.
func TestFalseAlarmRatesOfReturningUsers(t *testing.T) {
	const runs, users, rounds, least, alpha = 150, 200, 200, 100, 0.05
	for _, kind := range []Kind{Sum, Mean, Rate} {
		r := rand.New(rand.NewPCG(33, 43))
		alarms := 0.0
		for range runs {
			people, habits := make([]User, users), make([]float64, users)
			for i := range habits {
				habits[i] = 1 + 0.3*r.NormFloat64()
			}
			alarm := false
			for round := 0; round < rounds && !alarm; round++ {
				var m [2]Moments
				for i := range people {
					if round == 0 || r.Float64() < 0.3 {
						value := habits[i] + r.NormFloat64()
						if kind == Rate {
							value = one(r.Float64() < 0.005)
						}
						if err := people[i].Observe(value); err != nil {
							t.Fatal(err)
						}
					}
					value, _ := people[i].Value(kind)
					m[i%2].Add(value)
				}
				alarm = Sequential(m[0], m[1], 2*least, alpha).P < alpha
			}
			alarms += one(alarm)
		}
		if got := alarms / runs; got > alpha {
			t.Errorf("%s: false alarms at %v", kind, got)
		}
	}
}

// A sequential sample-ratio check, read after every 100 users, raises false
// alarms at its stated rate at most, and finds a broken assignment.
func TestSampleRatioSequentialRates(t *testing.T) {
	const runs, users, step = 1000, 10000, 100
	r := rand.New(rand.NewPCG(5, 6))
	weights := []uint32{1, 1}
	read := func(share float64) bool {
		var counts [2]int64
		for i := 1; i <= users; i++ {
			if r.Float64() < share {
				counts[0]++
			} else {
				counts[1]++
			}
			if i%step == 0 && SampleRatioSequential(counts[:], weights) < 0.05 {
				return true
			}
		}
		return false
	}
	alarms := 0
	for range runs {
		if read(0.5) {
			alarms++
		}
	}
	if got := float64(alarms) / runs; got > 0.05 {
		t.Errorf("false alarms at %v", got)
	}
	if !read(0.47) {
		t.Error("3 % missing users were not noticed")
	}
}

// Users differ and make many requests. Counting requests as if they were users
// raises false alarms far above the stated rate; aggregating per user does not.
func TestPerUserAggregationIsNeeded(t *testing.T) {
	const runs, users, requests, alpha = 400, 100, 20, 0.05
	r := rand.New(rand.NewPCG(7, 8))
	perUser, perRequest := 0, 0
	for range runs {
		var people, calls [2]Moments
		for side := range 2 {
			for range users {
				habit := r.NormFloat64()
				var u User
				for range requests {
					v := habit + r.NormFloat64()
					calls[side].Add(v)
					if err := u.Observe(v); err != nil {
						t.Fatal(err)
					}
				}
				v, _ := u.Value(Mean)
				people[side].Add(v)
			}
		}
		if Welch(people[0], people[1], alpha).P < alpha {
			perUser++
		}
		if Welch(calls[0], calls[1], alpha).P < alpha {
			perRequest++
		}
	}
	if got := float64(perUser) / runs; got > 0.085 {
		t.Errorf("per user: false alarms at %v", got)
	}
	if got := float64(perRequest) / runs; got < 0.3 {
		t.Errorf("per request: false alarms at %v only; the simulation is broken", got)
	}
}

// The sequential test finds a real effect, and its interval covers it whenever
// it is read.
func TestSequentialFindsEffects(t *testing.T) {
	const runs, users, step, effect, alpha = 200, 3000, 100, 0.15, 0.05
	r := rand.New(rand.NewPCG(9, 10))
	found, missed := 0.0, 0.0
	for range runs {
		covered := true
		a, b := grown(users, step, 1, r.NormFloat64, func() float64 { return r.NormFloat64() + effect }, func(_ int, a, b Moments) {
			c := Sequential(a, b, users, alpha)
			covered = covered && c.Low <= effect && effect <= c.High
			if (c.P < alpha) != (c.Low > 0 || c.High < 0) {
				t.Fatalf("p-value and interval disagree: %+v", c)
			}
		})
		found += one(Sequential(a, b, users, alpha).P < alpha)
		missed += one(!covered)
	}
	if found < runs*0.9 {
		t.Errorf("found %v of %v", found, runs)
	}
	if missed/runs > alpha {
		t.Errorf("the interval missed the truth in %v of %v", missed, runs)
	}
}

// With a correlation of 0.8, CUPED leaves 1 - 0.8^2 = 36 % of the variance, and
// the expected difference as it was.
func TestCuped(t *testing.T) {
	const runs, users, effect, correlation = 300, 400, 0.1, 0.8
	r := rand.New(rand.NewPCG(11, 12))
	var differences, shares Moments
	for range runs {
		var groups [2]Pair
		for side := range groups {
			for range users {
				before := r.NormFloat64()
				value := correlation*before + math.Sqrt(1-correlation*correlation)*r.NormFloat64() + float64(side)*effect
				groups[side].Add(value, before)
			}
		}
		a, b := Cuped(groups[0], groups[1])
		differences.Add(b.Mean - a.Mean)
		shares.Add((a.Variance() + b.Variance()) / (groups[0].Value.Variance() + groups[1].Value.Variance()))
	}
	if math.Abs(differences.Mean-effect) > 4*math.Sqrt(differences.meanVariance()) {
		t.Errorf("difference %v, want %v", differences.Mean, effect)
	}
	if math.Abs(shares.Mean-0.36) > 0.02 {
		t.Errorf("share of variance %v", shares.Mean)
	}
	flat := Pair{Value: momentsOf(1, 2), Before: momentsOf(5, 5)}
	if a, _ := Cuped(flat, flat); a != flat.Value {
		t.Errorf("got %+v", a)
	}
}
