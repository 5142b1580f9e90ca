package experiment

// paired gives, for one metric, each variant's users' values together with those
// before the experiment; nil where nothing is known from before. Users of whom
// nothing is known get what cannot depend on their variant: the mean of the
// others, or 0 where having done nothing is a value.
func paired(m Metric, data []VariantData) []Pair {
	var known Moments
	for i := range data {
		known.Merge(data[i].Metrics[m.Name].Known.Before)
	}
	if known.N == 0 {
		return nil
	}
	fill := 0.0
	if m.Kind == Mean {
		fill = known.Mean
	}
	out := make([]Pair, len(data))
	for i := range data {
		metric := data[i].Metrics[m.Name]
		out[i] = filled(metric.Users, metric.Known, fill)
	}
	return out
}

// filled adds to known, which are pairs of some of all users, the others with
// fill for the time before.
func filled(all Moments, known Pair, fill float64) Pair {
	rest := all.without(known.Value)
	known.Merge(Pair{Value: rest, Before: Moments{N: rest.N, Mean: fill}})
	return known
}
