package metrics

// Values are the metrics by their names, each summed over its labels; of a histogram it is the count. What cannot be
// collected is missing.
func (m *Metrics) Values() map[string]float64 {
	families, _ := m.registry.Gather() // with an error there are the others
	values := make(map[string]float64, len(families))
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			values[family.GetName()] += metric.GetCounter().GetValue() + metric.GetGauge().GetValue() +
				float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return values
}
