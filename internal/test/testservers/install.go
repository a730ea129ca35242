package testservers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/healz/worker/internal/test/posix"
)

// program is one that a server needs: where it may be beside the PATH, and what brings it where it is not.
type program struct {
	name   string
	places []string // patterns of its path; they go before the PATH
	pkg    string   // Debian's
	advice string
}

func initdb() program {
	return program{
		name:   "initdb",
		places: []string{"/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb"},
		pkg:    "postgresql",
		advice: "install PostgreSQL 13 or newer, or set " + databaseURL +
			" to a server on which databases may be created",
	}
}

func rabbitMQServer() program {
	return program{
		name: "rabbitmq-server",
		// Debian's other one, in the PATH, changes to an account that may not write to the server's folder.
		places: []string{"/usr/lib/rabbitmq/bin/rabbitmq-server"},
		pkg:    "rabbitmq-server",
		advice: "install RabbitMQ 3.10 or newer, or set " + rabbitMQURL + " and " + managementURL +
			" to a server on which vhosts may be created",
	}
}

func epmd() program {
	return program{
		name:   "epmd",
		places: []string{"/usr/lib/erlang/erts-*/bin/epmd", "/usr/local/lib/erlang/erts-*/bin/epmd"},
		pkg:    "erlang-base",
		advice: "put epmd, which comes with Erlang, in the PATH",
	}
}

// find returns the program's path, after installing it where that is possible.
func (p program) find(ctx context.Context) (string, error) {
	if path := p.look(); path != "" {
		return path, nil
	}
	if root() != "" {
		return "", fmt.Errorf("there is no %s in %s, which %s names", p.name, root(), rootVariable)
	}
	if err := p.install(ctx); err != nil {
		return "", fmt.Errorf("%s is not installed and could not be installed (%w): %s", p.name, err, p.advice)
	}
	if path := p.look(); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("the package %s brought no %s: %s", p.pkg, p.name, p.advice)
}

// look returns the program's path, that of the newest of several, or "".
func (p program) look() string {
	newest, version := "", -1
	for _, place := range p.places {
		paths, _ := filepath.Glob(root() + place)
		for _, path := range paths {
			number, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
			if number > version {
				newest, version = path, number
			}
		}
	}
	if newest != "" || root() != "" {
		return inRoot(newest)
	}
	path, err := exec.LookPath(p.name)
	if err != nil {
		return ""
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	return path
}

// install brings the program from Debian's packages, without starting the service that the package runs by default.
func (p program) install(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("only root can")
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return errors.New("there is no apt-get")
	}
	unlock, err := lock("/var/lib/dpkg")
	if err != nil {
		return err
	}
	defer unlock()
	if p.look() != "" { // another package's tests installed it meanwhile
		return nil
	}

	for path, content := range map[string]string{
		"/usr/sbin/policy-rc.d":                                   "#!/bin/sh\nexit 101\n",
		"/etc/postgresql-common/createcluster.d/testservers.conf": "create_main_cluster = off\n",
	} {
		remove, err := writeUnlessPresent(path, content)
		if err != nil {
			return err
		}
		defer remove()
	}

	fmt.Fprintf(os.Stderr, "installing %s, which the tests need\n", p.pkg)
	for _, arguments := range [][]string{
		{"update", "-qq"},
		{"install", "-qq", "--yes", "--no-install-recommends", p.pkg},
	} {
		command := exec.CommandContext(context.WithoutCancel(ctx), apt, arguments...) // never half a package
		command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", arguments[0], err, output)
		}
	}
	return nil
}

// writeUnlessPresent writes a program or settings file and returns the function that takes it away again. It leaves
// alone a file that is there.
func writeUnlessPresent(path, content string) (remove func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if errors.Is(err, os.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	_, err = file.WriteString(content)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return func() { _ = os.Remove(path) }, nil
}

// lock waits until no other test process has the folder locked.
func lock(folder string) (unlock func(), err error) {
	handle, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("open what installations lock: %w", err)
	}
	if err := posix.Lock(handle); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for another installation: %w", err), handle.Close())
	}
	return func() { _ = handle.Close() }, nil
}
