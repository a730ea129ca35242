package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// An edited letter reaches the handler that failed, even if other handlers have handled its original; the original is kept.
func TestEditedLettersAreReplayed(t *testing.T) {
	t.Parallel()
	bothDefaults(t, func(p *program) {
		t := p.t
		mended := newProgram(t, append(p.env, asMended+"=1")...)
		w := mended.start()
		tenant := uuid.NewString()
		sent := p.append(fmt.Sprintf(
			`{"event_type":"Mendable","aggregate_type":"Car","aggregate_id":%q,"tenant_id":%q,`+
				`"event_data":{"mode":"hopeless","mileage":9007199254740993}}`,
			uuid.NewString(), tenant))[0]
		letter := p.awaitLetters(1)[0]
		require.Equal(t, "mend", letter.Handler, "another has handled it")
		before := p.wholeLetters()
		edit := func(in string, args ...string) result {
			return p.run(in, append([]string{"dlq", "edit", letter.ID, "--reason", "CLINIC-512"}, args...)...)
		}
		script := func(line string) string {
			path := filepath.Join(t.TempDir(), "editor")
			require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+line+"\n"), 0o700))
			return path
		}
		modes := filepath.Join(t.TempDir(), "modes")
		p.env = append(p.env, "PATH="+os.Getenv("PATH"), "EDITOR=")

		require.Equal(t, 2, p.run("", "dlq", "edit", letter.ID).code, "not without a reason")
		r := edit(fmt.Sprintf(`{"tenant_id":%q}`, uuid.New()), "--patch", "-")
		require.Equal(t, exitInvalid, r.code)
		require.Contains(t, r.err, "tenant_id must stay what it was")
		r = edit(`{}`, "--patch", "-")
		require.Equal(t, 0, r.code)
		require.Contains(t, r.err, "nothing was changed")
		p.env[len(p.env)-1] = "EDITOR=" + script(`sed -i s/Mendable/Other/ "$1"`)
		r = edit("y\nn\n")
		require.Equal(t, exitInvalid, r.code)
		require.Equal(t, 2, strings.Count(r.err, "event_type must stay what it was\nEdit again?"), r.err)
		require.Equal(t, exitInvalid, edit("").code, "nobody is there to edit it again")
		p.env[len(p.env)-1] = "EDITOR=false"
		require.Equal(t, 1, edit("").code)
		require.Equal(t, before, p.wholeLetters())

		p.env[len(p.env)-1] = "EDITOR=" + script(fmt.Sprintf(
			`stat -c %%a "$2" "$(dirname "$2")" > %s; echo "$2" >> %s; sed -i s/hopeless/first/ "$2"`, modes, modes)) + " --wait"
		r = edit("")
		require.Equal(t, 0, r.code, r.err)
		require.Contains(t, r.out, "edited: letter "+letter.ID+" is released, and a running worker publishes it; the original is letter ")
		original := strings.TrimSpace(r.out[strings.LastIndex(r.out, " ")+1:])
		require.Eventually(t, func() bool { return len(p.causesOf(tenant, "Mended")) == 1 }, patience, commandTick)
		require.Equal(t, []string{sent.EventID}, p.causesOf(tenant, "Mended"))
		require.Empty(t, p.awaitLetters(0))
		file, err := os.ReadFile(modes)
		require.NoError(t, err)
		lines := strings.Fields(string(file))
		require.Equal(t, []string{"600", "700"}, lines[:2])
		require.NoFileExists(t, lines[2])
		require.NoDirExists(t, filepath.Dir(lines[2]))

		require.Eventually(t, func() bool {
			return strings.Contains(p.must("", "dlq", "show", letter.ID, "--format", "json"), `"state":"handled"`)
		}, patience, commandTick, "the letter keeps its id")
		require.Contains(t, p.must("", "dlq", "show", letter.ID), "CLINIC-512 (original: "+original+")")
		r = p.run("", "dlq", "show", sent.EventID)
		require.Equal(t, 1, r.code, "it is of two letters")
		require.Contains(t, r.err, "name one by its own id")
		kept := p.must("", "dlq", "archived", "show", original, "--reveal")
		require.Contains(t, kept, "hopeless")
		require.Contains(t, kept, "9007199254740993")
		require.Contains(t, p.must("", "dlq", "archived", "list", sent.EventID), "edited")
		require.Contains(t, p.must("", "dlq", "restore", sent.EventID), "restored: 1")
		restored := withoutDecisions(p.wholeLetters())
		require.Len(t, restored, 1)
		require.Equal(t, strings.Replace(before[0], letter.ID, original, 1), restored[0])
		require.Equal(t, "would pass: already handled", func() string {
			verdicts, _ := mended.try()
			return verdicts["mend "+sent.EventID]
		}())
		w.stop()
		require.NotContains(t, w.log.String(), "contents")
	})
}
