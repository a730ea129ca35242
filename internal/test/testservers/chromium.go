package testservers

import "testing"

func chromium() program {
	return program{
		name:   "chromium",
		places: []string{"/usr/lib/chromium/chromium", "/usr/bin/google-chrome", "/opt/google/chrome/chrome"},
		pkg:    "chromium",
		advice: "install Chromium",
	}
}

// Chromium returns the path of a browser that runs headless. A machine that lacks one gets it as it gets the servers; where
// that is not possible the test is skipped.
func Chromium(t testing.TB) string {
	t.Helper()
	path, err := chromium().find(t.Context())
	if err != nil {
		Skip(t, "no browser: "+err.Error())
	}
	return path
}
