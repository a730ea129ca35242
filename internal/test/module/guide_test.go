package module_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/healz/worker/internal/test/testservers"
)

// The guide is done as a reader does it, chapter by chapter in one shell, and so is the README. Of their blocks
//
//   - one of sh is run; one of "sh run" is a worker in a terminal of its own, which stops those before, and "sh also" stops none;
//   - one with the name of a file writes it;
//   - one of text is what the block before it prints, "…" being anything. What does not change anything, a whole block or
//     the last line of one, is run again until it prints that: a handler takes a moment.
func TestTheGuide(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.servers = strings.NewReplacer(
		"postgres://clinic:secret@127.0.0.1:5432/clinic", testservers.Postgres(t),
		"amqp://clinic:secret@127.0.0.1:5672/", testservers.RabbitMQ(t),
		"127.0.0.1:8081", "127.0.0.1:0",
	)
	if g.hasNode = exec.CommandContext(t.Context(), "npm", "view", "tsx", "version").Run() == nil; !g.hasNode {
		t.Log("without Node, or npm's registry, the programs of chapter 9 are not run")
	}
	chapters, err := filepath.Glob(filepath.Join("..", "..", "..", "docs", "guide", "[0-9]*.md"))
	require.NoError(t, err)
	require.Len(t, chapters, 9)
	for _, chapter := range chapters {
		g.read(filepath.Join("docs", "guide", filepath.Base(chapter)))
	}
	g.stop()
}

// guide is a reader at work.
type guide struct {
	t       *testing.T
	shell   *shell
	servers *strings.Replacer
	hasNode bool
	running bool
}

func newGuide(t *testing.T, settings ...string) *guide {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	require.NoError(t, err)
	tools := t.TempDir()
	output(t, root, nil, "", "go", "build", "-o", filepath.Join(tools, "worker"), "./cmd/worker")
	g := &guide{t: t, shell: newShell(t, t.TempDir(), append(settings, "HTTP_ADDR=127.0.0.1:0")...), servers: strings.NewReplacer()}
	g.shell.run("PATH=" + tools + ":$PATH")
	return g
}

// read does what a file of the repository says.
func (g *guide) read(name string) {
	g.t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "..", name))
	require.NoError(g.t, err)
	blocks := regexp.MustCompile("(?ms)^```(\\w+)(?: (\\S+))?\n(.*?)^```$").FindAllStringSubmatch(string(content), -1)
	require.NotEmpty(g.t, blocks, name)
	for i, block := range blocks {
		kind, about, text := block[1], block[2], block[3]
		want := ""
		if i+1 < len(blocks) && blocks[i+1][1] == "text" {
			want = blocks[i+1][3]
		}
		switch {
		case kind == "sh" && (about != "node" || g.hasNode):
			g.do(name, about, text, want)
		case kind != "sh" && about != "":
			g.write(about, text)
		}
	}
}

var (
	// changing are the commands that are not run again.
	changing = regexp.MustCompile(`\b(append|replay|edit|new|go|make|npm|npx)\b|migrate up`)
	// failing are those that say by their exit code what they have found.
	failing = regexp.MustCompile(`\b(doctor|dlq try)\b`)
)

func (g *guide) do(chapter, about, text, want string) {
	g.t.Helper()
	text = g.servers.Replace(text)
	if strings.Contains(text, "go mod tidy") {
		folder := strings.TrimSpace(g.shell.run(strings.Split(text, "go mod tidy")[0] + "pwd"))
		requireWorker(g.t, folder[strings.LastIndex(folder, "\n")+1:])
		_, text, _ = strings.Cut(text, "go mod tidy\n")
		text = "export GOFLAGS=-mod=mod\n" + text // all that is required is there already
	}
	if about == "run" {
		g.stop()
	}
	if about == "run" || about == "also" {
		g.shell.run("setsid env " + strings.TrimSpace(text) + " 2> worker.log & workers=\"$workers $!\"")
		g.running = true
		g.until(chapter, `curl --silent --fail "$(sed -n 's/.*address=\(http:[^ ]*\).*/\1/p' worker.log)/readyz" || { tail -5 worker.log; false; }`, "")
		return
	}
	if changing.MatchString(text) {
		last := strings.LastIndex(strings.TrimSpace(text), "\n") + 1
		if changing.MatchString(text[last:]) {
			last = len(text)
		}
		printed, ok := g.shell.try(text[:last])
		require.True(g.t, ok || failing.MatchString(text[:last]), "%s: %s\n%s", chapter, text[:last], printed)
		if text = text[last:]; text == "" {
			require.Regexp(g.t, pattern(want), printed, chapter)
			return
		}
	}
	g.until(chapter, text, want)
}

