package invoicing

// TreatmentFinished says that a patient's treatment is done.
type TreatmentFinished struct {
	Fee string `json:"fee"`
}

// EventType implements [events.Data].
func (TreatmentFinished) EventType() string { return "TreatmentFinished" }

// InvoiceRequested asks for the invoice of a treatment.
type InvoiceRequested struct {
	Amount string `json:"amount"`
}

// EventType implements [events.Data].
func (InvoiceRequested) EventType() string { return "InvoiceRequested" }

// AggregateType implements [events.Opening].
func (InvoiceRequested) AggregateType() string { return "Invoice" }
