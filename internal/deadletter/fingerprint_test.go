package deadletter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/deadletter"
)

func TestPattern(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{
		"":                    "",
		"patient has no name": "patient has no name",
		"no patient 5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 here":                      "no patient ID here",
		"No Patient 5F0C7A52-9B4E-4A35-8F0E-2F6D0F6B1C11":                           "No Patient ID",
		"letter 01JD2Q3YQ4X3M4J5K6N7P8R9ST":                                         "letter ID",
		"object 507f1f77bcf86cd799439011 in deadbeef":                               "object ID in deadbeef",
		"key a1b2c3d4e5 and order4711":                                              "key ID and orderN",
		"version 3, want 12":                                                        "version N, want N",
		"balance -1,234.50 is below 0.1":                                            "balance N is below N",
		"timed out after 30s":                                                       "timed out after Ns",
		"timed out after 1m30.5s":                                                   "timed out after NmN.Ns",
		"dial tcp 10.0.0.1:5432: connect: connection refused":                       "dial tcp N:N: connect: connection refused",
		"at 2026-01-02T03:04:05.678Z":                                               "at N-N-NTN:N:NZ",
		`no clinic "St. \"Mary\"" of 'x y'`:                                         `no clinic "…" of "…"`,
		"no clinic `a` of “b” and «c»":                                              `no clinic "…" of "…" and "…"`,
		"can't read the patient's file, isn't there":                                "can't read the patient's file, isn't there",
		"an 'it's' apart":                                                           `an "…" apart`,
		`an open " quote`:                                                           `an open " quote`,
		"‹name› is taken, says ‹code1›":                                             "‹name› is taken, says ‹code1›",
		"sha256 of int64 in utf8 by x509":                                           "sha256 of int64 in utf8 by x509",
		"  much\n\tblank  ":                                                         "much blank",
		"parked behind event 5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 of its aggregate": "parked behind event ID of its aggregate",
		"größe 7 für Jürgen2":                                                       "größe N für Jürgen2",
		"\xff\xfe 7":                                                                "\xff\xfe N",
	} {
		require.Equal(t, want, deadletter.Pattern(reason), "%q", reason)
		require.Equal(t, want, deadletter.Pattern(want), "the pattern of a pattern is itself")
	}
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	id, pattern := deadletter.Fingerprint("welcome", "PatientRegistered", "no patient 7")
	require.Equal(t, "no patient N", pattern)
	require.Regexp(t, "^[0-9a-f]{8}$", id)
	again, _ := deadletter.Fingerprint("welcome", "PatientRegistered", "no patient 8")
	require.Equal(t, id, again)
	for _, other := range [][3]string{
		{"remind", "PatientRegistered", "no patient 7"},
		{"welcome", "PatientMoved", "no patient 7"},
		{"welcome", "PatientRegistered", "no patients 7"},
		{"welcomeP", "atientRegistered", "no patient 7"},
	} {
		differs, _ := deadletter.Fingerprint(other[0], other[1], other[2])
		require.NotEqual(t, id, differs, "%v", other)
	}
}

// Row 13 of issue 11: whether a value of the event's data was taken out of the reason, as which field, as what it looks like
// or not at all, and in how many pieces, makes no other group.
func TestFingerprintDoesNotDependOnData(t *testing.T) {
	t.Parallel()
	for _, same := range [][]string{
		{
			"no place for ‹name› in ward 7", "no place for ‹city› in ward ‹age›", "no place for ‹first› ‹last› in ward 7",
			`no place for "Bo" in ward 12`, "no place for 5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11 in ward -7", "no place for a1b2c3d4e5 in ward 7",
		},
		{"‹name›, is there", "‹name› , is there", "7, is there"},
	} {
		want, _ := deadletter.Fingerprint("h", "T", same[0])
		for _, reason := range same {
			id, pattern := deadletter.Fingerprint("h", "T", reason)
			require.Equal(t, want, id, reason)
			require.Equal(t, deadletter.Pattern(reason), pattern)
		}
	}
}

func FuzzPattern(f *testing.F) {
	for _, seed := range []string{`a "b" 'c' 7`, "‹x›", "\xff'", "“", "-7", "5f0c7a52-9b4e-4a35-8f0e-2f6d0f6b1c11x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, reason string) {
		p := deadletter.Pattern(reason)
		require.NotContains(t, p, "  ")
	})
}
