// Package mutants puts faults into the source, one at a time, and runs the tests that must find them. A fault that no
// test finds shows a hole in the tests.
package mutants

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// testTimeout ends tests that a fault makes wait for ever; they count as failed.
const testTimeout = "4m"

// Run tries the mutants whose names contain a text, in the working directory, which is that of the module. It returns an
// error if one of them survives or cannot be tried.
func Run(ctx context.Context, out io.Writer, only string) error {
	var failures []error
	found := 0
	for _, m := range all() {
		if !strings.Contains(m.name, only) {
			continue
		}
		began := time.Now()
		by, err := m.try(ctx)
		took := time.Since(began).Round(time.Second)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", m.name, err))
			fmt.Fprintf(out, "FAIL  %s (%s): %v\n", m.name, took, err)
			continue
		}
		found++
		fmt.Fprintf(out, "found %s (%s): %s\n", m.name, took, by)
	}
	fmt.Fprintf(out, "%d mutants found, %d not\n", found, len(failures))
	return errors.Join(failures...)
}

var errSurvived = errors.New("no test finds it")

// try returns the first test that finds the mutant.
func (m mutant) try(ctx context.Context) (test string, err error) {
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(dir)
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", program, m.pkg)
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not compile: %w\n%s", err, output)
	}
	tests := exec.CommandContext(ctx, program, "-test.run", m.run, "-test.failfast", "-test.timeout", testTimeout)
	tests.Dir = filepath.FromSlash(m.pkg)
	output, err := tests.CombinedOutput()
	if err == nil {
		return "", errSurvived
	}
	for line := range strings.Lines(string(output)) {
		line = strings.TrimSpace(line)
		if name, failed := strings.CutPrefix(line, "--- FAIL: "); failed {
			return name, nil
		}
		if strings.HasPrefix(line, "panic: ") {
			return line, nil
		}
	}
	return "", fmt.Errorf("the tests did not run: %w\n%s", err, output)
}

// overlay writes the mutated file, and the file by which the go command takes it for the original.
func (m mutant) overlay(dir string) (string, error) {
	original, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), m.from); n != 1 {
		return "", fmt.Errorf("%s has the text to replace %d times, not once: %q", m.file, n, m.from)
	}
	mutated := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(mutated, []byte(strings.Replace(string(source), m.from, m.to, 1)), 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutated}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, replace, 0o600)
}