// until runs commands that change nothing until they succeed and print what is wanted.
func (g *guide) until(chapter, text, want string) {
	g.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		printed, ok := g.shell.try(text)
		if (ok || failing.MatchString(text)) && pattern(want).MatchString(printed) {
			return
		}
		require.True(g.t, time.Now().Before(deadline), "%s: %s\nwanted\n%s\ngot\n%s", chapter, text, want, printed)
		g.shell.run("sleep 0.3")
	}
}

func (g *guide) stop() {
	g.t.Helper()
	if g.running {
		// As a terminal does; `go run` then ends with 1.
		g.shell.run(`for worker in $workers; do kill -INT -- -$worker; wait $worker || true; done; workers=
			grep --quiet "worker has stopped" worker.log`)
		g.running = false
	}
}

func (g *guide) write(name, text string) {
	g.t.Helper()
	folder := strings.TrimSpace(g.shell.run("pwd"))
	path := filepath.Join(folder, filepath.FromSlash(name))
	require.NoError(g.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(g.t, os.WriteFile(path, []byte(text), 0o600))
	if strings.HasSuffix(name, ".go") {
		require.Empty(g.t, g.shell.run("gofmt -l "+name))
	}
}

// pattern matches a text with "…" for anything.
func pattern(want string) *regexp.Regexp {
	lines := strings.Split(strings.TrimSpace(want), "\n")
	for i, line := range lines {
		lines[i] = strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, " ")), "…", ".*")
	}
	return regexp.MustCompile("(?s)" + strings.Join(lines, " *\n"))
}

// shell is a bash that is given one command after the other.
type shell struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	// scripts is the folder of the commands, of which there were n.
	scripts string
	n       int
}

func newShell(t *testing.T, folder string, settings ...string) *shell {
	t.Helper()
	command := exec.CommandContext(context.WithoutCancel(t.Context()), "bash")
	command.Dir = folder
	command.Env = environment(slices.Concat(settings, []string{"LC_ALL=C.UTF-8"}))
	in, err := command.StdinPipe()
	require.NoError(t, err)
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	command.Stderr = command.Stdout
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		fmt.Fprintln(in, "for worker in $workers; do kill -INT -- -$worker; done 2>/dev/null; exit")
		_ = command.Wait()
	})
	return &shell{t: t, in: in, out: bufio.NewReader(out), scripts: t.TempDir()}
}

// run runs commands, which must succeed, and returns what they print.
func (s *shell) run(text string) string {
	s.t.Helper()
	printed, ok := s.try(text)
	require.True(s.t, ok, "%s\n%s", text, printed)
	return printed
}

// try runs commands, and tells whether all of them succeeded.
func (s *shell) try(text string) (printed string, ok bool) {
	s.t.Helper()
	s.n++
	end, script := fmt.Sprintf("the end of %d: ", s.n), filepath.Join(s.scripts, fmt.Sprint(s.n))
	require.NoError(s.t, os.WriteFile(script, []byte(text+"\n"), 0o600))
	fmt.Fprintf(s.in, "failed=0; trap failed=1 ERR; . %s; trap - ERR; echo \"%s$failed\"\n", script, end)
	var all strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if before, code, found := strings.Cut(line, end); found {
			all.WriteString(before)
			return all.String(), strings.TrimSpace(code) == "0"
		}
		all.WriteString(line)
		if err != nil {
			return all.String(), false
		}
	}
}
